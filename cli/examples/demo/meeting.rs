//! A meeting note, spoken by a synthetic voice into a microphone that is none, and written down live: a PulseAudio of our own,
//! whose only source hears what is played to it.

use super::programs::{Programs, failed};
use ringfence_cli::clock;
use ringfence_cli::error::CliError;
use ringfence_cli::home::Home;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// What is said.
const NOTE: &str =
    "The meeting has decided to repair the roof in April. The front door will be painted green.";
/// Of its words so many must be understood, or the demonstration has failed.
const WORDS_MIN: f64 = 0.6;
/// What has to be installed.
const NEEDED: [&str; 3] = ["pulseaudio", "paplay", "espeak-ng"];
/// How long the sound server may take to start.
const START_WAIT_MAX: Duration = Duration::from_secs(10);
/// How often we look whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Somebody who speaks.
pub(crate) struct Meeting {
    folder: PathBuf,
    running: Vec<Child>,
}

impl Drop for Meeting {
    fn drop(&mut self) {
        for child in &mut self.running {
            // Already ended is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Meeting {
    /// `None`, said aloud, where something is not installed.
    ///
    /// # Errors
    /// [`CliError::Failed`] where the sound server does not start.
    pub(crate) fn prepare(folder: &Path) -> Result<Option<Self>, CliError> {
        let is_there = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
        if let Some(missing) = NEEDED.iter().find(|name| !is_there(name)) {
            println!("\nno meeting note: {missing} is not installed (scripts/system-packages)");
            return Ok(None);
        }
        let mut meeting = Self { folder: folder.to_owned(), running: Vec::new() };
        let socket = meeting.socket();
        let mut daemon = Command::new("pulseaudio");
        daemon.args([
            "-n",
            "--daemonize=no",
            "--exit-idle-time=-1",
            "--use-pid-file=no",
            "--disable-shm=yes",
        ]);
        daemon
            .arg("-L")
            .arg(format!("module-native-protocol-unix socket={} auth-anonymous=1", socket.display()));
        daemon.args(["-L", "module-null-sink sink_name=room rate=48000 channels=1 format=s16le"]);
        meeting.start(daemon)?;
        let until = clock::now() + START_WAIT_MAX;
        while UnixStream::connect(&socket).is_err() {
            if clock::now() > until {
                return Err(failed("pulseaudio", "it does not start"));
            }
            thread::sleep(LOOK_EVERY);
        }
        // A sink that nobody plays to stops its clock.
        let mut silence = Command::new("pacat");
        silence.args(["-d", "room", "--rate=48000", "--channels=1", "--format=s16le", "/dev/zero"]);
        meeting.start(silence)?;
        Ok(Some(meeting))
    }

    /// Where the sound server listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("pulse.sock")
    }

    fn start(&mut self, mut command: Command) -> Result<(), CliError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = self.alone(&mut command).spawn().map_err(|source| CliError::io(name, source))?;
        self.running.push(child);
        Ok(())
    }

    /// With a home of its own, and nothing to say.
    fn alone<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("HOME", &self.folder)
            .env("XDG_RUNTIME_DIR", &self.folder)
            .env("PULSE_SERVER", format!("unix:{}", self.socket().display()))
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
    }

    /// Says the note; returns when it is said.
    fn speak(&self) -> Result<(), CliError> {
        println!("\n(somebody says: {NOTE})");
        let wav = self.folder.join("note.wav");
        let mut voice = Command::new("espeak-ng");
        self.run(voice.args(["-v", "en-us", "-s", "140", "-w"]).arg(&wav).arg(NOTE))?;
        let mut player = Command::new("paplay");
        self.run(player.args(["-d", "room", "--latency-msec=300"]).arg(&wav))
    }

    fn run(&self, command: &mut Command) -> Result<(), CliError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let status = self.alone(command).status().map_err(|source| CliError::io(&*name, source))?;
        if status.success() { Ok(()) } else { Err(failed(&name, format!("ended with {status}"))) }
    }

    /// Asks for the microphone, has it approved, speaks, and holds what was written against what was said. What was written.
    ///
    /// # Errors
    /// [`CliError::Failed`] where too little was understood, and those of the commands.
    pub(crate) fn hold(
        &self,
        programs: &Programs,
        home: &Home,
        passphrase: &Path,
    ) -> Result<String, CliError> {
        let written = programs.listen(home, passphrase, || self.speak())?;
        println!("{}", written.trim_end());
        let words = |text: &str| -> Vec<String> {
            let plain = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
            text.split_whitespace().map(plain).collect()
        };
        let (said, heard) = (words(NOTE), words(&written));
        let understood = said.iter().filter(|word| heard.contains(word)).count() as f64 / said.len() as f64;
        println!("({:.0}% of the words)", understood * 100.0);
        if understood < WORDS_MIN {
            return Err(failed(
                "the meeting note",
                format!("only {understood:.2} of its words were understood"),
            ));
        }
        Ok(written)
    }
}

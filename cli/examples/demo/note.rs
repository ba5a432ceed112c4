//! A meeting note, spoken by a synthesiser into a microphone that is none: a sound server of the demonstration's own, whose
//! only source is what is played to it.

use crate::programs::failed;
use ringfence_cli::clock;
use ringfence_cli::error::CliError;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// What is said.
const NOTE: &str = "The meeting has moved to Thursday at ten. Anna brings the numbers of the last quarter, \
                    and Peter writes the summary for the whole team.";
/// Of its words, so many must be heard: the voice is a machine's, and the model the smallest.
const WORDS_MIN: f64 = 0.75;
/// How long the sound server may take to start.
const START_WAIT_MAX: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The sound server; it ends with this.
pub(crate) struct Microphone {
    folder: PathBuf,
    running: Vec<Child>,
}

impl Microphone {
    /// Starts it, with everything that it writes below this folder.
    ///
    /// # Errors
    /// [`CliError::Failed`] where the sound server is not installed, or does not start.
    pub(crate) fn start(folder: &Path) -> Result<Self, CliError> {
        let io = |source| CliError::io("the sound server's folder", source);
        for (name, mode) in [("", 0o755), ("home", 0o700), ("run", 0o700)] {
            let folder = folder.join(name);
            fs::create_dir_all(&folder).map_err(io)?;
            fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).map_err(io)?;
        }
        let mut microphone = Self { folder: folder.to_owned(), running: Vec::new() };
        let native = format!("module-native-protocol-unix socket={} auth-anonymous=1", microphone.socket());
        let sink = "module-null-sink sink_name=microphone rate=48000 channels=1 format=s16le";
        microphone.begin(
            "pulseaudio",
            &["-n", "--exit-idle-time=-1", "--use-pid-file=no", "-L", &native, "-L", sink],
        )?;
        let until = clock::now() + START_WAIT_MAX;
        while UnixStream::connect(microphone.socket()).is_err() {
            if clock::now() > until {
                return Err(failed("pulseaudio", "it does not start"));
            }
            thread::sleep(LOOK_EVERY);
        }
        microphone.run("pactl", &["set-default-source", "microphone.monitor"])?;
        // A sink to which nobody plays has no clock.
        microphone.begin("pacat", &["-d", "microphone", "--latency-msec=20", "/dev/zero"])?;
        Ok(microphone)
    }

    /// The path of its socket.
    pub(crate) fn socket(&self) -> String {
        self.folder.join("socket").display().to_string()
    }

    /// Has the note spoken, and returns when it has been.
    ///
    /// # Errors
    /// [`CliError::Failed`] where the synthesiser or the player fails.
    pub(crate) fn speak(&self) -> Result<(), CliError> {
        let sound = self.folder.join("note.wav").display().to_string();
        println!("\n$ espeak-ng \"{NOTE}\"");
        self.run("espeak-ng", &["-s", "150", "-w", &sound, NOTE])?;
        self.run("paplay", &["-d", "microphone", &sound])
    }

    fn begin(&mut self, program: &str, arguments: &[&str]) -> Result<(), CliError> {
        let child = self.command(program, arguments).spawn();
        self.running.push(child.map_err(|source| missing(program, &source))?);
        Ok(())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), CliError> {
        let status = self.command(program, arguments).status().map_err(|source| missing(program, &source))?;
        if status.success() { Ok(()) } else { Err(failed(program, format!("ended with {status}"))) }
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("PULSE_SERVER", format!("unix:{}", self.socket()))
            .env("HOME", self.folder.join("home"))
            .env("XDG_RUNTIME_DIR", self.folder.join("run"))
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

impl Drop for Microphone {
    fn drop(&mut self) {
        for child in &mut self.running {
            // Already ended is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn missing(program: &str, source: &std::io::Error) -> CliError {
    failed(program, format!("{source}; `scripts/system-packages` installs it"))
}

/// Whether enough of the note was heard.
///
/// # Errors
/// [`CliError::Failed`] where it was not.
pub(crate) fn check(heard: &str) -> Result<(), CliError> {
    let words = |text: &str| -> Vec<String> {
        let plain: String =
            text.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
        plain.split_whitespace().map(str::to_owned).collect()
    };
    let (said, heard) = (words(NOTE), words(heard));
    let found = said.iter().filter(|word| heard.contains(word)).count();
    println!("{found} of the note's {} words were heard", said.len());
    if (found as f64) < WORDS_MIN * said.len() as f64 {
        return Err(failed("ringfence listen", format!("only {found} of {} words were heard", said.len())));
    }
    Ok(())
}

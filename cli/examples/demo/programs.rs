//! The programs, run as a person would run them: each command is printed before it runs.

use super::summary;
use ringfence_cli::clock;
use ringfence_cli::error::CliError;
use ringfence_cli::home::Home;
use ringfence_cli::http::{Address, ApiKey, Ask, ask_once};
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use serde_json::Value;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

/// The client of the demonstration.
pub(crate) const CLIENT: &str = "demo";

/// How long the server may take to start, the probes of its sandbox included.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long the server may take to end: longer than it drains.
const STOP_WAIT_MAX: Duration = Duration::from_secs(40);
/// How often we look whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Lines of the log that are shown after a failure.
const LOG_LINES: usize = 20;

/// An error of this demonstration's own.
pub(crate) fn failed(subject: &str, what: impl Into<String>) -> CliError {
    let source = what.into().into();
    CliError::Failed { subject: subject.to_owned(), code: "demo_failed", source, advice: String::new() }
}

/// The built programs.
pub(crate) struct Programs {
    ringfence: PathBuf,
    /// Started as root, the server is to become this user.
    user: Option<&'static str>,
}

impl Programs {
    /// Looks in the folder above this example's own: `target/release` for `target/release/examples/demo`.
    ///
    /// # Errors
    /// [`CliError::Failed`] where one of them is missing.
    pub(crate) fn find() -> Result<Self, CliError> {
        let own = env::current_exe().map_err(|source| CliError::io("own executable", source))?;
        let folder = own.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        for name in
            ["ringfence", "ringfence-server", "ringfence-worker", "ringfence-fileguard", "ringfence-audio"]
        {
            if !folder.join(name).is_file() {
                let what =
                    format!("not in {}; build it: cargo build --release --workspace", folder.display());
                return Err(failed(name, what));
            }
        }
        let user = rustix::process::geteuid().is_root().then_some("nobody");
        Ok(Self { ringfence: folder.join("ringfence"), user })
    }

    /// `ringfence init`.
    ///
    /// # Errors
    /// [`CliError::Failed`] where the command fails; so for the others.
    pub(crate) fn init(&self, home: &Home, folder: &Path, passphrase: &Path) -> Result<(), CliError> {
        let mut command = self.command(home, &["init"]);
        command.arg("--config").arg(folder.join("config")).arg("--passphrase-file").arg(passphrase);
        self.as_user(&mut command);
        run(command).map(drop)
    }

    /// `ringfence model add`, with the downloads kept in `.cache/archives`.
    pub(crate) fn add_models(
        &self,
        home: &Home,
        folder: &Path,
        passphrase: &Path,
        models: &[&str],
    ) -> Result<(), CliError> {
        let mut command = self.command(home, &["model", "add"]);
        command.args(models).args(["--cache", ".cache/archives"]);
        command.arg("--config").arg(folder.join("config")).arg("--passphrase-file").arg(passphrase);
        run(command).map(drop)
    }

    /// `ringfence quota set`: memory of a GPU, and the model on it.
    pub(crate) fn use_gpu(&self, home: &Home) -> Result<(), CliError> {
        let values = ["devices.wgpu.memory_mib=2048", "models.minilm.device=wgpu"];
        run(self.command(home, &[&["quota", "set"][..], &values].concat())).map(drop)
    }

    /// `ringfence client add`.
    pub(crate) fn add_client(&self, home: &Home) -> Result<(), CliError> {
        run(self.command(home, &["client", "add", CLIENT])).map(drop)
    }

    /// `ringfence key add`; the key itself is not shown.
    pub(crate) fn add_key(&self, home: &Home) -> Result<ApiKey, CliError> {
        let mut command = self.command(home, &["key", "add", CLIENT]);
        command.stdout(Stdio::piped());
        run(command).map(|key| ApiKey::new(&key))
    }

    /// `ringfence index` in the background, and `ringfence grant approve` for what it asks for.
    pub(crate) fn index(
        &self,
        home: &Home,
        folder: &Path,
        globs: &[&str],
        passphrase: &Path,
    ) -> Result<(), CliError> {
        let mut command = self.asks(home, "index", folder);
        for glob in globs {
            command.args(["--glob", glob]);
        }
        let run = self.folder_of(passphrase);
        self.approved(home, command, 3, (&run, passphrase)).map(drop)
    }

    /// `ringfence search`, approved; its answer as JSON.
    pub(crate) fn search(
        &self,
        home: &Home,
        folder: &Path,
        question: &str,
        passphrase: &Path,
    ) -> Result<String, CliError> {
        let mut command = self.asks(home, "search", folder);
        command.args([question, "--most", "3", "--json"]).stdout(Stdio::piped());
        let run = self.folder_of(passphrase);
        self.approved(home, command, 1, (&run, passphrase))
    }

    /// `ringfence audit verify`, and `ringfence audit export` of what the client did: the plain words of it.
    pub(crate) fn audit(&self, home: &Home, folder: &Path) -> Result<String, CliError> {
        run(self.command(home, &["audit", "verify"]))?;
        let to = folder.join("export");
        let mut command = self.command(home, &["audit", "export"]);
        command.arg(&to).args(["--client", CLIENT]);
        run(command)?;
        let report = to.join("report.txt");
        fs::read_to_string(&report).map_err(|source| CliError::io(report.display().to_string(), source))
    }

    /// `ringfence listen`, approved; somebody speaks while it listens, then `ringfence audio stop`. What was said.
    pub(crate) fn listen(
        &self,
        home: &Home,
        passphrase: &Path,
        speak: impl FnOnce() -> Result<(), CliError>,
    ) -> Result<String, CliError> {
        let reason = "listen: to write the meeting's note";
        let mut command = self.command(home, &["listen", "--text-only", "--for", "2m", "--reason", reason]);
        command.args(["--client", CLIENT]).stdout(Stdio::piped());
        let run_folder = self.folder_of(passphrase);
        let meanwhile = || {
            let capture = running_capture(home)?;
            speak()?;
            run(self.command(home, &["audio", "stop", &capture])).map(drop)
        };
        self.approved_while(home, command, 1, (&run_folder, passphrase), meanwhile)
    }

    /// `ringfence summarize`, approved; its answer as JSON.
    pub(crate) fn summarize(
        &self,
        home: &Home,
        files: &[PathBuf],
        passphrase: &Path,
    ) -> Result<String, CliError> {
        let mut command = self.command(home, &["summarize"]);
        command.args(files).args(["--client", CLIENT, "--json"]).stdout(Stdio::piped());
        self.approved(home, command, 1, (&self.folder_of(passphrase), passphrase))
    }

    /// The same of one file, whose grant is revoked as soon as the model is at work; what it answers to that.
    pub(crate) fn summarize_and_revoke(
        &self,
        home: &Home,
        file: &Path,
        passphrase: &Path,
    ) -> Result<String, CliError> {
        let mut command = self.command(home, &["summarize"]);
        command.arg(file).args(["--client", CLIENT, "--json"]).stdout(Stdio::piped());
        let meanwhile = |grants: &[String]| {
            until("the summary", || summary::is_at_work(home))?;
            let revoke = ["grant", "revoke", &grants[0]];
            run(self.command(home, &revoke)).map(drop)
        };
        let (_, printed) =
            self.answered_while(home, command, 1, (&self.folder_of(passphrase), passphrase), meanwhile)?;
        Ok(printed)
    }

    fn folder_of(&self, passphrase: &Path) -> PathBuf {
        passphrase.parent().unwrap_or(Path::new(".")).to_owned()
    }

    fn asks(&self, home: &Home, what: &str, folder: &Path) -> Command {
        let mut command = self.command(home, &[what]);
        command.arg(folder).args(["--client", CLIENT]);
        command
    }

    /// Runs a command that asks for so many grants, and says yes to them as its operator.
    fn approved(
        &self,
        home: &Home,
        command: Command,
        grants: usize,
        paths: (&Path, &Path),
    ) -> Result<String, CliError> {
        self.approved_while(home, command, grants, paths, || Ok(()))
    }

    /// The same, and does something else once that is done.
    fn approved_while(
        &self,
        home: &Home,
        command: Command,
        grants: usize,
        paths: (&Path, &Path),
        meanwhile: impl FnOnce() -> Result<(), CliError>,
    ) -> Result<String, CliError> {
        let name = command.get_args().next().map(OsStr::to_string_lossy).unwrap_or_default().into_owned();
        let (status, printed) = self.answered_while(home, command, grants, paths, |_| meanwhile())?;
        if status.success() {
            return Ok(printed);
        }
        Err(failed(&format!("ringfence {name}"), format!("ended with {status}")))
    }

    /// The same for a command that may fail; how it ended and what it printed. What is done meanwhile hears the grants' numbers.
    fn answered_while(
        &self,
        home: &Home,
        mut command: Command,
        grants: usize,
        (run, passphrase): (&Path, &Path),
        meanwhile: impl FnOnce(&[String]) -> Result<(), CliError>,
    ) -> Result<(ExitStatus, String), CliError> {
        show(&command);
        let name = command.get_args().next().map(OsStr::to_string_lossy).unwrap_or_default().into_owned();
        let io = |source| CliError::io(format!("ringfence {name}"), source);
        let mut child = Asking(command.stdin(Stdio::null()).spawn().map_err(io)?);
        let numbers = pending(home, grants)?;
        let mut approve = self.command(home, &["grant", "approve"]);
        approve.args(&numbers).arg("--config").arg(run.join("config"));
        approve.arg("--passphrase-file").arg(passphrase).stdout(Stdio::piped());
        let approved = crate::programs::run(approve)?;
        // What was decided on, once; the other questions differ by a line or two.
        println!("{}", approved.split("\n\n").next().unwrap_or_default());
        meanwhile(&numbers)?;
        let mut printed = String::new();
        if let Some(stdout) = &mut child.0.stdout {
            stdout.read_to_string(&mut printed).map_err(io)?;
        }
        let status = child.0.wait().map_err(io)?;
        Ok((status, printed))
    }

    /// `ringfence serve`, ready to be asked.
    pub(crate) fn serve(
        &self,
        home: &Home,
        folder: &Path,
        sound_server: Option<&Path>,
    ) -> Result<RunningServer, CliError> {
        let (ready_file, log) = (home.path().join("ready.json"), folder.join("server.log"));
        let mut command = self.command(home, &["serve", "--listen", "127.0.0.1:0"]);
        command.arg("--ready-file").arg(&ready_file);
        self.as_user(&mut command);
        if let Some(socket) = sound_server {
            command.args(["--", "--pulse-server"]).arg(socket);
        }
        show(&command);
        let file =
            fs::File::create(&log).map_err(|source| CliError::io(log.display().to_string(), source))?;
        let other = file.try_clone().map_err(|source| CliError::io(log.display().to_string(), source))?;
        let child = command.stdin(Stdio::null()).stdout(other).stderr(file).spawn();
        let child = child.map_err(|source| CliError::io("ringfence serve", source))?;
        RunningServer { child, log, url: String::new() }.when_ready(&ready_file)
    }

    fn command(&self, home: &Home, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.ringfence);
        command.args(arguments).arg("--home").arg(home.path());
        command
    }

    fn as_user(&self, command: &mut Command) {
        if let Some(user) = self.user {
            command.args(["--user", user]);
        }
    }
}

/// A command that waits for its grants; ended when dropped.
struct Asking(Child);

impl Drop for Asking {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The numbers of the questions that wait, as soon as there are so many.
fn pending(home: &Home, wanted: usize) -> Result<Vec<String>, CliError> {
    let until = clock::now() + START_WAIT_MAX;
    while clock::now() < until {
        let ask = Ask::plain(hyper::Method::GET, "/grants");
        let grants = ask_once(&Address::Unix(home.admin_socket()), &ask)?;
        let grants = grants["grants"].as_array().into_iter().flatten();
        let pending = grants.filter(|grant| grant["state"] == "pending" && is_put(grant));
        let numbers: Vec<String> = pending.map(|grant| grant["grant"].to_string()).collect();
        if numbers.len() == wanted {
            return Ok(numbers);
        }
        thread::sleep(LOOK_EVERY);
    }
    Err(failed("grants", format!("{wanted} questions did not come in time")))
}

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool, CliError>) -> Result<(), CliError> {
    let until = clock::now() + START_WAIT_MAX;
    while clock::now() < until {
        if is_so()? {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
    Err(failed(what, "did not begin in time"))
}

/// Whether a question can be answered: a file is open by then, of sound nothing is.
fn is_put(grant: &Value) -> bool {
    grant["kind"] == "audio_capture" || !grant["object"].is_null()
}

/// The number of the only capture, as soon as it runs.
fn running_capture(home: &Home) -> Result<String, CliError> {
    let until = clock::now() + START_WAIT_MAX;
    while clock::now() < until {
        let ask = Ask::plain(hyper::Method::GET, "/audio/captures");
        let captures = ask_once(&Address::Unix(home.admin_socket()), &ask)?;
        let capture = &captures["captures"][0];
        if capture["captured"].as_u64() > Some(0) {
            return Ok(capture["capture"].to_string());
        }
        thread::sleep(LOOK_EVERY);
    }
    Err(failed("listen", "nothing is captured"))
}

/// A random passphrase in a file that only we can read.
///
/// # Errors
/// [`CliError::Failed`].
pub(crate) fn write_passphrase(folder: &Path) -> Result<PathBuf, CliError> {
    let path = folder.join("passphrase");
    let write = || {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|source| CliError::io(path.display().to_string(), source))?;
    Ok(path)
}

/// Shows a command as it would be typed here.
fn show(command: &Command) {
    let here = env::current_dir().map(|here| format!("{}/", here.display())).unwrap_or_default();
    let arguments = command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    println!("\n$ ringfence {}", if here.is_empty() { arguments } else { arguments.replace(&here, "") });
}

/// Runs a command; gives its standard output where that is piped.
fn run(mut command: Command) -> Result<String, CliError> {
    show(&command);
    let name = command.get_args().take(2).map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let io = |source| CliError::io(format!("ringfence {name}"), source);
    let mut child = command.stdin(Stdio::null()).spawn().map_err(io)?;
    let mut printed = String::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_string(&mut printed).map_err(io)?;
    }
    let status = child.wait().map_err(io)?;
    if status.success() {
        Ok(printed)
    } else {
        Err(failed(&format!("ringfence {name}"), format!("ended with {status}")))
    }
}

/// The server; ended when dropped.
pub(crate) struct RunningServer {
    child: Child,
    log: PathBuf,
    /// Of its loopback listener.
    pub(crate) url: String,
}

#[derive(Deserialize)]
struct Ready {
    url: String,
}

impl RunningServer {
    fn when_ready(mut self, ready_file: &Path) -> Result<Self, CliError> {
        let until = clock::now() + START_WAIT_MAX;
        while clock::now() < until {
            // The file is moved to its place when it is whole.
            if let Ok(text) = fs::read(ready_file) {
                let ready: Ready = serde_json::from_slice(&text)
                    .map_err(|error| failed(&ready_file.display().to_string(), error.to_string()))?;
                self.url = ready.url;
                return Ok(self);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(failed("ringfence serve", format!("ended with {status}:\n{}", self.log_tail())));
            }
            thread::sleep(LOOK_EVERY);
        }
        Err(failed("ringfence serve", format!("is not ready in time:\n{}", self.log_tail())))
    }

    /// The last lines that the server wrote.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// SIGTERM; the server drains and ends.
    ///
    /// # Errors
    /// [`CliError::Failed`] where it does not end in time, or not with success.
    pub(crate) fn stop(mut self) -> Result<(), CliError> {
        println!("\n$ kill -TERM {}", self.child.id());
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM).map_err(|source| CliError::io("kill", source))?;
        let until = clock::now() + STOP_WAIT_MAX;
        while clock::now() < until {
            match self.child.try_wait().map_err(|source| CliError::io("ringfence serve", source))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let what = format!("ended with {status}:\n{}", self.log_tail());
                    return Err(failed("ringfence serve", what));
                }
                None => thread::sleep(LOOK_EVERY),
            }
        }
        Err(failed("ringfence serve", format!("does not end after SIGTERM:\n{}", self.log_tail())))
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

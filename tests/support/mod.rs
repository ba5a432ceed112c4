//! A real server for a test: its own home, real programs, real sockets; killed and removed at the end.
#![allow(dead_code, reason = "each test executable uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]
#![allow(missing_docs, reason = "support for tests")]

use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Of `nobody` on Debian; any uid but root's does.
const ORDINARY_UID: u32 = 65_534;

pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// Folder of the built programs.
pub(crate) fn programs() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_ringfence-server")).parent().expect("a program lies in a folder").to_owned()
}

pub(crate) fn tiny_package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert")
}

/// A generator with random weights.
pub(crate) fn tiny_llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama")
}

/// A home with keys and packages.
pub(crate) struct Home {
    pub(crate) folder: TempDir,
    programs: PathBuf,
    user: Option<String>,
    /// Run every program as this uid, which is not ours.
    as_uid: Option<u32>,
    /// Variables of the server.
    environment: Vec<(&'static str, PathBuf)>,
    /// Of its command line.
    options: Vec<String>,
}

impl Home {
    /// An initialised home, for the user `nobody` where the test runs as root.
    pub(crate) fn new() -> Self {
        Self::made("new", |_| {})
    }

    /// One with what `make` puts into it: a copy of the one that the first test to want this name has made, since keys and
    /// packages take seconds.
    pub(crate) fn made(name: &str, make: impl FnOnce(&Self)) -> Self {
        let home = Self::empty();
        let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", build()));
        if !made.is_dir() {
            let first = Self::empty().init();
            make(&first);
            let own = made.with_extension(std::process::id().to_string());
            copy_all(first.folder.path(), &own);
            fs::write(own.join("was"), first.folder.path().to_str().unwrap()).unwrap();
            // Another test may have made it meanwhile.
            if fs::rename(&own, &made).is_err() {
                fs::remove_dir_all(&own).unwrap();
            }
        }
        copy_all(&made, home.folder.path());
        let copy = home.config().join("trust.copy");
        let was = fs::read_to_string(home.folder.path().join("was")).unwrap();
        let text = fs::read_to_string(&copy).unwrap();
        fs::write(&copy, text.replace(&was, home.folder.path().to_str().unwrap())).unwrap();
        home
    }

    fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("ringfence-test").tempdir().unwrap();
        let user = rustix::process::getuid().is_root().then(|| "nobody".to_owned());
        Self { folder, programs: programs(), user, as_uid: None, environment: vec![], options: vec![] }
    }

    /// A home of an ordinary user, whatever user the test runs as, with the tiny package.
    pub(crate) fn of_an_ordinary_user() -> Self {
        if !rustix::process::getuid().is_root() {
            return Self::with_tiny();
        }
        let folder = tempfile::Builder::new().prefix("ringfence-test").tempdir().unwrap();
        let programs = folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        for name in
            ["ringfence", "ringfence-server", "ringfence-worker", "ringfence-fileguard", "ringfence-audio"]
        {
            fs::copy(self::programs().join(name), programs.join(name)).unwrap();
        }
        std::os::unix::fs::chown(folder.path(), Some(ORDINARY_UID), Some(ORDINARY_UID)).unwrap();
        let home = Self {
            folder,
            programs,
            user: None,
            as_uid: Some(ORDINARY_UID),
            environment: vec![],
            options: vec![],
        }
        .init();
        home.add_tiny("tiny-bert");
        home
    }

    fn init(self) -> Self {
        let home = self;
        fs::write(home.passphrase(), "correct horse battery staple").unwrap();
        let mut arguments = vec!["init".to_owned()];
        if let Some(user) = &home.user {
            arguments.extend(["--user".to_owned(), user.clone()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        home.cli_ok(&arguments);
        home
    }

    /// One with the tiny package under the name `tiny`.
    pub(crate) fn with_tiny() -> Self {
        Self::made("tiny", |home| home.add_tiny("tiny-bert"))
    }

    pub(crate) fn add_tiny(&self, name: &str) {
        self.add(&tiny_package(), name);
    }

    /// Adds the package of a folder under a name.
    pub(crate) fn add(&self, package: &Path, name: &str) {
        let folder = self.folder.path().join("source").join(name);
        copy(package, &folder);
        self.cli_ok(&["model", "add", folder.to_str().unwrap(), "--accept-unverified-source"]);
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    pub(crate) fn passphrase(&self) -> PathBuf {
        self.folder.path().join("passphrase")
    }

    /// Uses copies of the programs that a test has put elsewhere.
    pub(crate) fn use_programs(&mut self, folder: PathBuf) {
        self.programs = folder;
    }

    /// Sets a variable of the server's environment.
    pub(crate) fn set_variable(&mut self, name: &'static str, value: PathBuf) {
        self.environment.push((name, value));
    }

    /// Adds options to the server's command line.
    pub(crate) fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(ToString::to_string).collect();
    }

    pub(crate) fn quotas(&self, text: &str) {
        fs::write(self.path().join("quotas.toml"), text).unwrap();
    }

    /// Runs `ringfence` with the options that lead it to this home.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = self.program("ringfence");
        command.args(arguments).arg("--home").arg(self.path());
        if matches!(
            arguments,
            ["init" | "trust", ..] | ["model", "add" | "sign", ..] | ["grant", "approve" | "watch", ..]
        ) {
            command.arg("--config").arg(self.config());
        }
        if !matches!(arguments, ["trust", "show" | "restore", ..])
            && matches!(
                arguments,
                ["init" | "trust", ..] | ["model", "add" | "sign", ..] | ["grant", "approve" | "watch", ..]
            )
        {
            command.arg("--passphrase-file").arg(self.passphrase());
        }
        command.stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        assert!(
            output.status.success(),
            "ringfence {arguments:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// A program of this home's folder, as the user whose home it is. The command line is never a copy.
    fn program(&self, name: &str) -> Command {
        let copied = self.as_uid.is_some() || name == "ringfence-server";
        let path = if copied { self.programs.join(name) } else { programs().join(name) };
        let Some(uid) = self.as_uid else { return Command::new(path) };
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={uid}")).arg("--clear-groups").arg(path);
        command.env("HOME", self.folder.path());
        command
    }

    fn command(&self) -> Command {
        let mut command = self.program("ringfence-server");
        command.arg("--home").arg(self.path()).args(["--listen", "127.0.0.1:0", "--ready-file"]);
        command.arg(self.folder.path().join("ready.json"));
        command.args(&self.options);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(user) = &self.user {
            command.args(["--user", user]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts the server and waits until it is ready.
    pub(crate) fn start(&self) -> Server {
        match self.try_start() {
            Ok(server) => server,
            Err(log) => panic!("the server did not start:\n{log}"),
        }
    }

    /// Starts the server; the log if it ends instead of becoming ready.
    pub(crate) fn try_start(&self) -> Result<Server, String> {
        let ready = self.folder.path().join("ready.json");
        drop(fs::remove_file(&ready));
        let log = self.folder.path().join("server.log");
        let mut child = self.command().stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let until = Instant::now() + WAIT_MAX;
        loop {
            if let Ok(text) = fs::read_to_string(&ready) {
                let facts: Value = serde_json::from_str(&text).unwrap();
                let home = self.path();
                return Ok(Server { child, facts, home, log, keep: false });
            }
            if child.try_wait().unwrap().is_some() || Instant::now() > until {
                drop(child.kill());
                drop(child.wait());
                return Err(fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The programs that were built last.
fn build() -> String {
    let of = |name: &str| {
        let facts = fs::metadata(programs().join(name)).unwrap();
        format!("{}-{}", facts.mtime(), facts.size())
    };
    let all = ["ringfence", "ringfence-server", "ringfence-worker"].map(of).join("-");
    format!("{}-{all}", rustix::process::getuid().as_raw())
}

/// With owners, rights and times.
fn copy_all(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-aT").args([from, to]).status().unwrap();
    assert!(status.success(), "cp -aT {} {}", from.display(), to.display());
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A running server.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) facts: Value,
    home: PathBuf,
    log: PathBuf,
    keep: bool,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn admin(&self) -> Target {
        Target::Unix(self.home.join("run/admin.sock"))
    }

    pub(crate) fn api(&self) -> Target {
        Target::Unix(self.home.join("run/api.sock"))
    }

    pub(crate) fn client(&self, name: &str) -> Target {
        Target::Unix(self.home.join("clients").join(name).join("api.sock"))
    }

    pub(crate) fn tcp(&self) -> Target {
        let url = self.facts["url"].as_str().unwrap();
        Target::Tcp(url.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned())
    }

    pub(crate) fn status(&self) -> Value {
        self.admin().get("/status").ok()
    }

    /// Asks until `wanted` says yes to a status.
    pub(crate) fn await_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + WAIT_MAX;
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < until, "{what} did not come to be: {status:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The pid of the only worker, once it is ready.
    pub(crate) fn worker_pid(&self) -> i32 {
        let status = self.await_status("a ready worker", |status| {
            status["workers"]
                .as_array()
                .is_some_and(|workers| workers.len() == 1 && workers[0]["state"] == "ready")
        });
        i32::try_from(status["workers"][0]["pid"].as_i64().unwrap()).unwrap()
    }

    /// SIGTERM, and the exit status.
    pub(crate) fn stop(mut self) -> std::process::ExitStatus {
        self.keep = true;
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let until = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the server did not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.keep {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Where to send a request.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Unix(PathBuf),
    Tcp(String),
}

/// A stream of either kind.
pub(crate) trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    /// The body as it is.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON of an answer that must be a success.
    pub(crate) fn ok(&self) -> Value {
        assert!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        self.json()
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or("").to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Target {
    pub(crate) fn connect(&self) -> Box<dyn Stream> {
        match self {
            Self::Unix(path) => {
                let stream =
                    UnixStream::connect(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
                Box::new(stream)
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
                Box::new(stream)
            }
        }
    }

    /// A connection, where there is still somebody.
    pub(crate) fn try_connect(&self) -> Option<Box<dyn Stream>> {
        let stream: Box<dyn Stream> = match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).ok()?),
            Self::Tcp(address) => Box::new(TcpStream::connect(address).ok()?),
        };
        Some(stream)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str("host: localhost\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses early closes before a large body is written.
        drop(stream.write_all(body));
        read_answer(&mut stream)
    }

    /// Embeds through the OpenAI route.
    pub(crate) fn embed(&self, body: &Value) -> Answer {
        self.post("/v1/embeddings", body)
    }
}

pub(crate) fn read_answer(stream: &mut dyn Stream) -> Answer {
    let mut bytes = Vec::new();
    let mut block = [0; 16 * 1024];
    loop {
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&block[..count]),
            Err(error) if bytes.is_empty() => panic!("no answer: {error}"),
            Err(_) => break,
        }
    }
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer has a head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = bytes[end + 4..].to_vec();
    if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
        body = dechunk(&body);
    }
    Answer { status, headers, body }
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
    body
}

/// Whether a process is there and not a zombie.
/// Runs a script, with the server's address and a key of its own before these arguments, in the environment that has the
/// clients' packages; the JSON that it prints.
pub(crate) fn python(server: &Server, home: &Home, script: &str, arguments: &[&str]) -> Value {
    let python =
        std::env::var("RINGFENCE_PYTHON").expect("set by `make test`: a Python with clients' packages");
    let key = home.cli_ok(&["key", "add", "python"]);
    let url = server.facts["url"].as_str().expect("the ready file has the url").trim_end_matches('/');
    let output = Command::new(python)
        .args([&["-c", script, url, key.trim()], arguments].concat())
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with('Z')))
        .unwrap_or(false)
}

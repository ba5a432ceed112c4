//! Live sound in tests: a sound server whose microphone hears what is played, and a client that reads a capture's events.
#![allow(dead_code, reason = "each test program uses its part")]

use crate::support::{Answer, Home, Server, Target, read_answer};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the test.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn wait(mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A PulseAudio of the test's own, whose only microphone hears what is played. Its rate is 48 kHz.
pub(crate) struct SoundServer {
    folder: tempfile::TempDir,
    running: Vec<Running>,
}

impl SoundServer {
    /// `None`, said aloud, where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        if Command::new("pulseaudio").arg("--version").output().is_err() {
            eprintln!("skipped: no `pulseaudio` here (scripts/system-packages installs it)");
            return None;
        }
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        for name in ["home", "run"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::set_permissions(folder.path().join(name), Permissions::from_mode(0o700)).unwrap();
        }
        let mut server = Self { folder, running: Vec::new() };
        let socket = server.socket();
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
        daemon.args(["-L", "module-null-sink sink_name=fakemic rate=48000 channels=1 format=s16le"]);
        server.running.push(Running(server.alone(&mut daemon).spawn().unwrap()));
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the sound server does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut control = Command::new("pactl");
        assert!(
            server
                .client(control.args(["set-default-source", "fakemic.monitor"]))
                .status()
                .unwrap()
                .success()
        );
        // A sink that nobody plays to stops its clock.
        server.running.push(server.play_file(Path::new("/dev/zero"), 20));
        Some(server)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("pulse.sock")
    }

    /// Options of a server that finds it.
    pub(crate) fn options(&self) -> Vec<String> {
        vec![format!("--pulse-server={}", self.socket().display())]
    }

    fn play_file(&self, file: &Path, latency_ms: u32) -> Running {
        let mut player = Command::new("pacat");
        player.args(["-d", "fakemic", "--rate=48000", "--channels=1", "--format=s16le"]);
        player.arg(format!("--latency-msec={latency_ms}")).arg(file);
        Running(self.client(&mut player).spawn().unwrap())
    }

    /// Plays samples at 48 kHz; returns at once.
    pub(crate) fn play(&self, samples: &[i16]) -> Running {
        let sound = self.folder.path().join("sound.raw");
        fs::write(&sound, bytes_of(samples)).unwrap();
        self.play_file(&sound, 300)
    }

    fn client<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.alone(command).env("PULSE_SERVER", format!("unix:{}", self.socket().display()))
    }

    /// With a home of its own, and nothing to say.
    fn alone<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let at = |name: &str| self.folder.path().join(name);
        command
            .env("HOME", at("home"))
            .env("XDG_RUNTIME_DIR", at("run"))
            .env("PULSE_COOKIE", at("cookie"))
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
    }
}

pub(crate) fn bytes_of(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// The question for a source.
pub(crate) fn question(source: &str, model: &str, lifetime_ms: u64) -> Value {
    json!({"kind": "audio_capture", "path": source, "model": model, "reason": "to write down what is said",
           "results": "shown to who speaks", "lifetime_ms": lifetime_ms})
}

/// A grant of sound that the operator has approved, and its string.
pub(crate) fn granted(home: &Home, server: &Server, body: &Value) -> (u64, String) {
    let grant = server.api().post("/grants", body).ok()["grant"].as_u64().unwrap();
    home.cli_ok(&["grant", "approve", &grant.to_string()]);
    let claimed = server.api().post(&format!("/grants/{grant}/claim"), &json!({})).ok();
    (grant, claimed["capability"].as_str().unwrap().to_owned())
}

/// A capture that runs, and its events.
pub(crate) struct Listening {
    socket: UnixStream,
    events: Receiver<(Instant, Value)>,
    /// All that came.
    pub(crate) seen: Vec<(Instant, Value)>,
}

impl Listening {
    /// Starts one; the answer where it is refused.
    pub(crate) fn start(target: &Target, body: &Value) -> Result<Self, Answer> {
        let Target::Unix(path) = target else { panic!("a socket") };
        let mut socket = UnixStream::connect(path).unwrap();
        let body = body.to_string();
        // Of an answer in this older form the body is what comes until the end.
        let head = format!(
            "POST /audio/captures HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes()).unwrap();
        let mut reader = BufReader::new(socket.try_clone().unwrap());
        let mut status = String::new();
        reader.read_line(&mut status).unwrap();
        if status.split(' ').nth(1) != Some("200") {
            let mut rest = Rest(status.into_bytes(), reader);
            return Err(read_answer(&mut rest));
        }
        let (to, events) = channel();
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let Some(data) = line.strip_prefix("data: ") else { continue };
                let event = serde_json::from_str(data).expect("events are JSON");
                if to.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { socket, events, seen: Vec::new() })
    }

    /// The next event; none where the stream has ended or nothing came for so long.
    pub(crate) fn next(&mut self, wait: Duration) -> Option<Value> {
        let event = self.events.recv_timeout(wait).ok()?;
        self.seen.push(event.clone());
        Some(event.1)
    }

    /// Waits for an event of this name.
    #[track_caller]
    pub(crate) fn until(&mut self, name: &str) -> Value {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.next(PATIENCE) {
                Some(event) if event["event"] == name => return event,
                Some(event) if event["event"] == "ended" => panic!("it has ended before {name}: {event}"),
                Some(_) => {}
                None => break,
            }
        }
        panic!("no {name} came: {:#?}", self.seen.iter().map(|(_, event)| event).collect::<Vec<_>>());
    }

    /// Waits for the last event.
    #[track_caller]
    pub(crate) fn until_end(&mut self) -> Value {
        while let Some(event) = self.next(PATIENCE) {
            if event["event"] == "ended" {
                return event;
            }
        }
        panic!("no end came: {:#?}", self.seen.iter().map(|(_, event)| event).collect::<Vec<_>>());
    }

    /// The texts of all final events until now.
    pub(crate) fn text(&self) -> String {
        let finals = self.seen.iter().filter(|(_, event)| event["event"] == "final");
        finals.map(|(_, event)| event["text"].as_str().unwrap()).collect()
    }

    /// Closes the connection.
    pub(crate) fn leave(self) {
        drop(self.socket.shutdown(std::net::Shutdown::Both));
    }
}

/// An answer whose first line was read already.
struct Rest(Vec<u8>, BufReader<UnixStream>);

impl std::io::Read for Rest {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return self.1.read(into);
        }
        let count = self.0.len().min(into.len());
        into[..count].copy_from_slice(&self.0[..count]);
        self.0.drain(..count);
        Ok(count)
    }
}

impl Write for Rest {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Ok(0)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

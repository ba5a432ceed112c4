//! What the tests of the program share: a real sound server with a microphone that plays what it is given, and the server's
//! and the reader's sides of a capture.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "tests open what they made and read the clock")]

use ringfence_audio::clock::boot_us;
use ringfence_protocol::{
    AUDIO_DATA_BYTES_MAX, AudioLink, AudioStatistics, CaptureEnd, CaptureStart, DIGEST, FromAudio, LinkError,
    StreamError, StreamEvent, StreamFrame, StreamKey, StreamReader, ToAudio, audio_places, connected_pair,
    stream_pair,
};
use ringfence_sandbox::{Child, Environment, Exit, SpawnRequest, StatusPage, User, process_facts, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use std::fs::Permissions;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Who the program runs as where the test runs as root, as no sandboxed program may.
const ORDINARY: User = User { uid: 65_534, gid: 65_534 };
/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(15);
/// The rate of the sound server's microphone.
pub(crate) const MICROPHONE_RATE: u32 = 48_000;

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A process that ends with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A PulseAudio of the test's own, whose only microphone hears what [`SoundServer::play`] plays.
pub(crate) struct SoundServer {
    folder: tempfile::TempDir,
    daemon: Running,
    awake: Option<Running>,
}

impl SoundServer {
    /// `None`, said aloud, where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        let server = Self::with("auth-anonymous=1", true)?;
        server.control(&["set-default-source", "fakemic.monitor"]);
        Some(server)
    }

    /// With a way to be let in, and a microphone or none.
    pub(crate) fn with(access: &str, microphone: bool) -> Option<Self> {
        if Command::new("pulseaudio").arg("--version").output().is_err() {
            eprintln!("skipped: no `pulseaudio` here (scripts/system-packages installs it)");
            return None;
        }
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        for name in ["home", "run"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::set_permissions(folder.path().join(name), Permissions::from_mode(0o700)).unwrap();
        }
        let socket = folder.path().join("pulse.sock");
        let mut daemon = Command::new("pulseaudio");
        daemon.args([
            "-n",
            "--daemonize=no",
            "--exit-idle-time=-1",
            "--use-pid-file=no",
            "--disable-shm=yes",
        ]);
        let access = access.replace("FOLDER", folder.path().to_str().unwrap());
        daemon.arg("-L").arg(format!("module-native-protocol-unix socket={} {access}", socket.display()));
        if microphone {
            let sink =
                format!("module-null-sink sink_name=fakemic rate={MICROPHONE_RATE} channels=1 format=s16le");
            daemon.arg("-L").arg(sink);
        }
        let daemon = Running(alone(&mut daemon, folder.path()).spawn().unwrap());
        wait_for("the sound server", || UnixStream::connect(&socket).is_ok());
        let mut server = Self { folder, daemon, awake: None };
        server.awake = microphone.then(|| server.stay_awake());
        Some(server)
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The places of a program that uses its default microphone.
    pub(crate) fn places(&self) -> Vec<u8> {
        audio_places(&[self.at("pulse.sock").to_str().unwrap(), "", ""])
    }

    /// A sink that nobody plays to stops its clock.
    fn stay_awake(&self) -> Running {
        let mut player = Command::new("pacat");
        player.args([
            "-d",
            "fakemic",
            "--latency-msec=20",
            "--rate=48000",
            "--channels=1",
            "--format=s16le",
            "/dev/zero",
        ]);
        Running(self.client(&mut player).spawn().unwrap())
    }

    /// Plays samples at the microphone's rate; returns at once.
    pub(crate) fn play(&self, samples: &[i16]) -> impl Drop + use<> {
        let sound = self.at("sound.raw");
        std::fs::write(&sound, samples.iter().flat_map(|sample| sample.to_le_bytes()).collect::<Vec<_>>())
            .unwrap();
        let mut player = Command::new("pacat");
        player.args([
            "-d",
            "fakemic",
            "--latency-msec=300",
            "--rate=48000",
            "--channels=1",
            "--format=s16le",
        ]);
        Running(self.client(player.arg(sound)).spawn().unwrap())
    }

    pub(crate) fn control(&self, words: &[&str]) {
        let mut control = Command::new("pactl");
        assert!(self.client(control.args(words)).status().unwrap().success(), "pactl {words:?}");
    }

    pub(crate) fn kill(&mut self) {
        self.daemon.0.kill().unwrap();
        self.daemon.0.wait().unwrap();
    }

    fn client<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        alone(command, self.folder.path())
            .env("PULSE_SERVER", format!("unix:{}", self.at("pulse.sock").display()))
            .env("PULSE_COOKIE", self.at("cookie"))
    }
}

/// With a home of its own, and nothing to say.
fn alone<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command
        .env("HOME", folder.join("home"))
        .env("XDG_RUNTIME_DIR", folder.join("run"))
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
}

pub(crate) fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that was started.
pub(crate) struct Program {
    pub(crate) child: Child,
    _page: StatusPage,
    pub(crate) link: AudioLink,
}

impl Program {
    pub(crate) fn start(arguments: &[&str], places: &[u8]) -> Self {
        let program =
            open(env!("CARGO_BIN_EXE_ringfence-audio"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let (ours, theirs) = connected_pair().unwrap();
        rustix::net::send(&ours, places, rustix::net::SendFlags::empty()).unwrap();
        let link = AudioLink::new(ours);
        link.receive_credentials().unwrap();
        let page = StatusPage::create().unwrap();
        let child = spawn(SpawnRequest {
            program: program.unwrap().as_fd(),
            arguments,
            environment: Environment { threads: None },
            link: theirs,
            status_page: &page,
            cgroup: None,
            user: is_root().then_some(ORDINARY),
            data_bytes_max: Some(AUDIO_DATA_BYTES_MAX),
        });
        Self { child: child.unwrap(), _page: page, link }
    }

    /// The next message, and who sent it.
    pub(crate) fn hear(&self) -> (FromAudio, i32) {
        let mut polled = [PollFd::new(&self.link, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        assert_eq!(poll(&mut polled, Some(&patience)), Ok(1), "no message comes");
        match self.link.receive() {
            Ok(received) => (received.message, received.pid.unwrap()),
            Err(error) => panic!("{error}: {:?}", self.last_words()),
        }
    }

    /// How it ended, and what it printed.
    pub(crate) fn last_words(&self) -> (Exit, String) {
        let mut text = String::new();
        std::fs::File::from(self.child.stderr.try_clone().unwrap()).read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap(), text)
    }

    /// That it has no sound, and why.
    pub(crate) fn fails(&self) -> CaptureEnd {
        assert_eq!(self.hear().0, FromAudio::Hello { digest: DIGEST.to_owned() });
        match self.hear().0 {
            FromAudio::Ended { end } => end,
            other => panic!("{other:?}"),
        }
    }
}

/// A sealed program, and a reader's key.
pub(crate) struct Sealed {
    pub(crate) program: Program,
    pub(crate) pid: i32,
    pub(crate) opened: Option<FromAudio>,
    key: ringfence_protocol::StreamPublic,
}

impl Sealed {
    pub(crate) fn new(kind: &str, places: &[u8]) -> Self {
        let program = Program::start(&[kind], places);
        let (hello, pid) = program.hear();
        assert_eq!(hello, FromAudio::Hello { digest: DIGEST.to_owned() });
        let mut opened = None;
        if kind != "pushed" {
            opened = Some(program.hear().0);
            assert!(matches!(opened, Some(FromAudio::Opened { .. })), "{opened:?}");
        }
        let FromAudio::Sealed { key, .. } = program.hear().0 else { panic!("not sealed") };
        process_facts(pid).unwrap().check_sealed().unwrap();
        Self { program, pid, opened, key }
    }

    /// The stream's sender.
    pub(crate) fn key(&self) -> ringfence_protocol::StreamPublic {
        self.key
    }

    /// Starts it, with what `edit` makes of the usual start.
    pub(crate) fn start(self, pushed: Option<OwnedFd>, edit: impl FnOnce(&mut CaptureStart)) -> Live {
        let (theirs, ours) = stream_pair().unwrap();
        let key = StreamKey::generate().unwrap();
        let mut start = CaptureStart {
            reader: key.public(),
            until_boot_ms: boot_us() / 1_000 + 60_000,
            ring_frames: 256,
            silence_ms: 0,
            transforms: vec![],
            pushed: None,
        };
        edit(&mut start);
        let sockets: Vec<_> = [theirs.as_fd()].into_iter().chain(pushed.as_ref().map(AsFd::as_fd)).collect();
        self.program.link.send(&ToAudio::Start(start), &sockets).unwrap();
        fcntl_setfl(&self.program.link, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        let reader = StreamReader::new(ours, key, self.key);
        Live {
            program: self.program,
            pid: self.pid,
            reader,
            told: vec![],
            frames: vec![],
            stream_end: None,
            link_closed: false,
        }
    }
}

/// A capture that was started.
pub(crate) struct Live {
    pub(crate) program: Program,
    pub(crate) pid: i32,
    pub(crate) reader: StreamReader,
    /// Messages so far.
    pub(crate) told: Vec<FromAudio>,
    /// Frames so far.
    pub(crate) frames: Vec<StreamFrame>,
    /// How the stream ended, if it has.
    pub(crate) stream_end: Option<Result<(), StreamError>>,
    link_closed: bool,
}

impl Live {
    pub(crate) fn say(&self, message: ToAudio) {
        if let Err(error) = self.program.link.send(&message, &[]) {
            panic!("{error}: {:?} {:?}", self.told, self.program.last_words());
        }
    }

    /// Takes what comes until it is enough.
    pub(crate) fn until(&mut self, what: &str, is: impl FnMut(&Self) -> bool) {
        self.take(what, true, is);
    }

    /// The same, without reading the stream.
    pub(crate) fn until_unread(&mut self, what: &str, is: impl FnMut(&Self) -> bool) {
        self.take(what, false, is);
    }

    /// Takes what comes for so long.
    pub(crate) fn for_ms(&mut self, ms: u64) {
        let begun = Instant::now();
        self.until("time", |_| begun.elapsed() >= Duration::from_millis(ms));
    }

    pub(crate) fn until_told(&mut self, message: &FromAudio) {
        self.until(&format!("{message:?}"), |live| live.told.contains(message));
    }

    /// How it ended; both sides are heard to their ends.
    pub(crate) fn ended(&mut self) -> CaptureEnd {
        self.until("the end", |live| live.end().is_some() && live.stream_end.is_some());
        assert!(matches!(self.told.last(), Some(FromAudio::Ended { .. })), "{:?}", self.told.last());
        self.end().unwrap()
    }

    fn end(&self) -> Option<CaptureEnd> {
        self.told.iter().find_map(|message| match message {
            FromAudio::Ended { end } => Some(*end),
            _ => None,
        })
    }

    pub(crate) fn statistics(&self) -> AudioStatistics {
        let last = self.told.iter().rev().find_map(|message| match message {
            FromAudio::Statistics(statistics) => Some(*statistics),
            _ => None,
        });
        last.expect("statistics come")
    }

    /// The samples of all frames so far.
    pub(crate) fn samples(&self) -> Vec<i16> {
        self.frames.iter().flat_map(|frame| *frame.samples).collect()
    }

    fn take(&mut self, what: &str, read_stream: bool, mut is: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !is(self) {
            if begun.elapsed() > PATIENCE {
                self.program.child.kill().unwrap();
                panic!("{what} does not come: {:?} {:?}", self.told, self.program.last_words());
            }
            let mut polled = Vec::new();
            if !self.link_closed {
                polled.push(PollFd::new(&self.program.link, PollFlags::IN));
            }
            if read_stream && self.stream_end.is_none() {
                polled.push(PollFd::new(&self.reader, PollFlags::IN));
            }
            let patience = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            poll(&mut polled, Some(&patience)).unwrap();
            self.hear();
            if read_stream {
                self.read();
            }
        }
    }

    fn hear(&mut self) {
        while !self.link_closed {
            match self.program.link.receive() {
                Ok(received) => self.told.push(received.message),
                Err(LinkError::WouldBlock) => return,
                Err(LinkError::Closed) => self.link_closed = true,
                Err(error) => panic!("{error}: {:?}", self.program.last_words()),
            }
        }
    }

    fn read(&mut self) {
        while self.stream_end.is_none() {
            match self.reader.receive(boot_us()) {
                Ok(StreamEvent::Frame(frame)) => self.frames.push(frame),
                Ok(StreamEvent::Opened { .. } | StreamEvent::Paused) => {}
                Ok(StreamEvent::Ended) => self.stream_end = Some(Ok(())),
                Err(StreamError::WouldBlock) => return,
                Err(error) => self.stream_end = Some(Err(error)),
            }
        }
    }
}

/// A capture from this sound server's microphone.
pub(crate) fn listen(server: &SoundServer, edit: impl FnOnce(&mut CaptureStart)) -> Live {
    let mut live = Sealed::new("pulse", &server.places()).start(None, edit);
    live.until_told(&FromAudio::Started);
    live
}

/// Noise, the same for the same seed, no two windows of it alike.
pub(crate) fn noise(samples: usize, mut seed: u64) -> Vec<i16> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 48).cast_signed() - 32_768) as i16 / 4
    };
    (0..samples).map(|_| next()).collect()
}

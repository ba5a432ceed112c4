//! How fast a warm file comes over its socket from a fileguard in its sandbox, against a plain copy over the same kind of
//! socket: `rate FOLDER [MIB [ROUNDS]]`, alternating, medians. In FOLDER a file is made, which the user `nobody` (where this
//! runs as root) must be able to reach. Build with `--release`.
#![allow(clippy::unwrap_used, reason = "a measurement: what is not as it must be ends it")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use ringfence_protocol::{
    FILE_STEP_BYTES_MAX, FILE_STEPS_MAX, FileAccess, FileLink, FileReply, FileRequest, FileguardLink,
    FromFileguard, Packet, ToFileguard, connected_pair,
};
use ringfence_sandbox::{Child, Environment, SpawnRequest, StatusPage, User, spawn};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::pread;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NAME: &str = "rate-test";
const NOBODY: User = User { uid: 65_534, gid: 65_534 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or: usize| arguments.get(at).map_or(or, |word| word.parse().unwrap());
    let folder = PathBuf::from(&arguments[0]).canonicalize().unwrap();
    let (bytes, rounds) = (number(1, 100) << 20, number(2, 11));
    let path = folder.join(NAME);
    std::fs::write(&path, vec![7; bytes]).unwrap();
    let user = rustix::process::geteuid().is_root().then_some(NOBODY);
    if let Some(User { uid, gid }) = user {
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
    }
    let guard = Guard::start(&folder, user);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        times[0].push(plain(&path, bytes));
        times[1].push(guard.read(bytes));
    }
    let rates = times.map(|times| bytes as f64 / median(times).as_secs_f64() / 1e6);
    let [plain, brokered] = rates;
    println!("plain copy over a socket: {plain:.0} MB/s");
    println!("brokered and digested:    {brokered:.0} MB/s, {:.2} of it", brokered / plain);
    std::fs::remove_file(path).unwrap();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Another process reads the file and sends it in packets of the same size, without being asked.
fn plain(path: &Path, bytes: usize) -> Duration {
    let (ours, theirs) = connected_pair().unwrap();
    let path = path.to_owned();
    let start = Instant::now();
    let sender = std::thread::spawn(move || {
        let file = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mut buffer = vec![0; FILE_STEP_BYTES_MAX];
        let mut at = 0;
        loop {
            let read = pread(&file, &mut buffer, at).unwrap();
            if read == 0 {
                return;
            }
            at += read as u64;
            send(&theirs, &buffer[..read], SendFlags::empty()).unwrap();
        }
    });
    let mut buffer = vec![0_u8; FILE_STEP_BYTES_MAX];
    let mut got = 0;
    while got < bytes {
        got += recv(&ours, &mut buffer[..], RecvFlags::empty()).unwrap().0;
    }
    let took = start.elapsed();
    sender.join().unwrap();
    took
}

struct Guard {
    _child: Child,
    _page: StatusPage,
    link: FileguardLink,
}

impl Guard {
    fn start(folder: &Path, user: Option<User>) -> Self {
        let own = std::env::current_exe().unwrap();
        let program = own.parent().and_then(Path::parent).unwrap().join("ringfence-fileguard");
        let program: OwnedFd = open(&program, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (ours, theirs) = connected_pair().unwrap();
        rustix::net::send(&ours, folder.to_str().unwrap().as_bytes(), rustix::net::SendFlags::empty())
            .unwrap();
        let page = StatusPage::create().unwrap();
        let child = spawn(SpawnRequest {
            program: program.as_fd(),
            arguments: &["read"],
            environment: Environment { threads: None },
            link: theirs,
            status_page: &page,
            cgroup: None,
            user,
            data_bytes_max: None,
        });
        let link = FileguardLink::new(ours);
        while !matches!(link.receive().unwrap().message, FromFileguard::Sealed { .. }) {}
        link.send(&ToFileguard::Start { excluded: vec![], digest_key: [7; 32] }, &[]).unwrap();
        Self { _child: child.unwrap(), _page: page, link }
    }

    /// A window of steps, each asked for as soon as one has come.
    fn read(&self, bytes: usize) -> Duration {
        let (ours, theirs) = connected_pair().unwrap();
        let open = ToFileguard::Open {
            number: 0,
            path: NAME.to_owned(),
            access: FileAccess::Read,
            until_boot_ms: u64::MAX,
            bytes_max: u64::MAX,
        };
        let start = Instant::now();
        self.link.send(&open, &[theirs.as_fd()]).unwrap();
        drop(theirs);
        assert!(matches!(self.link.receive().unwrap().message, FromFileguard::Opened { .. }));
        let file = FileLink::new(ours);
        let mut offset = 0;
        let mut ask = || {
            if offset < bytes as u64 {
                file.send(&FileRequest::Read { offset, length: FILE_STEP_BYTES_MAX as u32 }, &[]).unwrap();
                offset += FILE_STEP_BYTES_MAX as u64;
            }
        };
        (0..FILE_STEPS_MAX).for_each(|_| ask());
        let mut got = 0;
        let mut packet = Packet::default();
        while got < bytes {
            let reply = file.receive_carried(&mut packet).unwrap().message;
            assert!(matches!(reply, FileReply::Bytes { .. }), "{reply:?}");
            got += packet.carried().len();
            ask();
        }
        let took = start.elapsed();
        drop(file);
        assert!(matches!(self.link.receive().unwrap().message, FromFileguard::Closed { .. }));
        took
    }
}

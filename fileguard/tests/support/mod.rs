//! What fileguard's tests share: a folder of the user that it runs as, and the server's side of it.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use ringfence_protocol::{
    DIGEST, FILEGUARD_DATA_BYTES_MAX, FileAccess, FileEnd, FileLink, FileRefusal, FileReply, FileRequest,
    FileguardLink, FromFileguard, Identity, LinkError, Packet, Received, ToFileguard, connected_pair,
};
use ringfence_sandbox::{Child, Environment, Exit, SpawnRequest, StatusPage, User, process_facts, spawn};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Who it runs as where the test runs as root, as no sandboxed program may.
pub(crate) const ORDINARY: User = User { uid: 65_534, gid: 65_534 };
pub(crate) const NEVER: u64 = u64::MAX;
pub(crate) const SECRET: &[u8] = b"the secret that lies outside";
pub(crate) const INSIDE: &[u8] = b"what may be read";

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A temporary folder with `root`, which is granted, and `outside`, which is not.
pub(crate) struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let host = Self { folder };
        own(host.folder.path());
        std::fs::set_permissions(host.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        host.make_folder("root");
        host.make_folder("outside");
        host.write("outside/secret", SECRET);
        host.write("root/file", INSIDE);
        host
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn root(&self) -> String {
        self.text("root")
    }

    pub(crate) fn text(&self, path: &str) -> String {
        self.at(path).to_str().unwrap().to_owned()
    }

    pub(crate) fn make_folder(&self, path: &str) {
        std::fs::create_dir(self.at(path)).unwrap();
        own(&self.at(path));
    }

    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        std::fs::write(self.at(path), bytes).unwrap();
        own(&self.at(path));
    }

    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.at(path)).unwrap()
    }

    pub(crate) fn link(&self, to: &str, path: &str) {
        std::os::unix::fs::symlink(to, self.at(path)).unwrap();
    }

    /// Every name in a folder, hidden ones too.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.at(path)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn identity(&self, path: &str) -> Identity {
        let facts = std::fs::metadata(self.at(path)).unwrap();
        Identity { device: facts.dev(), inode: facts.ino() }
    }
}

/// Whose the files of tests are.
pub(crate) fn owner() -> u32 {
    if is_root() { ORDINARY.uid } else { rustix::process::getuid().as_raw() }
}

/// Something that is mounted for the length of a test.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn new(path: PathBuf, kind: &CStr) -> Self {
        mount(c"none", &path, kind, MountFlags::empty(), None).unwrap();
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Gives a file to the user that the program runs as.
pub(crate) fn own(path: &Path) {
    if is_root() {
        chown(path, Some(ORDINARY.uid), Some(ORDINARY.gid)).unwrap();
    }
}

/// Starts the program for a root.
pub(crate) fn start(arguments: &[&str], root: &str) -> (Child, StatusPage, FileguardLink) {
    let program = env!("CARGO_BIN_EXE_ringfence-fileguard");
    let program = open(program, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let (ours, theirs) = connected_pair().unwrap();
    rustix::net::send(&ours, root.as_bytes(), rustix::net::SendFlags::empty()).unwrap();
    let link = FileguardLink::new(ours);
    link.receive_credentials().unwrap();
    let page = StatusPage::create().unwrap();
    let child = spawn(SpawnRequest {
        program: program.as_fd(),
        arguments,
        environment: Environment { threads: None },
        link: theirs,
        status_page: &page,
        cgroup: None,
        user: is_root().then_some(ORDINARY),
        data_bytes_max: Some(FILEGUARD_DATA_BYTES_MAX),
    });
    (child.unwrap(), page, link)
}

/// What a program prints before it ends.
pub(crate) fn last_words(child: &Child) -> (Exit, String) {
    let mut text = String::new();
    std::fs::File::from(child.stderr.try_clone().unwrap()).read_to_string(&mut text).unwrap();
    (child.wait().unwrap(), text)
}

/// A fileguard that is sealed and started.
pub(crate) struct Guard {
    pub(crate) child: Child,
    _page: StatusPage,
    pub(crate) link: FileguardLink,
    pub(crate) pid: i32,
    pub(crate) root: FromFileguard,
    next: std::cell::Cell<u32>,
    /// Ends that came before an answer; only the last are of interest.
    ends: std::cell::RefCell<std::collections::VecDeque<FromFileguard>>,
}

const ENDS_MAX: usize = 512;

/// A file that is served.
pub(crate) struct Served {
    pub(crate) number: u32,
    pub(crate) size: u64,
    pub(crate) link: FileLink,
}

/// Under which guards digest what they serve.
pub(crate) const DIGEST_KEY: [u8; 32] = [7; 32];

impl Guard {
    pub(crate) fn read(path: &str) -> Self {
        Self::new("read", path, vec![])
    }

    pub(crate) fn write(path: &str) -> Self {
        Self::new("write", path, vec![])
    }

    pub(crate) fn new(access: &str, path: &str, excluded: Vec<Identity>) -> Self {
        let guard = Self::sealed(access, path);
        guard.link.send(&ToFileguard::Start { excluded, digest_key: DIGEST_KEY }, &[]).unwrap();
        guard
    }

    pub(crate) fn sealed(access: &str, path: &str) -> Self {
        let (child, page, link) = start(&[access], path);
        let hello = link.receive().unwrap_or_else(|_| panic!("{:?}", last_words(&child)));
        assert_eq!(hello.message, FromFileguard::Hello { digest: DIGEST.to_owned() });
        let root = link.receive().unwrap().message;
        let sealed = link.receive().unwrap_or_else(|_| panic!("{:?}", last_words(&child))).message;
        assert!(matches!(sealed, FromFileguard::Sealed { .. }), "{sealed:?}");
        let pid = hello.pid.unwrap();
        process_facts(pid).unwrap().check_sealed().unwrap();
        Self { child, _page: page, link, pid, root, next: 0.into(), ends: Default::default() }
    }

    pub(crate) fn number(&self) -> u32 {
        self.next.replace(self.next.get() + 1)
    }

    fn receive(&self) -> Received<FromFileguard> {
        self.link.receive().unwrap_or_else(|error| panic!("{error}: {:?}", last_words(&self.child)))
    }

    /// The next answer; ends of files are kept for who asks.
    fn answer(&self) -> Received<FromFileguard> {
        loop {
            let received = self.receive();
            if !matches!(received.message, FromFileguard::Closed { .. }) {
                return received;
            }
            let mut ends = self.ends.borrow_mut();
            ends.push_back(received.message);
            if ends.len() > ENDS_MAX {
                ends.pop_front();
            }
        }
    }

    pub(crate) fn hear(&self) -> FromFileguard {
        self.answer().message
    }

    pub(crate) fn open(&self, path: &str, access: FileAccess) -> Result<Served, FileRefusal> {
        self.open_until(path, access, NEVER, u64::MAX)
    }

    pub(crate) fn open_until(
        &self,
        path: &str,
        access: FileAccess,
        until_boot_ms: u64,
        bytes_max: u64,
    ) -> Result<Served, FileRefusal> {
        let (ours, theirs) = connected_pair().unwrap();
        let number = self.number();
        let path = path.to_owned();
        let open = ToFileguard::Open { number, path, access, until_boot_ms, bytes_max };
        self.link.send(&open, &[theirs.as_fd()]).unwrap();
        match self.hear() {
            FromFileguard::Opened { number: of, size, .. } if of == number => {
                Ok(Served { number, size, link: FileLink::new(ours) })
            }
            FromFileguard::Refused { number: of, refusal } if of == number => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// The bytes of a snapshot.
    pub(crate) fn snapshot(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileRefusal> {
        self.snapshot_file(path, bytes_max).map(|(file, size, _)| {
            let map = ringfence_sandbox::SealedFile::from_descriptor(file).unwrap().map().unwrap();
            assert_eq!(map.len() as u64, size);
            map.to_vec()
        })
    }

    pub(crate) fn snapshot_file(
        &self,
        path: &str,
        bytes_max: u64,
    ) -> Result<(OwnedFd, u64, [u8; 32]), FileRefusal> {
        let number = self.number();
        self.link.send(&ToFileguard::Snapshot { number, path: path.to_owned(), bytes_max }, &[]).unwrap();
        let mut received = self.answer();
        match received.message {
            FromFileguard::Snapshot { number: of, size, digest } if of == number => {
                Ok((received.descriptors.pop().unwrap(), size, digest))
            }
            FromFileguard::Refused { number: of, refusal } if of == number => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// A page: entries, and whether there are more.
    pub(crate) fn list(
        &self,
        path: &str,
        after: &str,
        entries_max: u32,
    ) -> Result<FromFileguard, FileRefusal> {
        let number = self.number();
        let (path, after) = (path.to_owned(), after.to_owned());
        self.link.send(&ToFileguard::List { number, path, after, entries_max }, &[]).unwrap();
        match self.hear() {
            listed @ FromFileguard::Listed { number: of, .. } if of == number => Ok(listed),
            FromFileguard::Refused { number: of, refusal } if of == number => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// How a file ended: bytes, digest, why.
    pub(crate) fn closed(&self, number: u32) -> (u64, [u8; 32], FileEnd) {
        let of = |message: &FromFileguard| matches!(message, FromFileguard::Closed { number: of, .. } if *of == number);
        loop {
            let kept = self.ends.borrow().iter().position(of);
            match kept.and_then(|at| self.ends.borrow_mut().remove(at)) {
                Some(FromFileguard::Closed { bytes, digest, end, .. }) => return (bytes, digest, end),
                _ => self.ends.borrow_mut().push_back(self.receive().message),
            }
        }
    }

    /// That it ends by itself, with an error of its own.
    pub(crate) fn ends(&self) -> String {
        let (exit, words) = last_words(&self.child);
        assert_eq!(exit, Exit::Code(1), "{words}");
        words
    }
}

impl Served {
    pub(crate) fn ask(&self, request: FileRequest) -> FileReply {
        self.exchange(&request, &[]).unwrap().0
    }

    /// The file may have ended before it is asked, or with the request unread, which takes its last word along.
    pub(crate) fn try_ask(&self, request: &FileRequest) -> Result<FileReply, LinkError> {
        self.exchange(request, &[]).map(|(reply, _)| reply)
    }

    pub(crate) fn exchange(
        &self,
        request: &FileRequest,
        carried: &[u8],
    ) -> Result<(FileReply, Vec<u8>), LinkError> {
        match self.link.send_carrying(request, carried) {
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => return Err(error),
        }
        let mut packet = Packet::default();
        let reply = self.link.receive_carried(&mut packet)?.message;
        Ok((reply, packet.carried().to_vec()))
    }

    pub(crate) fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, FileRefusal> {
        match self.exchange(&FileRequest::Read { offset, length }, &[]).unwrap() {
            (FileReply::Bytes { offset: at, .. }, bytes) if at == offset => Ok(bytes),
            (FileReply::Refused(refusal), _) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), FileRefusal> {
        let request = FileRequest::Write { offset, length: data.len() as u32 };
        match self.exchange(&request, data).unwrap().0 {
            FileReply::Written { offset: at } if at == offset => Ok(()),
            FileReply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn commit(&self) -> Result<u64, FileRefusal> {
        match self.ask(FileRequest::Commit) {
            FileReply::Committed { size } => Ok(size),
            FileReply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }
}

//! The program's one thread: the server's link and the sockets of all open files.

use crate::buffers::Buffers;
use crate::clock::boot_ms;
use crate::listing;
use crate::reading::{DigestKey, Reading};
use crate::root::Root;
use crate::served::{Served, Work};
use crate::snapshot;
use crate::writing::Writing;
use ringfence_protocol::{
    EXCLUDED_MAX, FileAccess, FileEnd, FileRefusal, FileguardSideLink, FromFileguard, Link, LinkError,
    OPEN_FILES_MAX, Received, ToFileguard,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_setfl, fstat};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

/// Messages that wait for the server to read; new ones of its own are not taken while any waits, so that each open file's
/// end has a place and a few more.
const OUTBOX_MAX: usize = OPEN_FILES_MAX + 8;
/// Messages of the server that are obeyed before open files have their turn.
const MESSAGES_MAX: usize = 16;
/// The longest wait in milliseconds; after it everything is looked at again.
const WAIT_MS_MAX: u64 = 60_000;

/// Why the program ends, other than by its server's wish.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The server sent what does not decode, or what is not legal now.
    #[error("illegal message: {0}")]
    Illegal(&'static str),
    /// The link failed.
    #[error("the link failed: {0}")]
    Link(#[from] LinkError),
    /// The host refused.
    #[error("{call} failed: {error}")]
    Os {
        /// Which system call.
        call: &'static str,
        /// Its error.
        error: Errno,
    },
}

/// A sealed program with its root.
#[derive(Debug)]
pub struct Serving<'a> {
    link: &'a FileguardSideLink,
    root: Root,
    buffers: Buffers,
    /// From the start on.
    key: Option<DigestKey>,
    files: BTreeMap<u32, Served>,
    outbox: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    message: FromFileguard,
    descriptor: Option<OwnedFd>,
}

/// A file that is to be served.
#[derive(Debug)]
struct Wanted {
    path: String,
    access: FileAccess,
    until_boot_ms: u64,
    bytes_max: u64,
}

/// Makes a socket one that does not block. The only flags that the filter lets be set.
///
/// # Errors
/// The host refuses.
pub fn set_nonblocking(socket: impl AsFd) -> Result<(), Errno> {
    fcntl_setfl(socket, OFlags::RDWR | OFlags::NONBLOCK)
}

impl<'a> Serving<'a> {
    /// Serves this root over a link that does not block.
    pub fn new(link: &'a FileguardSideLink, root: Root) -> Self {
        Self {
            link,
            root,
            buffers: Buffers::default(),
            key: None,
            files: BTreeMap::new(),
            outbox: VecDeque::new(),
        }
    }

    /// Until the server closes the link.
    ///
    /// # Errors
    /// What the server must not do, or what the host does not.
    pub fn run(mut self) -> Result<(), End> {
        loop {
            let ready = self.wait()?;
            self.expire()?;
            self.send()?;
            if ready.link && !self.hear()? {
                return Ok(());
            }
            for number in ready.files {
                self.turn(number)?;
            }
            self.send()?;
        }
    }

    fn wait(&self) -> Result<Ready, End> {
        let link = if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::OUT };
        let mut polled = vec![PollFd::new(&self.link, link)];
        let sockets: Vec<_> = self.files.values().map(|file| (file.socket(), file.awaited())).collect();
        polled.extend(sockets.iter().map(|(socket, awaited)| PollFd::new(socket, *awaited)));
        let until = self.files.values().map(Served::until_boot_ms).min().unwrap_or(u64::MAX);
        let wait_ms = until.saturating_sub(boot_ms()).min(WAIT_MS_MAX);
        let seconds = i64::try_from(wait_ms / 1000).expect("a minute at most");
        let nanoseconds = i64::try_from(wait_ms % 1000 * 1_000_000).expect("below a second");
        match poll(&mut polled, Some(&Timespec { tv_sec: seconds, tv_nsec: nanoseconds })) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(End::Os { call: "ppoll", error }),
        }
        let has = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let files = self.files.keys().zip(&polled[1..]).filter(|(_, fd)| has(fd)).map(|(number, _)| *number);
        let files = files.collect();
        Ok(Ready { link: has(&polled[0]), files })
    }

    /// Ends what has no time left, whether or not anybody asks for more of it.
    fn expire(&mut self) -> Result<(), End> {
        let now = boot_ms();
        let over: Vec<u32> = self
            .files
            .iter()
            .filter(|(_, file)| file.until_boot_ms() <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            if let Some(file) = self.files.get_mut(&number) {
                let end = file.expire();
                self.close(number, end)?;
            }
        }
        Ok(())
    }

    fn turn(&mut self, number: u32) -> Result<(), End> {
        // One that the server has closed in this turn is gone already.
        let Some(file) = self.files.get_mut(&number) else { return Ok(()) };
        match file.turn(&self.root, &mut self.buffers) {
            Some(end) => self.close(number, end),
            None => Ok(()),
        }
    }

    fn close(&mut self, number: u32, end: FileEnd) -> Result<(), End> {
        let Some(file) = self.files.remove(&number) else { return Ok(()) };
        let (bytes, digest) = file.end();
        self.say(FromFileguard::Closed { number, bytes, digest, end }, None)
    }

    /// Takes a few messages, as long as none of ours waits; `false` at the end of the link.
    fn hear(&mut self) -> Result<bool, End> {
        for _ in 0..MESSAGES_MAX {
            if !self.outbox.is_empty() {
                break;
            }
            let received = match self.link.receive() {
                Ok(received) => received,
                Err(LinkError::WouldBlock) => return Ok(true),
                Err(LinkError::Closed) => return Ok(false),
                Err(LinkError::Malformed(what)) => return Err(End::Illegal(what)),
                Err(error) => return Err(error.into()),
            };
            self.obey(received)?;
            self.send()?;
        }
        Ok(true)
    }

    fn obey(&mut self, received: Received<ToFileguard>) -> Result<(), End> {
        let Received { message, mut descriptors, .. } = received;
        let wanted = usize::from(matches!(message, ToFileguard::Open { .. }));
        if descriptors.len() != wanted {
            return Err(End::Illegal("descriptors that don't belong to it, or none where one does"));
        }
        match message {
            ToFileguard::Start { .. } if self.key.is_some() => Err(End::Illegal("a second start")),
            ToFileguard::Start { excluded, .. } if excluded.len() > EXCLUDED_MAX => {
                Err(End::Illegal("too many folders"))
            }
            ToFileguard::Start { excluded, digest_key } => {
                self.root.exclude(excluded);
                self.key = Some(digest_key);
                Ok(())
            }
            _ if self.key.is_none() => Err(End::Illegal("a message before the start")),
            ToFileguard::Open { number, path, access, until_boot_ms, bytes_max } => {
                let socket = descriptors.pop().expect("counted above");
                self.open(number, socket, &Wanted { path, access, until_boot_ms, bytes_max })
            }
            ToFileguard::Snapshot { number, path, bytes_max } => self.snapshot(number, &path, bytes_max),
            ToFileguard::List { number, path, after, entries_max } => {
                let page = listing::list(&self.root, &path, &after, entries_max);
                self.answer(
                    number,
                    page.map(|listing::Page { entries, more, unnamed }| FromFileguard::Listed {
                        number,
                        entries,
                        more,
                        unnamed,
                    }),
                )
            }
            ToFileguard::Close { number } => self.close(number, FileEnd::Asked),
        }
    }

    fn open(&mut self, number: u32, socket: OwnedFd, wanted: &Wanted) -> Result<(), End> {
        if self.files.contains_key(&number) {
            return Err(End::Illegal("a number that is in use"));
        }
        let facts = fstat(&socket).map_err(|error| End::Os { call: "fstat", error })?;
        if FileType::from_raw_mode(facts.st_mode) != FileType::Socket {
            return Err(End::Illegal("a descriptor that is no socket"));
        }
        set_nonblocking(&socket).map_err(|error| End::Os { call: "fcntl", error })?;
        if boot_ms() >= wanted.until_boot_ms {
            return self.answer(number, Err(FileRefusal::Expired));
        }
        if self.files.len() >= OPEN_FILES_MAX {
            return self.answer(number, Err(FileRefusal::TooMany));
        }
        let opened = self.work(wanted).map(|(work, size, modified)| {
            self.files.insert(number, Served::new(Link::new(socket), work, wanted.until_boot_ms));
            FromFileguard::Opened { number, size, modified }
        });
        self.answer(number, opened)
    }

    /// With the size and time of the file that is there now.
    fn work(&self, wanted: &Wanted) -> Result<(Work, u64, i64), FileRefusal> {
        let Wanted { path, access, bytes_max, .. } = wanted;
        match access {
            FileAccess::Read => {
                let opened = self.root.open_file(path)?;
                let (size, modified) = (opened.facts.size, opened.facts.modified.0);
                Ok((Work::Read(Reading::new(opened, *bytes_max, self.key())), size, modified))
            }
            FileAccess::Write => {
                let writing = Writing::new(&self.root, path, *bytes_max, self.key())?;
                let (size, modified) = writing.old();
                Ok((Work::Write(writing), size, modified))
            }
        }
    }

    fn key(&self) -> &DigestKey {
        self.key.as_ref().expect("nothing is opened before the start")
    }

    fn snapshot(&mut self, number: u32, path: &str, bytes_max: u64) -> Result<(), End> {
        match snapshot::take(&self.root, path, bytes_max, self.key()) {
            Ok(snapshot::Snapshot { file, digest }) => {
                let size = file.len();
                self.say(FromFileguard::Snapshot { number, size, digest }, Some(file.into()))
            }
            Err(refusal) => self.answer(number, Err(refusal)),
        }
    }

    fn answer(&mut self, number: u32, done: Result<FromFileguard, FileRefusal>) -> Result<(), End> {
        let message = done.unwrap_or_else(|refusal| FromFileguard::Refused { number, refusal });
        self.say(message, None)
    }

    fn say(&mut self, message: FromFileguard, descriptor: Option<OwnedFd>) -> Result<(), End> {
        assert!(
            self.outbox.len() < OUTBOX_MAX,
            "each open file says its end once, and no more is taken meanwhile"
        );
        self.outbox.push_back(Outgoing { message, descriptor });
        Ok(())
    }

    /// As much as the server takes now.
    fn send(&mut self) -> Result<(), End> {
        while let Some(Outgoing { message, descriptor }) = self.outbox.front() {
            let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
            match self.link.send(message, &descriptors) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(LinkError::WouldBlock) => return Ok(()),
                // Its end is read next.
                Err(LinkError::Closed) => self.outbox.clear(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// What has something to be read, or room to be written.
#[derive(Debug)]
struct Ready {
    link: bool,
    files: Vec<u32>,
}

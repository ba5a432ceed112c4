//! One `ringfence-fileguard`: the process that has one granted root, and the only one that opens names below it. Its end is
//! the end of the grant.

use crate::workers::{Spawner, Start, end, is_sealed, receive, watch};
use ringfence_grants::{GrantId, Shown, ShownKind, visible};
use ringfence_protocol::{
    self as protocol, FILEGUARD_DATA_BYTES_MAX, FileAccess, FileEntry, FileRefusal, FileguardLink,
    FromFileguard, Identity, LinkError, Received, RootKind, ToFileguard,
};
use ringfence_sandbox::{Child, StatusPage};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// How long a fileguard may take until its root is open and its sandbox complete.
const START_MAX: Duration = Duration::from_secs(5);
/// How long it may take over one answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Requests that wait for its task.
const REQUESTS_MAX: usize = 64;
/// As much of its words as is repeated.
const WORDS_BYTES_MAX: u64 = 500;

/// Why a root can't be given, or a file of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardError {
    /// What is asked for can't be opened; its own words.
    #[error("{0}")]
    Root(String),
    /// It did not start, or is not what it must be.
    #[error("the file service could not be started: {0}")]
    Start(String),
    /// One file is refused.
    #[error("{0}")]
    File(#[from] FileRefusal),
    /// It has ended, as its grant has.
    #[error("the grant has ended")]
    Ended,
    /// It did not answer in time, or too many wait for it.
    #[error("the file service does not answer")]
    Busy,
}

/// A page of a folder.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) entries: Vec<FileEntry>,
    pub(crate) more: bool,
    pub(crate) unnamed: u32,
}

/// A sealed copy of a file.
#[derive(Debug)]
pub(crate) struct SealedCopy {
    pub(crate) memfd: OwnedFd,
    pub(crate) bytes: u64,
    pub(crate) digest: [u8; 32],
}

/// What every file service is told at its start.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Folders that are given to nobody.
    pub(crate) excluded: Vec<Identity>,
    /// For the digests in the audit log.
    pub(crate) digest_key: [u8; 32],
}

/// What is to be opened.
#[derive(Debug)]
pub(crate) struct Opening {
    /// On whose grant; a narrowed one may end before its root does.
    pub(crate) grant: GrantId,
    pub(crate) path: String,
    pub(crate) access: FileAccess,
    pub(crate) until_boot_ms: u64,
    pub(crate) bytes_max: u64,
    /// Fileguard's end of the file's socket.
    pub(crate) socket: OwnedFd,
    /// True once the grant has ended; its files are closed after that, and none is opened.
    pub(crate) ended: watch::Receiver<bool>,
    /// Told when the file is closed.
    pub(crate) closed: oneshot::Sender<Closed>,
}

/// What went over a file's socket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Closed {
    pub(crate) bytes: u64,
    /// Of them, in their order; unknown where the file service was ended.
    pub(crate) digest: Option<[u8; 32]>,
}

enum Request {
    Snapshot {
        path: String,
        bytes_max: u64,
        answer: oneshot::Sender<Result<SealedCopy, GuardError>>,
    },
    Open(Opening, oneshot::Sender<Result<u64, GuardError>>),
    List {
        path: String,
        after: String,
        entries_max: u32,
        answer: oneshot::Sender<Result<Page, GuardError>>,
    },
    /// Closes the files of one grant; told when they are.
    CloseAllOf(GrantId, oneshot::Sender<()>),
    /// Ends it; told when the process is gone.
    End(oneshot::Sender<()>),
}

/// A fileguard that has its root.
pub(crate) struct Started {
    pub(crate) guard: Guard,
    pub(crate) shown: Shown,
    /// Ends when it does.
    pub(crate) gone: oneshot::Receiver<()>,
}

/// Speaks to a running fileguard. Its process ends with the last of these.
#[derive(Clone, Debug)]
pub(crate) struct Guard(mpsc::Sender<Request>);

impl Guard {
    /// Starts one for a root, which it has opened and shows when this returns.
    pub(crate) async fn start(
        spawner: &Spawner,
        path: &str,
        access: FileAccess,
        terms: &Terms,
    ) -> Result<Started, GuardError> {
        let failed = |error: &dyn std::fmt::Display| GuardError::Start(error.to_string());
        let (ours, theirs) = protocol::connected_pair().map_err(|error| failed(&error))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| failed(&error))?;
        // Not as a word of its command line, which everybody can read.
        send(&ours, path.as_bytes(), SendFlags::NOSIGNAL).map_err(|error| failed(&error))?;
        let link = FileguardLink::new(ours);
        link.receive_credentials().map_err(|error| failed(&error))?;
        let link = watch(link).map_err(|error| failed(&error))?;
        let start = Start {
            arguments: vec![word(access).to_owned()],
            threads: None,
            link: theirs,
            status_page: Arc::new(StatusPage::create().map_err(|error| failed(&error))?),
            data_bytes_max: Some(FILEGUARD_DATA_BYTES_MAX),
        };
        let child = spawner.start(start).await.map_err(|error| failed(&error))?;
        let shown = match timeout(START_MAX, handshake(&link, terms)).await {
            Ok(Ok(shown)) => shown,
            Ok(Err(error)) => {
                let words = words_of(&child).await;
                return Err(if matches!(error, Fault::Closed) && !words.is_empty() {
                    GuardError::Root(words)
                } else {
                    failed(&error)
                });
            }
            Err(_) => {
                end(&child).await;
                return Err(failed(&"it did not open its root in time"));
            }
        };
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let (going, gone) = oneshot::channel();
        tokio::spawn(
            Task {
                link,
                child,
                files: HashMap::new(),
                lists: HashMap::new(),
                copies: HashMap::new(),
                closing: Vec::new(),
                next: 0,
                _going: going,
            }
            .run(receiver),
        );
        Ok(Started { guard: Self(requests), shown, gone })
    }

    /// Opens a file, which is served on its socket from then on; its bytes now.
    pub(crate) async fn open(&self, opening: Opening) -> Result<u64, GuardError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Open(opening, answer), answered).await?
    }

    /// A page of a folder.
    pub(crate) async fn list(
        &self,
        path: String,
        after: String,
        entries_max: u32,
    ) -> Result<Page, GuardError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::List { path, after, entries_max, answer }, answered).await?
    }

    /// A copy of a file as it is now.
    pub(crate) async fn snapshot(&self, path: String, bytes_max: u64) -> Result<SealedCopy, GuardError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Snapshot { path, bytes_max, answer }, answered).await?
    }

    /// Closes what was opened on one grant.
    pub(crate) async fn close_all_of(&self, grant: GrantId) {
        let (answer, answered) = oneshot::channel();
        // One that has ended has closed everything.
        drop(self.ask(Request::CloseAllOf(grant, answer), answered).await);
    }

    /// Ends the process. When this returns it is gone, and with it every way to the root.
    pub(crate) async fn end(&self) {
        let (answer, answered) = oneshot::channel();
        if self.0.send(Request::End(answer)).await.is_ok() {
            drop(answered.await);
        }
    }

    async fn ask<T>(&self, request: Request, answered: oneshot::Receiver<T>) -> Result<T, GuardError> {
        self.0.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => GuardError::Busy,
            mpsc::error::TrySendError::Closed(_) => GuardError::Ended,
        })?;
        match timeout(ANSWER_MAX, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(GuardError::Ended),
            Err(_) => Err(GuardError::Busy),
        }
    }
}

/// The program's word for it.
pub(super) fn word(access: FileAccess) -> &'static str {
    match access {
        FileAccess::Read => "read",
        FileAccess::Write => "write",
    }
}

/// What ends the conversation with one.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("it has closed its link")]
    Closed,
    #[error("it sent what it must not: {0}")]
    Illegal(&'static str),
    #[error("its sandbox is not what it reported: {0}")]
    Sandbox(String),
    #[error("its link failed: {0}")]
    Link(LinkError),
}

impl From<LinkError> for Fault {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Closed | LinkError::Os(Errno::CONNRESET | Errno::PIPE) => Self::Closed,
            error => Self::Link(error),
        }
    }
}

type Link = AsyncFd<FileguardLink>;

async fn handshake(link: &Link, terms: &Terms) -> Result<Shown, Fault> {
    let hello = receive(link).await?;
    let pid = hello.pid.ok_or(Fault::Illegal("a message without a sender"))?;
    match hello.message {
        FromFileguard::Hello { digest } if digest == protocol::DIGEST => {}
        FromFileguard::Hello { .. } => return Err(Fault::Illegal("it is of another build than the server")),
        _ => return Err(Fault::Illegal("something before its hello")),
    }
    let FromFileguard::Root { kind, identity, owner, size, modified, .. } = receive(link).await?.message
    else {
        return Err(Fault::Illegal("something before its root"));
    };
    let FromFileguard::Sealed { layers, .. } = receive(link).await?.message else {
        return Err(Fault::Illegal("something before its sandbox was complete"));
    };
    is_sealed(pid, &layers).map_err(Fault::Sandbox)?;
    let Terms { excluded, digest_key } = terms.clone();
    link.get_ref().send(&ToFileguard::Start { excluded, digest_key }, &[])?;
    let kind = match kind {
        RootKind::File => ShownKind::File,
        RootKind::Folder => ShownKind::Folder,
    };
    let modified_ms = u64::try_from(modified).unwrap_or(0).saturating_mul(1_000);
    Ok(Shown { kind, device: identity.device, inode: identity.inode, owner, size, modified_ms })
}

/// The last that it said, on one line.
async fn words_of(child: &Child) -> String {
    end(child).await;
    let mut bytes = Vec::new();
    let read = child
        .stderr
        .try_clone()
        .and_then(|pipe| File::from(pipe).take(WORDS_BYTES_MAX).read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    visible(String::from_utf8_lossy(&bytes).trim())
}

/// A file that is being opened, or is open.
struct Open {
    grant: GrantId,
    opened: Option<oneshot::Sender<Result<u64, GuardError>>>,
    closed: oneshot::Sender<Closed>,
}

struct Task {
    link: Link,
    child: Child,
    files: HashMap<u32, Open>,
    lists: HashMap<u32, oneshot::Sender<Result<Page, GuardError>>>,
    copies: HashMap<u32, oneshot::Sender<Result<SealedCopy, GuardError>>>,
    closing: Vec<(GrantId, oneshot::Sender<()>)>,
    next: u32,
    /// Dropped with the task.
    _going: oneshot::Sender<()>,
}

impl Task {
    /// Until its end is asked for, nobody is left to ask, or it ends or misbehaves by itself.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let ended = loop {
            tokio::select! {
                received = receive(&self.link) => {
                    let handled = received.map_err(Fault::from).and_then(|received| self.hear(received));
                    if let Err(fault) = handled {
                        tracing::warn!(pid = self.child.pid, %fault, "a file service ended");
                        break None;
                    }
                }
                request = requests.recv() => match request {
                    None => break None,
                    Some(Request::End(ended)) => break Some(ended),
                    Some(request) => {
                        if let Err(fault) = self.request(request) {
                            tracing::warn!(pid = self.child.pid, %fault, "a file service is ended");
                            break None;
                        }
                    }
                },
            }
        };
        requests.close();
        if !end(&self.child).await {
            tracing::error!(pid = self.child.pid, "a file service did not end");
        }
        if let Some(ended) = ended {
            ended.send(()).unwrap_or_default();
        }
        while let Some(request) = requests.recv().await {
            if let Request::End(ended) = request {
                ended.send(()).unwrap_or_default();
            }
        }
    }

    fn request(&mut self, request: Request) -> Result<(), Fault> {
        match request {
            Request::Open(opening, opened) => {
                let number = self.number();
                let Opening { grant, path, access, until_boot_ms, bytes_max, socket, ended, closed } =
                    opening;
                if *ended.borrow() {
                    drop(opened.send(Err(GuardError::Ended)));
                    return Ok(());
                }
                let message = ToFileguard::Open { number, path, access, until_boot_ms, bytes_max };
                self.link.get_ref().send(&message, &[socket.as_fd()])?;
                self.files.insert(number, Open { grant, opened: Some(opened), closed });
            }
            Request::List { path, after, entries_max, answer } => {
                let number = self.number();
                self.link.get_ref().send(&ToFileguard::List { number, path, after, entries_max }, &[])?;
                self.lists.insert(number, answer);
            }
            Request::Snapshot { path, bytes_max, answer } => {
                let number = self.number();
                self.link.get_ref().send(&ToFileguard::Snapshot { number, path, bytes_max }, &[])?;
                self.copies.insert(number, answer);
            }
            Request::CloseAllOf(grant, answer) => {
                for (number, _) in self.files.iter().filter(|(_, file)| file.grant == grant) {
                    self.link.get_ref().send(&ToFileguard::Close { number: *number }, &[])?;
                }
                self.closing.push((grant, answer));
                self.tell_closed();
            }
            Request::End(_) => unreachable!("handled before"),
        }
        Ok(())
    }

    /// Tells those whose grant has no open file any more.
    fn tell_closed(&mut self) {
        for (grant, answer) in std::mem::take(&mut self.closing) {
            if self.files.values().any(|file| file.grant == grant) {
                self.closing.push((grant, answer));
            } else {
                answer.send(()).unwrap_or_default();
            }
        }
    }

    fn number(&mut self) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1);
            let number = self.next;
            let taken = self.files.contains_key(&number)
                || self.lists.contains_key(&number)
                || self.copies.contains_key(&number);
            if !taken {
                return self.next;
            }
        }
    }

    fn hear(&mut self, received: Received<FromFileguard>) -> Result<(), Fault> {
        let Received { message, mut descriptors, .. } = received;
        let copy = if matches!(message, FromFileguard::Snapshot { .. }) { descriptors.pop() } else { None };
        if !descriptors.is_empty() {
            return Err(Fault::Illegal("a descriptor that nobody asked for"));
        }
        match message {
            FromFileguard::Opened { number, size, .. } => {
                let file = self.files.get_mut(&number).ok_or(Fault::Illegal("a number that is not open"))?;
                let opened = file.opened.take().ok_or(Fault::Illegal("a file opened twice"))?;
                drop(opened.send(Ok(size)));
            }
            FromFileguard::Closed { number, bytes, digest, .. } => {
                let file = self.files.remove(&number).ok_or(Fault::Illegal("a number that is not open"))?;
                let _unheard = file.closed.send(Closed { bytes, digest: Some(digest) });
                self.tell_closed();
            }
            FromFileguard::Listed { number, entries, more, unnamed } => {
                let answer =
                    self.lists.remove(&number).ok_or(Fault::Illegal("a list that nobody asked for"))?;
                drop(answer.send(Ok(Page { entries, more, unnamed })));
            }
            FromFileguard::Refused { number, refusal } => {
                if let Some(answer) = self.lists.remove(&number) {
                    drop(answer.send(Err(refusal.into())));
                } else if let Some(answer) = self.copies.remove(&number) {
                    drop(answer.send(Err(refusal.into())));
                } else {
                    let file =
                        self.files.remove(&number).ok_or(Fault::Illegal("a number that is not open"))?;
                    let opened = file.opened.ok_or(Fault::Illegal("a refusal of an open file"))?;
                    drop(opened.send(Err(refusal.into())));
                    self.tell_closed();
                }
            }
            FromFileguard::Snapshot { number, size, digest } => {
                let memfd = copy.ok_or(Fault::Illegal("a copy without its descriptor"))?;
                let answer =
                    self.copies.remove(&number).ok_or(Fault::Illegal("a copy that nobody asked for"))?;
                drop(answer.send(Ok(SealedCopy { memfd, bytes: size, digest })));
            }
            FromFileguard::Hello { .. } | FromFileguard::Root { .. } | FromFileguard::Sealed { .. } => {
                return Err(Fault::Illegal("a message out of its order"));
            }
        }
        Ok(())
    }
}

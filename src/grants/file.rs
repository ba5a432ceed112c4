//! A granted file as the input of a job: its worker reads it from the file's service, or gets a copy, and the server neither.

use super::guard::{Guard, Opening, SealedCopy};
use super::spending::{Facts, Spending, Used};
use super::{GrantService, GuardError, Holder, guarded, refused_to};
use crate::api::ApiError;
use crate::audit::Lane;
use crate::clock;
use ringfence_grants::GrantId;
use ringfence_protocol::{FileAccess, connected_pair};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use tokio::sync::{oneshot, watch};

/// One use of a grant: a file that may be read, as long as this lives.
pub(crate) struct GrantedFile {
    guard: Guard,
    spending: Arc<Spending>,
    grant: GrantId,
    path: String,
    until_boot_ms: u64,
    bytes_max: u64,
    /// Why the file could not be opened the last time.
    refusal: Arc<Mutex<Option<ApiError>>>,
    source: Source,
    ended: watch::Receiver<bool>,
}

/// Where a worker has the bytes from.
enum Source {
    /// For the first worker; another one gets a new pair.
    Socket(Mutex<Option<Socket>>),
    /// A copy, where the grant allows that.
    Copy { memfd: Arc<OwnedFd>, bytes: u64, digest: [u8; 32] },
}

/// The two ends over which a worker asks fileguard for a file. The server keeps neither: that the worker's is closed is
/// how fileguard knows that it has done.
pub(super) struct Socket {
    pub(super) theirs: OwnedFd,
    pub(super) fileguards: OwnedFd,
}

impl Socket {
    pub(super) fn new() -> Result<Self, Errno> {
        let (theirs, fileguards) = connected_pair()?;
        rustix::io::ioctl_fionbio(&theirs, true)?;
        Ok(Self { theirs, fileguards })
    }
}

impl std::fmt::Debug for GrantedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A path is a client's own affair.
        f.debug_struct("GrantedFile").field("grant", &self.grant).finish_non_exhaustive()
    }
}

impl GrantedFile {
    /// The grant's number.
    pub(crate) fn grant(&self) -> u64 {
        self.grant.0
    }

    /// What a worker gets: a copy, of so many bytes, or a socket on which it asks for the file. What it reads never comes
    /// through the server. Behind a socket the file is opened then; if that fails it closes, and [`GrantedFile::refusal`]
    /// says why.
    pub(crate) fn hand_over(&self) -> (Option<u64>, Arc<OwnedFd>) {
        match &self.source {
            Source::Copy { memfd, bytes, .. } => (Some(*bytes), memfd.clone()),
            Source::Socket(socket) => (None, self.connect(socket)),
        }
    }

    /// Bytes of the copy; of a file that is not opened yet nobody knows.
    pub(crate) fn size(&self) -> Option<u64> {
        match &self.source {
            Source::Copy { bytes, .. } => Some(*bytes),
            Source::Socket(_) => None,
        }
    }

    fn connect(&self, first: &Mutex<Option<Socket>>) -> Arc<OwnedFd> {
        let first = first.lock().expect("no thread panics with this lock").take();
        match first.map_or_else(Socket::new, Ok) {
            Ok(Socket { theirs, fileguards }) => {
                self.open_behind(fileguards);
                Arc::new(theirs)
            }
            Err(error) => {
                tracing::error!(%error, "no socket can be made for a granted file");
                self.spending.service.closed.clone()
            }
        }
    }

    fn open_behind(&self, socket: OwnedFd) {
        let (closed, when_closed) = oneshot::channel();
        let opening = Opening {
            grant: self.grant,
            path: self.path.clone(),
            access: FileAccess::Read,
            until_boot_ms: self.until_boot_ms,
            bytes_max: self.bytes_max,
            socket,
            ended: self.ended.clone(),
            closed,
        };
        let (guard, refusal) = (self.guard.clone(), self.refusal.clone());
        let (counted, spending) = (self.spending.opened(when_closed), self.spending.clone());
        tokio::spawn(async move {
            if let Err(error) = guard.open(opening).await {
                spending.refused(guarded(&error).code());
                *refusal.lock().expect("no thread panics with this lock") = Some(guarded(&error));
            }
            counted.await;
        });
    }

    /// Why the file could not be opened.
    pub(crate) fn refusal(&self) -> Option<ApiError> {
        self.refusal.lock().expect("no thread panics with this lock").take()
    }

    /// Counts what was used, before the answer is given: the next use is decided by it.
    pub(crate) async fn finish(&self) {
        // The worker has closed its socket when it had read all.
        self.spending.counted().await;
    }

    /// Returns when the grant has ended: what was made from it must not be given out any more.
    pub(crate) async fn ended(&self) {
        self.end().comes().await;
    }

    /// Tells of the grant's end, also after this use of it.
    pub(crate) fn end(&self) -> GrantEnd {
        GrantEnd(self.ended.clone())
    }
}

/// The end of a grant, or the wait for it.
pub(crate) struct GrantEnd(pub(super) watch::Receiver<bool>);

impl GrantEnd {
    /// The same once more.
    pub(crate) fn again(&self) -> Self {
        Self(self.0.clone())
    }

    /// Whether it has come.
    pub(crate) fn is_over(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it has.
    pub(crate) async fn comes(&self) {
        // The service keeps the sender until the end, and lets it go then.
        drop(self.0.clone().wait_for(|ended| *ended).await);
    }
}

impl GrantService {
    /// Lets one file be read by whoever gets what is returned.
    pub(crate) async fn read(
        self: &Arc<Self>,
        holder: &Holder<'_>,
        path: &str,
        bytes_max: u64,
    ) -> Result<Arc<GrantedFile>, ApiError> {
        let place = self.audit.place(Lane::Use).await?;
        let read = self.table().read(clock::moment(), holder.presented(), path, bytes_max);
        let used = Used::Read(read.map_err(|refusal| refused_to(holder, refusal))?);
        let (facts, spending) = self.begin(used, holder.who, place).await?;
        let (guard, ended, source) =
            self.source_of(&facts).await.inspect_err(|error| spending.refused(error.code()))?;
        if let Source::Copy { bytes, digest, .. } = &source {
            spending.add(*bytes, Some(*digest));
        }
        let Facts { grant, path, until_boot_ms, bytes_max, .. } = facts;
        Ok(Arc::new(GrantedFile {
            guard,
            spending,
            grant,
            path,
            until_boot_ms,
            bytes_max,
            refusal: Arc::default(),
            source,
            ended,
        }))
    }

    /// A capability is what brings bytes out of a root.
    async fn source_of(&self, facts: &Facts) -> Result<(Guard, watch::Receiver<bool>, Source), ApiError> {
        let (Some(ended), Some(guard)) = (self.end_of(facts.grant), self.guard_of(facts.root)) else {
            return Err(guarded(&GuardError::Ended));
        };
        let source = if facts.snapshot {
            let copy = guard.snapshot(facts.path.clone(), facts.bytes_max).await;
            let SealedCopy { memfd, bytes, digest } = copy.map_err(|error| guarded(&error))?;
            Source::Copy { memfd: Arc::new(memfd), bytes, digest }
        } else {
            Source::Socket(Mutex::new(Some(Socket::new().map_err(|error| ApiError::internal(&error))?)))
        };
        Ok((guard, ended, source))
    }
}

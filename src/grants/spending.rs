//! One use of a grant, from the table's yes until every socket of it is closed: then what was used is counted and written
//! down.

use super::GrantService;
use super::guard::Closed;
use crate::api::ApiError;
use crate::audit::{Masker, Place, Who};
use ringfence_audit::{Event, Word};
use ringfence_grants::{FileRead, FileWrite, GrantId};
use ringfence_protocol::FileAccess;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long an answer waits until what was read is counted.
const CLOSE_WAIT_MAX: Duration = Duration::from_millis(500);

/// A capability that is being used.
pub(super) enum Used {
    Read(FileRead),
    Write(FileWrite),
}

impl Used {
    /// What for.
    pub(super) fn access(&self) -> FileAccess {
        match self {
            Self::Read(_) => FileAccess::Read,
            Self::Write(_) => FileAccess::Write,
        }
    }
}

/// What a capability says, for as long as it is used.
pub(super) struct Facts {
    pub(super) grant: GrantId,
    pub(super) root: GrantId,
    /// As fileguard wants it.
    pub(super) path: String,
    pub(super) until_boot_ms: u64,
    pub(super) bytes_max: u64,
    pub(super) snapshot: bool,
}

/// A capability that is being used: it is given back when the use is over and every socket of it is closed.
pub(super) struct Spending {
    pub(super) service: Arc<GrantService>,
    state: Mutex<Spent>,
    /// Of the grant in all.
    moved: Arc<AtomicU64>,
    /// Sockets that are not closed yet.
    open: watch::Sender<usize>,
    grant: GrantId,
    path: String,
    who: Who,
}

/// What changes in the course of a use.
struct Spent {
    used: Option<Used>,
    place: Option<Place>,
    bytes: u64,
    digest: Option<[u8; 32]>,
    refused: Option<&'static str>,
}

impl GrantService {
    /// Begins a use: the first one of a grant is written down before it takes effect.
    pub(super) async fn begin(
        self: &Arc<Self>,
        used: Used,
        who: &Who,
        place: Place,
    ) -> Result<(Facts, Arc<Spending>), ApiError> {
        let (grant, root, path, until_boot_ms, bytes_max, snapshot) = match &used {
            Used::Read(read) => (
                read.grant(),
                read.root(),
                read.path(),
                read.until_boot_ms(),
                read.bytes_max(),
                read.snapshot(),
            ),
            Used::Write(write) => (
                write.grant(),
                write.root(),
                write.path(),
                write.until_boot_ms(),
                write.bytes_max(),
                write.snapshot(),
            ),
        };
        let whole_path = self.whole_path(root, path);
        let path = self.path_for_guard(root, path);
        let (first, moved) = self.live(grant);
        let spending = Arc::new(Spending {
            service: self.clone(),
            state: Mutex::new(Spent {
                used: Some(used),
                place: Some(place),
                bytes: 0,
                digest: None,
                refused: None,
            }),
            moved,
            open: watch::Sender::new(0),
            grant,
            path: whole_path.clone(),
            who: who.clone(),
        });
        let recorded = first.get_or_try_init(|| self.record_first_use(grant, who, whole_path)).await;
        if let Err(error) = recorded {
            let error = ApiError::from(error);
            spending.refused(error.code());
            return Err(error);
        }
        Ok((Facts { grant, root, path, until_boot_ms, bytes_max, snapshot }, spending))
    }
}

impl Spending {
    fn state(&self) -> MutexGuard<'_, Spent> {
        self.state.lock().expect("no thread panics with this lock")
    }

    /// Waits until every socket is closed, and gives the capability back. One that is not closed in time is counted by its
    /// end.
    pub(super) async fn counted(&self) {
        let mut open = self.open.subscribe();
        if tokio::time::timeout(CLOSE_WAIT_MAX, open.wait_for(|open| *open == 0)).await.is_ok() {
            self.give_back("ok");
        }
    }

    /// A socket of it is open until what is returned has run: it counts the bytes that went over it.
    pub(super) fn opened(
        self: &Arc<Self>,
        closed: oneshot::Receiver<Closed>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.open.send_modify(|open| *open += 1);
        let spending = self.clone();
        async move {
            let Closed { bytes, digest } = closed.await.unwrap_or_default();
            spending.add(bytes, digest);
            spending.open.send_modify(|open| *open -= 1);
        }
    }

    /// Counts bytes; what is known of their digest is that of the newest.
    pub(super) fn add(&self, bytes: u64, digest: Option<[u8; 32]>) {
        let mut state = self.state();
        state.bytes += bytes;
        state.digest = digest.or(state.digest);
        drop(state);
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Remembers why nothing came of it.
    pub(super) fn refused(&self, code: &'static str) {
        self.state().refused = Some(code);
    }

    /// Of a file that turned out to be shorter no more is kept from other uses than it has.
    pub(super) fn hold_at_most(&self, bytes: u64) {
        if let Some(Used::Read(read)) = self.state().used.as_mut() {
            self.service.table().hold_at_most(read, bytes);
        }
    }

    /// Ends the use, once, and writes down what came of it: `result`, unless it was refused or its grant has ended.
    pub(super) fn give_back(&self, result: &'static str) {
        let mut state = self.state();
        let Some(used) = state.used.take() else { return };
        let Spent { place, bytes, digest, refused, .. } = &mut *state;
        match used {
            Used::Read(read) => self.service.table().spent(read, *bytes),
            Used::Write(write) => self.service.table().spent(write, *bytes),
        }
        let (place, bytes, digest, refused) = (place.take(), *bytes, *digest, *refused);
        drop(state);
        let ended = self.service.end_of(self.grant).is_none().then_some("grant_ended");
        let result = Word::lossy(refused.or(ended).unwrap_or(result));
        let (grant, path) = (self.grant.0, self.path.clone());
        let digest = digest.as_ref().map(Word::of_digest);
        let use_ended = move |masker: &mut Masker<'_>| Event::GrantUseEnded {
            grant,
            path: masker.mask(&path),
            bytes,
            digest,
            result,
        };
        if let Some(place) = place {
            self.service.audit.put(place, &self.who, use_ended, drop);
        }
    }
}

impl Drop for Spending {
    fn drop(&mut self) {
        self.give_back("cut_off");
    }
}

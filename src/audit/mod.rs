//! The audit log while the server runs: what has to be in it before something takes effect or is answered.
//!
//! One thread owns the log. It takes all that waits, appends it, makes it durable in one go, and then tells those who wait
//! for it. Who wants to wait takes a place first, so nothing that has happened finds the queue full.

mod refusals;
mod writer;

pub(crate) use writer::Masker;

use crate::api::ApiError;
use crate::clock;
use crate::home::{Home, HomeError};
use axum::http::StatusCode;
use refusals::{Refusals, Refused};
use ringfence_audit::{
    Change, Entry, Event, Folder, KEYS_BYTES, Keys, KeysError, Log, Masks, OpenError, Word,
};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use utoipa::ToSchema;
use writer::Writer;

/// Jobs that run, wait, or have ended and are not in the log yet.
const JOBS_MAX: usize = 8_192;
/// Uses of grants that have not ended, or are not in the log yet.
const USES_MAX: usize = 4_096;
/// Acts that wait until they are in the log.
const ACTS_MAX: usize = 1_024;
/// Notes that wait; what comes beyond is counted in an entry of its own.
const NOTES_MAX: usize = 4_096;
/// The code under which notes are counted that found no room.
const NOTES_LEFT_OUT: &str = "audit_notes_left_out";
/// How long a request waits for a place.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long the server's end waits for the log's.
const STOP_WAIT_MAX: Duration = Duration::from_secs(10);
/// The folder, below the home.
const FOLDER: &str = "audit";
/// The code of what is refused while entries can't be written.
pub(crate) const AUDIT_UNAVAILABLE: &str = "audit_unavailable";
/// The longest session that a client can name.
pub(crate) const SESSION_BYTES_MAX: usize = 64;

/// Who did something, and by which request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Who {
    /// NAME or `uid:N`; nobody for the operator and for who is not known.
    pub(crate) client: Option<String>,
    /// The uid on the other end, where the kernel states one.
    pub(crate) uid: Option<u32>,
    /// The request's id.
    pub(crate) request: Option<String>,
    /// What the client calls its session.
    pub(crate) session: Option<String>,
}

impl Who {
    /// The server itself.
    pub(crate) fn server() -> Self {
        Self::default()
    }

    /// This client, by no request.
    #[cfg(test)]
    pub(crate) fn client(name: &str) -> Self {
        Self { client: Some(name.to_owned()), ..Self::default() }
    }
}

/// Why something is not in the log; then it must not take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuditError {
    /// A write or fsync failed: nothing is written until the next start.
    #[error(
        "the audit log can't be written, so nothing is granted, run or changed; the server's log says why, and a restart is \
         needed"
    )]
    Unavailable,
    /// Too much waits to be written.
    #[error("too much waits for the audit log; try again")]
    Busy,
    /// What was to be written is no entry.
    #[error("the audit log does not take this entry")]
    Entry,
}

impl From<AuditError> for ApiError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Unavailable | AuditError::Busy => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, AUDIT_UNAVAILABLE, error.to_string())
            }
            AuditError::Entry => Self::internal(&error),
        }
    }
}

/// Why the server does not start with this log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditStartError {
    /// The folder.
    #[error(
        "{0}; in a home that root owns, make it for the server's user: install -d -m 700 -o USER HOME/audit"
    )]
    Folder(HomeError),
    /// The keys.
    #[error("audit/{0}; put the keys back, or move the folder away and start a new log")]
    Keys(#[from] KeysError),
    /// The log.
    #[error("{0}; ringfence audit verify says more")]
    Open(#[from] OpenError),
    /// The second place.
    #[error("--audit-second {path}: {source}")]
    Second {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Pruning.
    #[error("--audit-keep-days: {0}")]
    Prune(ringfence_audit::LogError),
    /// The first entry.
    #[error("the start can't be written to the audit log: {0}; make room on its disk, or make it writable")]
    FirstEntry(ringfence_audit::LogError),
    /// The thread.
    #[error("the audit log's thread can't start: {0}")]
    Thread(std::io::Error),
    /// The kernel gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// How the log is kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// Where checkpoints go as well.
    pub(crate) second: Option<PathBuf>,
    /// Days after which entries are pruned.
    pub(crate) keep_days: Option<u64>,
}

/// The log as `/status` shows it.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct AuditView {
    /// Entries that are durable.
    pub(crate) entries: u64,
    /// Of them, those that the last checkpoint covers.
    pub(crate) covered: u64,
    /// When that was, in milliseconds since 1970; absent before the first one of this run.
    pub(crate) checkpoint_ms: Option<u64>,
    /// Why nothing is written any more; absent where all is well.
    pub(crate) failure: Option<String>,
    /// Why the last checkpoint is not in the second place.
    pub(crate) second_failure: Option<String>,
    /// How often a name was masked that the full map of names has no room for; pruning makes room.
    pub(crate) names_left_out: u64,
}

/// What waits for whom, counted apart: one kind can't take the places of another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lane {
    /// A job.
    Job,
    /// A use of a grant.
    Use,
    /// What a request wants to do.
    Act,
}

/// A place in the queue.
#[derive(Debug)]
pub(crate) struct Place(
    #[expect(dead_code, reason = "the place is free when this is dropped")] OwnedSemaphorePermit,
);

/// Makes an entry's event once names can be masked.
type Build = Box<dyn FnOnce(&mut Masker<'_>) -> Event + Send>;
/// Told once the entry is durable, or can't be.
type Done = Box<dyn FnOnce(Result<(), AuditError>) + Send>;

/// An entry that waits.
struct Item {
    time_ms: u64,
    who: Who,
    build: Build,
    done: Option<Done>,
    _place: Option<Place>,
}

/// To the log; every copy leads to the same.
#[derive(Clone)]
pub(crate) struct Audit(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    came: Condvar,
    jobs: Arc<Semaphore>,
    uses: Arc<Semaphore>,
    acts: Arc<Semaphore>,
    refusals: Mutex<Refusals>,
    masks: Masks,
    run: Word,
    failure: OnceLock<String>,
    view: Mutex<AuditView>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    items: Vec<Item>,
    notes: usize,
    notes_left_out: u64,
    ending: bool,
}

impl Audit {
    /// Opens the log of a home, writes that the server has started, and starts the thread.
    pub(crate) fn open(home: &Home, run_id: &str, settings: &Settings) -> Result<Self, AuditStartError> {
        let mut files = Folder::new(home.folder(FOLDER, 0o700).map_err(AuditStartError::Folder)?);
        let mut random = [0; KEYS_BYTES];
        getrandom::fill(&mut random)?;
        let keys = Keys::read_or_make(&mut files, &random)?;
        let masks = keys.masks().clone();
        let second = settings.second.as_ref().map(|path| {
            Folder::open(path).map_err(|source| AuditStartError::Second { path: path.clone(), source })
        });
        let (mut log, recovery) = Log::open(files, keys, second.transpose()?)?;
        let run = Word::lossy(run_id);
        let version = Word::lossy(env!("CARGO_PKG_VERSION"));
        let started = Event::ServerStarted { version, dropped_bytes: recovery.dropped_bytes as u64 };
        let entry = Entry::of_server(clock::moment().wall_ms, run.clone(), started);
        log.append(entry).and_then(|_| log.commit()).map_err(AuditStartError::FirstEntry)?;
        tracing::info!(entries = log.size(), dropped_bytes = recovery.dropped_bytes, "audit log open");
        let semaphore = |most| Arc::new(Semaphore::new(most));
        let audit = Self(Arc::new(Shared {
            queue: Mutex::default(),
            came: Condvar::new(),
            jobs: semaphore(JOBS_MAX),
            uses: semaphore(USES_MAX),
            acts: semaphore(ACTS_MAX),
            refusals: Mutex::default(),
            masks,
            run,
            failure: OnceLock::new(),
            view: Mutex::new(AuditView {
                entries: log.size(),
                covered: recovery.size,
                ..AuditView::default()
            }),
            thread: Mutex::default(),
        }));
        let mut writer = Writer::new(log, audit.0.clone(), settings.keep_days);
        writer.prune().map_err(AuditStartError::Prune)?;
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run());
        *audit.0.thread() = Some(thread.map_err(AuditStartError::Thread)?);
        Ok(audit)
    }

    /// A place for an entry that will come, so that it need not wait then.
    pub(crate) async fn place(&self, lane: Lane) -> Result<Place, AuditError> {
        self.well()?;
        let lane = match lane {
            Lane::Job => &self.0.jobs,
            Lane::Use => &self.0.uses,
            Lane::Act => &self.0.acts,
        };
        match tokio::time::timeout(PLACE_WAIT_MAX, lane.clone().acquire_owned()).await {
            Ok(permit) => Ok(Place(permit.expect("nobody closes a lane"))),
            Err(_) => Err(AuditError::Busy),
        }
    }

    /// Puts an entry into its place; `done` hears when it is durable.
    pub(crate) fn put(
        &self,
        place: Place,
        who: &Who,
        build: impl FnOnce(&mut Masker<'_>) -> Event + Send + 'static,
        done: impl FnOnce(Result<(), AuditError>) + Send + 'static,
    ) {
        let mut queue = self.0.queue();
        queue.items.push(Item::new(who, Box::new(build), Some(Box::new(done)), Some(place)));
        drop(queue);
        self.0.came.notify_one();
    }

    /// Writes an entry. When this returns it is durable.
    pub(crate) async fn record(
        &self,
        who: &Who,
        build: impl FnOnce(&mut Masker<'_>) -> Event + Send + 'static,
    ) -> Result<(), AuditError> {
        let place = self.place(Lane::Act).await?;
        let (done, when_done) = oneshot::channel();
        let tell = move |written| {
            // Who does not wait any more does not hear it.
            let _unheard = done.send(written);
        };
        self.put(place, who, build, tell);
        when_done.await.unwrap_or(Err(AuditError::Unavailable))
    }

    /// Writes an entry about something that has happened and that nobody holds up for it.
    pub(crate) fn note(&self, who: &Who, build: impl FnOnce(&mut Masker<'_>) -> Event + Send + 'static) {
        let mut queue = self.0.queue();
        if queue.notes >= NOTES_MAX {
            queue.notes_left_out += 1;
            return;
        }
        queue.notes += 1;
        queue.items.push(Item::new(who, Box::new(build), None, None));
        drop(queue);
        self.0.came.notify_one();
    }

    /// Counts a refusal; an entry comes once a second.
    pub(crate) fn refused(&self, who: &Who, code: &'static str) {
        self.0.refusals().count(who, code);
    }

    /// Whether entries can be written.
    pub(crate) fn well(&self) -> Result<(), AuditError> {
        if self.0.failure.get().is_some() { Err(AuditError::Unavailable) } else { Ok(()) }
    }

    /// For `/status`.
    pub(crate) fn view(&self) -> AuditView {
        AuditView { failure: self.0.failure.get().cloned(), ..self.0.view().clone() }
    }

    /// For digests of what is served: who has the bytes and this key can tell that it was these.
    pub(crate) fn digest_key(&self) -> [u8; 32] {
        self.0.masks.digest_key()
    }

    /// Writes that a client was added or removed. A removal takes effect whether or not it can be written.
    pub(crate) async fn client_changed(
        &self,
        who: &Who,
        name: &str,
        change: Change,
    ) -> Result<(), AuditError> {
        let name = name.to_owned();
        self.record(who, move |masker| Event::ClientChanged { name: masker.mask(&name), change }).await
    }

    /// Writes that an API key was added or revoked.
    pub(crate) async fn key_changed(&self, who: &Who, id: &str, change: Change) -> Result<(), AuditError> {
        let key = Word::lossy(id);
        self.record(who, move |_| Event::KeyChanged { key, change }).await
    }

    /// Writes what waits, that the server has stopped, and a checkpoint.
    pub(crate) async fn stop(&self) {
        let stopped = Box::new(|_: &mut Masker<'_>| Event::ServerStopped);
        {
            let mut queue = self.0.queue();
            // What was counted belongs before the last entry.
            self.0.put_refusals(&mut queue);
            queue.items.push(Item::new(&Who::server(), stopped, None, None));
            queue.ending = true;
        }
        self.0.came.notify_one();
        let Some(thread) = self.0.thread().take() else { return };
        let joined = tokio::task::spawn_blocking(move || thread.join());
        if tokio::time::timeout(STOP_WAIT_MAX, joined).await.is_err() {
            tracing::error!("the audit log did not end in time");
        }
    }
}

impl Item {
    fn new(who: &Who, build: Build, done: Option<Done>, place: Option<Place>) -> Self {
        // Made under the queue's lock, so that the order is that of the clock.
        Self { time_ms: clock::moment().wall_ms, who: who.clone(), build, done, _place: place }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no thread panics with this lock")
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().expect("no thread panics with this lock")
    }

    fn view(&self) -> MutexGuard<'_, AuditView> {
        self.view.lock().expect("no thread panics with this lock")
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().expect("no thread panics with this lock")
    }

    /// Makes entries of what was refused since the last time, and of notes that found no room.
    fn put_refusals(&self, queue: &mut Queue) {
        let count = std::mem::take(&mut queue.notes_left_out);
        let left_out = Refused { who: Who::server(), code: NOTES_LEFT_OUT, count };
        let refused = self.refusals().take().into_iter().chain((count > 0).then_some(left_out));
        queue.items.extend(refused.map(|Refused { who, code, count }| {
            let event = Event::Refused { code: Word::lossy(code), count };
            Item::new(&who, Box::new(move |_| event), None, None)
        }));
    }

    /// All that waits, as soon as there is something or this time is over.
    fn take(&self, within: Duration) -> Queue {
        let nothing = |queue: &mut Queue| queue.items.is_empty() && !queue.ending;
        let waited = self.came.wait_timeout_while(self.queue(), within, nothing);
        let (mut queue, _) = waited.expect("no thread panics with this lock");
        let (ending, notes_left_out) = (queue.ending, queue.notes_left_out);
        std::mem::replace(&mut *queue, Queue { ending, notes_left_out, ..Queue::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_audit::{Reader, Verified, verify};

    struct Case {
        folder: tempfile::TempDir,
        home: Home,
    }

    impl Case {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let home = Home::open(folder.path()).unwrap();
            Self { folder, home }
        }

        fn open(&self) -> Audit {
            Audit::open(&self.home, "r1", &Settings::default()).unwrap()
        }

        fn files(&self) -> Folder {
            Folder::open(&self.folder.path().join(FOLDER)).unwrap()
        }

        fn entries(&self) -> Vec<Entry> {
            let files = self.files();
            let reader = Reader::open(&files, None).unwrap();
            reader.entries(0).map(|entry| Entry::decode(&entry.unwrap().1).unwrap()).collect()
        }

        fn verified(&self) -> Verified {
            let key = Keys::read(&self.files()).unwrap().public();
            verify(&self.files(), &key, None).unwrap()
        }
    }

    #[tokio::test]
    async fn what_was_recorded_is_in_the_log_in_its_order_and_covered_at_the_end() {
        let case = Case::new();
        let audit = case.open();
        let acts = (0..300).map(|worker| {
            let audit = audit.clone();
            async move {
                let killed = move |_: &mut Masker<'_>| Event::WorkerKilled {
                    worker,
                    model: Word::lossy("m"),
                    reason: Word::lossy("test"),
                };
                audit.record(&Who::client("notes"), killed).await
            }
        });
        let tasks: Vec<_> = acts.map(tokio::spawn).collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), Ok(()));
        }
        assert_eq!(case.entries().len(), 301, "what is answered is there");
        for _ in 0..3 {
            audit.refused(&Who::client("notes"), "rate_jobs");
        }
        audit.note(&Who::server(), |_| Event::QuotasChanged { digest: Word::lossy("d") });
        audit.stop().await;
        let entries = case.entries();
        assert_eq!(entries.len(), 304);
        assert!(matches!(entries[0].event, Event::ServerStarted { dropped_bytes: 0, .. }));
        assert!(matches!(entries.last().unwrap().event, Event::ServerStopped));
        assert!(entries.iter().any(|entry| matches!(entry.event, Event::Refused { count: 3, .. })));
        let times: Vec<u64> = entries.iter().map(|entry| entry.time_ms).collect();
        assert!(times.is_sorted() && entries.iter().all(|entry| entry.clock.is_none()));
        let verified = case.verified();
        assert_eq!((verified.checkpoint.size, verified.newer), (304, 0));
        let view = case.open().view();
        assert_eq!((view.entries, view.covered), (305, 304));
    }

    #[tokio::test]
    async fn a_log_that_is_open_or_damaged_is_not_opened() {
        let case = Case::new();
        let audit = case.open();
        let second = Audit::open(&case.home, "r2", &Settings::default());
        assert!(matches!(second, Err(AuditStartError::Open(OpenError::Locked))));
        audit.stop().await;
        drop(audit);
        std::fs::write(case.folder.path().join("audit/log/checkpoint"), "something else").unwrap();
        let damaged = Audit::open(&case.home, "r3", &Settings::default());
        assert!(matches!(damaged, Err(AuditStartError::Open(OpenError::Fault(_)))));
    }

    #[tokio::test]
    async fn after_a_failed_write_nothing_is_recorded_any_more() {
        let case = Case::new();
        let audit = case.open();
        // The next checkpoint finds a folder where its file is to be.
        std::fs::create_dir(case.folder.path().join("audit/log/checkpoint.new")).unwrap();
        let changed = |_: &mut Masker<'_>| Event::QuotasChanged { digest: Word::lossy("d") };
        for _ in 0..400 {
            if audit.record(&Who::server(), changed).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(audit.record(&Who::server(), changed).await, Err(AuditError::Unavailable));
        assert_eq!(audit.well(), Err(AuditError::Unavailable));
        assert!(audit.view().failure.is_some());
        assert!(matches!(audit.place(Lane::Job).await, Err(AuditError::Unavailable)));
    }
}

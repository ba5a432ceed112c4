//! Grants while the server runs: the table under a lock, the file services that hold the granted roots, and the time that
//! ends them. `ringfence-grants` decides; here it takes effect.

mod guard;
mod record;
mod spending;
mod transfer;
mod view;

pub(crate) use guard::{GuardError, Page};
pub(crate) use record::Asking;
pub(crate) use transfer::Transfer;
pub(crate) use view::{GrantView, GrantsView};

use crate::api::ApiError;
use crate::audit::{Audit, Lane, Who};
use crate::clock;
use crate::home::Home;
use crate::start::StartError;
use crate::status::GrantCounts;
use crate::workers::{Spawner, prove_fileguard};
use axum::http::StatusCode;
use guard::{Guard, Opening, SealedCopy, Started};
use record::Why;
use ringfence_grants::{
    Approval, Approver, AskRefusal, Audience, Change, DecideRefusal, Decision, Grant, GrantId, Grants, Kind,
    NarrowRefusal, Narrower, Presented, Refusal, RelativePath, Rules, SECRET_BYTES, Shown, State, Verdict,
};
use ringfence_protocol::{Data, FileAccess, Identity, Split, connected_pair};
use rustix::io::Errno;
use spending::{Facts, Spending, Used};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// File services that run at a time: one for each root that is asked for or granted.
pub(crate) const FILEGUARDS_MAX: usize = 64;
/// The longest text of rules, in bytes.
const RULES_BYTES_MAX: usize = 1024 * 1024;
/// The result of a use that lists a folder.
const LISTED: &str = "listed";
/// What the operator has decided beforehand.
const RULES_FILE: &str = "grants.toml";
/// A machine that slept, or whose clock was set, is noticed after so long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The grants of this run.
pub(crate) struct GrantService {
    table: Mutex<Grants>,
    /// Those of granted roots that run, by the grant that was asked for.
    guards: Mutex<HashMap<GrantId, Held>>,
    /// The live ones, for whoever uses them.
    lives: Mutex<HashMap<GrantId, Live>>,
    audit: Audit,
    /// One answer to a question at a time, so that the audit log has none that did not count.
    deciding: tokio::sync::Mutex<()>,
    places: Arc<Semaphore>,
    /// A socket whose other end is closed, for a worker for which none can be made.
    closed: Arc<OwnedFd>,
    /// For which accesses the sandbox of file services is proven.
    proven: tokio::sync::Mutex<Vec<FileAccess>>,
    spawner: Spawner,
    home: Arc<Home>,
    /// The home as the kernel knows it: nothing of it is ever given.
    excluded: Vec<Identity>,
    home_path: PathBuf,
    run_id: String,
    /// Counts changes, for whoever waits for one.
    version: watch::Sender<u64>,
    /// The earliest end may have changed.
    sooner: Notify,
}

struct Held {
    guard: Guard,
    _place: OwnedSemaphorePermit,
}

/// A live grant.
struct Live {
    /// Tells whoever uses it of its end.
    end: watch::Sender<bool>,
    /// Set once its first use is in the audit log.
    used: Arc<OnceCell<()>>,
    /// Bytes that are known to have been moved.
    moved: Arc<AtomicU64>,
}

impl Live {
    fn new() -> Self {
        Self { end: watch::Sender::new(false), used: Arc::default(), moved: Arc::default() }
    }
}

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
    Copy { memfd: Arc<OwnedFd>, bytes: u64 },
}

/// The two ends over which a worker asks fileguard for a file. The server keeps neither: that the worker's is closed is
/// how fileguard knows that it has done.
struct Socket {
    theirs: OwnedFd,
    fileguards: OwnedFd,
}

impl Socket {
    fn new() -> Result<Self, Errno> {
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

    /// What a worker gets: a socket on which it asks for the file, or a copy. What it reads never comes through the server.
    /// Behind a socket the file is opened then; if that fails it closes, and [`GrantedFile::refusal`] says why.
    pub(crate) fn message(&self, split: Split) -> (Data, Arc<OwnedFd>) {
        match &self.source {
            Source::Copy { memfd, bytes } => (Data::Text { bytes: *bytes, split }, memfd.clone()),
            Source::Socket(socket) => (Data::File { split }, self.connect(socket)),
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
            digest: true,
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
pub(crate) struct GrantEnd(watch::Receiver<bool>);

impl GrantEnd {
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

/// Who presents a capability string.
#[derive(Debug)]
pub(crate) struct Holder<'a> {
    who: &'a Who,
    client: &'a str,
    capability: &'a str,
    audience: Audience,
}

impl<'a> Holder<'a> {
    /// A client, for the workers of a model or, without one, for itself.
    pub(crate) fn new(who: &'a Who, client: &'a str, capability: &'a str, model: Option<String>) -> Self {
        Self { who, client, capability, audience: model.map_or(Audience::Client, Audience::Model) }
    }

    fn presented(&self) -> Presented<'_> {
        Presented { string: self.capability, client: self.client, audience: &self.audience }
    }
}

impl GrantService {
    /// No grants yet; `run` names this run of the server, `run_id` is the same in words.
    pub(crate) fn new(
        home: Arc<Home>,
        spawner: Spawner,
        run: [u8; 6],
        run_id: String,
        audit: Audit,
    ) -> Result<Self, StartError> {
        let (device, inode) = home.identity()?;
        let home_path = std::fs::canonicalize(home.path()).unwrap_or_else(|_| home.path().to_owned());
        Ok(Self {
            table: Mutex::new(Grants::new(run)),
            guards: Mutex::default(),
            lives: Mutex::default(),
            audit,
            deciding: tokio::sync::Mutex::default(),
            places: Arc::new(Semaphore::new(FILEGUARDS_MAX)),
            closed: Arc::new(Socket::new().map_err(std::io::Error::from)?.theirs),
            proven: tokio::sync::Mutex::default(),
            spawner,
            excluded: vec![Identity { device, inode }],
            home,
            home_path,
            run_id,
            version: watch::Sender::new(0),
            sooner: Notify::new(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Grants> {
        self.table.lock().expect("no thread panics with this lock")
    }

    /// The operator's rules as they stand now: an edit counts for the next question, a broken file for none.
    fn rules(&self) -> Result<Rules, ApiError> {
        let broken = |why: String| {
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "grant_rules_invalid",
                format!("{RULES_FILE}: {why}; nothing is granted until the operator has mended it"),
            )
        };
        let bytes = self.home.read(RULES_FILE, RULES_BYTES_MAX).map_err(|error| broken(error.to_string()))?;
        let text = String::from_utf8(bytes.unwrap_or_default()).map_err(|error| broken(error.to_string()))?;
        Rules::parse(&text).map_err(|error| broken(error.to_string()))
    }

    /// Puts a question: its root is opened and shown before anybody is asked.
    pub(crate) async fn ask(self: &Arc<Self>, asking: Asking) -> Result<GrantView, ApiError> {
        self.audit.well()?;
        let ask = &asking.ask;
        let rules = self.rules()?;
        if self.is_of_home(Path::new(&ask.path)) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "path_excluded",
                "the server's own home is never given, nor a folder that it is in",
            ));
        }
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "fileguards_full",
                format!(
                    "{FILEGUARDS_MAX} granted roots are held already; revoke some, or narrow one of them"
                ),
            )
            .retry_after(Some(LOOK_EVERY))
        })?;
        let id = self.table().ask(clock::moment(), ask.clone(), &rules).map_err(|refusal| asked(&refusal))?;
        tracing::info!(grant = id.0, client = ask.client, "a grant is asked for");
        let service = self.clone();
        // What is in the audit log is done, also where the client does not wait for the answer.
        let opened = tokio::spawn(async move { service.open(id, &asking, place, &rules).await });
        opened.await.map_err(|error| ApiError::internal(&error))?
    }

    /// Writes the question down while its root is opened.
    async fn open(
        self: &Arc<Self>,
        id: GrantId,
        asking: &Asking,
        place: OwnedSemaphorePermit,
        rules: &Rules,
    ) -> Result<GrantView, ApiError> {
        let access = match asking.ask.kind {
            Kind::FileRead => FileAccess::Read,
            Kind::FileWrite => FileAccess::Write,
        };
        let recorded = self.record_question(id, asking);
        let (recorded, started) = tokio::join!(recorded, self.start(&asking.ask.path, access));
        match (recorded, started) {
            (Ok(()), Ok(Started { guard, shown, gone })) => {
                let held = Held { guard, _place: place };
                let view = self.show(id, shown, held, rules, &asking.who).await?;
                let service = self.clone();
                tokio::spawn(async move {
                    // Whyever it ended: what it gave can't be had any more.
                    drop(gone.await);
                    let changes = service.table().revoke(id);
                    service.end_all(changes, Why::TakenBack(None)).await;
                });
                Ok(view)
            }
            (Ok(()), Err(error)) => {
                self.table().revoke(id);
                tracing::info!(grant = id.0, code = error.code(), "what is asked for can't be opened");
                self.note_void(id, &asking.who, error.code());
                Err(error.recorded())
            }
            (Err(error), started) => {
                self.table().revoke(id);
                if let Ok(started) = started {
                    started.guard.end().await;
                }
                Err(error.into())
            }
        }
    }

    /// A file service that has its root open, in a sandbox that was seen to hold.
    async fn start(&self, path: &str, access: FileAccess) -> Result<Started, ApiError> {
        let started = Guard::start(&self.spawner, path, access, &self.excluded).await;
        let started = started.map_err(|error| guarded(&error))?;
        let mut proven = self.proven.lock().await;
        if !proven.contains(&access) {
            if let Err(error) = prove_fileguard(&self.spawner, guard::word(access), path).await {
                tracing::error!(%error, "the sandbox of file services does not hold: nothing is granted");
                started.guard.end().await;
                let message = "the sandbox of file services does not hold on this machine; the server's log says which layer";
                return Err(ApiError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "file_sandbox_not_proven",
                    message,
                ));
            }
            proven.push(access);
        }
        Ok(started)
    }

    async fn show(
        self: &Arc<Self>,
        id: GrantId,
        shown: Shown,
        held: Held,
        rules: &Rules,
        who: &Who,
    ) -> Result<GrantView, ApiError> {
        self.guards.lock().expect("no thread panics with this lock").insert(id, held);
        let now = clock::moment();
        let allowed = self.table().grant(id).map(|grant| grant.ask.clone());
        let allowed = allowed.filter(|ask| rules.verdict(now, ask) == Verdict::Allow);
        if let Some(ask) = &allowed
            && let Err(error) = self.record_rule(id, who, now.wall_ms.saturating_add(ask.lifetime_ms)).await
        {
            let changes = self.table().revoke(id);
            self.end_all(changes, Why::TakenBack(Some(who))).await;
            return Err(error.into());
        }
        let state = self.table().shown(now, id, shown, rules);
        match state {
            Ok(state) => {
                self.changed(id, state);
                self.view(id, None).ok_or_else(unknown)
            }
            // It was answered, or its time was over, while the root was opened.
            Err(refusal) => {
                self.let_go(id).await;
                if allowed.is_some() {
                    self.note_void(id, who, decided(refusal).code());
                }
                Err(decided(refusal))
            }
        }
    }

    fn is_of_home(&self, path: &Path) -> bool {
        path.starts_with(&self.home_path) || self.home_path.starts_with(path)
    }

    fn changed(&self, id: GrantId, state: State) {
        tracing::info!(grant = id.0, ?state, "grant");
        metrics::counter!("ringfence_grants_total", "state" => view::state_name(state)).increment(1);
        let table = self.table();
        // It may have ended since; then nobody would tell of the end again.
        if table.grant(id).is_some_and(|grant| grant.state == State::Live) {
            self.lives().entry(id).or_insert_with(Live::new);
        }
        drop(table);
        self.version.send_modify(|version| *version += 1);
        self.sooner.notify_one();
    }

    /// One grant, if the viewer may see it; nobody is the operator.
    pub(crate) fn view(&self, id: GrantId, viewer: Option<&str>) -> Option<GrantView> {
        let table = self.table();
        let grant = table.grant(id)?;
        viewer.is_none_or(|viewer| viewer == grant.ask.client).then(|| GrantView::of(grant))
    }

    /// All that the viewer may see, as soon as there was a change after this version, or after this time.
    pub(crate) async fn list(&self, viewer: Option<&str>, after: Option<u64>, wait: Duration) -> GrantsView {
        let mut version = self.version.subscribe();
        if let Some(after) = after {
            drop(tokio::time::timeout(wait, version.wait_for(|version| *version != after)).await);
        }
        let version = *version.borrow();
        let table = self.table();
        // What is being opened is no question yet.
        let put = |grant: &&Grant| grant.state != State::Pending || grant.shown.is_some();
        let mine = |grant: &&Grant| viewer.is_none_or(|viewer| viewer == grant.ask.client);
        GrantsView {
            run: self.run_id.clone(),
            version,
            grants: table.all().filter(put).filter(mine).map(GrantView::of).collect(),
        }
    }

    /// One grant as soon as it is no longer pending, or after this time.
    pub(crate) async fn answered(
        &self,
        id: GrantId,
        viewer: Option<&str>,
        wait: Duration,
    ) -> Option<GrantView> {
        let mut version = self.version.subscribe();
        let until = tokio::time::Instant::now() + wait;
        loop {
            let view = self.view(id, viewer)?;
            if !view.is_pending() || tokio::time::timeout_at(until, version.changed()).await.is_err() {
                return Some(view);
            }
        }
    }

    /// What the operator's key has to sign where the approver has the asker's uid.
    pub(crate) fn approval_text(&self, id: GrantId, lifetime_ms: Option<u64>) -> Option<String> {
        let table = self.table();
        let Grant { ask, shown, .. } = table.grant(id)?;
        let shown = shown.as_ref()?;
        let approval = Approval {
            run: &self.run_id,
            grant: id.0,
            client: &ask.client,
            kind: view::kind_name(ask.kind),
            path: &ask.path,
            audience: &view::audience_name(&ask.audience),
            object: (shown.device, shown.inode),
            lifetime_ms: lifetime_ms.unwrap_or(ask.lifetime_ms),
            bytes_max: ask.bytes_max,
            snapshot: ask.snapshot,
        };
        Some(approval.text())
    }

    /// Answers a question.
    pub(crate) async fn decide(
        self: &Arc<Self>,
        id: GrantId,
        decision: Decision,
        by: Approver,
        who: Who,
    ) -> Result<GrantView, ApiError> {
        let service = self.clone();
        // What is in the audit log is done, also where the operator does not wait for the answer.
        let deciding = tokio::spawn(async move { service.take_answer(id, decision, by, &who).await });
        deciding.await.map_err(|error| ApiError::internal(&error))?
    }

    async fn take_answer(
        self: Arc<Self>,
        id: GrantId,
        decision: Decision,
        by: Approver,
        who: &Who,
    ) -> Result<GrantView, ApiError> {
        let _deciding = self.deciding.lock().await;
        let now = clock::moment();
        let lifetime_ms = self.table().would_decide(id, decision, by).map_err(decided)?;
        let who = self.about(id, who);
        self.record_answer(id, &who, decision, by.operator, now.wall_ms.saturating_add(lifetime_ms)).await?;
        let state = self.table().decide(now, id, decision, by).map(|grant| grant.state);
        let state = state.map_err(|refusal| {
            // It ended by itself, or was taken back, in the meantime.
            self.note_void(id, &who, decided(refusal).code());
            decided(refusal)
        })?;
        tracing::info!(grant = id.0, uid = by.uid, operator = by.operator, ?state, "a grant is decided");
        self.changed(id, state);
        if state != State::Live {
            self.let_go(id).await;
        }
        self.view(id, None).ok_or_else(unknown)
    }

    /// The holder's string, once.
    pub(crate) fn claim(&self, id: GrantId, client: &str) -> Result<String, ApiError> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| ApiError::internal(&error))?;
        let claimed = self.table().claim(id, client, &secret);
        claimed.map(|string| string.reveal().to_owned()).ok_or_else(|| {
            ApiError::new(
                StatusCode::CONFLICT,
                "grant_not_claimable",
                "there is no live grant of yours of this number whose capability string was not given yet",
            )
        })
    }

    /// A grant of less, with its string.
    pub(crate) async fn narrow(
        &self,
        holder: &Holder<'_>,
        narrower: &Narrower,
    ) -> Result<(GrantView, String), ApiError> {
        let narrowed = self.table().narrow(clock::moment(), holder.presented(), narrower);
        let id = narrowed.map_err(|refusal| match refusal {
            NarrowRefusal::Use(refusal) => refused(refusal),
            NarrowRefusal::Wider(field) => {
                ApiError::invalid("grant_wider", field, NarrowRefusal::Wider(field).to_string())
            }
            refusal @ (NarrowRefusal::TooDeep | NarrowRefusal::Full(_)) => {
                ApiError::new(StatusCode::CONFLICT, "grants_full", refusal.to_string())
            }
        })?;
        if let Err(error) = self.record_narrowed(id, holder).await {
            self.table().revoke(id);
            return Err(error.into());
        }
        self.changed(id, State::Live);
        let string = self.claim(id, holder.client)?;
        Ok((self.view(id, None).ok_or_else(unknown)?, string))
    }

    /// Takes a grant back, for its holder or the operator. When this returns no byte is read on it any more.
    pub(crate) async fn revoke(
        self: &Arc<Self>,
        id: GrantId,
        viewer: Option<&str>,
        who: Who,
    ) -> Result<GrantView, ApiError> {
        if self.view(id, viewer).is_none() {
            return Err(unknown());
        }
        let changes = self.table().revoke(id);
        let service = self.clone();
        to_its_end(async move { service.end_all(changes, Why::TakenBack(Some(&who))).await }).await;
        self.view(id, viewer).ok_or_else(unknown)
    }

    /// Takes everything back that a client has or has asked for, and says how many that were. When this returns no byte is
    /// read on it any more.
    pub(crate) async fn remove_client(self: &Arc<Self>, client: &str, who: &Who) -> usize {
        let changes = self.table().remove_client(client);
        let (service, ended, who) = (self.clone(), changes.len(), who.clone());
        to_its_end(async move { service.end_all(changes, Why::TakenBack(Some(&who))).await }).await;
        ended
    }

    /// Lets a change take effect: whoever uses the grant is told, its files are closed, its root is let go. Then it is
    /// written down; an end takes effect also where it can't be.
    async fn end_all(&self, changes: Vec<Change>, why: Why<'_>) {
        let ended: Vec<_> = {
            let mut lives = self.lives();
            changes.iter().map(|change| (*change, lives.remove(&change.grant))).collect()
        };
        for (_, live) in &ended {
            if let Some(live) = live {
                live.end.send_replace(true);
            }
        }
        let mut written = Vec::new();
        for (change, live) in ended {
            self.let_go(change.grant).await;
            self.changed(change.grant, change.state);
            written.extend(self.put_end(change, why, live.as_ref()).await);
        }
        for written in written {
            // An error was said by the log itself.
            drop(written.await);
        }
    }

    fn lives(&self) -> MutexGuard<'_, HashMap<GrantId, Live>> {
        self.lives.lock().expect("no thread panics with this lock")
    }

    /// Ends the file service of a grant, or closes what a narrowed one has open.
    async fn let_go(&self, id: GrantId) {
        let held = self.guards.lock().expect("no thread panics with this lock").remove(&id);
        if let Some(held) = held {
            return held.guard.end().await;
        }
        let root = self.table().grant(id).map(|grant| grant.root);
        if let Some(guard) = root.filter(|root| *root != id).and_then(|root| self.guard_of(root)) {
            guard.close_all_of(id).await;
        }
    }

    fn guard_of(&self, root: GrantId) -> Option<Guard> {
        let guards = self.guards.lock().expect("no thread panics with this lock");
        guards.get(&root).map(|held| held.guard.clone())
    }

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
        if let Source::Copy { bytes, .. } = &source {
            spending.add(*bytes);
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
            let SealedCopy { memfd, bytes } = copy.map_err(|error| guarded(&error))?;
            Source::Copy { memfd: Arc::new(memfd), bytes }
        } else {
            Source::Socket(Mutex::new(Some(Socket::new().map_err(|error| ApiError::internal(&error))?)))
        };
        Ok((guard, ended, source))
    }

    /// Tells of the end of a live grant.
    fn end_of(&self, id: GrantId) -> Option<watch::Receiver<bool>> {
        self.lives().get(&id).map(|live| live.end.subscribe())
    }

    /// Where the root is a file, fileguard wants its name.
    fn path_for_guard(&self, root: GrantId, path: &RelativePath) -> String {
        if !path.is_root() {
            return path.as_str().to_owned();
        }
        let table = self.table();
        let path = table.grant(root).map_or("", |grant| grant.ask.path.as_str());
        path.rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// A page of a folder, for the holder to walk.
    pub(crate) async fn entries(
        self: &Arc<Self>,
        holder: &Holder<'_>,
        path: &str,
        after: String,
        entries_max: u32,
    ) -> Result<Page, ApiError> {
        let place = self.audit.place(Lane::Use).await?;
        let read = self.table().read(clock::moment(), holder.presented(), path, 1);
        let read = read.map_err(|refusal| refused_to(holder, refusal))?;
        let path = read.path().as_str().to_owned();
        let (Facts { root, .. }, spending) = self.begin(Used::Read(read), holder.who, place).await?;
        spending.give_back(LISTED);
        let guard = self.guard_of(root).ok_or_else(|| guarded(&GuardError::Ended))?;
        guard.list(path, after, entries_max).await.map_err(|error| guarded(&error))
    }

    /// Ends what is over, when it is.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        loop {
            let now = clock::moment();
            let changes = self.table().tick(now);
            self.end_all(changes, Why::Time).await;
            let next = self.table().next_boot_ms();
            let wait =
                next.map(|next| Duration::from_millis(next.saturating_sub(now.boot_ms)).min(LOOK_EVERY));
            match wait {
                None => self.sooner.notified().await,
                Some(wait) => drop(tokio::time::timeout(wait, self.sooner.notified()).await),
            }
        }
    }

    /// For `/status`.
    pub(crate) fn counts(&self) -> GrantCounts {
        let file_services = self.guards.lock().expect("no thread panics with this lock").len();
        GrantCounts { open: self.table().open(), file_services }
    }
}

/// Runs something to its end, also where whoever waits for it goes away: what is taken back stays taken back.
async fn to_its_end(work: impl Future<Output = ()> + Send + 'static) {
    if let Err(error) = tokio::spawn(work).await {
        tracing::error!(%error, "the end of a grant failed");
    }
}

/// No such grant, or another's.
pub(crate) fn unknown() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "grant_unknown",
        "there is no such grant of yours, or it is long over",
    )
}

fn asked(refusal: &AskRefusal) -> ApiError {
    let message = refusal.to_string();
    match refusal {
        AskRefusal::Path(_) | AskRefusal::WholeDisk => ApiError::invalid("path_invalid", "path", message),
        AskRefusal::Text(field) | AskRefusal::Range(field, _) => {
            ApiError::invalid("grant_invalid", field, message)
        }
        AskRefusal::TooManyPending(_) => {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "grants_pending", message)
                .retry_after(Some(Duration::from_millis(ringfence_grants::QUESTION_EVERY_MS)))
        }
        AskRefusal::TooOften { retry_ms } => {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "grants_too_often", message)
                .retry_after(Some(Duration::from_millis(*retry_ms)))
        }
        AskRefusal::Full(_) => ApiError::new(StatusCode::CONFLICT, "grants_full", message),
        AskRefusal::Rule => ApiError::new(StatusCode::FORBIDDEN, "grant_denied_by_rule", message),
    }
}

fn decided(refusal: DecideRefusal) -> ApiError {
    let (status, code) = match refusal {
        DecideRefusal::Unknown => (StatusCode::NOT_FOUND, "grant_unknown"),
        DecideRefusal::NotPending => (StatusCode::CONFLICT, "grant_not_pending"),
        DecideRefusal::NotShown => (StatusCode::CONFLICT, "grant_not_shown"),
        DecideRefusal::SelfApproval => (StatusCode::FORBIDDEN, "operator_proof_needed"),
        DecideRefusal::Lifetime => (StatusCode::BAD_REQUEST, "lifetime_invalid"),
    };
    ApiError::new(status, code, refusal.to_string())
}

/// A use that the table refuses, which the operator hears of too.
fn refused_to(holder: &Holder<'_>, refusal: Refusal) -> ApiError {
    tracing::info!(client = holder.client, code = refusal.code(), "a use of a grant is refused");
    metrics::counter!("ringfence_grant_refusals_total", "code" => refusal.code()).increment(1);
    refused(refusal)
}

/// A use that the table refuses.
fn refused(refusal: Refusal) -> ApiError {
    let status = match refusal {
        Refusal::String(_) | Refusal::Unknown => StatusCode::UNAUTHORIZED,
        Refusal::Path(_) => StatusCode::BAD_REQUEST,
        Refusal::WrongHolder
        | Refusal::WrongAudience
        | Refusal::Expired
        | Refusal::Revoked
        | Refusal::UsedUp
        | Refusal::OutOfScope
        | Refusal::ClockTurnedBack => StatusCode::FORBIDDEN,
    };
    ApiError::new(status, refusal.code(), refusal.to_string())
}

/// What the file service can't or won't do.
fn guarded(error: &GuardError) -> ApiError {
    let (status, code) = match error {
        GuardError::Root(_) => (StatusCode::UNPROCESSABLE_ENTITY, "path_refused"),
        GuardError::Start(_) => (StatusCode::SERVICE_UNAVAILABLE, "file_service_failed"),
        GuardError::File(_) => (StatusCode::UNPROCESSABLE_ENTITY, "file_refused"),
        GuardError::Ended => (StatusCode::FORBIDDEN, "grant_revoked"),
        GuardError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "file_service_busy"),
    };
    ApiError::new(status, code, error.to_string())
}

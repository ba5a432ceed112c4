//! Grants while the server runs: the table under a lock, the file services that hold the granted roots, and the time that
//! ends them. `ringfence-grants` decides; here it takes effect.

mod file;
mod guard;
mod record;
mod refusals;
mod sound;
mod spending;
mod transfer;
mod view;

pub(crate) use file::{GrantEnd, GrantedFile};
pub(crate) use guard::{GuardError, Page};
pub(crate) use record::Asking;
pub(crate) use refusals::unknown;
pub(crate) use transfer::Transfer;
pub(crate) use view::{GrantView, GrantsView};

use crate::api::ApiError;
use crate::audit::{Audit, Lane, Who};
use crate::capture::SoundPrograms;
use crate::clock;
use crate::home::Home;
use crate::start::StartError;
use crate::status::GrantCounts;
use crate::workers::{Spawner, prove_fileguard};
use axum::http::StatusCode;
use file::Socket;
use guard::{Guard, Started, Terms};
use record::Why;
use refusals::{asked, decided, guarded, narrowed, refused_to};
use ringfence_grants::{
    Approval, Approver, Audience, Change, Decision, Grant, GrantId, Grants, Kind, Narrower, Presented,
    RelativePath, Rules, SECRET_BYTES, Shown, State, Verdict,
};
use ringfence_protocol::{FileAccess, Identity};
use spending::{Facts, Used};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, watch};

/// File services that run at a time: one for each root that is asked for or granted.
pub(crate) const FILEGUARDS_MAX: usize = 64;
/// The longest text of rules, in bytes.
const RULES_BYTES_MAX: usize = 1024 * 1024;
/// The result of a use that lists a folder.
const LISTED: &str = "listed";
/// What the operator has decided beforehand.
const RULES_FILE: &str = "grants.toml";
/// How long a capture may take to end with its grant: its program is killed.
const CAPTURE_END_MAX: Duration = Duration::from_secs(10);
/// A machine that slept, or whose clock was set, is noticed after so long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is started for grants.
pub(crate) struct Programs {
    /// Starts file services.
    pub(crate) fileguards: Spawner,
    /// Programs that capture sound.
    pub(crate) sound: Arc<SoundPrograms>,
}

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
    /// The programs that capture sound, by their sandbox.
    sound: Arc<SoundPrograms>,
    home: Arc<Home>,
    /// The home as the kernel knows it: nothing of it is ever given.
    terms: Terms,
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
        Programs { fileguards: spawner, sound }: Programs,
        run: [u8; 6],
        run_id: String,
        audit: Audit,
    ) -> Result<Self, StartError> {
        let (device, inode) = home.identity()?;
        let terms = Terms { excluded: vec![Identity { device, inode }], digest_key: audit.digest_key() };
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
            sound,
            terms,
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
        let access = match ask.kind {
            Kind::FileRead => Some(FileAccess::Read),
            Kind::FileWrite => Some(FileAccess::Write),
            Kind::AudioCapture => None,
        };
        let place = match access {
            Some(access) => Some((access, self.place()?)),
            None => None,
        };
        let id = self.table().ask(clock::moment(), ask.clone(), &rules).map_err(|refusal| asked(&refusal))?;
        tracing::info!(grant = id.0, client = ask.client, "a grant is asked for");
        let service = self.clone();
        // What is in the audit log is done, also where the client does not wait for the answer.
        let opened = tokio::spawn(async move {
            match place {
                Some((access, place)) => service.open(id, &asking, (access, place), &rules).await,
                None => service.open_source(id, &asking, &rules).await,
            }
        });
        opened.await.map_err(|error| ApiError::internal(&error))?
    }

    /// A place for one more file service.
    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "fileguards_full",
                format!(
                    "{FILEGUARDS_MAX} granted roots are held already; revoke some, or narrow one of them"
                ),
            )
            .retry_after(Some(LOOK_EVERY))
        })
    }

    /// Writes a question about sound down. It opens nothing; but the sandbox of what would open it is seen to hold.
    async fn open_source(
        self: &Arc<Self>,
        id: GrantId,
        asking: &Asking,
        rules: &Rules,
    ) -> Result<GrantView, ApiError> {
        let recorded = self.record_question(id, asking).await.map_err(ApiError::from);
        let proven = match recorded {
            Ok(()) => self.sound.prove(&asking.ask.path).await.inspect_err(|error| {
                self.note_void(id, &asking.who, error.code());
            }),
            Err(error) => Err(error),
        };
        match proven {
            Ok(()) => self.show(id, Shown::source(), None, rules, &asking.who).await,
            Err(error) => {
                self.table().revoke(id);
                Err(error.recorded())
            }
        }
    }

    /// Writes the question down while its root is opened.
    async fn open(
        self: &Arc<Self>,
        id: GrantId,
        asking: &Asking,
        (access, place): (FileAccess, OwnedSemaphorePermit),
        rules: &Rules,
    ) -> Result<GrantView, ApiError> {
        let recorded = self.record_question(id, asking);
        let (recorded, started) = tokio::join!(recorded, self.start(&asking.ask.path, access));
        match (recorded, started) {
            (Ok(()), Ok(Started { guard, shown, gone })) => {
                let held = Held { guard, _place: place };
                let view = self.show(id, shown, Some(held), rules, &asking.who).await?;
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
        let started = Guard::start(&self.spawner, path, access, &self.terms).await;
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
        held: Option<Held>,
        rules: &Rules,
        who: &Who,
    ) -> Result<GrantView, ApiError> {
        if let Some(held) = held {
            self.guards.lock().expect("no thread panics with this lock").insert(id, held);
        }
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
        let id = self.table().narrow(clock::moment(), holder.presented(), narrower);
        let id = id.map_err(narrowed)?;
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
            if let (Why::TakenBack(_), Some(live)) = (why, &live) {
                self.captures_end(change.grant, live).await;
            }
            self.changed(change.grant, change.state);
            written.extend(self.put_end(change, why, live.as_ref()).await);
        }
        for written in written {
            // An error was said by the log itself.
            drop(written.await);
        }
    }

    /// Waits for the end of what captures sound by a grant: its programs are gone then.
    async fn captures_end(&self, id: GrantId, live: &Live) {
        let of_sound = |grant: &Grant| grant.ask.kind == Kind::AudioCapture;
        let is_of_sound = self.table().grant(id).is_some_and(of_sound);
        if is_of_sound && tokio::time::timeout(CAPTURE_END_MAX, live.end.closed()).await.is_err() {
            tracing::error!(grant = id.0, "a capture goes on after the end of its grant");
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

//! A worker's entry in the tables: what is sent to it, and what its messages do.

use super::job::{Job, Piece};
use super::models::{note_refused, package_of_twin};
use super::{Dispatcher, State};
use crate::alerts::News;
use crate::api::ApiError;
use crate::audit::{Audit, AuditError, Masker, Who};
use crate::clock;
use crate::oom::Rung;
use crate::packages::Package;
use crate::workers;
use crate::workers::{
    Audience, Connection, Effect, End, Ending, Illegal, Log, Plan, Ready, Slots, live, micros_since,
};
use axum::http::StatusCode;
use ringfence_audit::{Event as Entry, Word};
use ringfence_protocol::{self as protocol, FromWorker, JobError, LinkError, ToWorker};
use ringfence_sandbox::{StatusPage, VulkanDriver};
use ringfence_scheduler::{Event, Exit, GpuId, JobEnd, JobId, KillReason, ModelId, SpawnFault, WorkerId};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What a worker may allocate, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leases {
    /// Of the host's memory.
    pub(super) host: u64,
    /// Of the GPU's; 0 where it computes on the CPU.
    pub(super) device: u64,
    /// Which one.
    pub(super) gpu: Option<GpuId>,
}

impl Leases {
    /// The one that weights and activations count against.
    pub(super) fn of_tensors(self) -> u64 {
        if self.device > 0 { self.device } else { self.host }
    }
}

/// What a worker is started with, but for its package.
struct Started {
    start: protocol::Start,
    starve_load: bool,
    driver: Option<VulkanDriver>,
}

/// One worker from the decision to start it until the kernel has confirmed its end.
pub(super) struct Worker {
    pub(super) model: ModelId,
    pub(super) leases: Leases,
    /// The name of its device.
    pub(super) device: String,
    pub(super) cold: bool,
    pub(super) ready_after: Option<Duration>,
    pub(super) phase: Phase,
    pub(super) pid: Option<i32>,
    pub(super) page: Option<Arc<StatusPage>>,
    pub(super) serving: Option<Serving>,
    pub(super) log: Log,
    decided: Instant,
    kill: Arc<Notify>,
}

/// For the operator; the scheduler has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Ready,
    Stopping,
    Killed,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Killed => "killed",
        }
    }
}

/// A worker that takes jobs.
pub(super) struct Serving {
    pub(super) ready: Ready,
    connection: Arc<Connection>,
    pub(super) slots: Slots,
    /// When the last step ended, or the first job after a pause was sent: no step since then took longer.
    busy_since: Instant,
    /// Whether it has the voice detector, without which it hears no stream.
    has_detector: bool,
}

/// Tells the dispatcher what one worker says.
struct Watched {
    dispatcher: Arc<Dispatcher>,
    worker: WorkerId,
}

impl Audience for Watched {
    fn hello(&self, pid: i32) {
        if let Some(worker) = self.dispatcher.lock().workers.get_mut(&self.worker) {
            worker.pid = Some(pid);
        }
    }

    fn ready(&self, ready: Ready, connection: Arc<Connection>) {
        self.dispatcher.worker_ready(self.worker, ready, connection);
    }

    fn message(&self, message: FromWorker) -> Result<(), Illegal> {
        self.dispatcher.worker_message(self.worker, message)
    }
}

impl Dispatcher {
    pub(super) fn spawn(
        self: &Arc<Self>,
        state: &mut State,
        worker: WorkerId,
        model: ModelId,
        leases: Leases,
        threads: u16,
    ) {
        let kill = Arc::new(Notify::new());
        let log = self.logs.of(&state.models.name(model), worker.0);
        let device = self.device_name(leases.gpu).to_owned();
        log.say(format!("starts on {device} with a lease of {} MiB", leases.of_tensors() >> 20));
        let entry = Worker {
            model,
            leases,
            device,
            cold: false,
            ready_after: None,
            phase: Phase::Starting,
            pid: None,
            page: None,
            serving: None,
            log: log.clone(),
            decided: clock::instant(),
            kill: kill.clone(),
        };
        state.workers.insert(worker, entry);
        let start = state.models.start(model, leases, threads);
        let starve_load = state.models.take_drill(model);
        let driver = leases.gpu.and_then(|gpu| self.gpus.get(gpu)).map(|gpu| gpu.driver);
        let started = Started { start, starve_load, driver };
        tokio::spawn(self.clone().run_worker(worker, model, started, kill, log));
    }

    /// The whole life of one worker, from its package to its end.
    async fn run_worker(
        self: Arc<Self>,
        worker: WorkerId,
        model: ModelId,
        Started { start, starve_load, driver }: Started,
        kill: Arc<Notify>,
        log: Log,
    ) {
        let ending = match self.prepare(worker, model).await {
            Err(ending) => ending,
            Ok((package, page)) => {
                let cards = self.cards.clone();
                let plan = Plan { start, driver, package, kill, starve_load, log: log.clone(), page, cards };
                live(&self.spawner, plan, &Watched { dispatcher: self.clone(), worker }).await
            }
        };
        self.worker_ended(worker, &ending, &log);
    }

    async fn prepare(
        &self,
        worker: WorkerId,
        model: ModelId,
    ) -> Result<(Arc<Package>, Arc<StatusPage>), Ending> {
        let source = self.lock().models.source(model);
        let (package, cold) = match source {
            None => return Err(Ending::PackageRefused("the model was removed".to_owned())),
            Some(source) => source.load(&self.packages).await.map_err(Ending::PackageRefused)?,
        };
        self.record_load(model, &package).await.map_err(|error| Ending::NotStarted(error.to_string()))?;
        let page = StatusPage::create().map_err(|error| Ending::NotStarted(error.to_string()))?;
        let page = Arc::new(page);
        if let Some(entry) = self.lock().workers.get_mut(&worker) {
            entry.page = Some(page.clone());
            entry.cold = cold;
        }
        Ok((package, page))
    }

    /// Writes what a worker is about to be given, and by whose signature.
    async fn record_load(&self, model: ModelId, package: &Package) -> Result<(), AuditError> {
        self.record_trust().await?;
        let model = word_of(&self.lock().models.name(model));
        let (digest, signer) = (Word::lossy(&package.digest), Word::lossy(&package.signer));
        self.audit.record(&Who::server(), move |_| Entry::ModelLoaded { model, digest, signer }).await
    }

    /// Tells a worker to take memory as a hostile one would, where `starve` says so under a limit that gives it none.
    pub(crate) fn drill(&self, worker: &str, starve: bool, bytes: u64) -> Result<(), ApiError> {
        let mut state = self.lock();
        let id = worker.parse().map(WorkerId).ok().filter(|id| state.workers.contains_key(id));
        let id = id.ok_or_else(|| {
            let message = format!("there is no worker {:?}; GET /workers lists them", clip(worker));
            ApiError::new(StatusCode::NOT_FOUND, "worker_unknown", message)
        })?;
        let not_ready = || {
            let message = format!("worker {worker} is not ready; POST /models/MODEL/load makes one ready");
            ApiError::new(StatusCode::CONFLICT, "worker_not_ready", message)
        };
        let ready = state.workers.get(&id).filter(|worker| worker.phase == Phase::Ready);
        let pid = ready.and_then(|worker| worker.pid).ok_or_else(not_ready)?;
        tracing::warn!(worker = id.0, starve, bytes, "a drill: the operator lets a worker want for memory");
        if starve {
            workers::leave_memory(pid, 0).map_err(|error| {
                tracing::warn!(worker = id.0, %error, "its limit can't be set");
                not_ready()
            })?;
        }
        state.send(id, ToWorker::Drill { bytes }, Vec::new());
        Ok(())
    }

    fn worker_ready(self: &Arc<Self>, worker: WorkerId, ready: Ready, connection: Arc<Connection>) {
        let mut state = self.lock();
        let Some(entry) = state.workers.get_mut(&worker) else { return };
        let after = clock::instant().duration_since(entry.decided);
        let slots = Slots::new(ready.shape, ready.usage);
        let event = Event::WorkerReady {
            worker,
            bytes_per_token: ready.bytes_per_token,
            used_bytes: ready.usage.used_bytes,
        };
        tracing::info!(
            worker = worker.0,
            pid = ready.pid,
            ready_after_us = micros_since(entry.decided),
            "worker ready"
        );
        entry.log.say(format!("is ready after {} ms, pid {}", after.as_millis(), ready.pid));
        entry.ready_after = Some(after);
        if entry.phase == Phase::Starting {
            entry.phase = Phase::Ready;
        }
        entry.serving =
            Some(Serving { ready, connection, slots, busy_since: clock::instant(), has_detector: false });
        let model = entry.model;
        state.models.loaded(model);
        self.step(&mut state, event);
    }

    fn worker_message(self: &Arc<Self>, worker: WorkerId, message: FromWorker) -> Result<(), Illegal> {
        let mut state = self.lock();
        let entry = state.workers.get_mut(&worker).ok_or(Illegal::State)?;
        let serving = entry.serving.as_mut().ok_or(Illegal::State)?;
        match serving.slots.take(message)? {
            Effect::Progress => {}
            Effect::Step { busy_us, tokens } => {
                let device_us = busy_us.min(micros_since(serving.busy_since));
                serving.busy_since = clock::instant();
                let model = entry.model;
                state.models.used(model, device_us);
                self.step(&mut state, Event::Used { worker, device_us, tokens });
            }
            Effect::Live { job, said } => self.live_said(&mut state, job, said),
            Effect::Heard { job, audio_ms } => {
                self.step(&mut state, Event::Heard { job, audio_ms });
                self.tell(&mut state, job, Piece::Heard { audio_ms });
            }
            Effect::Prompted { job, tokens, cached } => {
                self.tell(&mut state, job, Piece::Prompted { tokens, cached });
            }
            Effect::Text { job, piece } => self.tell(&mut state, job, Piece::Text(piece)),
            Effect::Segment { job, segment } => self.tell(&mut state, job, Piece::Segment(segment)),
            Effect::End { job, end } => {
                let how = job_end(&end);
                if let Some(waiting) = state.jobs.get_mut(&job) {
                    waiting.result = Some(end);
                }
                self.step(&mut state, Event::JobEnded { worker, job, end: how });
            }
        }
        Ok(())
    }

    /// Tells whoever wants a job's answer in pieces. One that has let too many of them wait gets no answer.
    fn tell(self: &Arc<Self>, state: &mut State, job: JobId, piece: Piece) {
        let pieces = state.jobs.get(&job).and_then(|job| job.input.pieces());
        if pieces.is_some_and(|pieces| pieces.try_send(piece).is_err()) {
            self.step(state, Event::Cancel { job });
        }
    }

    fn worker_ended(self: &Arc<Self>, worker: WorkerId, ending: &Ending, log: &Log) {
        let mut state = self.lock();
        let Some(gone) = state.workers.remove(&worker) else { return };
        let model = state.models.name(gone.model);
        tracing::info!(worker = worker.0, pid = gone.pid, model, ending = %ending, "worker ended");
        metrics::counter!("ringfence_worker_ends_total", "how" => ending.code()).increment(1);
        state.models.ended(gone.model, ending, log.last_line());
        log.say(format!("has ended: {ending}"));
        if let Some(kind) = ending.alert() {
            let (device, message) = (&gone.device, ending.to_string());
            self.alerts.raise(News { kind, model: &model, device, rung: None, message });
        }
        if let Some(rung) = ending.rung() {
            rung.stopped(&self.alerts, &model, &gone.device, ending.to_string());
            state.stopped_on(rung, &gone);
            let (rung, device) = (Word::lossy(rung.code()), Word::lossy(&gone.device));
            let model = word_of(&model);
            let event = move |_: &mut Masker<'_>| Entry::OutOfMemory { rung, model, device, job: None };
            self.audit.note(&Who::server(), event);
        }
        if ending.is_kill() {
            note_kill(&self.audit, worker, &model, ending.code());
        }
        if let Some(how) = ending.death() {
            note_death(&self.audit, worker, &model, &how);
        }
        match ending {
            Ending::PackageRefused(_) => {
                note_refused(&self.audit, &model, ending.code());
                self.step(&mut state, Event::SpawnFailed { worker, fault: SpawnFault::Package });
            }
            Ending::NotStarted(_) => {
                self.step(&mut state, Event::SpawnFailed { worker, fault: SpawnFault::Host });
            }
            Ending::LoadFailed(_) => {
                self.step(&mut state, Event::LoadFailed { worker });
                self.step(&mut state, Event::WorkerExited { worker, exit: Exit::Finished });
            }
            Ending::Stopped => self.step(&mut state, Event::WorkerExited { worker, exit: Exit::Finished }),
            // Not even the load fits: that will not change by trying again.
            Ending::OutOfMemory { rung: Rung::RefusedByWorker, .. } if gone.serving.is_none() => {
                self.step(&mut state, Event::LoadFailed { worker });
                self.step(&mut state, Event::WorkerExited { worker, exit: Exit::Finished });
            }
            Ending::OutOfMemory { rung, .. } => {
                let exit = match rung {
                    Rung::RefusedByProfile | Rung::RefusedByWorker => Exit::OutOfMemory,
                    Rung::KilledByKernel | Rung::KilledByReconcile => Exit::OverLimit,
                };
                self.step(&mut state, Event::WorkerExited { worker, exit });
            }
            Ending::OverLease(_) => {
                self.step(&mut state, Event::WorkerExited { worker, exit: Exit::OverLimit });
            }
            Ending::Illegal(_) | Ending::SandboxFalse(_) => {
                self.step(&mut state, Event::WorkerExited { worker, exit: Exit::Illegal });
            }
            Ending::DeviceFailed(_) => {
                tracing::error!(worker = worker.0, model, "a worker's device failed");
                self.step(&mut state, Event::WorkerExited { worker, exit: Exit::Crashed });
            }
            Ending::Killed | Ending::Died(_) | Ending::Vanished => {
                self.step(&mut state, Event::WorkerExited { worker, exit: Exit::Crashed });
            }
        }
    }
}

/// A model's name for the audit log: its package's.
fn word_of(model: &str) -> Word {
    Word::lossy(package_of_twin(model).unwrap_or(model))
}

/// Tells the audit log that a worker was stopped by force.
fn note_kill(audit: &Audit, worker: WorkerId, model: &str, reason: &str) {
    let (worker, model, reason) = (worker.0, word_of(model), Word::lossy(reason));
    audit.note(&Who::server(), move |_| Entry::WorkerKilled { worker, model, reason });
}

/// Tells the audit log that a worker ended by itself.
fn note_death(audit: &Audit, worker: WorkerId, model: &str, how: &str) {
    let (worker, model, reason) = (worker.0, word_of(model), Word::lossy(how));
    audit.note(&Who::server(), move |_| Entry::WorkerDied { worker, model, reason });
}

/// As much of a stranger's text as an answer repeats.
fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

fn job_end(end: &End) -> JobEnd {
    match end {
        End::Done { .. } => JobEnd::Done,
        End::Failed(JobError::OutOfMemory { .. }) => JobEnd::OutOfMemory,
        End::Failed(JobError::Cancelled) => JobEnd::Cancelled,
        End::Failed(
            JobError::InputTooLong { .. }
            | JobError::InputEmpty { .. }
            | JobError::TokenUnknown { .. }
            | JobError::Tokenizer { .. }
            | JobError::InputRefused { .. }
            | JobError::InputUnavailable
            | JobError::InputTooLarge { .. }
            | JobError::PassagesTooMany { .. }
            | JobError::InputNotText { .. }
            | JobError::AudioRefused { .. }
            | JobError::StreamRefused { .. }
            | JobError::LanguageUnknown { .. }
            | JobError::ContextTooLong { .. }
            | JobError::Template { .. }
            | JobError::Schema { .. }
            | JobError::NotFinite { .. },
        ) => JobEnd::Failed,
    }
}

impl State {
    /// Leaves word with the jobs that a worker's want of memory may end, should it end them.
    fn stopped_on(&mut self, rung: Rung, gone: &Worker) {
        let running: Vec<JobId> = gone.serving.iter().flat_map(|serving| serving.slots.jobs()).collect();
        let waits_for_load =
            |job: &Job| gone.serving.is_none() && job.model == gone.model && job.started.is_none();
        for job in self.jobs.values_mut().filter(|job| running.contains(&job.id) || waits_for_load(job)) {
            job.rung = Some(rung);
        }
    }

    pub(super) fn run(&mut self, job: JobId, worker: WorkerId, weight: u16) {
        let now = clock::instant();
        let waiting = self.jobs.get_mut(&job).expect("the scheduler runs jobs that have not ended");
        let ready = "the scheduler runs jobs in workers that are ready";
        let entry = self.workers.get_mut(&worker).expect(ready);
        let serving = entry.serving.as_mut().expect(ready);
        if serving.slots.is_empty() {
            serving.busy_since = now;
        }
        let slot = serving.slots.occupy(job, waiting.expected.clone());
        waiting.started = Some(now);
        waiting.result = None;
        waiting.rung = None;
        waiting.device.clone_from(&entry.device);
        if let Some(pieces) = waiting.input.pieces() {
            // One that finds no room is a client's that reads nothing, which the next piece says as well.
            drop(pieces.try_send(Piece::Begun));
        }
        let (message, descriptors) = waiting.input.message(slot, waiting.domain, weight);
        let detector = waiting.input.live().map(|live| live.detector.clone());
        let detector = detector.filter(|_| !std::mem::replace(&mut serving.has_detector, true));
        tracing::debug!(
            request = waiting.request_id,
            client = waiting.client,
            job = job.0,
            worker = worker.0,
            slot,
            "run"
        );
        if let Some(detector) = detector {
            let (files, descriptors) = detector.files();
            self.send(worker, ToWorker::LoadDetector { files }, descriptors);
        }
        self.send(worker, message, descriptors);
    }

    pub(super) fn cancel_in_worker(&mut self, job: JobId, worker: WorkerId) {
        let serving = self.workers.get(&worker).and_then(|worker| worker.serving.as_ref());
        if let Some(slot) = serving.and_then(|serving| serving.slots.of(job)) {
            self.send(worker, ToWorker::Cancel { slot }, Vec::new());
        }
    }

    pub(super) fn stop(&mut self, worker: WorkerId) {
        if let Some(entry) = self.workers.get_mut(&worker) {
            entry.log.say("is told to stop".to_owned());
            entry.phase = Phase::Stopping;
        }
        self.send(worker, ToWorker::Stop, Vec::new());
    }

    pub(super) fn kill(&mut self, worker: WorkerId, why: KillReason) {
        let Some(entry) = self.workers.get_mut(&worker) else { return };
        tracing::warn!(worker = worker.0, pid = entry.pid, why = %why, "worker killed");
        metrics::counter!("ringfence_worker_kills_total", "why" => why.code()).increment(1);
        entry.log.say(format!("is killed: {why}"));
        let newly = std::mem::replace(&mut entry.phase, Phase::Killed) != Phase::Killed;
        entry.kill.notify_one();
        let model = entry.model;
        if newly {
            note_kill(&self.audit, worker, &self.models.name(model), why.code());
        }
    }

    /// A link that fails is closed, or its worker does not read: either way its task ends it.
    fn send(&mut self, worker: WorkerId, message: ToWorker, descriptors: Vec<Arc<OwnedFd>>) {
        let Some(entry) = self.workers.get_mut(&worker) else { return };
        let Some(serving) = &entry.serving else {
            entry.kill.notify_one();
            return;
        };
        match serving.connection.send(message, descriptors) {
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => {
                tracing::warn!(worker = worker.0, %error, "a message could not be sent, the worker is killed");
                let newly = std::mem::replace(&mut entry.phase, Phase::Killed) != Phase::Killed;
                entry.kill.notify_one();
                let model = entry.model;
                if newly {
                    note_kill(&self.audit, worker, &self.models.name(model), "link_failed");
                }
            }
        }
    }
}

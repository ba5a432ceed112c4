//! The scheduler's rim: turns requests and worker messages into its events, and its actions into effects.
//!
//! One lock guards the scheduler and the tables beside it. Whoever has an event takes the lock, steps, and carries
//! out the actions; nothing waits while it is held, so a request costs no hop to another task.

mod abandon;
mod canary;
mod disk;
mod explain;
mod fallback;
mod job;
mod live;
mod models;
mod quotas;
mod trace;
mod views;
mod worker;

pub(crate) use explain::{JobView, UsageView};
pub(crate) use fallback::Answered;
pub(crate) use job::{AudioSource, JobInput, JobRequest, Output, Piece, Purpose, seal};
pub(crate) use live::{Heard, Listen, Listening};
pub(crate) use models::ModelsError;
pub(crate) use models::{ModelView, SYSTEM};
pub(crate) use quotas::{Devices, Machine, QuotasView, Replaced, Replacement};
pub(crate) use trace::TraceLines;

use crate::alerts::Alerts;
use crate::api::ApiError;
use crate::audit::{Audit, AuditError, Who};
use crate::clock;
use crate::gpus::Gpus;
use crate::nvml::{Cards, NvmlView};
use crate::packages::{Package, Packages, PackagesError};
use crate::workers::{self, Line, Logs, ProbeError, Spawner};
use axum::http::StatusCode;
use job::Job;
use models::Models;
use quotas::Applied;
use ringfence_audit::{Event as Entry, Word};
use ringfence_sandbox::VulkanDriver;
use ringfence_scheduler::quotas::Quotas;
use ringfence_scheduler::replay::Stop;
use ringfence_scheduler::{Action, ClientId, Event, GpuId, JobId, Scheduler, WorkerId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use trace::Recording;
use worker::{Leases, Worker};

/// Clients that are told apart in one run; beyond it new ones are refused.
const CLIENTS_SEEN_MAX: usize = 100_000;

/// How often a drain looks whether all workers are gone.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// Where jobs go.
pub(crate) struct Dispatcher {
    state: Mutex<State>,
    /// The timer task sleeps until the scheduler's next wake, and is woken when that changes.
    timer: Notify,
    spawner: Spawner,
    packages: Arc<Packages>,
    machine: Machine,
    gpus: Gpus,
    /// NVIDIA's cards, and who has memory on them.
    cards: Cards,
    /// The acts that were tried to prove the sandbox of workers on GPUs, by driver, once that was needed.
    gpu_probes: Mutex<BTreeMap<String, Vec<String>>>,
    alerts: Alerts,
    /// What happened to workers, by model.
    logs: Logs,
    audit: Audit,
    /// The version and digest of the trust file that the audit log has.
    trust_recorded: tokio::sync::Mutex<Option<(u64, String)>>,
    /// Only one reading of the packages, or change of the quotas, at a time.
    reading: tokio::sync::Mutex<()>,
}

struct State {
    scheduler: Scheduler,
    jobs: HashMap<JobId, Job>,
    workers: BTreeMap<WorkerId, Worker>,
    models: Models,
    clients: HashMap<String, Client>,
    /// Their names by number, from 1.
    client_names: Vec<String>,
    quotas: Applied,
    audit: Audit,
    /// The package by which live sound is cut into phrases, once one was wanted.
    detector: Option<Arc<Package>>,
    last_job: u64,
    draining: bool,
    /// The trace that is being recorded.
    recording: Option<Recording>,
    /// How many were begun.
    recordings: u64,
}

/// A client as workers and the scheduler know it: numbers.
#[derive(Debug, Clone, Copy)]
struct Client {
    id: ClientId,
    /// Random in each run.
    domain: u64,
}

impl Dispatcher {
    /// Whether the operator has signed these bytes.
    pub(crate) fn is_signed_by_operator(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool, PackagesError> {
        self.packages.is_signed_by_operator(message, signature)
    }

    /// A dispatcher over the packages of a home, not yet read.
    pub(crate) fn new(
        scheduler: Scheduler,
        spawner: Spawner,
        packages: Packages,
        Devices { machine, gpus, cards }: Devices,
        (quotas, text): (Quotas, Vec<u8>),
        audit: Audit,
    ) -> Arc<Self> {
        let alerts = Alerts::default();
        let state = State {
            scheduler,
            jobs: HashMap::new(),
            workers: BTreeMap::new(),
            models: Models::new(alerts.clone(), audit.clone()),
            clients: HashMap::new(),
            client_names: Vec::new(),
            quotas: Applied::new(quotas, &text),
            audit: audit.clone(),
            detector: None,
            last_job: 0,
            draining: false,
            recording: None,
            recordings: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            timer: Notify::new(),
            spawner,
            packages: Arc::new(packages),
            machine,
            gpus,
            cards,
            gpu_probes: Mutex::default(),
            alerts,
            logs: Logs::default(),
            audit,
            trust_recorded: tokio::sync::Mutex::default(),
            reading: tokio::sync::Mutex::new(()),
        })
    }

    /// Sees to it that the sandbox of workers on GPUs by these drivers is proven; once is enough.
    pub(crate) async fn prove_gpus(&self, drivers: &[VulkanDriver]) -> Result<(), ProbeError> {
        for driver in drivers {
            if self.proofs().contains_key(&driver.to_string()) {
                continue;
            }
            let probes = workers::prove_gpu(&self.spawner, *driver).await?;
            self.proofs().insert(driver.to_string(), probes);
        }
        Ok(())
    }

    /// The acts that were tried for it.
    pub(crate) fn gpu_probes(&self) -> Vec<String> {
        self.proofs().values().flatten().cloned().collect()
    }

    fn proofs(&self) -> MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.gpu_probes.lock().expect("no thread panics with this lock")
    }

    /// The name of the device that a lease is of.
    fn device_name(&self, gpu: Option<GpuId>) -> &str {
        gpu.and_then(|gpu| self.gpus.get(gpu)).map_or("cpu", |gpu| &gpu.name)
    }

    /// What happened to a model's workers, after a line's number; none of a model that is not there and never was.
    pub(crate) fn log_lines(&self, model: &str, after: u64) -> Option<Vec<Line>> {
        let lines = self.logs.lines(model, after);
        let known = !lines.is_empty() || after > 0 || self.lock().models.named(model).is_some();
        known.then_some(lines)
    }

    /// What the operator wants to be told of.
    pub(crate) fn alerts(&self) -> &Alerts {
        &self.alerts
    }

    /// NVIDIA's cards.
    pub(crate) fn cards(&self) -> NvmlView {
        self.cards.view()
    }

    /// Wakes the scheduler whenever it asked to be woken. Runs as long as the server.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        loop {
            let next = self.lock().scheduler.next_wake();
            match next {
                None => self.timer.notified().await,
                Some(time) => {
                    let wake = tokio::time::Instant::from_std(clock::at(time));
                    tokio::select! {
                        () = tokio::time::sleep_until(wake) => self.event(Event::Tick),
                        () = self.timer.notified() => {}
                    }
                }
            }
        }
    }

    /// Refuses new jobs, lets the others end and stops the workers; returns when all are gone or time is up.
    pub(crate) async fn drain(self: &Arc<Self>, within: Duration) {
        {
            let mut state = self.lock();
            state.draining = true;
            state.end_recording(Stop::Draining);
            self.step(&mut state, Event::Drain);
        }
        let gone = async {
            while !self.lock().workers.is_empty() {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        if tokio::time::timeout(within, gone).await.is_err() {
            tracing::warn!("workers were still running at the end of the drain; they end with the server");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with this lock")
    }

    fn event(self: &Arc<Self>, event: Event) {
        let mut state = self.lock();
        self.step(&mut state, event);
    }

    /// Steps the scheduler and carries out what it says.
    fn step(self: &Arc<Self>, state: &mut State, event: Event) {
        let before = state.scheduler.next_wake();
        for action in state.scheduler.step(clock::now(), event) {
            self.act(state, action);
        }
        if state.scheduler.next_wake() != before {
            self.timer.notify_one();
        }
    }

    fn act(self: &Arc<Self>, state: &mut State, action: Action) {
        match action {
            Action::Spawn { worker, model, lease_bytes, device_lease_bytes, gpu, threads } => {
                self.spawn(
                    state,
                    worker,
                    model,
                    Leases { host: lease_bytes, device: device_lease_bytes, gpu },
                    threads,
                );
            }
            Action::Run { job, worker, weight } => state.run(job, worker, weight),
            Action::CancelJob { job, worker } => state.cancel_in_worker(job, worker),
            Action::End { job, outcome } => {
                if let Some(job) = state.jobs.remove(&job) {
                    if let Some(rung) = job.refused_on(&outcome) {
                        let (model, device) =
                            (state.models.name(job.model), state.models.device_name(job.model));
                        rung.stopped(&self.alerts, &model, &device, job.in_words(&outcome));
                        job.note_oom(&self.audit, rung, &model, &device);
                    }
                    state.record_end(&job, &outcome);
                    state.models.answered(job.model, &outcome);
                    let facts = state.audit_facts(&job);
                    job.end(&outcome, facts);
                }
            }
            Action::Stop { worker } => state.stop(worker),
            Action::Kill { worker, why } => state.kill(worker, why),
            Action::DropPackage { model } => state.models.drop_package(model),
        }
    }

    /// Writes that the trust file is another one than the log has, before anything that it allows takes effect.
    pub(crate) async fn record_trust(&self) -> Result<(), AuditError> {
        let mut recorded = self.trust_recorded.lock().await;
        let found = self.packages.trust_seen();
        if let Some((version, digest)) = found.clone().filter(|_| found != *recorded) {
            let digest = Word::lossy(&digest);
            self.audit.record(&Who::server(), move |_| Entry::TrustChanged { version, digest }).await?;
            *recorded = found;
        }
        Ok(())
    }

    /// Keeps what comes later under a removed client's name apart from it in workers. Its number stays, and with it what was
    /// used of its quotas.
    pub(crate) fn client_removed(&self, name: &str) -> Result<(), ApiError> {
        if let Some(client) = self.lock().clients.get_mut(name) {
            client.domain = new_domain()?;
        }
        Ok(())
    }

    /// The numbers of a client. When it is first seen they are made up, and the scheduler hears what it may do.
    fn client(self: &Arc<Self>, state: &mut State, name: &str) -> Result<Client, ApiError> {
        if let Some(client) = state.clients.get(name) {
            return Ok(*client);
        }
        let client = state.new_client(name)?;
        if let Some(config) = state.quotas.quotas.client(name) {
            self.step(state, Event::ClientConfigured { client: client.id, config: Some(config) });
        }
        Ok(client)
    }
}

impl State {
    fn client_name(&self, id: ClientId) -> &str {
        &self.client_names[id.0 as usize - 1]
    }

    fn new_client(&mut self, name: &str) -> Result<Client, ApiError> {
        if self.clients.len() >= CLIENTS_SEEN_MAX {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "clients_full",
                format!("{CLIENTS_SEEN_MAX} clients have been seen since the start; restart the server"),
            ));
        }
        let number = u32::try_from(self.clients.len() + 1).expect("bounded above");
        let client = Client { id: ClientId(number), domain: new_domain()? };
        self.clients.insert(name.to_owned(), client);
        self.client_names.push(name.to_owned());
        Ok(client)
    }
}

fn new_domain() -> Result<u64, ApiError> {
    let mut domain = [0; 8];
    getrandom::fill(&mut domain).map_err(|error| ApiError::internal(&error))?;
    Ok(u64::from_le_bytes(domain))
}

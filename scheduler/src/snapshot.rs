//! The scheduler's state as plain data, for status pages and metrics.

use crate::action::BrokenCause;
use crate::ids::{ClientId, GpuId, JobId, ModelId, Time, WorkerId};
use crate::state::{Ledger, Model, Phase, Scheduler, Worker};
use std::time::Duration;

/// Everything at one moment; lists are ordered by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Known models.
    pub models: Vec<ModelSnapshot>,
    /// Workers whose memory is promised.
    pub workers: Vec<WorkerSnapshot>,
    /// Clients with a job here.
    pub clients: Vec<ClientSnapshot>,
    /// Leases.
    pub cpu: BudgetSnapshot,
    /// Leases of each GPU's memory, by [`GpuId`].
    pub gpus: Vec<BudgetSnapshot>,
    /// Packages.
    pub host: BudgetSnapshot,
    /// Cores.
    pub cores: CoresSnapshot,
    /// Jobs that wait in all.
    pub waiting: u32,
    /// New jobs are refused because the server is about to end.
    pub draining: bool,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSnapshot {
    /// Which.
    pub model: ModelId,
    /// Jobs that wait for it.
    pub waiting: u32,
    /// Jobs in its workers.
    pub running: u32,
    /// Its workers that are ready for jobs.
    pub ready: u32,
    /// Why it does not run.
    pub broken: Option<BrokenCause>,
    /// Average device time of a recent job; `None` until one has ended.
    pub job_time: Option<Duration>,
    /// Average time of a recent load; `None` until one has ended.
    pub load_time: Option<Duration>,
    /// Average device time of a token in nanoseconds; `None` until a step has ended.
    pub token_ns: Option<u64>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSnapshot {
    /// Which.
    pub worker: WorkerId,
    /// What it runs.
    pub model: ModelId,
    /// What it is doing.
    pub state: WorkerState,
    /// Promised to it, in bytes.
    pub lease_bytes: u64,
    /// The same of a GPU's memory.
    pub device_lease_bytes: u64,
    /// Which GPU.
    pub gpu: Option<GpuId>,
    /// Jobs in its slots whose clients wait.
    pub jobs: Vec<JobId>,
    /// Slots of ended jobs that it has not given back yet.
    pub stale: u32,
    /// When it was last heard of.
    pub heard: Time,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// Starting and loading.
    Loading,
    /// Ready for jobs.
    Ready,
    /// Finishing its jobs, then to be stopped.
    Retiring,
    /// Told to stop, or exiting because it could not load.
    Stopping,
    /// Killed, its death not yet confirmed.
    Killed,
}

/// One client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSnapshot {
    /// Which.
    pub client: ClientId,
    /// Its jobs that wait.
    pub waiting: u32,
    /// Its jobs in workers.
    pub running: u32,
}

/// One budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetSnapshot {
    /// In bytes.
    pub budget_bytes: u64,
    /// Of these, promised.
    pub promised_bytes: u64,
}

/// The cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoresSnapshot {
    /// That workers may use.
    pub budget: u16,
    /// Threads of workers that have jobs: more than the budget while jobs that take long share them.
    pub held: u32,
}

impl Scheduler {
    /// The state as plain data.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            models: self.models.iter().map(|(id, model)| self.model_snapshot(*id, model)).collect(),
            workers: self.workers.iter().map(|(id, worker)| worker_snapshot(*id, worker)).collect(),
            clients: self
                .clients
                .iter()
                .filter(|(_, client)| client.waiting + client.running > 0)
                .map(|(id, client)| ClientSnapshot {
                    client: *id,
                    waiting: client.waiting,
                    running: client.running,
                })
                .collect(),
            cpu: budget_snapshot(self.cpu),
            gpus: self.gpus.iter().copied().map(budget_snapshot).collect(),
            host: budget_snapshot(self.host),
            cores: CoresSnapshot { budget: self.config.values().devices.cpu.cores, held: self.cores_held() },
            waiting: self.waiting,
            draining: self.draining,
        }
    }

    fn model_snapshot(&self, id: ModelId, model: &Model) -> ModelSnapshot {
        let workers = || model.workers.iter().map(|worker| &self.workers[worker]);
        ModelSnapshot {
            model: id,
            waiting: model.queue.len() as u32,
            running: workers().map(|worker| worker.live().count() as u32).sum(),
            ready: workers().filter(|worker| worker.phase == Phase::Ready).count() as u32,
            broken: self.broken(model).map(|(cause, _)| cause),
            job_time: model.job_time.duration(),
            load_time: model.load_time.duration(),
            token_ns: model.token_time.value(),
        }
    }
}

fn worker_snapshot(id: WorkerId, worker: &Worker) -> WorkerSnapshot {
    let jobs: Vec<JobId> = worker.live().collect();
    WorkerSnapshot {
        worker: id,
        model: worker.model,
        state: match worker.phase {
            Phase::Loading => WorkerState::Loading,
            Phase::Ready => WorkerState::Ready,
            Phase::Retiring { .. } => WorkerState::Retiring,
            Phase::Stopping { .. } => WorkerState::Stopping,
            Phase::Killed { .. } => WorkerState::Killed,
        },
        lease_bytes: worker.lease_bytes,
        device_lease_bytes: worker.device_lease_bytes,
        gpu: worker.gpu,
        stale: (worker.slots.len() - jobs.len()) as u32,
        jobs,
        heard: worker.heard,
    }
}

fn budget_snapshot(ledger: Ledger) -> BudgetSnapshot {
    BudgetSnapshot { budget_bytes: ledger.budget, promised_bytes: ledger.promised }
}

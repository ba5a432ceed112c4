//! What the scheduler tells the server to do, and how a job can end.

use crate::config::Rate;
use crate::forget::FORGET_GRACE;
use crate::ids::{GpuId, JobId, ModelId, WorkerId};
use std::time::Duration;

/// Something to do now, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker. Answered by `WorkerReady`, `LoadFailed`, `SpawnFailed` or `WorkerExited`.
    Spawn {
        /// Its number from now on.
        worker: WorkerId,
        /// What it is to load. The package stays in memory until [`Action::DropPackage`].
        model: ModelId,
        /// What it may allocate.
        lease_bytes: u64,
        /// The same of the GPU's memory; 0 where it computes on the CPU.
        device_lease_bytes: u64,
        /// Which GPU; none where it computes on the CPU.
        gpu: Option<GpuId>,
        /// Its compute threads.
        threads: u16,
    },
    /// Give a job to a worker. Answered by `JobEnded`, unless the worker dies.
    Run {
        /// Which.
        job: JobId,
        /// Where. After the worker's death the same job may be run once more elsewhere.
        worker: WorkerId,
        /// Of its client: how the worker shares its steps.
        weight: u16,
    },
    /// Tell a worker to end a slot at its next step. Its job has ended already; `JobEnded` still follows.
    CancelJob {
        /// Which.
        job: JobId,
        /// Where.
        worker: WorkerId,
    },
    /// Answer the client. Comes exactly once for each submitted job, and no later action names the job but `CancelJob`.
    End {
        /// Which.
        job: JobId,
        /// With what.
        outcome: Outcome,
    },
    /// Tell a worker to exit. It has no job. Answered by `WorkerExited`, or by `SpawnFailed` if it was not started yet.
    Stop {
        /// Which.
        worker: WorkerId,
    },
    /// Kill a worker. Answered by `WorkerExited` once the kernel has confirmed it, or by `SpawnFailed` if it was not
    /// started yet.
    Kill {
        /// Which.
        worker: WorkerId,
        /// For the operator.
        why: KillReason,
    },
    /// Close the package's sealed memfds, before the actions after this one. No worker has them any more.
    DropPackage {
        /// Whose.
        model: ModelId,
    },
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its output is complete.
    Done,
    /// Said no before it started.
    Refused(Refusal),
    /// Could not.
    Failed(Failure),
}

/// Memory that has a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// What workers allocate on the CPU.
    Cpu,
    /// Packages in the host's memory.
    Host,
    /// What workers have of a GPU's memory.
    Wgpu,
}

/// What has a rate for each client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Jobs.
    Jobs,
    /// Device time in microseconds.
    DeviceTime,
    /// Tokens of inputs.
    Tokens,
    /// Audio in milliseconds.
    Audio,
}

impl Resource {
    /// All.
    pub const ALL: [Self; 4] = [Self::Jobs, Self::DeviceTime, Self::Tokens, Self::Audio];
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jobs => "jobs",
            Self::DeviceTime => "microseconds of device time",
            Self::Tokens => "tokens",
            Self::Audio => "milliseconds of audio",
        })
    }
}

/// A rate that a client has used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Of what.
    pub resource: Resource,
    /// The rate.
    pub rate: Rate,
    /// What the job would take.
    pub wanted: u64,
    /// What is left; negative where more was used than could be foreseen.
    pub available: i64,
    /// After exactly this long there is enough, if the client does nothing else.
    pub retry_after: Duration,
}

impl RateLimit {
    /// A stable name, for the wire and for metrics.
    pub fn code(&self) -> &'static str {
        match self.resource {
            Resource::Jobs => "rate_jobs",
            Resource::DeviceTime => "rate_device_time",
            Resource::Tokens => "rate_tokens",
            Resource::Audio => "rate_audio",
        }
    }
}

/// Why a job was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No model has this number, or it was removed.
    #[error("there is no such model")]
    UnknownModel,
    /// The client has as many jobs waiting as it may.
    #[error(
        "this client has {most} jobs waiting already, the most it may have; {ahead} jobs would start before another one"
    )]
    QueueFullClient {
        /// The bound.
        most: u32,
        /// Jobs that would start before this one, as far as that can be known.
        ahead: u64,
        /// An estimate of when there is room.
        retry_after: Duration,
    },
    /// The client has used up one of its rates.
    #[error(
        "this client may use {} {} a minute, {} at once; the job wants {}, {} are left",
        .0.rate.per_minute, .0.resource, .0.rate.burst, .0.wanted, .0.available
    )]
    RateLimited(RateLimit),
    /// As many jobs wait for the model as may.
    #[error(
        "{most} jobs wait for this model already, the most that may; {ahead} would start before another one"
    )]
    QueueFullModel {
        /// The bound.
        most: u32,
        /// Jobs that would start before this one, as far as that can be known.
        ahead: u64,
        /// An estimate of when there is room.
        retry_after: Duration,
    },
    /// As many jobs wait in all as may.
    #[error(
        "{most} jobs wait already, the most that may; {ahead} would start before another one for this model"
    )]
    QueueFullTotal {
        /// The bound.
        most: u32,
        /// Jobs that would start before this one, as far as that can be known.
        ahead: u64,
        /// An estimate of when there is room.
        retry_after: Duration,
    },
    /// The deadline would pass while the job waits.
    #[error("the job would start in about {estimate:?}, after its deadline in {deadline:?}")]
    DeadlineUnmeetable {
        /// The wait for the jobs ahead, by their measured device time.
        estimate: Duration,
        /// From now; zero if it has passed.
        deadline: Duration,
    },
    /// No worker of the model could ever get what it needs.
    #[error("the model needs {wanted} bytes of a budget of {budget}")]
    LeaseTooLargeForDevice {
        /// Whose budget.
        device: Device,
        /// In bytes.
        wanted: u64,
        /// In bytes.
        budget: u64,
    },
    /// The job could need more than the worker's lease has.
    #[error("the job may need {wanted} bytes of a lease of {lease}")]
    JobTooLargeForLease {
        /// With what the loaded model takes, in bytes.
        wanted: u64,
        /// In bytes.
        lease: u64,
    },
    /// The model does not run.
    #[error("the model is broken: {cause}")]
    ModelBroken {
        /// Why.
        cause: BrokenCause,
        /// When a job will be taken again, where time alone can help.
        retry_after: Option<Duration>,
    },
    /// A canary found no ready worker of its model without work.
    #[error("no worker of the model is ready and idle")]
    NotIdle,
    /// The server is about to end.
    #[error("the server is shutting down")]
    Draining,
}

/// Why a model does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenCause {
    /// Its package can't be run, until it is changed or loaded by the operator.
    #[error("its package can't be loaded")]
    Package,
    /// Its workers died in a row without an answered job in between.
    #[error("{deaths} workers died in a row")]
    Deaths {
        /// How many.
        deaths: u32,
    },
}

/// Why a job that was taken has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The client no longer wants it.
    #[error("the deadline has passed")]
    DeadlinePassed,
    /// It took the device for longer than its model allows.
    #[error("the job took more than {limit:?} of device time")]
    TimeoutPassed {
        /// The model's timeout, and how long the job's audio is.
        limit: Duration,
    },
    /// Its worker died.
    #[error("the worker died while it ran the job")]
    WorkerDied {
        /// True if it happened twice with this job, the second time alone.
        suspect: bool,
    },
    /// It needs more memory than its worker's lease has.
    #[error("out of memory: the job needs more than the worker's lease")]
    OutOfMemory,
    /// A live job has heard as much as its client may have heard.
    #[error("as much was heard as this client may have heard for now")]
    RateLimited(RateLimit),
    /// The client took it back or left.
    #[error("cancelled")]
    Cancelled,
    /// The model's package could not be loaded.
    #[error("the model's package can't be loaded")]
    LoadFailed,
    /// Workers of the model died in a row without an answered job in between.
    #[error("the model is broken: {deaths} workers died in a row")]
    ModelBroken {
        /// How many.
        deaths: u32,
        /// When a job will be taken again.
        retry_after: Duration,
    },
    /// The model was removed while the job waited.
    #[error("the model was removed")]
    ModelRemoved,
    /// The worker's typed error, which the server has, is the answer.
    #[error("the worker refused the job's input")]
    InWorker,
}

/// Why a worker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KillReason {
    /// No sign of life for longer than a step may last, with jobs running.
    #[error("a step lasted longer than the model's step limit")]
    StepLimit,
    /// Not ready in time.
    #[error("the load lasted longer than the model's load limit")]
    LoadLimit,
    /// A cancelled slot did not end.
    #[error("a cancelled slot did not end within the model's step limit")]
    CancelIgnored,
    /// A slot whose grant has ended was not given back at once.
    #[error("a slot whose grant has ended was not given back within {FORGET_GRACE:?}")]
    ForgetIgnored {
        /// Which job had it.
        job: JobId,
    },
    /// Told to stop, or unable to load, and did not exit.
    #[error("the worker did not exit when it had to")]
    StopIgnored,
    /// It said that a job was cancelled which was not.
    #[error("the worker ended a job as cancelled that nobody cancelled")]
    Illegal,
}

impl Outcome {
    /// A stable name, for the wire and for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Refused(refusal) => refusal.code(),
            Outcome::Failed(failure) => failure.code(),
        }
    }
}

impl Refusal {
    /// A stable name, for the wire and for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::UnknownModel => "model_unknown",
            Refusal::QueueFullClient { .. } => "queue_full_client",
            Refusal::RateLimited(limit) => limit.code(),
            Refusal::QueueFullModel { .. } => "queue_full_model",
            Refusal::QueueFullTotal { .. } => "queue_full",
            Refusal::DeadlineUnmeetable { .. } => "deadline_unmeetable",
            Refusal::LeaseTooLargeForDevice { .. } => "lease_too_large",
            Refusal::JobTooLargeForLease { .. } => "job_too_large",
            Refusal::ModelBroken { .. } => "model_broken",
            Refusal::NotIdle => "not_idle",
            Refusal::Draining => "draining",
        }
    }

    /// Whether [`Refusal::retry_after`] is exact if the client does nothing else meanwhile; an estimate otherwise.
    pub fn retry_is_exact(&self) -> bool {
        matches!(self, Refusal::RateLimited(_))
    }

    /// After how long the same job may be taken, where waiting can help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Refusal::QueueFullClient { retry_after, .. }
            | Refusal::QueueFullModel { retry_after, .. }
            | Refusal::QueueFullTotal { retry_after, .. } => Some(*retry_after),
            Refusal::DeadlineUnmeetable { estimate, .. } => Some(*estimate),
            Refusal::RateLimited(limit) => Some(limit.retry_after),
            Refusal::ModelBroken { retry_after, .. } => *retry_after,
            Refusal::UnknownModel
            | Refusal::LeaseTooLargeForDevice { .. }
            | Refusal::JobTooLargeForLease { .. }
            | Refusal::NotIdle
            | Refusal::Draining => None,
        }
    }
}

impl Failure {
    /// A stable name, for the wire and for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Failure::DeadlinePassed => "deadline_passed",
            Failure::TimeoutPassed { .. } => "timeout",
            Failure::WorkerDied { .. } => "worker_died",
            Failure::OutOfMemory => "out_of_memory",
            Failure::RateLimited(limit) => limit.code(),
            Failure::Cancelled => "cancelled",
            Failure::LoadFailed => "load_failed",
            Failure::ModelBroken { .. } => "model_broken",
            Failure::ModelRemoved => "model_removed",
            Failure::InWorker => "in_worker",
        }
    }

    /// After how long the same job may succeed, where waiting can help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::ModelBroken { retry_after, .. } => Some(*retry_after),
            Failure::RateLimited(limit) => Some(limit.retry_after),
            Failure::DeadlinePassed
            | Failure::TimeoutPassed { .. }
            | Failure::WorkerDied { .. }
            | Failure::OutOfMemory
            | Failure::Cancelled
            | Failure::LoadFailed
            | Failure::ModelRemoved
            | Failure::InWorker => None,
        }
    }
}

impl KillReason {
    /// A stable name, for logs and metrics.
    pub fn code(self) -> &'static str {
        match self {
            KillReason::StepLimit => "step_limit",
            KillReason::LoadLimit => "load_limit",
            KillReason::CancelIgnored => "cancel_ignored",
            KillReason::ForgetIgnored { .. } => "forget_ignored",
            KillReason::StopIgnored => "stop_ignored",
            KillReason::Illegal => "illegal",
        }
    }
}

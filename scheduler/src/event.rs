//! What the server tells the scheduler.

use crate::config::{ClientConfig, Config, ModelConfig};
use crate::ids::{ClientId, JobId, ModelId, Time, WorkerId};

/// Something that happened. An event about a job or worker that has ended changes nothing: messages cross.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A model may be used from now on. For a known one this is [`Event::ModelChanged`].
    ModelAdded {
        /// Which.
        model: ModelId,
        /// What it may take.
        config: ModelConfig,
    },
    /// The operator changed what a model may take. Clears a broken state. Workers are replaced, after their jobs, if
    /// their lease, threads or package size changed; [`Event::Unload`] after this replaces them in any case.
    ModelChanged {
        /// Which.
        model: ModelId,
        /// What it may take from now on.
        config: ModelConfig,
    },
    /// The model is gone. Waiting jobs end now, running ones finish, then its workers are stopped.
    ModelRemoved {
        /// Which.
        model: ModelId,
    },
    /// The operator changed budgets, bounds or what unnamed clients may do. What is promised already stays.
    Configured(Config),
    /// What this client may do from now on; `None` is what unnamed ones may.
    ClientConfigured {
        /// Which.
        client: ClientId,
        /// What it may do.
        config: Option<ClientConfig>,
    },
    /// A client asks for something.
    Submit(Submit),
    /// The client left, or took its job back.
    Cancel {
        /// Which.
        job: JobId,
    },
    /// The grant that a job is on has ended, whether or not the job has. As [`Event::Cancel`], and a worker that still has
    /// it must give its slot back within [`crate::FORGET_GRACE`].
    Forget {
        /// Which.
        job: JobId,
    },
    /// A worker could not be started: no process exists, its lease is free again.
    SpawnFailed {
        /// As in [`crate::Action::Spawn`].
        worker: WorkerId,
        /// Whose fault.
        fault: SpawnFault,
    },
    /// A worker has loaded its package.
    WorkerReady {
        /// Which.
        worker: WorkerId,
        /// Its upper bound of the bytes that one token of a step takes.
        bytes_per_token: u64,
        /// Bytes of its lease in use after the load.
        used_bytes: u64,
    },
    /// A worker can't run its package, and exits; [`Event::WorkerExited`] follows.
    LoadFailed {
        /// Which.
        worker: WorkerId,
    },
    /// A step ended.
    Used {
        /// Whose.
        worker: WorkerId,
        /// Device time of the step in microseconds, as the server measured it.
        device_us: u64,
        /// Tokens by job: how the time is split. What the worker says here can't change the sum.
        tokens: Vec<(JobId, u32)>,
    },
    /// A job's worker has read its audio to the end.
    Heard {
        /// Which job.
        job: JobId,
        /// How long the audio is, in milliseconds.
        audio_ms: u64,
    },
    /// A live job's worker says how much it has heard so far.
    Listened {
        /// Which job.
        job: JobId,
        /// Since its stream began, in milliseconds. It never falls.
        audio_ms: u64,
    },
    /// A job's slot is free again.
    JobEnded {
        /// Where it ran.
        worker: WorkerId,
        /// Which.
        job: JobId,
        /// How it ended there.
        end: JobEnd,
    },
    /// A worker is dead, confirmed by the kernel: its memory is back.
    WorkerExited {
        /// Which.
        worker: WorkerId,
        /// How.
        exit: Exit,
    },
    /// The operator wants a worker ready. Clears a broken state.
    Load {
        /// Which.
        model: ModelId,
    },
    /// The operator wants the memory back: each worker stops after its running jobs. Waiting jobs load it again.
    Unload {
        /// Which.
        model: ModelId,
    },
    /// The time of [`crate::Scheduler::next_wake`] has come.
    Tick,
    /// Refuse new jobs, finish those that are here, then stop all workers. There is no way back.
    Drain,
}

/// A job as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit {
    /// A number that was never used before.
    pub job: JobId,
    /// Whose.
    pub client: ClientId,
    /// For which model.
    pub model: ModelId,
    /// When the client no longer wants it.
    pub deadline: Option<Time>,
    /// Upper bound of the tokens of all its inputs.
    pub tokens: u64,
    /// Upper bound of the tokens that the job puts into one step.
    pub tokens_bound: u64,
    /// What its audio is expected to last, in milliseconds; 0 where it has none.
    pub audio_ms: u64,
    /// A health probe of the server itself: it starts at once in an idle worker or is refused, counts in no queue,
    /// is not replayed, and is no use of the model that would put off its idle unload.
    pub canary: bool,
    /// Its sound comes while it runs, for as long as its client wants: no timeout ends it, nobody waits for its end or for
    /// its cores, and it is not replayed.
    pub live: bool,
}

/// How a job ended in its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// With its whole output.
    Done,
    /// With the worker's typed error about its input.
    Failed,
    /// The worker's allocator refused what it wanted.
    OutOfMemory,
    /// As the server asked. If it did not ask, the worker is killed.
    Cancelled,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself with status 0.
    Finished,
    /// By a signal or another status, also after [`crate::Action::Kill`].
    Crashed,
    /// Its lease ended it: a job was too large.
    OutOfMemory,
    /// A limit behind its lease ended it: what was in it may have caused that, or nothing did.
    OverLimit,
    /// The server killed it for a message that was malformed or not legal in its state.
    Illegal,
}

/// Why a worker could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnFault {
    /// The host could not start a program now. It is tried again, later and later.
    Host,
    /// The package did not verify. The model stays broken until it is changed or loaded by the operator.
    Package,
}

impl Event {
    /// A stable name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Event::ModelAdded { .. } => "model_added",
            Event::ModelChanged { .. } => "model_changed",
            Event::ModelRemoved { .. } => "model_removed",
            Event::Configured(_) => "configured",
            Event::ClientConfigured { .. } => "client_configured",
            Event::Submit(_) => "submit",
            Event::Cancel { .. } => "cancel",
            Event::Forget { .. } => "forget",
            Event::SpawnFailed { .. } => "spawn_failed",
            Event::WorkerReady { .. } => "worker_ready",
            Event::LoadFailed { .. } => "load_failed",
            Event::Used { .. } => "used",
            Event::Heard { .. } => "heard",
            Event::Listened { .. } => "listened",
            Event::JobEnded { .. } => "job_ended",
            Event::WorkerExited { .. } => "worker_exited",
            Event::Load { .. } => "load",
            Event::Unload { .. } => "unload",
            Event::Tick => "tick",
            Event::Drain => "drain",
        }
    }
}

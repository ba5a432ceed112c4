//! So that "why" has an answer: the last decisions, the last jobs that ended, and what a waiting job waits for.

use crate::action::{Action, BrokenCause, KillReason, Outcome};
use crate::config::Order;
use crate::ids::{ClientId, JobId, ModelId, Time, WorkerId};
use crate::queue::Queue;
use crate::state::{Job, Model, Phase, Scheduler};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Decisions that are remembered.
pub const DECISIONS_MAX: usize = 16_384;

/// Ended jobs that are remembered.
pub const PAST_JOBS_MAX: usize = 16_384;

/// Jobs ahead that are counted one by one; beyond it there are more than so many.
pub const AHEAD_MAX: u64 = 1_000;

/// What is known of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Which.
    pub job: JobId,
    /// Whose.
    pub client: ClientId,
    /// For which model.
    pub model: ModelId,
    /// When it came.
    pub submitted: Time,
    /// Deaths of workers in which it was.
    pub replays: u32,
    /// Where it is now.
    pub state: JobState,
    /// Decisions about it that are still remembered, oldest first.
    pub decisions: Vec<Decision>,
}

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// In a queue.
    Waiting {
        /// Jobs that will start before it if nothing else comes; [`AHEAD_MAX`] stands for so many or more.
        ahead: u64,
        /// Whose those are.
        behind: BTreeMap<ClientId, u64>,
        /// What holds up the first of them.
        waits_for: WaitsFor,
        /// About when it starts; unknown until the model was measured.
        estimate: Option<Duration>,
    },
    /// In a worker.
    Running {
        /// Which.
        worker: WorkerId,
        /// Since when.
        started: Time,
        /// Device time so far.
        device_time: Duration,
        /// Its model's timeout of it.
        timeout: Duration,
    },
    /// It has ended.
    Ended {
        /// When.
        at: Time,
        /// How.
        outcome: Outcome,
        /// By which rule.
        rule: Rule,
        /// When it started last; `None` if it never did.
        started: Option<Time>,
        /// Device time that it took.
        device_time: Duration,
    },
}

/// What holds up the first job of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// The jobs that are in the workers fill their steps.
    Step,
    /// A worker has room for it, but jobs that run or come before it need the cores.
    Cores {
        /// Those that the worker needs.
        threads: u16,
        /// Those that are free.
        free: u16,
    },
    /// A worker is loading.
    Load,
    /// It was in a worker's death, and waits for a worker of its own.
    OwnWorker,
    /// Memory that others hold.
    Memory {
        /// Bytes of leases that must come back.
        lease: u64,
        /// The same of the GPU.
        device_lease: u64,
        /// Bytes of packages that must come back.
        package: u64,
    },
    /// Workers died; the next one is started later.
    Backoff {
        /// When.
        until: Time,
    },
    /// The model does not run.
    Broken(BrokenCause),
}

/// A job that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    pub(crate) client: ClientId,
    pub(crate) model: ModelId,
    pub(crate) submitted: Time,
    pub(crate) replays: u32,
    pub(crate) at: Time,
    pub(crate) outcome: Outcome,
    pub(crate) rule: Rule,
    pub(crate) started: Option<Time>,
    pub(crate) device_us: u64,
}

/// One action with what it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: Time,
    /// Name of the event that was being handled.
    pub event: &'static str,
    /// What was decided.
    pub action: Action,
    /// By which rule.
    pub rule: Rule,
}

/// The rule behind a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A job must be within the bounds that are stated for it.
    Admission,
    /// To the client that has had the least device time for its weight.
    Fair,
    /// First come, first served for each model.
    Arrival,
    /// A job that was in a worker's death runs once more, alone if it is a suspect.
    Replay,
    /// A canary runs only in an idle worker.
    Canary,
    /// The worker said so.
    Answer,
    /// The client left or took the job back.
    ClientLeft,
    /// The grant that the job was on has ended.
    GrantEnded,
    /// A job's deadline.
    Deadline,
    /// A client's rate, which a live job uses up while it runs.
    Rate,
    /// A model's timeout of device time.
    Timeout,
    /// One step may last only so long.
    StepLimit,
    /// A load may last only so long.
    LoadLimit,
    /// A cancelled slot must end within one step.
    CancelGrace,
    /// A slot whose grant has ended must be given back at once.
    ForgetGrace,
    /// A worker that is told to stop must exit.
    StopGrace,
    /// A message must be legal in its state.
    Illegal,
    /// Jobs wait and no worker has a free slot.
    Demand,
    /// The model is to be kept loaded.
    KeepLoaded,
    /// The operator asked for it, or changed or removed the model.
    Operator,
    /// An idle worker or unused package makes room for a waiting job's model.
    Eviction,
    /// A worker that has served long enough makes room for a model that has waited long enough.
    Yield,
    /// Unused for the model's idle time.
    IdleUnload,
    /// A worker died.
    Death,
    /// The package can't be loaded.
    PackageRefused,
    /// The server is about to end.
    Draining,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Decisions(VecDeque<Decision>);

impl Decisions {
    pub(crate) fn push(&mut self, decision: Decision) {
        if self.0.len() == DECISIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(decision);
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Decision> {
        self.0.iter()
    }
}

impl Action {
    /// The job that it is about.
    fn job(&self) -> Option<JobId> {
        match self {
            Action::Run { job, .. } | Action::CancelJob { job, .. } | Action::End { job, .. } => Some(*job),
            Action::Kill { why, .. } => why.job(),
            Action::Spawn { .. } | Action::Stop { .. } | Action::DropPackage { .. } => None,
        }
    }
}

impl KillReason {
    /// The job that it is told of.
    fn job(self) -> Option<JobId> {
        match self {
            KillReason::ForgetIgnored { job } => Some(job),
            KillReason::StepLimit
            | KillReason::LoadLimit
            | KillReason::CancelIgnored
            | KillReason::StopIgnored
            | KillReason::Illegal => None,
        }
    }
}

impl Scheduler {
    /// What is known of a job; `None` if it never came, or ended too long ago.
    pub fn explain(&self, id: JobId) -> Option<Explanation> {
        let decisions = self.decisions.iter().filter(|decision| decision.action.job() == Some(id));
        let decisions = decisions.cloned().collect();
        if let Some(job) = self.jobs.get(&id) {
            let state = self.state_of(id, job);
            let Job { client, model, submitted, replays, .. } = *job;
            return Some(Explanation { job: id, client, model, submitted, replays, state, decisions });
        }
        let past = self.past.get(&id)?;
        let state = JobState::Ended {
            at: past.at,
            outcome: past.outcome.clone(),
            rule: past.rule,
            started: past.started,
            device_time: Duration::from_micros(past.device_us),
        };
        let Past { client, model, submitted, replays, .. } = *past;
        Some(Explanation { job: id, client, model, submitted, replays, state, decisions })
    }

    /// Device time of a job that has ended, as long as it is remembered.
    pub fn device_time_of(&self, ended: JobId) -> Option<Duration> {
        self.past.get(&ended).map(|past| Duration::from_micros(past.device_us))
    }

    /// How long a job that has ended had waited for its last start, if it was started and is remembered.
    pub fn waited_of(&self, ended: JobId) -> Option<Duration> {
        let past = self.past.get(&ended)?;
        past.started.map(|started| started.since(past.submitted))
    }

    pub(crate) fn remember(&mut self, id: JobId, past: Past) {
        self.past.insert(id, past);
        if self.past.len() > PAST_JOBS_MAX {
            // Numbers rise, so the smallest is about the oldest.
            self.past.pop_first();
        }
    }

    fn state_of(&self, id: JobId, job: &Job) -> JobState {
        let model = &self.models[&job.model];
        if let Some(worker) = job.worker {
            let slot = &self.workers[&worker].slots[&id];
            return JobState::Running {
                worker,
                started: slot.started,
                device_time: Duration::from_micros(slot.charged_us),
                timeout: model.config.timeout + slot.audio,
            };
        }
        let behind = self.jobs_before(&model.queue, id, job, model.job_time.micros());
        let ahead = behind.values().sum();
        let ready = self.active(model).filter(|(_, worker)| worker.phase == Phase::Ready).count() as u64;
        let load = if ready == 0 { self.rest_of_load(model) } else { 0 };
        let estimate = model.job_time.value().map(|time| {
            Duration::from_micros((time.saturating_mul(ahead) / ready.max(1)).saturating_add(load))
        });
        JobState::Waiting { ahead, behind, waits_for: self.waits_for(model), estimate }
    }

    /// Plays the order through as if each job took the model's average time, until the job's turn.
    fn jobs_before(&self, queue: &Queue, id: JobId, job: &Job, job_us: u64) -> BTreeMap<ClientId, u64> {
        let mut before = BTreeMap::new();
        let mut count = |client: ClientId| *before.entry(client).or_default() += 1;
        if self.config.values().order == Order::Arrival {
            let ahead = queue.by_arrival().take_while(|(_, other)| *other != id);
            ahead.take(AHEAD_MAX as usize).for_each(|(_, other)| count(self.jobs[&other].client));
            return before;
        }
        let own_ahead = queue.line(job.client).take_while(|other| *other != id).count();
        let mut lines: BTreeSet<_> =
            queue.order().map(|(class, place, client)| (class, place, client, 0)).collect();
        for _ in 0..AHEAD_MAX {
            let Some((class, mut place, client, taken)) = lines.pop_first() else { break };
            if client == job.client && taken == own_ahead {
                break;
            }
            count(client);
            if taken + 1 < queue.of(client) {
                place.advance(crate::currency::weighted(job_us.max(1), self.client_values(client).weight));
                lines.insert((class, place, client, taken + 1));
            }
        }
        before
    }

    fn waits_for(&self, model: &Model) -> WaitsFor {
        if let Some((cause, _)) = self.broken(model) {
            return WaitsFor::Broken(cause);
        }
        let first = self.next_job(model).map(|(_, job)| &self.jobs[&job]);
        let workers = || self.active(model).map(|(_, worker)| worker.phase);
        if workers().any(|phase| phase == Phase::Ready) {
            return if first.is_some_and(|job| self.has_free_worker(model, job)) {
                WaitsFor::Cores { threads: self.threads(&model.config), free: self.cores_free() }
            } else if first.is_some_and(|job| job.deaths > 0) {
                WaitsFor::OwnWorker
            } else {
                WaitsFor::Step
            };
        }
        if workers().any(|phase| phase == Phase::Loading) {
            return WaitsFor::Load;
        }
        if self.now < model.not_before {
            return WaitsFor::Backoff { until: model.not_before };
        }
        let (lease, device_lease, package) = self.missing(model).parts();
        WaitsFor::Memory { lease, device_lease, package }
    }
}

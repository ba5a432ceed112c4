//! What the scheduler remembers, and the few changes that keep its parts in agreement.

use crate::action::{Action, BrokenCause, Outcome};
use crate::config::{Config, ModelValues};
use crate::currency::{Bill, COUNTER_SCALE, Client, expected_tokens};
use crate::explain::{Decision, Decisions, Past, Rule};
use crate::ids::{ClientId, GpuId, JobId, ModelId, Time, WorkerId, micros};
use crate::queue::Queue;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// The whole of what is counted in parts of a million.
pub(crate) const WHOLE: u64 = 1_000_000;

/// Deaths of workers in a row after which a model is broken.
pub(crate) const DEATHS_MAX: u32 = 5;

/// The quota scheduler: takes events, gives actions.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    /// The time of the event that is being handled.
    pub(crate) now: Time,
    /// Its name.
    pub(crate) event: &'static str,
    /// What was decided so far in this step.
    pub(crate) actions: Vec<Action>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) models: BTreeMap<ModelId, Model>,
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    /// Those with a job here, with a section of their own, or whose past still counts: at most
    /// [`crate::CLIENTS_MAX`] without a job.
    pub(crate) clients: BTreeMap<ClientId, Client>,
    /// Those without a job, the least recent first.
    pub(crate) idle_clients: BTreeSet<(Time, ClientId)>,
    /// What each job that was taken is charged, until its last slot is free.
    pub(crate) bills: BTreeMap<JobId, Bill>,
    /// For each class, what the last client to be chosen had had.
    pub(crate) virtual_time: [u64; 3],
    /// For each class, clients with jobs by counter.
    pub(crate) active: [BTreeSet<(u64, ClientId)>; 3],
    /// The largest weighted charge of one job so far, as it was expected to be or was.
    pub(crate) largest_charge: u64,
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    pub(crate) past: BTreeMap<JobId, Past>,
    pub(crate) deadlines: BTreeSet<(Time, JobId)>,
    /// Jobs that wait in all.
    pub(crate) waiting: u32,
    pub(crate) cpu: Ledger,
    /// By [`GpuId`].
    pub(crate) gpus: Vec<Ledger>,
    pub(crate) host: Ledger,
    /// When a model that waits for room may ask others to yield.
    pub(crate) room_wake: Option<Time>,
    /// When a job that waits for cores may share them.
    pub(crate) cores_wake: Option<Time>,
    pub(crate) arrivals: u64,
    pub(crate) workers_spawned: u64,
    pub(crate) draining: bool,
    pub(crate) decisions: Decisions,
}

/// A job whose client waits.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) client: ClientId,
    pub(crate) model: ModelId,
    pub(crate) deadline: Option<Time>,
    /// Upper bound of the tokens of all its inputs.
    pub(crate) tokens: u64,
    /// The same of one step.
    pub(crate) tokens_bound: u64,
    pub(crate) canary: bool,
    pub(crate) live: bool,
    pub(crate) submitted: Time,
    /// Its place in the order of arrival.
    pub(crate) arrival: u64,
    /// Deaths of workers that it may have caused. After the first it runs alone.
    pub(crate) deaths: u32,
    /// How often it was put back into the queue.
    pub(crate) replays: u32,
    /// How often of that because of the end of another's grant.
    pub(crate) excused: u32,
    /// Where it runs; `None` while it waits.
    pub(crate) worker: Option<WorkerId>,
    /// When it last got a worker.
    pub(crate) started: Option<Time>,
}

/// A model, until it is removed and its last worker is dead.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) config: ModelValues,
    pub(crate) queue: Queue,
    /// Workers whose memory is promised.
    pub(crate) workers: BTreeSet<WorkerId>,
    pub(crate) package: Option<Package>,
    pub(crate) footprint: Option<Footprint>,
    /// The operator's wish for a worker: its place in the order of arrival, and when.
    pub(crate) wanted: Option<(u64, Time)>,
    /// The operator unloaded it; `keep_loaded` rests until somebody uses it.
    pub(crate) unloaded: bool,
    pub(crate) removed: bool,
    pub(crate) package_refused: bool,
    /// Deaths of workers since the last answered job.
    pub(crate) deaths: u32,
    /// No worker is started before.
    pub(crate) not_before: Time,
    pub(crate) job_time: Average,
    pub(crate) load_time: Average,
    /// Device time of a token, in nanoseconds.
    pub(crate) token_time: Average,
    /// Tokens that jobs had, of a million that they could have had by their size.
    pub(crate) token_part: Average,
    /// Who pays for the next loads: those on whose account a worker was killed.
    pub(crate) owed: VecDeque<ClientId>,
}

/// A package in the host's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    pub(crate) bytes: u64,
    /// No new worker may get it.
    pub(crate) stale: bool,
    /// The last worker died: kept for the next one since then.
    pub(crate) kept: Option<Time>,
}

/// What a loaded worker says it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    pub(crate) used_bytes: u64,
    pub(crate) bytes_per_token: u64,
}

/// A worker, from its spawn until its memory is back.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) model: ModelId,
    pub(crate) lease_bytes: u64,
    pub(crate) device_lease_bytes: u64,
    pub(crate) gpu: Option<GpuId>,
    pub(crate) threads: u16,
    pub(crate) phase: Phase,
    pub(crate) slots: BTreeMap<JobId, Slot>,
    pub(crate) spawned: Time,
    pub(crate) ready: Time,
    /// The last sign of life, or when it got its first job after idleness.
    pub(crate) heard: Time,
    /// Since when it was not used.
    pub(crate) idle_since: Time,
    /// When it last got a job that is no canary.
    pub(crate) given: Time,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Loading,
    Ready,
    /// Gets no new jobs, and is stopped after those it has.
    Retiring {
        rule: Rule,
    },
    Stopping {
        since: Time,
    },
    Killed {
        blame: Blame,
    },
}

/// Whose fault a worker's death is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Any job that ran may have caused it.
    Running,
    /// It needed more memory than it has.
    Memory,
    /// Any job that ran may have caused it, by memory that no lease counted.
    Limit,
    /// None of the jobs whose clients wait.
    Others,
    /// The end of a grant that none of them is on.
    Grant,
}

/// A job's place in a worker, until the worker gives it back.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) client: ClientId,
    pub(crate) started: Time,
    pub(crate) charged_us: u64,
    /// How long its audio is, once that is known.
    pub(crate) audio: Duration,
    /// Tokens that it has left, as far as that is known.
    pub(crate) left: u64,
    /// When its job was ended while it ran; the slot is stale since then.
    pub(crate) cancelled: Option<Time>,
    /// When its job's grant ended, as long as the slot must be given back at once for that.
    pub(crate) forgotten: Option<Time>,
    /// No other job may join.
    pub(crate) alone: bool,
    pub(crate) canary: bool,
    /// Nothing is due from it as long as its stream is silent or paused.
    pub(crate) live: bool,
}

/// Promised bytes of a budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ledger {
    pub(crate) budget: u64,
    pub(crate) promised: u64,
}

/// A moving average of whole numbers, most of them microseconds: each value counts an eighth.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Average(Option<u64>);

impl Scheduler {
    /// Without models, workers and jobs.
    pub fn new(config: Config) -> Self {
        let cpu = Ledger { budget: config.values().devices.cpu.budget_bytes, promised: 0 };
        let budgets = config.values().devices.gpu_budgets_bytes.iter();
        let gpus = budgets.map(|budget| Ledger { budget: *budget, promised: 0 }).collect();
        let host = Ledger { budget: config.values().host_budget_bytes, promised: 0 };
        Self {
            config,
            now: Time(0),
            event: "",
            actions: Vec::new(),
            jobs: BTreeMap::new(),
            models: BTreeMap::new(),
            workers: BTreeMap::new(),
            clients: BTreeMap::new(),
            idle_clients: BTreeSet::new(),
            bills: BTreeMap::new(),
            // Above zero, so that there is a place before the first.
            virtual_time: [COUNTER_SCALE; 3],
            active: Default::default(),
            largest_charge: 0,
            refusals: BTreeMap::new(),
            past: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting: 0,
            cpu,
            gpus,
            host,
            room_wake: None,
            cores_wake: None,
            arrivals: 0,
            workers_spawned: 0,
            draining: false,
            decisions: Decisions::default(),
        }
    }

    /// What is promised of a GPU; one that there is not has nothing.
    pub(crate) fn gpu(&self, gpu: GpuId) -> Ledger {
        let none = Ledger { budget: 0, promised: 0 };
        self.gpus.get(usize::from(gpu.0)).copied().unwrap_or(none)
    }

    /// Decides: the action goes out, and is remembered with its rule.
    pub(crate) fn emit(&mut self, action: Action, rule: Rule) {
        self.decisions.push(Decision { at: self.now, event: self.event, action: action.clone(), rule });
        self.actions.push(action);
    }

    /// The next place in the order of arrival.
    pub(crate) fn arrive(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Puts a job that has no worker into its model's queue.
    pub(crate) fn enqueue(&mut self, id: JobId) {
        let job = &self.jobs[&id];
        assert!(job.worker.is_none() && !job.canary, "what waits has no worker, and canaries don't wait");
        let (client, model) = (job.client, job.model);
        let (now, arrival) = (self.now, job.arrival);
        let for_model = model;
        self.change_client(client, |client| {
            client.waiting += 1;
            client.waits_for.insert(for_model);
        });
        let standing = self.standing(client);
        let model = self.models.get_mut(&model).expect("a job's model is known");
        model.queue.push(now, client, id, arrival, standing);
        model.unloaded = false;
        self.waiting += 1;
    }

    /// Takes a waiting job out of its model's queue.
    pub(crate) fn dequeue(&mut self, job: &Job, id: JobId) {
        let model = self.models.get_mut(&job.model).expect("a job's model is known");
        model.queue.remove(job.client, job.arrival, id);
        let last = model.queue.of(job.client) == 0;
        self.waiting -= 1;
        self.change_client(job.client, |client| {
            client.waiting -= 1;
            if last {
                client.waits_for.remove(&job.model);
            }
        });
    }

    /// Gives a job that is in no queue a slot.
    pub(crate) fn start(&mut self, id: JobId, to: WorkerId, rule: Rule) {
        let now = self.now;
        let waiting = &self.jobs[&id];
        let left = expected_tokens(&self.models[&waiting.model], waiting.tokens);
        let audio = self.audio_of(id);
        let job = self.jobs.get_mut(&id).expect("only known jobs start");
        job.worker = Some(to);
        job.started = Some(now);
        let client = job.client;
        let slot = Slot {
            client,
            started: now,
            charged_us: 0,
            audio,
            left,
            cancelled: None,
            forgotten: None,
            alone: job.deaths > 0,
            canary: job.canary,
            live: job.live,
        };
        let worker = self.workers.get_mut(&to).expect("jobs start in known workers");
        assert_eq!(worker.phase, Phase::Ready, "jobs start in ready workers");
        assert!(worker.slots.values().all(|other| !other.alone), "a suspect runs alone");
        if worker.slots.values().all(|slot| slot.live) {
            worker.heard = now;
        }
        if !slot.canary {
            worker.given = now;
        }
        worker.slots.insert(id, slot);
        self.change_client(client, |client| client.running += 1);
        self.expect_charge(id);
        let weight = self.client_values(client).weight;
        self.emit(Action::Run { job: id, worker: to, weight }, rule);
    }

    /// Answers a job's client, wherever the job is. A slot that it still has is cancelled.
    pub(crate) fn end(&mut self, id: JobId, outcome: Outcome, rule: Rule) {
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Some(deadline) = job.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.remember_end(id, &job, &outcome, rule);
        match job.worker {
            None => {
                self.dequeue(&job, id);
                self.settle(id);
            }
            Some(_) => self.change_client(job.client, |client| client.running -= 1),
        }
        self.count_outcome(&job, &outcome);
        self.emit(Action::End { job: id, outcome }, rule);
        if let Some(worker) = job.worker {
            self.cancel_slot(id, worker, rule);
        }
    }

    fn remember_end(&mut self, id: JobId, job: &Job, outcome: &Outcome, rule: Rule) {
        let past = Past {
            client: job.client,
            model: job.model,
            submitted: job.submitted,
            replays: job.replays,
            at: self.now,
            outcome: outcome.clone(),
            rule,
            started: job.started,
            device_us: self.billed_us(id),
        };
        self.remember(id, past);
    }

    /// Ends every job that waits for a model.
    pub(crate) fn end_waiting(&mut self, model: ModelId, outcome: &Outcome, rule: Rule) {
        let waiting: Vec<JobId> = self.models[&model].queue.by_arrival().map(|(_, job)| job).collect();
        for job in waiting {
            self.end(job, outcome.clone(), rule);
        }
    }

    fn cancel_slot(&mut self, job: JobId, id: WorkerId, rule: Rule) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Some(slot) = worker.slots.get_mut(&job) else { return };
        slot.cancelled = Some(self.now);
        if !worker.is_killed() {
            self.emit(Action::CancelJob { job, worker: id }, rule);
        }
    }

    /// Takes a job's worker away from it, the worker being dead.
    pub(crate) fn detach(&mut self, id: JobId) {
        self.uncount(id);
        let job = self.jobs.get_mut(&id).expect("live slots belong to known jobs");
        job.worker = None;
        let client = job.client;
        self.change_client(client, |client| client.running -= 1);
    }

    /// Why a model takes no jobs now, and until when if time alone can help.
    pub(crate) fn broken(&self, model: &Model) -> Option<(BrokenCause, Option<Duration>)> {
        if model.package_refused {
            return Some((BrokenCause::Package, None));
        }
        let many = model.deaths >= DEATHS_MAX && self.now < model.not_before;
        many.then(|| (BrokenCause::Deaths { deaths: model.deaths }, Some(model.not_before.since(self.now))))
    }

    /// Workers of a model that have, or will have, free slots.
    pub(crate) fn active<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = (WorkerId, &'a Worker)> {
        model.workers.iter().map(|id| (*id, &self.workers[id])).filter(|(_, worker)| worker.is_active())
    }
}

impl Model {
    pub(crate) fn new(config: ModelValues) -> Self {
        Self {
            config,
            queue: Queue::default(),
            workers: BTreeSet::new(),
            package: None,
            footprint: None,
            wanted: None,
            unloaded: false,
            removed: false,
            package_refused: false,
            deaths: 0,
            not_before: Time(0),
            job_time: Average::default(),
            load_time: Average::default(),
            token_time: Average::default(),
            token_part: Average::default(),
            owed: VecDeque::new(),
        }
    }

    /// Somebody waits for this model: since which arrival.
    pub(crate) fn waited_for(&self) -> Option<u64> {
        let job = self.queue.by_arrival().next().map(|(arrival, _)| arrival);
        let operator = self.wanted.map(|(arrival, _)| arrival);
        job.into_iter().chain(operator).min()
    }

    /// No new worker may get the package that is in memory.
    pub(crate) fn package_stale(&self) -> bool {
        self.package.is_some_and(|package| package.stale)
    }

    pub(crate) fn make_package_stale(&mut self) {
        self.footprint = None;
        if let Some(package) = &mut self.package {
            package.stale = true;
        }
    }

    /// Forgets why it did not run.
    pub(crate) fn mend(&mut self) {
        self.package_refused = false;
        self.forget_deaths();
    }

    pub(crate) fn forget_deaths(&mut self) {
        self.deaths = 0;
        self.not_before = Time(0);
    }
}

impl Worker {
    pub(crate) fn is_active(&self) -> bool {
        match self.phase {
            Phase::Loading | Phase::Ready => true,
            Phase::Retiring { .. } | Phase::Stopping { .. } | Phase::Killed { .. } => false,
        }
    }

    pub(crate) fn is_killed(&self) -> bool {
        matches!(self.phase, Phase::Killed { .. })
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Ready && self.slots.is_empty()
    }

    /// Jobs whose clients wait.
    pub(crate) fn live(&self) -> impl Iterator<Item = JobId> {
        self.slots.iter().filter(|(_, slot)| slot.cancelled.is_none()).map(|(job, _)| *job)
    }
}

impl Ledger {
    /// Nothing where a budget was lowered below what is promised.
    pub(crate) fn free(&self) -> u64 {
        self.budget.saturating_sub(self.promised)
    }

    /// What must come back before so much can be promised.
    pub(crate) fn missing(&self, bytes: u64) -> u64 {
        self.promised.saturating_add(bytes).saturating_sub(self.budget)
    }

    pub(crate) fn promise(&mut self, bytes: u64) {
        assert!(bytes <= self.free(), "nothing is promised over its budget");
        self.promised += bytes;
    }

    pub(crate) fn release(&mut self, bytes: u64) {
        assert!(bytes <= self.promised, "only what was promised comes back");
        self.promised -= bytes;
    }
}

impl Average {
    pub(crate) fn add(&mut self, value: u64) {
        // In 128 bits, since nothing bounds the values here.
        let next = |old: u64| ((u128::from(old) * 7 + u128::from(value)) / 8) as u64;
        self.0 = Some(self.0.map_or(value, next));
    }

    /// Zero until there is a value.
    pub(crate) fn micros(&self) -> u64 {
        self.0.unwrap_or(0)
    }

    pub(crate) fn value(&self) -> Option<u64> {
        self.0
    }

    pub(crate) fn duration(&self) -> Option<Duration> {
        self.0.map(Duration::from_micros)
    }
}

/// Microseconds from `earlier` to `now`.
pub(crate) fn elapsed_us(now: Time, earlier: Time) -> u64 {
    micros(now.since(earlier))
}

//! An independent account of what the scheduler was told and what it decided, and the promises that both must keep.

use ringfence_scheduler::{
    Action, Class, ClientId, ClientUsage, ClientValues, Config, Event, Exit, FORGET_GRACE, FORGET_KILLS_MAX,
    FORGET_LOADS, Failure, GRACE, GpuId, JobEnd, JobId, KillReason, ModelId, ModelValues, Order, Outcome,
    Refusal, Snapshot, Submit, Time, WorkerId, WorkerState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a kill counts at least, so that a burst and what comes back in a minute are not more than may be.
const FORGET_LOAD_LEAST_US: u64 = (FORGET_LOADS.burst + FORGET_LOADS.per_minute) / FORGET_KILLS_MAX;

/// How long a microsecond of a load is paid for.
const LOAD_US_IN_US: u64 = 60_000_000 / FORGET_LOADS.per_minute;

pub(crate) struct Oracle {
    config: Config,
    now: Time,
    models: BTreeMap<ModelId, ModelValues>,
    /// With a section of their own.
    clients: BTreeMap<ClientId, ClientValues>,
    /// Device time of all steps.
    busy_us: u64,
    submitted: u64,
    /// When a job of a class last started.
    served: BTreeMap<(ModelId, Class), Time>,
    /// Submitted and not ended.
    pub(crate) jobs: BTreeMap<JobId, Job>,
    ended: BTreeSet<JobId>,
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    /// Packages in memory with their bytes.
    packages: BTreeMap<ModelId, u64>,
    arrivals: u64,
    /// Loads that somebody else pays for.
    owed: BTreeMap<ModelId, u64>,
    /// Workers that were killed on a client's account.
    kills: BTreeMap<ClientId, Kills>,
    /// Of all jobs.
    clients_of: BTreeMap<JobId, ClientId>,
    draining: bool,
    pub(crate) shown: BTreeSet<String>,
}

/// Workers that were killed on a client's account.
#[derive(Default)]
struct Kills {
    at: Vec<Time>,
    /// When their loads are paid for.
    paid: u64,
}

pub(crate) struct Job {
    submit: Submit,
    arrival: u64,
    /// Where it runs; `None` while it waits.
    worker: Option<WorkerId>,
    runs: u32,
    /// Deaths of workers in which it ran and may be to blame.
    deaths: u32,
}

pub(crate) struct Worker {
    model: ModelId,
    lease: u64,
    device_lease: u64,
    gpu: Option<GpuId>,
    threads: u16,
    spawned: Time,
    ready: Option<Time>,
    heard: Time,
    /// By job, when it was cancelled.
    slots: BTreeMap<JobId, Option<Time>>,
    /// Slots whose grant has ended, since when.
    forgotten: BTreeMap<JobId, Time>,
    /// Those that are no canaries.
    work: BTreeSet<JobId>,
    /// When the last of them came.
    given: Time,
    stopped: Option<Time>,
    killed: Option<KillReason>,
    suspect_inside: bool,
}

impl Oracle {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            now: Time(0),
            models: BTreeMap::new(),
            clients: BTreeMap::new(),
            busy_us: 0,
            served: BTreeMap::new(),
            submitted: 0,
            jobs: BTreeMap::new(),
            ended: BTreeSet::new(),
            workers: BTreeMap::new(),
            packages: BTreeMap::new(),
            arrivals: 0,
            owed: BTreeMap::new(),
            kills: BTreeMap::new(),
            clients_of: BTreeMap::new(),
            draining: false,
            shown: BTreeSet::new(),
        }
    }

    /// Takes one step: what happened, what was decided, and the state after it.
    pub(crate) fn check(&mut self, now: Time, event: &Event, actions: &[Action], after: &Snapshot) {
        self.now = now;
        let full = self.full(event);
        self.take(event);
        for action in actions {
            self.follow(action);
        }
        self.check_admission(event, actions, full);
        self.check_times();
        self.check_forgotten();
        self.check_snapshot(after);
        self.check_workers_max(actions, after);
        self.check_work_conserved(after);
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::ModelAdded { model, config } | Event::ModelChanged { model, config } => {
                self.models.insert(*model, config.values().clone());
            }
            Event::ModelRemoved { .. } => {}
            Event::Configured(config) => self.config = config.clone(),
            Event::ClientConfigured { client, config } => match config {
                Some(config) => drop(self.clients.insert(*client, config.values().clone())),
                None => drop(self.clients.remove(client)),
            },
            Event::Submit(submit) => self.submitted(submit),
            Event::SpawnFailed { worker, .. } => drop(self.workers.remove(worker)),
            Event::WorkerReady { worker, .. } => self.ready(*worker),
            Event::LoadFailed { worker } => {
                let now = self.now;
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.stopped.get_or_insert(now);
                }
            }
            Event::Used { worker, device_us, .. } => {
                self.heard(*worker, |_| {});
                if self.workers.get(worker).is_some_and(|worker| !worker.slots.is_empty()) {
                    self.busy_us += device_us;
                }
            }
            Event::JobEnded { worker, job, end } => self.job_ended(*worker, *job, *end),
            Event::WorkerExited { worker, exit } => self.exited(*worker, *exit),
            Event::Drain => self.draining = true,
            Event::Forget { job } => self.forgotten(*job),
            Event::Heard { .. }
            | Event::Listened { .. }
            | Event::Cancel { .. }
            | Event::Load { .. }
            | Event::Unload { .. }
            | Event::Tick => {}
        }
    }

    fn submitted(&mut self, submit: &Submit) {
        self.arrivals += 1;
        self.submitted += 1;
        self.clients_of.insert(submit.job, submit.client);
        let job = Job { submit: submit.clone(), arrival: self.arrivals, worker: None, runs: 0, deaths: 0 };
        assert!(self.jobs.insert(submit.job, job).is_none());
    }

    /// The end of a grant marks the slot of its job, also after the job's end.
    fn forgotten(&mut self, job: JobId) {
        let now = self.now;
        let holder = self.workers.values_mut().find(|worker| worker.slots.contains_key(&job));
        if let Some(worker) = holder {
            worker.forgotten.entry(job).or_insert(now);
            if worker.slots[&job].is_some() {
                self.shown.insert("grant ended after its job".to_owned());
            }
        }
    }

    /// Whoever had a worker killed pays for the load of the next one.
    fn ready(&mut self, id: WorkerId) {
        let now = self.now;
        if let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.loads()) {
            worker.ready = Some(now);
            let owed = self.owed.entry(worker.model).or_default();
            if *owed > 0 {
                *owed -= 1;
                self.shown.insert("load owed".to_owned());
                self.busy_us += micros(now.since(worker.spawned));
            }
        }
        self.heard(id, |_| {});
    }

    fn heard(&mut self, worker: WorkerId, change: impl FnOnce(&mut Worker)) {
        let now = self.now;
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.heard = now;
            change(worker);
        }
    }

    fn job_ended(&mut self, worker: WorkerId, job: JobId, end: JobEnd) {
        self.heard(worker, |worker| {
            let lied = end == JobEnd::Cancelled && worker.slots.get(&job) == Some(&None);
            if !lied {
                worker.slots.remove(&job);
                worker.forgotten.remove(&job);
                worker.work.remove(&job);
                worker.suspect_inside &= !worker.slots.is_empty();
            }
        });
    }

    fn exited(&mut self, id: WorkerId, exit: Exit) {
        let Some(worker) = self.workers.remove(&id) else { return };
        let grant = matches!(worker.killed, Some(KillReason::ForgetIgnored { .. }));
        let others = matches!(worker.killed, Some(KillReason::CancelIgnored)) || grant;
        for (job, cancelled) in &worker.slots {
            let Some(job) = self.jobs.get_mut(job).filter(|_| cancelled.is_none()) else { continue };
            job.worker = None;
            job.deaths += u32::from(!others);
            job.runs -= u32::from(grant);
        }
        if exit == Exit::OutOfMemory && worker.slots.len() == 1 {
            self.shown.insert("exit out of memory, alone".to_owned());
        }
    }

    fn follow(&mut self, action: &Action) {
        match action {
            Action::Spawn { worker, model, lease_bytes, device_lease_bytes, gpu, threads } => {
                assert_eq!(*device_lease_bytes, self.models[model].device_lease_bytes);
                assert!(*threads <= self.config.values().devices.cpu.cores);
                let may = &self.models[model].gpus;
                assert!(gpu.map_or(may.is_empty(), |gpu| may.contains(&gpu)), "{gpu:?} of {may:?}");
                self.spawned(*worker, *model, *lease_bytes, (*threads, *gpu));
            }
            Action::Run { job, worker, .. } => self.started(*job, *worker),
            Action::CancelJob { job, worker } => self.cancelled(*job, *worker),
            Action::End { job, outcome } => self.end(*job, outcome),
            Action::Stop { worker } => self.stopped(*worker),
            Action::Kill { worker, why } => self.killed(*worker, *why),
            Action::DropPackage { model } => {
                self.shown.insert("action drop_package".to_owned());
                assert!(self.workers.values().all(|worker| worker.model != *model), "a worker may have it");
                assert!(self.packages.remove(model).is_some(), "no such package is in memory");
                self.owed.remove(model);
            }
        }
    }

    fn spawned(&mut self, id: WorkerId, model: ModelId, lease: u64, (threads, gpu): (u16, Option<GpuId>)) {
        self.shown.insert("action spawn".to_owned());
        let values = &self.models[&model];
        assert_eq!(lease, values.lease_bytes);
        self.packages.entry(model).or_insert(values.package_bytes);
        assert_eq!(self.packages[&model], values.package_bytes, "a new worker got the old package");
        let worker = Worker {
            model,
            lease,
            device_lease: values.device_lease_bytes,
            gpu,
            threads,
            spawned: self.now,
            ready: None,
            heard: self.now,
            slots: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            work: BTreeSet::new(),
            given: self.now,
            stopped: None,
            killed: None,
            suspect_inside: false,
        };
        assert!(self.workers.insert(id, worker).is_none(), "a worker's number is used once");
        let leases: u64 = self.workers.values().map(|worker| worker.lease).sum();
        if let Some(GpuId(place)) = gpu {
            let (place, budgets) = (usize::from(place), &self.config.values().devices.gpu_budgets_bytes);
            assert!(self.on_gpu(place) <= budgets[place], "GPU leases over budget");
        }
        let packages: u64 = self.packages.values().sum();
        assert!(leases <= self.config.values().devices.cpu.budget_bytes, "leases over budget");
        assert!(packages <= self.config.values().host_budget_bytes, "packages over budget");
    }

    fn started(&mut self, id: JobId, to: WorkerId) {
        self.shown.insert("action run".to_owned());
        let job = self.jobs.get(&id).expect("an ended or unknown job was run");
        let model = job.submit.model;
        assert!(job.worker.is_none(), "a job runs in one place at a time");
        let others = self.jobs.values().filter(|other| other.submit.model == model && other.waits());
        if !job.submit.canary {
            others.for_each(|other| self.check_order(job, other));
        }
        if !job.submit.canary {
            let class = self.client(job.submit.client).class;
            self.served.insert((model, class), self.now);
        }
        if !job.submit.canary {
            self.check_cores(to);
        }
        let (now, job) = (self.now, &self.jobs[&id]);
        let worker = self.workers.get_mut(&to).expect("a job was given to a dead worker");
        assert_eq!(worker.model, model);
        if !job.submit.canary {
            worker.work.insert(id);
            worker.given = now;
        }
        assert!(worker.ready.is_some() && worker.stopped.is_none() && worker.killed.is_none());
        assert!(worker.slots.len() < usize::from(self.models[&model].concurrency), "concurrency exceeded");
        assert!(!worker.suspect_inside, "a suspect has company");
        let alone = job.deaths > 0;
        assert!(!(alone || job.submit.canary) || worker.slots.is_empty(), "it must run alone");
        if worker.slots.is_empty() {
            worker.heard = self.now;
        }
        worker.suspect_inside = alone;
        worker.slots.insert(id, None);
        let job = self.jobs.get_mut(&id).expect("it was there");
        job.worker = Some(to);
        job.runs += 1;
    }

    /// A worker may begin to work beside those that do.
    fn check_cores(&mut self, id: WorkerId) {
        let (cores, threads) = (self.config.values().devices.cpu.cores, self.workers[&id].threads);
        if !self.workers[&id].work.is_empty() {
            return;
        }
        let beside: Vec<u16> = self.holders().map(|worker| worker.threads).collect();
        assert!(
            beside.is_empty() || beside.iter().sum::<u16>() + threads <= cores,
            "more threads than cores"
        );
        let at_work = self.workers.values().filter(|worker| !worker.work.is_empty());
        if at_work.map(|worker| worker.threads).sum::<u16>() + threads > cores {
            self.shown.insert("cores shared".to_owned());
        } else if !beside.is_empty() {
            self.shown.insert("cores divided".to_owned());
        }
    }

    /// Workers that need not share their cores.
    fn holders(&self) -> impl Iterator<Item = &Worker> {
        let alone = |worker: &&Worker| {
            let step = self.models[&worker.model].step_target;
            !worker.work.is_empty() && self.now < worker.given + step
        };
        self.workers.values().filter(alone)
    }

    /// A job may start before this one that waits.
    fn check_order(&self, job: &Job, other: &Job) {
        let overtakes = other.arrival < job.arrival;
        if self.config.values().order == Order::Arrival || other.submit.client == job.submit.client {
            assert!(!overtakes, "a job overtook another");
            return;
        }
        let class = |job: &Job| self.client(job.submit.client).class;
        let since = self.served.get(&(job.submit.model, class(job))).copied().unwrap_or_default();
        let due = since + self.config.values().aging <= self.now;
        assert!(class(job) <= class(other) || due, "a job of a worse class started first");
    }

    fn client(&self, id: ClientId) -> &ClientValues {
        self.clients.get(&id).unwrap_or_else(|| self.config.values().client.values())
    }

    /// At the end: every microsecond of a step is charged to somebody, and every job is counted once.
    pub(crate) fn check_accounts(&self, usage: &[ClientUsage]) {
        let sum = |of: &dyn Fn(&ClientUsage) -> u64| usage.iter().map(of).sum::<u64>();
        assert_eq!(sum(&|client| client.usage.device_us), self.busy_us, "charges are not the busy time");
        assert_eq!(sum(&|client| client.usage.submitted), self.submitted);
        let ended = sum(&|client| {
            client.usage.done + client.usage.failed + client.usage.refused.values().sum::<u64>()
        });
        assert_eq!(ended, self.submitted, "a job was counted twice or not at all");
    }

    fn cancelled(&mut self, job: JobId, worker: WorkerId) {
        self.shown.insert("action cancel".to_owned());
        assert!(self.ended.contains(&job), "a slot was cancelled whose client still waits");
        let worker = self.workers.get_mut(&worker).expect("a slot of a dead worker was cancelled");
        let slot = worker.slots.get_mut(&job).expect("no such slot");
        assert!(slot.is_some(), "the end of a job marks its slot");
    }

    fn end(&mut self, id: JobId, outcome: &Outcome) {
        self.shown.insert(format!("end {}", outcome.code()));
        let job = self.jobs.remove(&id).expect("a job ended twice, or never came");
        assert!(self.ended.insert(id));
        let slot = job.worker.and_then(|worker| self.workers.get_mut(&worker)?.slots.get_mut(&id));
        if let Some(slot) = slot {
            *slot = Some(self.now);
        }
        match outcome {
            Outcome::Done => assert!(job.runs > 0),
            Outcome::Refused(_) => {
                assert!(job.worker.is_none(), "a job that ran was refused");
                // A canary that finds no idle worker is not counted.
                self.submitted -= u64::from(job.submit.canary);
            }
            Outcome::Failed(Failure::DeadlinePassed) => assert!(job.submit.deadline.unwrap() <= self.now),
            Outcome::Failed(Failure::WorkerDied { suspect: true }) => {
                assert!(job.deaths == 2, "a job is no suspect before its second death");
            }
            Outcome::Failed(Failure::WorkerDied { suspect: false }) => {
                assert!(job.submit.canary || job.runs > 4, "an innocent job was lost");
            }
            Outcome::Failed(_) => {}
        }
    }

    fn stopped(&mut self, id: WorkerId) {
        self.shown.insert("action stop".to_owned());
        let now = self.now;
        let worker = self.workers.get_mut(&id).expect("a dead worker was stopped");
        assert!(worker.slots.is_empty(), "a worker with jobs was stopped");
        assert!(worker.killed.is_none() && worker.stopped.replace(now).is_none(), "stopped twice");
    }

    fn killed(&mut self, id: WorkerId, why: KillReason) {
        self.shown.insert(format!("kill {}", why.code()));
        let worker = self.workers.get_mut(&id).expect("a dead worker was killed");
        let values = &self.models[&worker.model];
        let (now, step) = (self.now, values.step_limit + GRACE);
        let justified = match why {
            KillReason::StepLimit => !worker.slots.is_empty() && now >= worker.heard + step,
            KillReason::LoadLimit => worker.ready.is_none() && now >= worker.spawned + values.load_limit,
            KillReason::CancelIgnored => worker.slots.values().flatten().any(|since| now >= *since + step),
            KillReason::StopIgnored => worker.stopped.is_some_and(|since| now >= since + step),
            KillReason::Illegal => worker.slots.values().any(Option::is_none),
            KillReason::ForgetIgnored { job } => {
                worker.forgotten.get(&job).is_some_and(|since| now >= *since + FORGET_GRACE)
            }
        };
        assert!(justified, "a worker was killed without the reason {why:?}");
        assert!(worker.killed.replace(why).is_none(), "killed twice");
        if let KillReason::ForgetIgnored { job } = why {
            self.forget_killed(id, job);
        }
    }

    /// The requester pays for the step that is cut off, and its kills have a rate.
    fn forget_killed(&mut self, id: WorkerId, job: JobId) {
        let (now, worker) = (self.now, &self.workers[&id]);
        assert!(self.may_kill(worker, job), "a client's kills are beyond its rate");
        self.busy_us += micros(now.since(worker.heard.max(worker.forgotten[&job])));
        *self.owed.entry(worker.model).or_default() += 1;
        let cost = worker.load_us() * LOAD_US_IN_US;
        let Kills { at, paid } = self.kills.entry(self.clients_of[&job]).or_default();
        *paid = (*paid).max(now.0) + cost;
        at.push(now);
        let minute = at.iter().filter(|at| now.since(**at) < Duration::from_secs(60)).count() as u64;
        assert!(minute <= FORGET_KILLS_MAX, "more workers were killed for a client than may be");
    }

    fn may_kill(&self, worker: &Worker, job: JobId) -> bool {
        let paid = self.kills.get(&self.clients_of[&job]).map_or(0, |kills| kills.paid);
        let cost = worker.load_us().min(FORGET_LOADS.burst) * LOAD_US_IN_US;
        paid.saturating_sub(self.now.0) + cost <= FORGET_LOADS.burst * LOAD_US_IN_US
    }

    /// Whoever did not forget in time was killed, or its client has no more kills: then it waits as others that are cancelled.
    fn check_forgotten(&mut self) {
        let late = |worker: &Worker, since: Time| worker.killed.is_none() && self.now >= since + FORGET_GRACE;
        let mut spared = Vec::new();
        for (id, worker) in &self.workers {
            for (job, since) in &worker.forgotten {
                if late(worker, *since) {
                    assert!(!self.may_kill(worker, *job), "a worker need not forget");
                    spared.push((*id, *job));
                }
            }
        }
        for (worker, job) in spared {
            self.shown.insert("no kill beyond the rate".to_owned());
            self.workers.get_mut(&worker).unwrap().forgotten.remove(&job);
        }
    }

    /// Which queues had no room for a job before the event.
    fn full(&self, event: &Event) -> [bool; 3] {
        let Event::Submit(submit) = event else { return [false; 3] };
        let waiting =
            |of: &dyn Fn(&Job) -> bool| self.jobs.values().filter(|job| job.waits() && of(job)).count();
        let values = self.config.values();
        let queue_max = self.models.get(&submit.model).map_or(0, |values| values.queue_max);
        let client_max = self.client(submit.client).queue_max;
        [
            waiting(&|_| true) >= values.queue_total_max as usize,
            waiting(&|job| job.submit.client == submit.client) >= client_max as usize,
            waiting(&|job| job.submit.model == submit.model) >= queue_max as usize,
        ]
    }

    fn check_admission(&self, event: &Event, actions: &[Action], [total, client, model]: [bool; 3]) {
        let Event::Submit(submit) = event else { return };
        let refusal = actions.iter().find_map(|action| match action {
            Action::End { job, outcome: Outcome::Refused(refusal) } if *job == submit.job => Some(refusal),
            _ => None,
        });
        match refusal {
            None => {
                assert!(submit.canary || !(total || client || model), "a full queue took a job");
                assert!(!self.draining, "a job was taken while draining");
                assert!(self.models.contains_key(&submit.model));
            }
            Some(Refusal::QueueFullTotal { .. }) => assert!(total),
            Some(Refusal::QueueFullClient { .. }) => assert!(client),
            Some(Refusal::QueueFullModel { .. }) => assert!(model),
            Some(Refusal::Draining) => assert!(self.draining),
            Some(Refusal::NotIdle) => assert!(submit.canary),
            Some(_) => {}
        }
    }

    /// Every time limit was kept: the clock stands before each of them.
    fn check_times(&self) {
        for job in self.jobs.values() {
            assert!(
                job.submit.deadline.is_none_or(|deadline| self.now < deadline),
                "a deadline passed unnoticed"
            );
        }
        for worker in self.workers.values().filter(|worker| worker.killed.is_none()) {
            let values = &self.models[&worker.model];
            let step = values.step_limit + GRACE;
            let before =
                |since: Time, limit: Duration| assert!(self.now < since + limit, "a limit passed unnoticed");
            if !worker.slots.is_empty() {
                before(worker.heard, step);
            }
            worker.slots.values().flatten().for_each(|since| before(*since, step));
            worker.stopped.into_iter().for_each(|since| before(since, step));
            if worker.ready.is_none() && worker.stopped.is_none() {
                before(worker.spawned, values.load_limit);
            }
        }
    }

    /// What workers have of a GPU.
    fn on_gpu(&self, place: usize) -> u64 {
        let here = self.workers.values().filter(|worker| worker.gpu == Some(GpuId(place as u16)));
        here.map(|worker| worker.device_lease).sum()
    }

    fn check_snapshot(&self, after: &Snapshot) {
        let leases: u64 = self.workers.values().map(|worker| worker.lease).sum();
        assert_eq!(after.cpu.promised_bytes, leases);
        for (place, gpu) in after.gpus.iter().enumerate() {
            assert_eq!(gpu.promised_bytes, self.on_gpu(place));
        }
        assert_eq!(after.host.promised_bytes, self.packages.values().sum::<u64>());
        assert_eq!(after.waiting as usize, self.jobs.values().filter(|job| job.waits()).count());
        assert_eq!(after.workers.len(), self.workers.len());
        let mut clients: BTreeMap<ClientId, (u32, u32)> = BTreeMap::new();
        for job in self.jobs.values() {
            let (waiting, running) = clients.entry(job.submit.client).or_default();
            *if job.waits() { waiting } else { running } += 1;
        }
        let stated: BTreeMap<_, _> =
            after.clients.iter().map(|client| (client.client, (client.waiting, client.running))).collect();
        assert_eq!(stated, clients);
        assert_eq!(after.draining, self.draining);
    }

    /// A worker is started only below the model's bound; those that are on their way out don't count.
    fn check_workers_max(&self, actions: &[Action], after: &Snapshot) {
        for action in actions {
            let Action::Spawn { model, .. } = action else { continue };
            let active = |state| matches!(state, WorkerState::Loading | WorkerState::Ready);
            let workers =
                after.workers.iter().filter(|worker| worker.model == *model && active(worker.state));
            assert!(workers.count() <= usize::from(self.models[model].workers_max), "too many workers");
        }
    }

    /// No job waits while a worker that is ready for it has a free slot, unless others have the cores.
    fn check_work_conserved(&mut self, after: &Snapshot) {
        let mut cores_lack = false;
        for worker in after.workers.iter().filter(|worker| worker.state == WorkerState::Ready) {
            let own = &self.workers[&worker.worker];
            let waiting = self.jobs.values().filter(|job| job.waits() && job.submit.model == worker.model);
            let Some(first) = waiting.min_by_key(|job| job.arrival) else { continue };
            let room = match first.deaths {
                0 if self.config.values().order == Order::Fair => own.slots.is_empty(),
                0 => {
                    own.slots.len() < usize::from(self.models[&worker.model].concurrency)
                        && !own.suspect_inside
                }
                _ => own.slots.is_empty(),
            };
            let others_work = self.workers.values().any(|worker| !worker.work.is_empty());
            cores_lack |= room && others_work;
            assert!(!room || others_work, "a job waits beside a free slot");
        }
        if cores_lack {
            self.shown.insert("waits for cores".to_owned());
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap()
}

impl Worker {
    fn loads(&self) -> bool {
        self.ready.is_none() && self.stopped.is_none() && self.killed.is_none()
    }

    fn load_us(&self) -> u64 {
        let ready = self.ready.expect("it has jobs");
        micros(ready.since(self.spawned)).max(FORGET_LOAD_LEAST_US)
    }
}

impl Job {
    fn waits(&self) -> bool {
        self.worker.is_none()
    }
}

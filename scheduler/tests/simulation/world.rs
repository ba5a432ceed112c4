//! The world around the scheduler: clients that come and leave, an operator who changes things, and workers that are
//! late, die, hang, lie and run out of memory.

use crate::oracle::Oracle;
use crate::random::Random;
use ringfence_scheduler::{
    Action, Class, ClientConfig, ClientId, ClientValues, Config, ConfigValues, DeviceConfig, Devices, Event,
    Exit, GpuId, JobEnd, JobId, ModelConfig, ModelId, ModelValues, Order, Rate, Scheduler, SpawnFault,
    Submit, Time, WorkerId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

const MS: u64 = 1_000;
/// More steps than any history needs to come to rest.
const STEPS_MAX: u32 = 100_000;
/// Ticks at one moment after which the scheduler is called stuck.
const TICKS_MAX: u32 = 8;

pub(crate) struct World {
    random: Random,
    scheduler: Scheduler,
    oracle: Oracle,
    now: u64,
    planned: BTreeMap<(u64, u64), Planned>,
    plans: u64,
    workers: BTreeMap<WorkerId, Process>,
    kinds: BTreeMap<JobId, Kind>,
    jobs: u64,
    faults: bool,
    /// Packages of this history's models fail to load now and then.
    bad_packages: bool,
    /// No two models fit, and both are always wanted.
    crowded: bool,
    /// Many of its workers don't hear, and many grants of its one client end, whose jobs take long.
    forgetless: bool,
    steps: u32,
    digest: DefaultHasher,
}

/// What a history leaves behind.
pub(crate) struct History {
    pub(crate) shown: BTreeSet<String>,
    /// Of all actions with their times.
    pub(crate) digest: u64,
}

enum Planned {
    /// A client or the operator does something.
    Outside,
    Tell(Event),
    Step(WorkerId),
    Exit(WorkerId, Exit),
}

#[derive(Default)]
struct Process {
    jobs: BTreeMap<JobId, u32>,
    cancelled: BTreeSet<JobId>,
    hung: bool,
    ignores_cancel: bool,
    ignores_stop: bool,
    steps_planned: bool,
}

/// What a job does to its worker.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Good,
    Refused,
    TooLarge,
    Endless,
    Crashes,
    CrashesFirst,
    Hangs,
    ExhaustsMemory,
    PassesLimits,
    EndsAsCancelled,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let crowded = random.permille(50);
        let config = config(&mut random, crowded);
        Self {
            scheduler: Scheduler::new(config.clone()),
            oracle: Oracle::new(config),
            now: 0,
            planned: BTreeMap::new(),
            plans: 0,
            workers: BTreeMap::new(),
            kinds: BTreeMap::new(),
            jobs: 0,
            crowded,
            forgetless: random.permille(100),
            faults: !crowded && random.permille(800),
            bad_packages: random.permille(200),
            steps: 0,
            digest: DefaultHasher::new(),
            random,
        }
    }

    pub(crate) fn run(mut self) -> History {
        for model in 0..self.random.within(1, 4) as u32 {
            let config = self.model_config();
            self.tell(Event::ModelAdded { model: ModelId(model), config });
        }
        let mut at = 0;
        let (pace, length) = match self.crowded {
            true => (8 * MS, 800),
            false if self.forgetless => (20 * MS, 600),
            false => (self.random.within(1, 40) * MS, self.random.within(20, 120)),
        };
        for _ in 0..length {
            at += self.random.within(0, pace);
            self.plan(at, Planned::Outside);
        }
        while self.planned.values().any(|planned| matches!(planned, Planned::Outside)) {
            self.advance();
        }
        self.faults = false;
        self.bad_packages = false;
        while !self.oracle.jobs.is_empty() {
            assert!(self.advance(), "jobs wait, and nothing will ever happen");
        }
        self.tell(Event::Drain);
        while !self.scheduler.drained() {
            assert!(self.advance(), "workers live on after the drain");
        }
        let rest = self.scheduler.snapshot();
        assert_eq!(
            (rest.cpu.promised_bytes, rest.host.promised_bytes),
            (0, 0),
            "memory is promised to nobody"
        );
        self.oracle.check_accounts(&self.scheduler.usage(None));
        History { shown: self.oracle.shown, digest: self.digest.finish() }
    }

    /// Lets the next thing happen; false if there is none.
    fn advance(&mut self) -> bool {
        let planned = self.planned.keys().next().map(|(at, _)| *at);
        let wake = self.scheduler.next_wake().map(|time| time.0.max(self.now));
        match (planned, wake) {
            (None, None) => return false,
            (Some(at), wake) if wake.is_none_or(|wake| at < wake) => {
                let (_, next) = self.planned.pop_first().unwrap();
                self.now = at;
                self.happen(next);
            }
            (_, wake) => self.tick(wake.unwrap()),
        }
        true
    }

    fn tick(&mut self, at: u64) {
        self.now = at;
        for _ in 0..TICKS_MAX {
            self.tell(Event::Tick);
            if self.scheduler.next_wake().is_none_or(|wake| wake.0 > at) {
                return;
            }
        }
        panic!("the scheduler wants to be woken again and again at one moment");
    }

    fn happen(&mut self, planned: Planned) {
        match planned {
            Planned::Outside => {
                let event = self.outside();
                self.tell(event);
            }
            Planned::Tell(event) => {
                if let Event::SpawnFailed { worker, .. } = &event {
                    self.workers.remove(worker);
                }
                self.tell(event);
            }
            Planned::Step(worker) => self.worker_step(worker),
            Planned::Exit(worker, exit) => {
                if self.workers.remove(&worker).is_some() {
                    self.tell(Event::WorkerExited { worker, exit });
                }
            }
        }
    }

    fn tell(&mut self, event: Event) {
        self.steps += 1;
        assert!(self.steps < STEPS_MAX, "the history does not come to rest");
        let now = Time(self.now);
        let actions = self.scheduler.step(now, event.clone());
        format!("{now:?} {actions:?}").hash(&mut self.digest);
        self.oracle.check(now, &event, &actions, &self.scheduler.snapshot());
        for decision in self.scheduler.decisions().rev().take(actions.len()) {
            self.oracle.shown.insert(format!("rule {:?}", decision.rule));
        }
        for action in actions {
            self.obey(&action);
        }
    }

    fn plan(&mut self, at: u64, planned: Planned) {
        self.plans += 1;
        self.planned.insert((at, self.plans), planned);
    }

    fn plan_in(&mut self, least_ms: u64, most_ms: u64, planned: Planned) {
        let at = self.now + self.random.within(least_ms * MS, most_ms * MS);
        self.plan(at, planned);
    }

    fn fault(&mut self, permille: u64) -> bool {
        self.random.permille(permille) && self.faults
    }

    fn obey(&mut self, action: &Action) {
        match action {
            Action::Spawn { worker, .. } => self.start_worker(*worker),
            Action::Run { job, worker, .. } => self.start_job(*job, *worker),
            Action::CancelJob { job, worker } => {
                let process = self.workers.get_mut(worker).unwrap();
                if !process.ignores_cancel {
                    process.cancelled.insert(*job);
                }
            }
            Action::Stop { worker } => {
                let process = self.workers.get_mut(worker).unwrap();
                if !process.ignores_stop {
                    self.plan_in(0, 20, Planned::Exit(*worker, Exit::Finished));
                }
            }
            Action::Kill { worker, .. } => self.plan_in(0, 50, Planned::Exit(*worker, Exit::Crashed)),
            Action::End { .. } | Action::DropPackage { .. } => {}
        }
    }

    fn start_worker(&mut self, worker: WorkerId) {
        let deaf = if self.forgetless { 700 } else { 60 };
        let process =
            Process { ignores_cancel: self.fault(deaf), ignores_stop: self.fault(60), ..Process::default() };
        self.workers.insert(worker, process);
        if self.bad_packages && self.random.permille(300) {
            if self.random.permille(500) {
                let fault = SpawnFault::Package;
                return self.plan_in(0, 50, Planned::Tell(Event::SpawnFailed { worker, fault }));
            }
            let at = self.now + self.random.within(0, 100 * MS);
            self.plan(at, Planned::Tell(Event::LoadFailed { worker }));
            let stays = self.fault(200);
            return self
                .plan(at + if stays { 1_000 * MS } else { MS }, Planned::Exit(worker, Exit::Finished));
        }
        if self.fault(60) {
            let fault = SpawnFault::Host;
            return self.plan_in(0, 50, Planned::Tell(Event::SpawnFailed { worker, fault }));
        }
        if self.fault(60) {
            return self.plan_in(0, 100, Planned::Exit(worker, Exit::Crashed));
        }
        if self.fault(40) {
            return; // It loads for ever.
        }
        let bytes_per_token = self.random.within(0, 2);
        let ready = Event::WorkerReady { worker, bytes_per_token, used_bytes: self.random.within(0, 5) };
        self.plan_in(1, 150, Planned::Tell(ready));
        if self.fault(60) {
            self.plan_in(1, 1_000, Planned::Exit(worker, Exit::Crashed));
        }
    }

    fn start_job(&mut self, job: JobId, worker: WorkerId) {
        let steps = self.random.within(1, if self.forgetless { 60 } else { 8 }) as u32;
        let kind = if self.faults { self.kinds[&job] } else { Kind::Good };
        let process = self.workers.get_mut(&worker).unwrap();
        process.jobs.insert(job, if kind == Kind::Endless { u32::MAX } else { steps });
        if !process.steps_planned {
            process.steps_planned = true;
            self.plan_in(1, 15, Planned::Step(worker));
        }
        match kind {
            Kind::Crashes => self.plan_in(0, 30, Planned::Exit(worker, Exit::Crashed)),
            Kind::CrashesFirst => {
                self.kinds.insert(job, Kind::Good);
                self.plan_in(0, 30, Planned::Exit(worker, Exit::Illegal));
            }
            Kind::ExhaustsMemory => self.plan_in(0, 30, Planned::Exit(worker, Exit::OutOfMemory)),
            Kind::PassesLimits => self.plan_in(0, 30, Planned::Exit(worker, Exit::OverLimit)),
            Kind::Hangs => self.workers.get_mut(&worker).unwrap().hung = true,
            Kind::Good | Kind::Refused | Kind::TooLarge | Kind::Endless | Kind::EndsAsCancelled => {}
        }
    }

    fn worker_step(&mut self, worker: WorkerId) {
        let Some(process) = self.workers.get_mut(&worker).filter(|process| !process.hung) else { return };
        process.steps_planned = false;
        let mut tokens = Vec::new();
        let mut over = Vec::new();
        for (job, left) in &mut process.jobs {
            *left = left.saturating_sub(1);
            tokens.push((*job, *left % 5));
            if *left == 0 || process.cancelled.contains(job) {
                over.push(*job);
            }
        }
        process.jobs.retain(|job, _| !over.contains(job));
        let cancelled: Vec<bool> = over.iter().map(|job| process.cancelled.remove(job)).collect();
        let device_us = self.random.within(0, 15 * MS);
        self.tell(Event::Used { worker, device_us, tokens });
        for (job, cancelled) in over.into_iter().zip(cancelled) {
            let end = self.job_end(job, cancelled);
            self.tell(Event::JobEnded { worker, job, end });
        }
        let process = self.workers.get_mut(&worker).unwrap();
        if !process.jobs.is_empty() && !process.steps_planned {
            process.steps_planned = true;
            self.plan_in(1, 15, Planned::Step(worker));
        }
    }

    fn job_end(&mut self, job: JobId, cancelled: bool) -> JobEnd {
        if cancelled {
            return self.random.pick(&[JobEnd::Cancelled, JobEnd::Done]);
        }
        match self.kinds[&job] {
            Kind::Refused => JobEnd::Failed,
            Kind::TooLarge => JobEnd::OutOfMemory,
            Kind::EndsAsCancelled if self.faults => JobEnd::Cancelled,
            Kind::Good
            | Kind::Endless
            | Kind::Crashes
            | Kind::CrashesFirst
            | Kind::Hangs
            | Kind::ExhaustsMemory
            | Kind::PassesLimits
            | Kind::EndsAsCancelled => JobEnd::Done,
        }
    }

    fn outside(&mut self) -> Event {
        let model = ModelId(self.random.within(0, 4) as u32);
        let quiet_operator = self.crowded || self.forgetless;
        match self.random.within(0, if quiet_operator { 859 } else { 999 }) {
            0..680 => self.submit(model),
            680..850 => self.taken_back(),
            850..860 => {
                let config = self.random.permille(800).then(|| client_config(&mut self.random, 700));
                Event::ClientConfigured { client: ClientId(self.random.within(0, 3) as u32), config }
            }
            860..870 => Event::Configured(config(&mut self.random, self.crowded)),
            870..890 => Event::ModelChanged { model, config: self.model_config() },
            890..905 => Event::ModelAdded { model, config: self.model_config() },
            905..920 => Event::ModelRemoved { model },
            920..940 => Event::Load { model },
            940..965 => Event::Unload { model },
            965..995 => self.crossed(),
            _ => Event::Drain,
        }
    }

    /// A client takes a job back, or the grant ends that one is on, whether or not the job has.
    fn taken_back(&mut self) -> Event {
        let (ends, of_last) = if self.forgetless { (900, 5) } else { (250, 12) };
        let job = JobId(self.random.within(self.jobs.saturating_sub(of_last), self.jobs + 1));
        if self.random.permille(ends) { Event::Forget { job } } else { Event::Cancel { job } }
    }

    /// A message about something that is over, or repeated.
    fn crossed(&mut self) -> Event {
        let worker = WorkerId(self.random.within(1_000, 1_010));
        let job = JobId(self.random.within(0, self.jobs));
        match self.random.within(0, 4) {
            0 => Event::WorkerExited { worker, exit: Exit::Crashed },
            1 => Event::JobEnded { worker, job, end: JobEnd::Done },
            2 => Event::Used { worker, device_us: 5, tokens: vec![(job, 1)] },
            3 => Event::WorkerReady { worker, bytes_per_token: 1, used_bytes: 1 },
            _ => Event::Tick,
        }
    }

    fn submit(&mut self, model: ModelId) -> Event {
        self.jobs += 1;
        let job = JobId(self.jobs);
        let kind = self.kind();
        self.kinds.insert(job, kind);
        let in_time = self.now + self.random.within(0, 400 * MS);
        Event::Submit(Submit {
            job,
            client: ClientId(self.random.within(0, if self.forgetless { 0 } else { 3 }) as u32),
            model,
            deadline: self.random.permille(400).then_some(Time(in_time)),
            tokens: self.random.within(1, 40),
            tokens_bound: self.random.within(1, 12),
            audio_ms: 0,
            canary: self.random.permille(60),
            live: false,
        })
    }

    fn kind(&mut self) -> Kind {
        if self.forgetless && self.random.permille(900) {
            return Kind::Good;
        }
        match self.random.within(0, 999) {
            0..30 => Kind::Crashes,
            30..50 => Kind::CrashesFirst,
            50..75 => Kind::Hangs,
            75..90 => Kind::ExhaustsMemory,
            90..95 => Kind::PassesLimits,
            95..125 => Kind::Endless,
            125..150 => Kind::Refused,
            150..165 => Kind::TooLarge,
            165..175 => Kind::EndsAsCancelled,
            _ => Kind::Good,
        }
    }

    fn model_config(&mut self) -> ModelConfig {
        let ms = |random: &mut Random, least, most| Duration::from_millis(random.within(least, most));
        let random = &mut self.random;
        let idle = ms(random, 20, 800);
        let on_gpu = random.permille(300);
        let gpus = (0..4).filter(|_| on_gpu && random.permille(500)).map(GpuId).collect::<Vec<_>>();
        ModelConfig::new(ModelValues {
            lease_bytes: if self.crowded {
                random.within(31, 60)
            } else if random.permille(30) {
                300
            } else {
                random.within(10, 60)
            },
            device_lease_bytes: if gpus.is_empty() { 0 } else { random.within(5, 60) },
            gpus,
            package_bytes: if random.permille(20) { 200 } else { random.within(0, 30) },
            workers_max: random.within(1, 3) as u16,
            concurrency: random.within(1, 5) as u16,
            queue_max: random.within(2, 25) as u32,
            timeout: ms(random, 30, 300),
            step_tokens: random.within(1, 40) as u32,
            shares_steps: random.permille(250),
            step_target: ms(random, 1, 50),
            step_limit: ms(random, 20, 200),
            load_limit: ms(random, 160, 400),
            idle_unload: random.permille(600).then_some(idle),
            threads: random.within(1, 6) as u16,
            keep_loaded: random.permille(250),
        })
        .unwrap()
    }
}

fn config(random: &mut Random, crowded: bool) -> Config {
    Config::new(ConfigValues {
        devices: Devices {
            cpu: DeviceConfig {
                budget_bytes: if crowded { 60 } else { random.within(60, 200) },
                cores: random.within(2, 6) as u16,
            },
            gpu_budgets_bytes: (0..random.within(0, 3)).map(|_| random.within(20, 90)).collect(),
        },
        host_budget_bytes: random.within(30, 100),
        queue_total_max: random.within(5, 60) as u32,
        order: if random.permille(300) { Order::Arrival } else { Order::Fair },
        aging: Duration::from_millis(random.within(1, 500)),
        client: client_config(random, 0),
    })
    .unwrap()
}

/// Rates in so many of a thousand clients.
fn client_config(random: &mut Random, rates: u64) -> ClientConfig {
    let rate = |random: &mut Random, least, most| {
        let per_minute = random.within(least, most);
        random.permille(rates).then(|| Rate { per_minute, burst: random.within(1, per_minute) })
    };
    ClientConfig::new(ClientValues {
        weight: random.within(1, 5) as u16,
        class: random.pick(&[Class::Realtime, Class::Interactive, Class::Batch]),
        queue_max: random.within(2, 30) as u32,
        jobs: rate(random, 60, 6_000),
        device_us: rate(random, 60_000, 30_000_000),
        tokens: rate(random, 60, 60_000),
        audio_ms: None,
    })
    .unwrap()
}

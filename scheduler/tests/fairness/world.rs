//! Models with one worker each that takes time for each token, and clients with manners.

use crate::duration;
use crate::random::Random;
use ringfence_scheduler::{
    Action, Class, ClientConfig, ClientId, ClientValues, Config, ConfigValues, DeviceConfig, Devices, Event,
    JobEnd, JobId, ModelConfig, ModelId, ModelValues, Order, Scheduler, Submit, Time, WorkerId,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) const MODEL: ModelId = ModelId(0);
pub(crate) const MODELS_MAX: u32 = 3;
const QUEUE_MAX: u32 = 256;

/// A client.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) model: ModelId,
    pub(crate) weight: u16,
    pub(crate) class: Class,
    /// Of a job.
    pub(crate) items: u64,
    pub(crate) item_tokens: u64,
    /// A job's size lets it have so many times the tokens that it has.
    pub(crate) oversize: u64,
    pub(crate) manner: Manner,
}

/// When a client asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    /// At a pace, whatever becomes of it.
    Paced { every_us: u64 },
    /// It keeps so many jobs here.
    Saturating { depth: u32 },
    /// Many at once, at a pace.
    Bursts { jobs: u32, every_us: u64 },
}

/// What a client got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) device_us: u64,
    /// What the scheduler said at the end.
    pub(crate) unfairness_bound_us: u64,
    /// Jobs that started.
    pub(crate) waits: u64,
    pub(crate) longest_wait_us: u64,
}

/// A job that has not ended.
#[derive(Clone, Copy)]
struct Asked {
    who: usize,
    model: ModelId,
    at: u64,
    item_tokens: u64,
    left: u64,
}

pub(crate) struct World {
    scheduler: Scheduler,
    people: Vec<Person>,
    outcomes: Vec<Outcome>,
    config: ConfigValues,
    target_us: u64,
    token_us: u64,
    step_tokens: u64,
    now: u64,
    jobs: u64,
    asked: BTreeMap<JobId, Asked>,
    /// When who asks.
    asks: BTreeSet<(u64, usize)>,
    workers: BTreeMap<ModelId, Worker>,
    busy_us: u64,
}

/// The worker of a model.
struct Worker {
    id: WorkerId,
    slots: VecDeque<JobId>,
    /// What each client has had in it.
    lanes: BTreeMap<usize, u64>,
    virtual_time: u64,
    /// The running step: its end, and items by job.
    step: Option<(u64, BTreeMap<JobId, u64>)>,
}

impl World {
    pub(crate) fn new(random: &mut Random, people: Vec<Person>) -> Self {
        let config = base(duration(random.within(200, 3_000) * 1_000));
        let (target_us, token_us) = (random.within(10, 50) * 1_000, random.within(20, 200));
        let step_tokens = random.within(128, 1_024);
        let mut scheduler = scheduler(&config, step_tokens as u32, target_us);
        for (id, person) in people.iter().enumerate() {
            let config = Some(client(person.weight, person.class));
            scheduler.step(Time(0), Event::ClientConfigured { client: ClientId(id as u32), config });
        }
        let mut world = Self {
            scheduler,
            outcomes: vec![Outcome::default(); people.len()],
            people,
            config,
            target_us,
            token_us,
            step_tokens,
            now: 0,
            jobs: 0,
            asked: BTreeMap::new(),
            asks: BTreeSet::new(),
            workers: BTreeMap::new(),
            busy_us: 0,
        };
        for model in world.models() {
            world.tell(Event::Load { model });
            let worker = world.workers[&model].id;
            world.tell(Event::WorkerReady { worker, bytes_per_token: 0, used_bytes: 1 });
        }
        for model in world.models() {
            world.measure(model);
        }
        world
    }

    pub(crate) fn set_order(&mut self, order: Order) {
        self.config.order = order;
        self.tell(Event::Configured(Config::new(self.config.clone()).unwrap()));
    }

    fn models(&self) -> BTreeSet<ModelId> {
        self.people.iter().map(|person| person.model).collect()
    }

    /// A first step has to be measured before steps can be cut.
    fn measure(&mut self, model: ModelId) {
        for _ in 0..10 {
            self.submit(self.people.len(), model, 1, 10, 10);
            self.run_until(self.now + 10_000);
        }
        self.busy_us = 0;
    }

    pub(crate) fn longest_step_us(&self) -> u64 {
        let item = self.people.iter().map(|person| person.item_tokens).max().unwrap();
        self.target_us.max(item * self.token_us)
    }

    /// The longest that one job has the worker for.
    pub(crate) fn longest_turn_us(&self) -> u64 {
        let job = self.people.iter().map(|person| person.item_tokens * person.items).max().unwrap();
        self.longest_step_us() + job * self.token_us
    }

    pub(crate) fn aging_us(&self) -> u64 {
        self.config.aging.as_micros() as u64
    }

    /// Lets so much time pass.
    pub(crate) fn run(mut self, us: u64) -> Vec<Outcome> {
        let end = self.now + us;
        for who in 0..self.people.len() {
            // Not all at one moment.
            self.asks.insert((self.now + who as u64 * 1_237, who));
        }
        self.run_until(end);
        for (who, outcome) in self.outcomes.iter_mut().enumerate() {
            let usage = self.scheduler.usage(Some(ClientId(who as u32)));
            outcome.device_us = usage.first().map_or(0, |client| client.usage.device_us);
            outcome.unfairness_bound_us = self.scheduler.unfairness_bound().as_micros() as u64;
        }
        let charged: u64 = self.outcomes.iter().map(|outcome| outcome.device_us).sum();
        assert_eq!(charged, self.busy_us, "charges are not the busy time");
        self.outcomes
    }

    fn run_until(&mut self, end: u64) {
        loop {
            for model in self.models() {
                self.start_step(model);
            }
            let steps = self.workers.iter().filter_map(|(id, worker)| Some((worker.step.as_ref()?.0, *id)));
            let step = steps.min();
            let ask = self.asks.first().map(|(at, _)| *at);
            let wake = self.scheduler.next_wake().map(|at| at.0.max(self.now));
            let next = step.map(|(at, _)| at).into_iter().chain(ask).chain(wake).min();
            let Some(at) = next.filter(|at| *at <= end) else { break };
            self.now = at;
            match step {
                _ if ask == Some(at) => {
                    let (_, who) = self.asks.pop_first().unwrap();
                    self.ask(who);
                }
                Some((ends, model)) if ends == at => self.end_step(model),
                Some(_) | None => self.tell(Event::Tick),
            }
        }
        self.now = end;
    }

    fn ask(&mut self, who: usize) {
        let Person { model, items, item_tokens, oversize, manner, .. } = self.people[who].clone();
        let now = self.now;
        let mut submit = || self.submit(who, model, items, item_tokens, item_tokens * items * oversize);
        match manner {
            Manner::Paced { every_us } => {
                submit();
                self.asks.insert((now + every_us, who));
            }
            Manner::Saturating { depth } => (0..depth).for_each(|_| submit()),
            Manner::Bursts { jobs, every_us } => {
                (0..jobs).for_each(|_| submit());
                self.asks.insert((now + every_us, who));
            }
        }
    }

    fn submit(&mut self, who: usize, model: ModelId, items: u64, item_tokens: u64, bound: u64) {
        self.jobs += 1;
        let job = JobId(self.jobs);
        self.asked.insert(job, Asked { who, model, at: self.now, item_tokens, left: items });
        self.tell(Event::Submit(Submit {
            job,
            client: ClientId(who as u32),
            model,
            deadline: None,
            tokens: bound,
            tokens_bound: 0,
            audio_ms: 0,
            canary: false,
            live: false,
        }));
    }

    fn tell(&mut self, event: Event) {
        for action in self.scheduler.step(Time(self.now), event) {
            match action {
                Action::Run { job, .. } => self.started(job),
                Action::End { job, .. } => drop(self.asked.remove(&job)),
                Action::Spawn { worker: id, model, .. } => {
                    let (slots, lanes) = (VecDeque::new(), BTreeMap::new());
                    self.workers.insert(model, Worker { id, slots, lanes, virtual_time: 0, step: None });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn started(&mut self, job: JobId) {
        let Asked { who, model, at, .. } = self.asked[&job];
        self.worker(model).slots.push_back(job);
        if let Some(outcome) = self.outcomes.get_mut(who) {
            outcome.waits += 1;
            outcome.longest_wait_us = outcome.longest_wait_us.max(self.now - at);
        }
    }

    fn worker(&mut self, model: ModelId) -> &mut Worker {
        self.workers.get_mut(&model).expect("every model is loaded")
    }

    /// The next item is of the client that has had the least in the worker for its weight, as long as the step has room.
    fn start_step(&mut self, model: ModelId) {
        let worker = self.workers.get_mut(&model).expect("every model is loaded");
        if worker.step.is_some() || worker.slots.is_empty() {
            return;
        }
        let budget = (self.target_us / self.token_us).clamp(1, self.step_tokens);
        let mut waiting: BTreeMap<usize, VecDeque<JobId>> = BTreeMap::new();
        for job in &worker.slots {
            let Asked { who, left, .. } = self.asked[job];
            waiting.entry(who).or_default().extend((0..left).map(|_| *job));
        }
        let virtual_time = worker.virtual_time;
        worker.lanes.retain(|who, counter| waiting.contains_key(who) || *counter > virtual_time);
        for who in waiting.keys() {
            worker.lanes.entry(*who).or_insert(virtual_time);
        }
        let mut taken: BTreeMap<JobId, u64> = BTreeMap::new();
        let mut tokens = 0;
        while let Some((who, job)) = waiting
            .iter()
            .filter_map(|(who, jobs)| Some((*who, *jobs.front()?)))
            .min_by_key(|(who, _)| (worker.lanes[who].max(virtual_time), *who))
        {
            let more = self.asked[&job].item_tokens;
            if tokens > 0 && tokens + more > budget {
                break;
            }
            tokens += more;
            let weight = self.people.get(who).map_or(1, |person| u64::from(person.weight));
            let lane = worker.lanes.get_mut(&who).unwrap();
            *lane = (*lane).max(virtual_time);
            worker.virtual_time = worker.virtual_time.max(*lane);
            *lane += more * 1_000 / weight;
            waiting.get_mut(&who).unwrap().pop_front();
            *taken.entry(job).or_default() += 1;
        }
        worker.step = Some((self.now + tokens * self.token_us, taken));
    }

    fn end_step(&mut self, model: ModelId) {
        let worker = self.worker(model);
        let (id, (_, taken)) = (worker.id, worker.step.take().unwrap());
        let tokens: Vec<(JobId, u32)> =
            taken.iter().map(|(job, items)| (*job, (items * self.asked[job].item_tokens) as u32)).collect();
        let device_us = tokens.iter().map(|(_, tokens)| u64::from(*tokens)).sum::<u64>() * self.token_us;
        self.busy_us += device_us;
        self.tell(Event::Used { worker: id, device_us, tokens });
        for (job, items) in taken {
            let asked = self.asked.get_mut(&job).unwrap();
            asked.left -= items;
            let Asked { who, left, .. } = *asked;
            if left > 0 {
                continue;
            }
            self.worker(model).slots.retain(|slot| *slot != job);
            self.tell(Event::JobEnded { worker: id, job, end: JobEnd::Done });
            if let Some(Person { items, item_tokens, oversize, manner: Manner::Saturating { .. }, .. }) =
                self.people.get(who).cloned()
            {
                self.submit(who, model, items, item_tokens, item_tokens * items * oversize);
            }
        }
    }
}

fn client(weight: u16, class: Class) -> ClientConfig {
    let values = ClientValues {
        weight,
        class,
        queue_max: QUEUE_MAX,
        jobs: None,
        device_us: None,
        tokens: None,
        audio_ms: None,
    };
    ClientConfig::new(values).unwrap()
}

/// A scheduler with a few models.
fn scheduler(config: &ConfigValues, step_tokens: u32, target_us: u64) -> Scheduler {
    let mut scheduler = Scheduler::new(Config::new(config.clone()).unwrap());
    let values = ModelValues {
        lease_bytes: 10,
        device_lease_bytes: 0,
        gpus: Vec::new(),
        package_bytes: 10,
        workers_max: 1,
        concurrency: 64,
        queue_max: 10_000,
        step_tokens,
        shares_steps: false,
        step_target: duration(target_us),
        timeout: duration(60_000_000),
        step_limit: duration(60_000_000),
        load_limit: duration(60_000_000),
        idle_unload: None,
        threads: 2,
        keep_loaded: false,
    };
    for model in (0..MODELS_MAX).map(ModelId) {
        let config = ModelConfig::new(values.clone()).unwrap();
        scheduler.step(Time(0), Event::ModelAdded { model, config });
    }
    scheduler
}

/// A scheduler with a ready worker, where each client may do this.
pub(crate) fn rated(client: ClientConfig) -> Scheduler {
    let config = ConfigValues { client, ..base(duration(1_000_000)) };
    let mut scheduler = scheduler(&config, 1_024, 20_000);
    scheduler.step(Time(0), Event::Load { model: MODEL });
    scheduler.step(Time(0), Event::WorkerReady { worker: WorkerId(1), bytes_per_token: 0, used_bytes: 1 });
    scheduler
}

fn base(aging: std::time::Duration) -> ConfigValues {
    ConfigValues {
        devices: Devices { cpu: DeviceConfig { budget_bytes: 100, cores: 2 }, gpu_budgets_bytes: Vec::new() },
        host_budget_bytes: 100,
        queue_total_max: 10_000,
        order: Order::Fair,
        aging,
        client: client(1, Class::Interactive),
    }
}

//! The scheduler's step with 10,000 waiting jobs of 1,000 clients: the cost of each kind of event that comes once a
//! job or once a device step.

use criterion::{Criterion, criterion_group, criterion_main};
use ringfence_scheduler::{
    Action, Class, ClientConfig, ClientId, ClientValues, Config, ConfigValues, DeviceConfig, Devices, Event,
    JobEnd, JobId, ModelConfig, ModelId, ModelValues, Order, Scheduler, Submit, Time, WorkerId,
};
use std::hint::black_box;
use std::time::Duration;

const WAITING: u64 = 10_000;
const CLIENTS: u64 = 1_000;
const MODELS: u32 = 8;
const CONCURRENCY: u16 = 64;
const GIB: u64 = 1 << 30;

/// A scheduler under load, with a clock and the next free job number.
struct Loaded {
    scheduler: Scheduler,
    now: u64,
    jobs: u64,
    /// Jobs in workers, by model.
    running: Vec<(WorkerId, Vec<JobId>)>,
}

impl Loaded {
    fn new() -> Self {
        let config = Config::new(ConfigValues {
            devices: Devices { cpu: DeviceConfig { budget_bytes: 64 * GIB, cores: 16 } },
            host_budget_bytes: 64 * GIB,
            queue_total_max: 100_000,
            order: Order::Fair,
            aging: Duration::from_secs(10),
            client: client_config(),
        })
        .expect("the values are in their ranges");
        let mut loaded = Self { scheduler: Scheduler::new(config), now: 0, jobs: 0, running: Vec::new() };
        (0..MODELS).for_each(|model| loaded.add_model(ModelId(model)));
        while u64::from(loaded.scheduler.snapshot().waiting) < WAITING {
            loaded.submit();
        }
        loaded
    }

    fn add_model(&mut self, model: ModelId) {
        self.step(Event::ModelAdded { model, config: model_config() });
        for action in self.step(Event::Load { model }) {
            if let Action::Spawn { worker, .. } = action {
                self.running.push((worker, Vec::new()));
                self.step(Event::WorkerReady { worker, bytes_per_token: 1024, used_bytes: GIB / 2 });
            }
        }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.now += 10;
        let actions = self.scheduler.step(Time(self.now), event);
        for action in &actions {
            if let Action::Run { job, worker } = action {
                self.slots(*worker).push(*job);
            }
        }
        actions
    }

    fn slots(&mut self, worker: WorkerId) -> &mut Vec<JobId> {
        let entry = self.running.iter_mut().find(|(id, _)| *id == worker);
        &mut entry.expect("jobs run in known workers").1
    }

    fn submit(&mut self) -> Vec<Action> {
        self.jobs += 1;
        self.step(Event::Submit(Submit {
            job: JobId(self.jobs),
            client: ClientId((self.jobs % CLIENTS) as u32),
            model: ModelId((self.jobs % u64::from(MODELS)) as u32),
            deadline: Some(Time(self.now + 3_600_000_000)),
            tokens_bound: 128,
            canary: false,
        }))
    }

    /// A job ends and the next one starts; another arrives, so that the queues stay as they are.
    fn turn_over(&mut self) -> Vec<Action> {
        let turn = (self.jobs % u64::from(MODELS)) as usize;
        let (worker, jobs) = &mut self.running[turn];
        let (worker, job) = (*worker, jobs.remove(0));
        self.step(Event::JobEnded { worker, job, end: JobEnd::Done });
        self.submit()
    }

    fn used(&mut self) -> Vec<Action> {
        let (worker, jobs) = &self.running[0];
        let tokens = jobs.iter().map(|job| (*job, 128)).collect();
        let worker = *worker;
        self.step(Event::Used { worker, device_us: 100, tokens })
    }
}

fn client_config() -> ClientConfig {
    let (weight, class) = (1, Class::Interactive);
    let values = ClientValues { weight, class, queue_max: 1_000, jobs: None, device_us: None, tokens: None };
    ClientConfig::new(values).expect("the values are in their ranges")
}

fn model_config() -> ModelConfig {
    ModelConfig::new(ModelValues {
        lease_bytes: GIB,
        package_bytes: GIB / 2,
        workers_max: 1,
        concurrency: CONCURRENCY,
        queue_max: 100_000,
        timeout: Duration::from_secs(3_600),
        step_tokens: 512,
        step_target: Duration::from_millis(20),
        step_limit: Duration::from_secs(3_600),
        load_limit: Duration::from_secs(60),
        idle_unload: None,
        threads: 2,
        keep_loaded: false,
    })
    .expect("the values are in their ranges")
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step, 10,000 jobs of 1,000 clients waiting");
    let mut loaded = Loaded::new();
    group.bench_function("a job ends, the next starts, another arrives", |bencher| {
        bencher.iter(|| black_box(loaded.turn_over()));
    });
    let mut loaded = Loaded::new();
    group.bench_function("a device step ends", |bencher| bencher.iter(|| black_box(loaded.used())));
    let mut loaded = Loaded::new();
    group.bench_function("a job arrives and is cancelled", |bencher| {
        bencher.iter(|| {
            black_box(loaded.submit());
            let job = JobId(loaded.jobs);
            black_box(loaded.step(Event::Cancel { job }))
        });
    });
    let loaded = Loaded::new();
    group.bench_function("next wake", |bencher| bencher.iter(|| black_box(loaded.scheduler.next_wake())));
    group.bench_function("snapshot", |bencher| bencher.iter(|| black_box(loaded.scheduler.snapshot())));
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);

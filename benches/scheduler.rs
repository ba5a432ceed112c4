//! The scheduler's step with 1,000, 10,000 and 100,000 waiting jobs of 1,000 clients: the cost of each kind of event that
//! comes once a job or once a device step, and how it grows.

use criterion::{Criterion, criterion_group, criterion_main};
use ringfence_scheduler::{
    Action, Class, ClientConfig, ClientId, ClientValues, Config, ConfigValues, DeviceConfig, Devices, Event,
    JobEnd, JobId, ModelConfig, ModelId, ModelValues, Order, Rate, Scheduler, Submit, Time, WorkerId,
};
use std::hint::black_box;
use std::time::Duration;

const WAITING: [u64; 3] = [1_000, 10_000, 100_000];
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
    fn new(waiting: u64) -> Self {
        let config = Config::new(ConfigValues {
            devices: Devices {
                cpu: DeviceConfig { budget_bytes: 64 * GIB, cores: 16 },
                gpu_budgets_bytes: Vec::new(),
            },
            host_budget_bytes: 64 * GIB,
            queue_total_max: 200_000,
            order: Order::Fair,
            aging: Duration::from_secs(3_600),
            client: client_config(),
        })
        .expect("the values are in their ranges");
        let mut loaded = Self { scheduler: Scheduler::new(config), now: 0, jobs: 0, running: Vec::new() };
        (0..MODELS).for_each(|model| loaded.add_model(ModelId(model)));
        while u64::from(loaded.scheduler.snapshot().waiting) < waiting {
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
            if let Action::Run { job, worker, .. } = action {
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
        // Another model in each round, so that a client's jobs wait for all of them.
        let (number, models) = (self.jobs + 1, u64::from(MODELS));
        self.submit_to(ModelId(((number + number / CLIENTS) % models) as u32))
    }

    fn submit_to(&mut self, model: ModelId) -> Vec<Action> {
        self.jobs += 1;
        self.step(Event::Submit(Submit {
            job: JobId(self.jobs),
            client: ClientId((self.jobs % CLIENTS) as u32),
            model,
            deadline: Some(Time(self.now + 3_600_000_000)),
            tokens: 128,
            tokens_bound: 128,
            audio_ms: 0,
            canary: false,
            live: false,
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

/// With every rate, none of which is ever used up.
fn client_config() -> ClientConfig {
    let rate = Some(Rate { per_minute: 1_000_000_000_000, burst: 1_000_000_000_000 });
    let class = Class::Interactive;
    ClientConfig::new(ClientValues {
        weight: 1,
        class,
        queue_max: 1_000,
        jobs: rate,
        device_us: rate,
        tokens: rate,
        audio_ms: None,
    })
    .expect("the values are in their ranges")
}

fn model_config() -> ModelConfig {
    ModelConfig::new(ModelValues {
        lease_bytes: GIB,
        device_lease_bytes: 0,
        gpus: Vec::new(),
        package_bytes: GIB / 2,
        workers_max: 1,
        concurrency: CONCURRENCY,
        queue_max: 100_000,
        step_tokens: 128 * u32::from(CONCURRENCY),
        shares_steps: false,
        step_target: Duration::from_millis(50),
        timeout: Duration::from_secs(3_600),
        step_limit: Duration::from_secs(3_600),
        load_limit: Duration::from_secs(60),
        idle_unload: None,
        threads: 2,
        keep_loaded: false,
    })
    .expect("the values are in their ranges")
}

fn steps(criterion: &mut Criterion) {
    for waiting in WAITING {
        let mut group =
            criterion.benchmark_group(format!("step, {waiting} jobs of {CLIENTS} clients waiting"));
        let mut loaded = Loaded::new(waiting);
        group.bench_function("a job ends, the next starts, another arrives", |bencher| {
            bencher.iter(|| black_box(loaded.turn_over()));
        });
        let mut loaded = Loaded::new(waiting);
        group.bench_function("a device step ends", |bencher| bencher.iter(|| black_box(loaded.used())));
        let mut loaded = Loaded::new(waiting);
        group.bench_function("a job arrives and is cancelled", |bencher| {
            bencher.iter(|| {
                black_box(loaded.submit());
                let job = JobId(loaded.jobs);
                black_box(loaded.step(Event::Cancel { job }))
            });
        });
        group.bench_function("a job arrives and is refused", |bencher| {
            bencher.iter(|| black_box(loaded.submit_to(ModelId(MODELS))));
        });
        let loaded = Loaded::new(waiting);
        group.bench_function("next wake", |bencher| bencher.iter(|| black_box(loaded.scheduler.next_wake())));
        group.bench_function("snapshot", |bencher| bencher.iter(|| black_box(loaded.scheduler.snapshot())));
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);

//! Refusing costs no memory: what is remembered of refused jobs and of clients has its bounds.
#![allow(clippy::unwrap_used, reason = "a test program: a panic is its answer")]

use ringfence_scheduler::*;
use std::time::Duration;

/// More than is remembered of decisions, jobs or clients.
const WARM_UP: u64 = 50_000;

const JOBS: u64 = 1_000_000;

/// What an allocator may take without keeping anything.
const NOISE_BYTES: u64 = 1 << 20;

#[test]
fn refused_jobs_leave_nothing_behind() {
    let mut scheduler = full();
    let mut refused = 0;
    let mut ask = |jobs: std::ops::Range<u64>| {
        for id in jobs {
            refused += scheduler.step(Time(id * 60), Event::Submit(job(id))).len() as u64;
        }
    };
    ask(1_000..WARM_UP);
    let before = resident_bytes();
    ask(WARM_UP..WARM_UP + JOBS);
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!(refused, WARM_UP - 1_000 + JOBS, "every one is refused by one action");
    assert!(grown < NOISE_BYTES, "{grown} bytes for {JOBS} refusals");
    let of: u64 = scheduler.refusals().values().sum();
    assert_eq!(of, refused);
}

/// With a model that does not answer and as many jobs as its queue takes.
fn full() -> Scheduler {
    let client = ClientValues {
        weight: 1,
        class: Class::Interactive,
        queue_max: 8,
        jobs: Some(Rate { per_minute: 1, burst: 9 }),
        device_us: None,
        tokens: None,
        audio_ms: None,
    };
    let config = ConfigValues {
        devices: Devices { cpu: DeviceConfig { budget_bytes: 100, cores: 2 }, gpu_budgets_bytes: Vec::new() },
        host_budget_bytes: 100,
        queue_total_max: 1_000,
        order: Order::Fair,
        aging: Duration::from_secs(10),
        client: ClientConfig::new(client).unwrap(),
    };
    let mut scheduler = Scheduler::new(Config::new(config).unwrap());
    let long = Duration::from_secs(86_400);
    let values = ModelValues {
        lease_bytes: 40,
        device_lease_bytes: 0,
        gpus: Vec::new(),
        package_bytes: 20,
        workers_max: 1,
        concurrency: 4,
        queue_max: 100,
        timeout: long,
        step_tokens: 512,
        shares_steps: false,
        step_target: Duration::from_millis(50),
        step_limit: long,
        load_limit: long,
        idle_unload: None,
        threads: 2,
        keep_loaded: false,
    };
    let config = ModelConfig::new(values).unwrap();
    scheduler.step(Time(0), Event::ModelAdded { model: ModelId(0), config });
    for id in 0..100 {
        scheduler.step(Time(0), Event::Submit(Submit { client: ClientId(id as u32 / 8), ..job(id * 3) }));
    }
    assert_eq!(scheduler.snapshot().waiting, 100);
    scheduler
}

/// For a full queue, an unknown model, or by a client that has its own queue full; from ever new clients.
fn job(id: u64) -> Submit {
    let (client, model) = match id % 3 {
        0 => (id as u32, 0),
        1 => (id as u32, 7),
        _ => (0, 0),
    };
    Submit {
        job: JobId(id),
        client: ClientId(client),
        model: ModelId(model),
        deadline: None,
        tokens: 1,
        tokens_bound: 1,
        audio_ms: 0,
        canary: false,
        live: false,
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

//! The paths, each with its tries.

use super::ground::{Ground, HOST_MIB, Measured};
use super::report::{Others, PathReport, SERVED, Tries};
use super::stop::{self, BY_KERNEL, BY_PROFILE, BY_RECONCILE, BY_WORKER, Stop};
use super::{Device, Path, failed};
use crate::bench::words;
use crate::clock;
use crate::error::CliError;
use crate::stress::load::Running;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const MIB: u64 = 1 << 20;

/// The largest batch that a job may have.
const BATCH_MAX: u32 = 2_048;
/// A batch that took so long is the last of a try: larger ones would only take longer.
const BATCH_TIME_MAX: Duration = Duration::from_secs(2);
/// Texts of the jobs that leave gaps behind, if anything does.
const SIZES: [u32; 8] = [1, 16, 2, 9, 1, 12, 3, 7];
/// Workers that are wanted where only one fits, and the jobs that want them.
const WORKERS: u64 = 4;
const JOBS: usize = 8;
/// How often it is looked what has become of a worker.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long it may take until something stops a worker.
const STOP_WAIT_MAX: Duration = Duration::from_secs(30);
/// What a driver may reserve beside what it is asked for, in MiB, from the least.
const DRIVER_MIB: [u64; 6] = [0, 4, 8, 16, 32, 64];
/// A model of more than this does not fit where 16 MiB are left.
const LARGE_BYTES: u64 = 64 << 20;
/// What a hostile worker takes: more than any limit.
const HOARD_MIB: u64 = 1 << 20;
/// How far a worker goes that stays below the kernel's limit, above what the server grants it, in MiB.
const BEYOND_MIB: u64 = 160;
/// What a worker wants where the kernel gives nothing more, in MiB.
const STARVED_MIB: u64 = 64;

/// Goes one path.
pub(super) async fn go(path: Path, ground: &Ground<'_>) -> Result<PathReport, CliError> {
    match path {
        Path::OversizedModel => oversized_model(ground).await,
        Path::SmallLease => small_lease(ground).await,
        Path::GrowingBatch => growing_batch(ground).await,
        Path::LongContext => long_context(ground).await,
        Path::Fragmentation => fragmentation(ground).await,
        Path::ManyWorkers => many_workers(ground).await,
        Path::HostMemory => host_memory(ground).await,
        Path::HostileWorker => hostile_worker(ground).await,
        Path::HostileWithinLimits => hostile_within_limits(ground).await,
        Path::DriverMemory => driver_memory(ground).await,
    }
}

async fn oversized_model(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "the model's lease is set to 1 MiB more than its device has for leases, and a job is sent";
    let lease = ground.of_model("lease_mib", ground.measured.budget / MIB + 1);
    let (tries, others) = with_a_lease(ground, lease).await?;
    Ok(PathReport::judged(Path::OversizedModel, done, tries, &[BY_PROFILE], others))
}

async fn small_lease(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "the model's lease is set to 1 MiB, and a job is sent";
    let (tries, others) = with_a_lease(ground, ground.of_model("lease_mib", 1)).await?;
    // A model of a few kilobytes fits, on the CPU.
    let fits = ground.device == Device::Cpu && ground.measured.used < MIB;
    let expected: &[&str] = if fits { &[SERVED] } else { &[BY_PROFILE, BY_WORKER] };
    Ok(PathReport::judged(Path::SmallLease, done, tries, expected, others))
}

/// Tries with a lease in which the model can't run; those who do nothing wrong use another model meanwhile.
async fn with_a_lease(ground: &Ground<'_>, lease: String) -> Result<(Tries, Option<Others>), CliError> {
    let others = ground.others_elsewhere().await?;
    let mut tries = Tries::default();
    for _ in 0..ground.extent.rounds {
        let stop = match ground.set(std::slice::from_ref(&lease)).await {
            Ok(()) => ground.want(1, ground.server.tokens).await,
            // Known from its profile not to fit: nothing was even changed.
            Err(CliError::Refused { message, .. }) if message.contains("lease_too_small") => {
                Stop::Rung(BY_PROFILE.to_owned())
            }
            Err(error) => return Err(error),
        };
        ground.set(&[]).await?;
        let back = clock::now();
        tries.push(stop, ground.recovered(back).await?);
    }
    Ok((tries, ended(others).await))
}

async fn growing_batch(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "jobs of 1, 4, 16 .. 2048 texts, until one is refused or takes 2 s, in a lease of the model and one step of others";
    let others = snug(ground).await?;
    let mut tries = Tries::default();
    for _ in 0..ground.extent.rounds {
        let mut texts = 1;
        let stop = loop {
            let begun = clock::now();
            let stop = ground.want(texts, ground.server.tokens).await;
            texts *= 4;
            let over = texts > BATCH_MAX || clock::now().saturating_duration_since(begun) > BATCH_TIME_MAX;
            if stop != Stop::Served || over {
                break stop;
            }
        };
        recover(ground, &mut tries, stop).await?;
    }
    finish(ground, Path::GrowingBatch, done, tries, others).await
}

async fn long_context(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "one text of as many tokens as the model takes, in such a lease";
    let others = snug(ground).await?;
    let body = json!({"model": ground.server.model, "input": "the ".repeat(8_192), "truncate": true});
    let mut tries = Tries::default();
    for _ in 0..ground.extent.rounds {
        let stop = ground.want_body(&body).await;
        recover(ground, &mut tries, stop).await?;
    }
    finish(ground, Path::LongContext, done, tries, others).await
}

async fn fragmentation(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "jobs of 1 to 16 texts of changing lengths one after the other, in such a lease";
    let others = snug(ground).await?;
    let worker = ground.ready_worker().await?;
    let mut tries = Tries::default();
    for round in 0..ground.extent.rounds {
        for (turn, texts) in SIZES.into_iter().enumerate() {
            let tokens = 3 + (round * 7 + turn as u32 * 11) % ground.server.tokens.max(4);
            let stop = ground.want(texts, tokens.min(ground.server.tokens)).await;
            recover(ground, &mut tries, stop).await?;
        }
    }
    let same = ground.ready_worker().await?["id"] == worker["id"];
    let mut report = finish(ground, Path::Fragmentation, done, tries, others).await?;
    if !same {
        report.breaks("the worker did not last");
    }
    Ok(report)
}

/// Gives the model a lease that holds little more than itself. What a driver reserves beside it is found by trying.
async fn snug(ground: &Ground<'_>) -> Result<Running, CliError> {
    for more in DRIVER_MIB {
        ground.set(&[ground.of_model("lease_mib", ground.snug_mib() + more)]).await?;
        ground.unload().await?;
        if ground.want(1, ground.server.tokens).await == Stop::Served {
            return ground.others().await;
        }
    }
    Err(failed(
        "no_lease",
        "the model runs in no lease that is little larger than what it was measured to take",
    ))
}

async fn recover(ground: &Ground<'_>, tries: &mut Tries, stop: Stop) -> Result<(), CliError> {
    let since = clock::now();
    let recovered = if stop == Stop::Served { Duration::ZERO } else { ground.recovered(since).await? };
    tries.push(stop, recovered);
    Ok(())
}

/// A lease that holds the model may hold the job as well: then it is served, step by step.
async fn finish(
    ground: &Ground<'_>,
    path: Path,
    done: &'static str,
    tries: Tries,
    others: Running,
) -> Result<PathReport, CliError> {
    let others = ended(Some(others)).await;
    ground.set(&[]).await?;
    Ok(PathReport::judged(path, done, tries, &[BY_PROFILE, BY_WORKER, SERVED], others))
}

async fn many_workers(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "8 jobs at a time for a model that may have 4 workers, on a device with room for one lease and a half";
    let lease = ground.measured.lease.div_ceil(MIB);
    let values = [
        ground.of_model("lease_mib", lease),
        ground.of_model("workers", WORKERS),
        ground.of_model("threads", 1),
        ground.of_model("concurrency", 1),
        format!("devices.{}.memory_mib={}", ground.place, lease + lease / 2),
    ];
    let mut tries = Tries::default();
    let mut log = None;
    for _ in 0..ground.extent.rounds {
        ground.set(&values).await?;
        ground.fresh_worker().await?;
        let others = ground.others().await?;
        let before = ground.counted().await?;
        let over = most_promised(ground).await?;
        let stop = match (over, stop::rose(&before, &ground.counted().await?)) {
            // They waited for the one that fits: the ledger gave no second lease.
            (false, None) => Stop::Rung(BY_PROFILE.to_owned()),
            (false, Some(rung)) => Stop::Unnamed(format!("a job or worker was stopped: {rung}")),
            (true, _) => Stop::Unnamed("more was promised than there is".to_owned()),
        };
        let since = clock::now();
        tries.push(stop, ground.recovered(since).await?);
        log = merge(log, ended(Some(others)).await);
        ground.set(&[]).await?;
    }
    Ok(PathReport::judged(Path::ManyWorkers, done, tries, &[BY_PROFILE], log))
}

/// Sends jobs together; whether leases or workers then exceeded what the device has.
async fn most_promised(ground: &Ground<'_>) -> Result<bool, CliError> {
    let mut jobs = JoinSet::new();
    for body in words::bodies(&ground.server.model, 1, ground.server.tokens).into_iter().take(JOBS) {
        let address = ground.greedy.clone();
        jobs.spawn(async move { stop::send(&address, &body).await });
    }
    let all_served = async {
        let mut served = true;
        while let Some(stop) = jobs.join_next().await {
            served &= stop.is_ok_and(|stop| stop == Stop::Served);
        }
        served
    };
    let watched = async {
        loop {
            let status = ground.server.status().await?;
            let devices = status["devices"].as_array().into_iter().flatten();
            let mut over = devices.filter(|device| {
                device["name"] != "host"
                    && device["promised_bytes"].as_u64() > device["budget_bytes"].as_u64()
            });
            if over.next().is_some() {
                return Ok::<bool, CliError>(true);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        served = all_served => {
            if served { Ok(false) } else { Err(failed("unserved", "a job that had to wait was not served")) }
        }
        over = watched => over,
    }
}

async fn host_memory(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done =
        "the kernel's limit (RLIMIT_DATA) of a worker at work is set to what it has, then it needs 64 MiB";
    let drill = json!({"starve": true, "take_mib": STARVED_MIB});
    let (tries, others) = stopped_by_itself(ground, &drill).await?;
    Ok(PathReport::judged(Path::HostMemory, done, tries, &[BY_KERNEL], others))
}

async fn hostile_worker(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "a worker at work takes all the memory that it gets, past its own count";
    // Whichever comes first: the kernel's limit, or the server's next look.
    let (tries, others) = stopped_by_itself(ground, &json!({"take_mib": HOARD_MIB})).await?;
    Ok(PathReport::judged(Path::HostileWorker, done, tries, &[BY_KERNEL, BY_RECONCILE], others))
}

async fn hostile_within_limits(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done =
        "a worker at work takes more than its leases past its own count, but less than the kernel's limit";
    let Measured { lease, .. } = ground.measured;
    let take = lease.div_ceil(MIB) + HOST_MIB + BEYOND_MIB;
    let (tries, others) = stopped_by_itself(ground, &json!({"take_mib": take})).await?;
    Ok(PathReport::judged(Path::HostileWithinLimits, done, tries, &[BY_RECONCILE], others))
}

/// Lets a worker at work take memory, and waits until something ends it.
async fn stopped_by_itself(ground: &Ground<'_>, drill: &Value) -> Result<(Tries, Option<Others>), CliError> {
    ground.set(&[]).await?;
    let others = ground.others().await?;
    let mut tries = Tries::default();
    for _ in 0..ground.extent.rounds {
        // Each is in one such end only: those who do nothing wrong had an answer since the last one.
        others_answered(&others).await;
        let worker = ground.ready_worker().await?;
        let counted = ground.counted().await?;
        let since = clock::now();
        ground.drill(&worker, drill).await?;
        let stop = ended_by(ground, &worker, &counted, since).await?;
        tries.push(stop, ground.recovered(since).await?);
    }
    Ok((tries, ended(Some(others)).await))
}

/// What has ended a worker, once it is gone.
async fn ended_by(
    ground: &Ground<'_>,
    worker: &Value,
    before: &std::collections::BTreeMap<String, u64>,
    since: Instant,
) -> Result<Stop, CliError> {
    let until = since + STOP_WAIT_MAX;
    loop {
        let status = ground.server.status().await?;
        let mut workers = status["workers"].as_array().into_iter().flatten();
        if !workers.any(|now| now["id"] == worker["id"]) {
            let rung = stop::rose(before, &ground.counted().await?);
            return Ok(rung.map_or_else(|| Stop::Unnamed("worker_died".to_owned()), Stop::Rung));
        }
        if clock::now() >= until {
            return Ok(Stop::Served);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn others_answered(others: &Running) {
    let quiet = clock::now();
    crate::stress::load::until(quiet + STOP_WAIT_MAX, || {
        (others.log().successes_after(quiet) >= 2 * super::ground::OTHERS).then_some(())
    })
    .await;
}

async fn driver_memory(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "a worker has 16 MiB left when it puts the package on its device (RLIMIT_DATA), so that the driver has no more";
    let others = ground.others_elsewhere().await?;
    let mut tries = Tries::default();
    for _ in 0..ground.extent.rounds {
        ground.starve_next_load().await?;
        let stop = ground.want(1, ground.server.tokens).await;
        let since = clock::now();
        ground.load().await?;
        tries.push(stop, ground.recovered(since).await?);
    }
    // A model of a few megabytes fits into what is left.
    let expected: &[&str] =
        if ground.measured.used < LARGE_BYTES { &[BY_WORKER, BY_KERNEL, SERVED] } else { &[BY_WORKER] };
    Ok(PathReport::judged(Path::DriverMemory, done, tries, expected, ended(others).await))
}

async fn ended(others: Option<Running>) -> Option<Others> {
    let log = others?.stop().await;
    Some(Others::of(&log))
}

fn merge(all: Option<Others>, one: Option<Others>) -> Option<Others> {
    match (all, one) {
        (Some(all), Some(one)) => Some(all.and(one)),
        (all, one) => all.or(one),
    }
}

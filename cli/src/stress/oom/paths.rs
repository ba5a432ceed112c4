//! The paths, each with its tries.

use super::ground::{Ground, Measured};
use super::report::{Others, PathReport, SERVED, Tries};
use super::stop::{self, BY_KERNEL, BY_PROFILE, BY_RECONCILE, BY_WORKER, Stop};
use super::{Device, Path, failed};
use crate::bench::words;
use crate::clock;
use crate::error::CliError;
use crate::http::Ask;
use crate::stress::load::Running;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use std::fs;
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

async fn snug(ground: &Ground<'_>) -> Result<Running, CliError> {
    ground.set(&[ground.of_model("lease_mib", ground.snug_mib())]).await?;
    ground.fresh_worker().await?;
    ground.others().await
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
    let device = if ground.device == Device::Cpu { "cpu" } else { "wgpu" };
    let values = [
        ground.of_model("lease_mib", lease),
        ground.of_model("workers", WORKERS),
        ground.of_model("threads", 1),
        ground.of_model("concurrency", 1),
        format!("devices.{device}.memory_mib={}", lease + lease / 2),
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
    let path = Path::HostMemory;
    ground.set(&[]).await?;
    ground.fresh_worker().await?;
    if let Err(why) = ground.server.worker_to_signal().await? {
        return Ok(PathReport::skipped(path, done, why));
    }
    let starve = |pid: Pid| limit(pid, DATA).map(drop);
    let (tries, others) = stopped_by_itself(ground, STARVED_MIB, Some(&starve)).await?;
    Ok(PathReport::judged(path, done, tries, &[BY_KERNEL], others))
}

async fn hostile_worker(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done = "a worker at work takes all the memory that it gets, past its own count";
    let (tries, others) = stopped_by_itself(ground, HOARD_MIB, None).await?;
    Ok(PathReport::judged(Path::HostileWorker, done, tries, &[BY_KERNEL], others))
}

async fn hostile_within_limits(ground: &Ground<'_>) -> Result<PathReport, CliError> {
    let done =
        "a worker at work takes more than its leases past its own count, but less than the kernel's limit";
    let Measured { lease, .. } = ground.measured;
    let host = 256;
    let take = lease.div_ceil(MIB) + host + BEYOND_MIB;
    let (tries, others) = stopped_by_itself(ground, take, None).await?;
    Ok(PathReport::judged(Path::HostileWithinLimits, done, tries, &[BY_RECONCILE], others))
}

/// Lets a worker at work take memory, and waits until something ends it.
async fn stopped_by_itself(
    ground: &Ground<'_>,
    take_mib: u64,
    before: Option<&dyn Fn(Pid) -> Result<(), CliError>>,
) -> Result<(Tries, Option<Others>), CliError> {
    ground.set(&[]).await?;
    let others = ground.others().await?;
    let mut tries = Tries::default();
    for _ in 0..ground.extent.rounds {
        // Each is in one such end only: those who do nothing wrong had an answer since the last one.
        others_answered(&others).await;
        let worker = ground.ready_worker().await?;
        let counted = ground.counted().await?;
        if let (Some(before), Some(pid)) = (before, pid(&worker)) {
            before(pid)?;
        }
        let since = clock::now();
        let ask = Ask::post(&format!("/workers/{}/drill", worker["id"]), &json!({"take_mib": take_mib}));
        ground.server.ask(&ask).await?;
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
    let done = "the address space (RLIMIT_AS) of a fresh worker is set to what it has, then a job needs new buffers of the driver";
    let path = Path::DriverMemory;
    ground.set(&[]).await?;
    ground.fresh_worker().await?;
    if let Err(why) = ground.server.worker_to_signal().await? {
        return Ok(PathReport::skipped(path, done, why));
    }
    let mut tries = Tries::default();
    for _ in 0..ground.extent.rounds {
        let worker = ground.fresh_worker().await?;
        let Some(pid) = pid(&worker) else { continue };
        let counted = ground.counted().await?;
        let free = limit(pid, ADDRESS_SPACE)?;
        let mut stop = ground.want(SIZES[1], ground.server.tokens).await;
        // It may have ended before it is told: that is another way to be stopped.
        let _ = prlimit(Some(pid), ADDRESS_SPACE.resource, free);
        let since = clock::now();
        if let (Stop::Unnamed(_), Some(rung)) = (&stop, stop::rose(&counted, &ground.counted().await?)) {
            stop = Stop::Rung(rung);
        }
        tries.push(stop, ground.recovered(since).await?);
    }
    Ok(PathReport::judged(path, done, tries, &[BY_WORKER, BY_KERNEL], None))
}

/// A limit of a process, and where the kernel says what it has of it and may have.
#[derive(Clone, Copy)]
struct Limited {
    resource: Resource,
    /// In `/proc/PID/status`.
    has: &'static str,
    /// In `/proc/PID/limits`.
    may: &'static str,
}

const DATA: Limited = Limited { resource: Resource::Data, has: "VmData:", may: "Max data size" };
const ADDRESS_SPACE: Limited = Limited { resource: Resource::As, has: "VmSize:", may: "Max address space" };

/// Sets a soft limit to what the process has now; what it was before.
fn limit(pid: Pid, of: Limited) -> Result<Rlimit, CliError> {
    let gone = || failed("no_worker", "the worker ended before its time");
    let has = line(pid, "status", of.has).and_then(|has| size(&has)).ok_or_else(gone)?;
    let may = line(pid, "limits", of.may).ok_or_else(gone)?;
    let mut bounds = may.split_whitespace().map(|bound| bound.parse::<u64>().ok());
    let (current, maximum) = (bounds.next().flatten(), bounds.next().flatten());
    let set = prlimit(Some(pid), of.resource, Rlimit { current: Some(has), maximum });
    set.map_err(|source| CliError::io(format!("limits of {pid:?}"), source))?;
    Ok(Rlimit { current, maximum })
}

/// What follows a name in a file of a process.
fn line(pid: Pid, file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", pid.as_raw_nonzero())).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

/// `N kB` in bytes.
fn size(text: &str) -> Option<u64> {
    text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn pid(worker: &Value) -> Option<Pid> {
    worker["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .filter(|pid| *pid > 1)
        .and_then(Pid::from_raw)
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

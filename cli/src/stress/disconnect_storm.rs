//! Clients that connect, post and leave at random moments, beside one that stays.

use super::bystanders;
use super::chart::{Panel, Series};
use super::load::{self, Traffic, millis};
use super::promise::{Bound, Findings};
use super::{Scenario, Stage};
use crate::bench::words;
use crate::clock;
use crate::error::CliError;
use crate::http::{Address, Ask, Connection};
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Clients that come and leave, each one after the other.
const LEAVERS: u32 = 16;
/// Texts in their jobs: enough to be still at it when they leave.
const TEXTS: u32 = 32;
/// The longest that one stays.
const STAY_MS_MAX: u32 = 150;
/// From one job of the one who stays to its next.
const POLITE_EVERY: Duration = Duration::from_millis(100);
/// How often it is looked what waits and runs.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long after the bound it is still looked.
const LOOK_MORE: Duration = Duration::from_secs(10);

const IDLE_WAIT: Duration = Duration::from_secs(2);
const IDLE: (Bound, &str) = (Bound::AtMost(2_000.0), "ms");

pub(super) async fn play(stage: &Stage<'_>) -> Result<Findings, CliError> {
    let mut findings = Findings::new(Scenario::DisconnectStorm.name());
    let server = stage.server;
    stage.bar.set_length(u64::from(stage.extent.seconds));
    let (polite, storm) = (server.client("stress-polite").await?, server.client("stress-storm").await?);
    let jobs = Arc::new(load::jobs(server, &polite, 2).await?);
    let before = server.usage_of("stress-storm").await?.unwrap_or_default();
    let polite = Traffic { address: polite, jobs, connections: 1, every: POLITE_EVERY, polite: true }.start();
    let left = Arc::<AtomicU64>::default();
    let bodies = Arc::new(words::bodies(&server.model, TEXTS, server.tokens));
    let end = clock::now() + stage.extent.phase();
    let mut leavers = JoinSet::new();
    for seed in 1..=LEAVERS {
        leavers.spawn(leave_again(storm.clone(), Arc::clone(&bodies), (seed, end), Arc::clone(&left)));
    }
    let jobs_seen = watch(stage, end).await?;
    while leavers.join_next().await.is_some() {}
    let storm_ended = clock::now();
    let log = polite.stop().await;
    let idle = idle_after(stage, storm_ended).await?;
    let note = format!("{} jobs were left behind", left.load(Ordering::Relaxed));
    findings.judge("idle_after_storm", idle.map(millis), IDLE, note);
    bystanders::judge(&mut findings, &log);
    let after = server.usage_of("stress-storm").await?.unwrap_or_default();
    report_charges(&mut findings, &before, &after);
    let series = vec![Series { name: "waiting and running".to_owned(), points: jobs_seen }];
    let title = "disconnect-storm: jobs of the model".to_owned();
    findings.panels.push(Panel { title, across: "seconds", up: "jobs", series, bound: None });
    Ok(findings)
}

/// Connects, posts and leaves, whatever has come by then, until it is over.
async fn leave_again(
    address: Address,
    bodies: Arc<Vec<Bytes>>,
    (seed, end): (u32, Instant),
    left: Arc<AtomicU64>,
) {
    let mut state = seed;
    while clock::now() < end {
        // The generator of the words; its high bits are random enough to choose a moment.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let stay = Duration::from_millis(u64::from((state >> 16) % STAY_MS_MAX));
        let body = bodies[state as usize % bodies.len()].clone();
        let ask = Ask { body, ..Ask::plain(Method::POST, "/v1/embeddings") };
        let post = async { Connection::open(&address).await?.send(&ask).await };
        if timeout(stay, post).await.is_err() {
            left.fetch_add(1, Ordering::Relaxed);
        }
        tokio::task::yield_now().await;
    }
}

/// Jobs of the model over time.
async fn watch(stage: &Stage<'_>, end: Instant) -> Result<Vec<(f64, f64)>, CliError> {
    let (begin, mut seen) = (clock::now(), Vec::new());
    while clock::now() < end {
        let jobs = stage.server.jobs().await?;
        let at = clock::now() - begin;
        seen.push((at.as_secs_f64(), jobs as f64));
        stage.bar.set_position(at.as_secs());
        tokio::time::sleep(LOOK_EVERY * 5).await;
    }
    Ok(seen)
}

/// How long after the storm nothing waits or runs any more; none where that does not come to be.
async fn idle_after(stage: &Stage<'_>, storm_ended: Instant) -> Result<Option<Duration>, CliError> {
    let limit = storm_ended + IDLE_WAIT + LOOK_MORE;
    while clock::now() < limit {
        if stage.server.jobs().await? == 0 {
            return Ok(Some(clock::now() - storm_ended));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(None)
}

/// What the clients that left were charged, for people to compare.
fn report_charges(findings: &mut Findings, before: &Value, after: &Value) {
    for (field, name, unit) in [
        ("submitted", "jobs of those who left: sent", ""),
        ("done", "jobs of those who left: done", ""),
        ("failed", "jobs of those who left: cancelled or failed", ""),
        ("device_us", "device time charged to those who left", "us"),
        ("tokens", "tokens charged to those who left", ""),
    ] {
        let now = after[field].as_u64();
        let grown = now.map(|now| now.saturating_sub(before[field].as_u64().unwrap_or(0)) as f64);
        findings.figure(name, grown, unit);
    }
}

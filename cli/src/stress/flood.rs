//! One client far beyond its queue, then one beyond its rate.

use super::bystanders;
use super::chart::{Panel, Series};
use super::load::{self, Ending, Log, Traffic};
use super::promise::{Bound, Findings};
use super::server::resident_bytes;
use super::stats::mean;
use super::{Scenario, Stage, quotas};
use crate::clock;
use crate::error::CliError;
use rustix::process::Pid;
use std::sync::Arc;
use std::time::Duration;

/// Connections, of which each has one job at a time.
const CONNECTIONS: usize = 64;
/// Where the queue can't be made small: more than a client may have waiting by default.
const CONNECTIONS_UNLIMITED: usize = 400;
/// Jobs that the flooding client may have waiting.
const QUEUE: u32 = 8;
/// Jobs in a minute of the client whose rate is tried, and at once.
const RATE: (u32, u32) = (60, 2);
/// Jobs after which a rate must have refused one.
const RATE_TRIES_MAX: u32 = 4 * RATE.1;
/// The most that a refusal may tell that client to wait: longer than the rate needs for one job.
const RATE_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the server's memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What memory may grow by beside a twentieth: allocators keep some.
const GROWTH_BYTES: f64 = 16.0 * 1024.0 * 1024.0;

const NONE: (Bound, &str) = (Bound::AtMost(0.0), "jobs");
const SOME: (Bound, &str) = (Bound::AtLeast(1.0), "jobs");
const GROWTH: (Bound, &str) = (Bound::AtMost(0.0), "bytes over");

pub(super) async fn play(stage: &Stage<'_>) -> Result<Findings, CliError> {
    let mut findings = Findings::new(Scenario::Flood.name());
    stage.bar.set_length(u64::from(stage.extent.seconds + stage.extent.rounds));
    flood(stage, &mut findings).await?;
    match stage.original {
        Some(_) => rate(stage, &mut findings).await?,
        None => {
            findings.skip("rate_refusals", SOME, super::NO_QUOTAS);
            findings.skip("rate_retry_refused", NONE, super::NO_QUOTAS);
        }
    }
    Ok(findings)
}

async fn flood(stage: &Stage<'_>, findings: &mut Findings) -> Result<(), CliError> {
    let server = stage.server;
    let address = server.client("stress-flood").await?;
    let jobs = Arc::new(load::jobs(server, &address, 8).await?);
    let connections = if stage.original.is_some() { CONNECTIONS } else { CONNECTIONS_UNLIMITED };
    if let Some(original) = stage.original {
        let queue = format!("clients.stress-flood.queue={QUEUE}");
        quotas::put(server, &quotas::with(original, &[&queue])?, None).await?;
    }
    let process = server.pid().await?;
    let running = Traffic { address, jobs, connections, every: Duration::ZERO, polite: false }.start();
    let memory = watch_memory(stage, process).await;
    let log = running.stop().await;
    judge_refusals(findings, &log);
    judge_memory(findings, &memory);
    server.becomes_idle().await.map(drop)
}

/// The server's memory over the phase, in bytes.
async fn watch_memory(stage: &Stage<'_>, process: Option<Pid>) -> Vec<f64> {
    let (begin, mut memory) = (clock::now(), Vec::new());
    while clock::now() - begin < stage.extent.phase() {
        memory.extend(process.and_then(resident_bytes).map(|bytes| bytes as f64));
        tokio::time::sleep(LOOK_EVERY).await;
        stage.bar.set_position((clock::now() - begin).as_secs());
    }
    memory
}

fn judge_refusals(findings: &mut Findings, log: &Log) {
    let refused = log.refused();
    let all: usize = refused.values().sum();
    findings.judge("refusals", Some(all as f64), SOME, load::in_words(&refused));
    findings.judge("refusals_without_code_or_time", Some(log.count(is_bare) as f64), NONE, "");
    bystanders::judge(findings, log);
}

/// A refusal without the server's own code, or without the time of a new try.
fn is_bare(ending: &Ending) -> bool {
    match ending {
        Ending::Refused { code, retry_after_ms } => code.starts_with("http_") || retry_after_ms.is_none(),
        Ending::Right | Ending::Wrong | Ending::Lost(_) => false,
    }
}

/// The last fifth against the first one.
fn judge_memory(findings: &mut Findings, memory: &[f64]) {
    let fifth = (memory.len() / 5).max(1).min(memory.len());
    let ends = mean(&memory[..fifth]).zip(mean(&memory[memory.len() - fifth..]));
    let Some((first, last)) = ends else {
        findings.skip("memory_growth", GROWTH, "the server's process can't be seen from here");
        return;
    };
    let over = last - (1.05 * first + GROWTH_BYTES);
    let mib = |bytes: f64| bytes / (1024.0 * 1024.0);
    let note = format!("{:.1} MiB at first, {:.1} MiB at last", mib(first), mib(last));
    findings.judge("memory_growth", Some(over.max(0.0)), GROWTH, note);
    let point = |(turn, &bytes)| (turn as f64 * LOOK_EVERY.as_secs_f64(), mib(bytes));
    let points = memory.iter().enumerate().map(point).collect();
    findings.panels.push(Panel {
        title: "flood: memory of the server".to_owned(),
        across: "seconds",
        up: "MiB",
        series: vec![Series { name: "RSS".to_owned(), points }],
        bound: Some(mib(1.05 * first + GROWTH_BYTES)),
    });
}

/// Refused by its rate, a client comes back exactly when it was told to, and is taken.
async fn rate(stage: &Stage<'_>, findings: &mut Findings) -> Result<(), CliError> {
    let (server, Some(original)) = (stage.server, stage.original) else { return Ok(()) };
    let address = server.client("stress-rate").await?;
    let job = load::jobs(server, &address, 1).await?.swap_remove(0);
    let (per_minute, burst) = RATE;
    let rate = format!("clients.stress-rate.jobs_per_minute={per_minute}");
    let burst = format!("clients.stress-rate.jobs_burst={burst}");
    quotas::put(server, &quotas::with(original, &[&rate, &burst])?, None).await?;
    let (mut waits, mut not_taken, mut first) = (Vec::new(), 0_u32, String::new());
    for _ in 0..stage.extent.rounds {
        let mut wait = None;
        for _ in 0..RATE_TRIES_MAX {
            if let Ending::Refused { code, retry_after_ms } = job.send(&address).await.ending
                && code.starts_with("rate_")
            {
                wait = retry_after_ms.map(Duration::from_millis);
                break;
            }
        }
        stage.bar.inc(1);
        let Some(wait) = wait.filter(|wait| *wait <= RATE_WAIT_MAX) else { continue };
        waits.push(load::millis(wait));
        tokio::time::sleep(wait).await;
        let ending = job.send(&address).await.ending;
        if ending != Ending::Right {
            not_taken += 1;
            first = format!("after {} ms: {ending:?}", wait.as_millis());
        }
    }
    findings.judge(
        "rate_refusals",
        Some(waits.len() as f64),
        (Bound::AtLeast(f64::from(stage.extent.rounds)), "jobs"),
        "",
    );
    findings.judge("rate_retry_refused", Some(f64::from(not_taken)), NONE, first);
    findings.figure("retry-after of a rate", mean(&waits), "ms");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::promise::Verdict;

    fn verdict(memory: &[f64]) -> Verdict {
        let mut findings = Findings::new(Scenario::Flood.name());
        judge_memory(&mut findings, memory);
        findings.promises[0].verdict
    }

    #[test]
    fn memory_may_grow_by_a_twentieth_and_16_mib() {
        const MIB: f64 = 1024.0 * 1024.0;
        let grown = |by: f64| {
            (0..10).map(|turn| (if turn < 5 { 100.0 } else { 100.0 + by }) * MIB).collect::<Vec<_>>()
        };
        assert_eq!(verdict(&grown(20.9)), Verdict::Held);
        assert_eq!(verdict(&grown(21.1)), Verdict::Broken);
        assert_eq!(verdict(&grown(-50.0)), Verdict::Held);
        assert_eq!(verdict(&[MIB]), Verdict::Held);
        assert_eq!(verdict(&[]), Verdict::Skipped);
    }

    #[test]
    fn a_refusal_has_a_code_of_ours_and_a_time() {
        let refused = |code: &str, retry_after_ms| Ending::Refused { code: code.to_owned(), retry_after_ms };
        assert!(!is_bare(&refused("queue_full_client", Some(5))));
        assert!(is_bare(&refused("queue_full_client", None)));
        assert!(is_bare(&refused("http_429", Some(5))));
        assert!(!is_bare(&Ending::Lost("http_500".to_owned())));
    }
}

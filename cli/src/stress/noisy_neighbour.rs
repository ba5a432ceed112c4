//! A polite client alone, beside a flood, and beside a flood where the first to come is the first served; then clients
//! of different weights that both want everything.

use super::chart::{Panel, Series};
use super::load::{self, Job, Log, Traffic};
use super::promise::{Bound, Findings};
use super::stats::{jain, median, percentile};
use super::{Scenario, Stage, quotas};
use crate::clock;
use crate::error::CliError;
use crate::http::Address;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Texts in each job of the polite client.
const POLITE_TEXTS: u32 = 8;
/// From one of its jobs to the next.
const POLITE_EVERY: Duration = Duration::from_millis(200);
/// Connections of the flood.
const FLOOD_CONNECTIONS: usize = 32;
/// Connections of each of the clients whose shares are compared.
const SHARE_CONNECTIONS: usize = 16;
/// What comes before anything is measured.
const SETTLE: Duration = Duration::from_millis(500);

const RATIO: (Bound, &str) = (Bound::AtMost(2.0), "");
const FAIRNESS: (Bound, &str) = (Bound::AtLeast(0.99), "");
const THROUGHPUT: (Bound, &str) = (Bound::AtLeast(0.95), "");

/// The clients whose shares are compared, with their weights.
const SHARES: [(&str, u32); 2] = [("stress-one", 1), ("stress-three", 3)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Alone,
    Fair,
    Arrival,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Alone, Self::Fair, Self::Arrival];

    fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Fair => "beside flood",
            Self::Arrival => "beside flood, by arrival",
        }
    }
}

/// What one phase of one round came to.
#[derive(Clone, Copy, Debug)]
struct Measured {
    phase: Phase,
    p50: f64,
    p95: f64,
    texts_per_s: f64,
}

struct Clients {
    polite: Address,
    flood: Address,
    polite_jobs: Arc<Vec<Job>>,
    flood_jobs: Arc<Vec<Job>>,
}

pub(super) async fn play(stage: &Stage<'_>) -> Result<Findings, CliError> {
    let mut findings = Findings::new(Scenario::NoisyNeighbour.name());
    let clients = prepare(stage).await?;
    let phases: &[Phase] = if stage.original.is_some() { &Phase::ALL } else { &Phase::ALL[..2] };
    let rounds = stage.extent.rounds;
    stage.bar.set_length(u64::from(rounds) * phases.len() as u64 + 1);
    let mut measured = Vec::new();
    for round in 0..rounds as usize {
        // Each round begins with another phase, so that a machine that grows slower is slower for all of them.
        for turn in 0..phases.len() {
            let phase = phases[(round + turn) % phases.len()];
            measured.extend(measure(stage, &clients, phase).await?);
            stage.bar.inc(1);
        }
    }
    judge_polite(&mut findings, &measured);
    judge_throughput(&mut findings, stage, &measured);
    draw(&mut findings, &measured);
    shares(stage, &mut findings, &clients.flood_jobs).await?;
    stage.bar.inc(1);
    Ok(findings)
}

async fn prepare(stage: &Stage<'_>) -> Result<Clients, CliError> {
    let server = stage.server;
    let (polite, flood) = (server.client("stress-polite").await?, server.client("stress-flood").await?);
    let polite_jobs = load::jobs(server, &polite, POLITE_TEXTS).await?;
    let mut flood_jobs = Vec::new();
    for texts in 1..=POLITE_TEXTS {
        flood_jobs.extend(load::jobs(server, &flood, texts).await?);
    }
    // Sizes follow each other on every connection.
    let stride = flood_jobs.len() / POLITE_TEXTS as usize;
    let mixed = (0..flood_jobs.len()).map(|turn| {
        let (size, number) = (turn % POLITE_TEXTS as usize, turn / POLITE_TEXTS as usize);
        flood_jobs[size * stride + number].clone()
    });
    let flood_jobs = Arc::new(mixed.collect());
    Ok(Clients { polite, flood, polite_jobs: Arc::new(polite_jobs), flood_jobs })
}

fn weight(client: &str, weight: u32) -> String {
    format!("clients.{client}.weight={weight}")
}

async fn set_order(stage: &Stage<'_>, order: &str) -> Result<(), CliError> {
    let Some(original) = stage.original else { return Ok(()) };
    let order = format!("queues.order={order}");
    let mut values = vec![order, weight("stress-polite", 1), weight("stress-flood", 1)];
    values.extend(SHARES.map(|(client, share)| weight(client, share)));
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let text = quotas::with(original, &values)?;
    quotas::put(stage.server, &text, None).await.map(drop)
}

/// One phase; none where the polite client had no answer at all.
async fn measure(stage: &Stage<'_>, clients: &Clients, phase: Phase) -> Result<Option<Measured>, CliError> {
    stage.server.becomes_idle().await?;
    set_order(stage, if phase == Phase::Arrival { "arrival" } else { "fair" }).await?;
    let flood =
        (phase != Phase::Alone).then(|| traffic(&clients.flood, &clients.flood_jobs, FLOOD_CONNECTIONS));
    let flood = flood.map(Traffic::start);
    let polite = Traffic { every: POLITE_EVERY, ..traffic(&clients.polite, &clients.polite_jobs, 1) }.start();
    tokio::time::sleep(SETTLE).await;
    let from = clock::now();
    tokio::time::sleep(stage.extent.phase()).await;
    let span = (from, clock::now());
    // The polite client's last job is waited for beside the flood, or it would be a quick one.
    let polite = polite.stop().await;
    let flood = flood.map(load::Running::leave);
    Ok(summed(phase, span, &polite, flood.as_deref()))
}

fn traffic(address: &Address, jobs: &Arc<Vec<Job>>, connections: usize) -> Traffic {
    let (address, jobs) = (address.clone(), Arc::clone(jobs));
    Traffic { address, jobs, connections, every: Duration::ZERO, polite: true }
}

fn summed(phase: Phase, span: (Instant, Instant), polite: &Log, flood: Option<&Log>) -> Option<Measured> {
    let latencies = polite.latencies_ms(span);
    let texts = polite.texts(span) + flood.map_or(0, |log| log.texts(span));
    let seconds = (span.1 - span.0).as_secs_f64();
    Some(Measured {
        phase,
        p50: percentile(&latencies, 0.5)?,
        p95: percentile(&latencies, 0.95)?,
        texts_per_s: texts as f64 / seconds.max(1e-9),
    })
}

fn of(measured: &[Measured], phase: Phase, value: fn(&Measured) -> f64) -> Vec<f64> {
    measured.iter().filter(|measured| measured.phase == phase).map(value).collect()
}

/// Round by round, so that both sides of a ratio are of the same minute.
fn ratios(above: &[f64], below: &[f64]) -> Vec<f64> {
    above.iter().zip(below).map(|(above, below)| above / below).collect()
}

fn judge_polite(findings: &mut Findings, measured: &[Measured]) {
    for phase in Phase::ALL {
        for (name, value) in [("p50", (|one| one.p50) as fn(&Measured) -> f64), ("p95", |one| one.p95)] {
            let name = format!("polite {name} {}", phase.name());
            findings.figure(name, median(&of(measured, phase, value)), "ms");
        }
    }
    let ratio = |value| ratios(&of(measured, Phase::Fair, value), &of(measured, Phase::Alone, value));
    let (p50, p95) = (ratio(|one| one.p50), ratio(|one| one.p95));
    findings.figure("polite p50 ratio", median(&p50), "");
    findings.judge("polite_p95_ratio", median(&p95), RATIO, rounds_in_words(&p95));
}

fn judge_throughput(findings: &mut Findings, stage: &Stage<'_>, measured: &[Measured]) {
    let texts = |phase| of(measured, phase, |one| one.texts_per_s);
    let (fair, arrival) = (texts(Phase::Fair), texts(Phase::Arrival));
    findings.figure("throughput fair", median(&fair), "texts/s");
    findings.figure("throughput by arrival", median(&arrival), "texts/s");
    let ratios = ratios(&fair, &arrival);
    match stage.original {
        Some(_) => {
            findings.judge("fair_throughput_ratio", median(&ratios), THROUGHPUT, rounds_in_words(&ratios));
        }
        None => findings.skip("fair_throughput_ratio", THROUGHPUT, super::NO_QUOTAS),
    }
}

fn rounds_in_words(values: &[f64]) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:.2}")).collect();
    format!("rounds {}", values.join(", "))
}

fn draw(findings: &mut Findings, measured: &[Measured]) {
    let series = |value: fn(&Measured) -> f64| {
        let line = |phase: Phase| Series::by_number(phase.name(), &of(measured, phase, value));
        Phase::ALL.map(line).into_iter().filter(|line| !line.points.is_empty()).collect::<Vec<_>>()
    };
    let panel =
        |title: &str, up, series| Panel { title: title.to_owned(), across: "round", up, series, bound: None };
    findings.panels.push(panel("noisy-neighbour: p95 of the polite client", "ms", series(|one| one.p95)));
    findings.panels.push(panel("noisy-neighbour: throughput", "texts/s", series(|one| one.texts_per_s)));
}

/// Device time of two clients that both want all of it, by weight.
async fn shares(stage: &Stage<'_>, findings: &mut Findings, jobs: &Arc<Vec<Job>>) -> Result<(), CliError> {
    if stage.original.is_none() {
        findings.skip("jain", FAIRNESS, super::NO_QUOTAS);
        return Ok(());
    }
    set_order(stage, "fair").await?;
    let mut running = Vec::new();
    for (client, _) in SHARES {
        let address = stage.server.client(client).await?;
        running.push(traffic(&address, jobs, SHARE_CONNECTIONS).start());
    }
    tokio::time::sleep(2 * SETTLE).await;
    let before = device_us(stage).await?;
    tokio::time::sleep(stage.extent.phase()).await;
    let after = device_us(stage).await?;
    running.into_iter().for_each(|running| drop(running.leave()));
    let Some((before, after)) = before.zip(after) else {
        findings.skip("jain", FAIRNESS, "this server does not say what clients have had (GET /usage)");
        return Ok(());
    };
    let had: Vec<u64> =
        before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before)).collect();
    for ((client, weight), had) in SHARES.iter().zip(&had) {
        let name = format!("device time of {client}, weight {weight}");
        findings.figure(name, Some(*had as f64 / 1e3), "ms");
    }
    let by_weight: Vec<f64> =
        had.iter().zip(SHARES).map(|(had, (_, weight))| *had as f64 / f64::from(weight)).collect();
    findings.judge("jain", jain(&by_weight), FAIRNESS, "");
    stage.server.becomes_idle().await.map(drop)
}

async fn device_us(stage: &Stage<'_>) -> Result<Option<Vec<u64>>, CliError> {
    let mut had = Vec::new();
    for (client, _) in SHARES {
        let usage = stage.server.usage_of(client).await?;
        let Some(device_us) = usage.and_then(|usage| usage["device_us"].as_u64()) else { return Ok(None) };
        had.push(device_us);
    }
    Ok(Some(had))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::promise::Verdict;

    fn measured(phase: Phase, p95: f64) -> Measured {
        Measured { phase, p50: p95 / 2.0, p95, texts_per_s: 100.0 }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds() {
        let rounds = [(60.0, 90.0), (50.0, 500.0), (60.0, 96.0)];
        let all: Vec<Measured> = rounds
            .iter()
            .flat_map(|&(alone, flood)| [measured(Phase::Fair, flood), measured(Phase::Alone, alone)])
            .collect();
        let mut findings = Findings::new(Scenario::NoisyNeighbour.name());
        judge_polite(&mut findings, &all);
        let promise = &findings.promises[0];
        assert_eq!((promise.measured, promise.verdict), (Some(1.6), Verdict::Held));
        assert_eq!(promise.note, "rounds 1.50, 10.00, 1.60");
    }

    #[test]
    fn a_polite_client_without_answers_breaks_the_promise() {
        let mut findings = Findings::new(Scenario::NoisyNeighbour.name());
        judge_polite(&mut findings, &[measured(Phase::Alone, 60.0)]);
        assert_eq!(findings.promises[0].verdict, Verdict::Broken);
    }
}

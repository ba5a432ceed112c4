//! Scenarios against a running server that hold its promises against what it does.

pub mod audio;
pub mod chart;
pub mod load;
pub mod promise;
pub mod quotas;
pub mod server;
pub mod stats;

mod bystanders;
mod crash_loop;
mod disconnect_storm;
mod flood;
pub mod grants;
mod hung_worker;
mod noisy_neighbour;
pub mod oom;
mod quota_edits;

use crate::error::CliError;
use clap::ValueEnum;
use indicatif::ProgressBar;
use promise::Findings;
use quotas::Original;
use serde::Serialize;
use server::Server;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// Why parts are skipped.
const NO_QUOTAS: &str = "this server's quotas can't be changed while it runs (GET /quotas)";
/// How long one scenario may take in all.
const SCENARIO_WAIT_MAX: Duration = Duration::from_secs(30 * 60);

/// What is done to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// A polite client beside 32 connections that never pause, and clients of different weights
    NoisyNeighbour,
    /// One client far beyond its queue and its rates
    Flood,
    /// The worker is stopped (SIGSTOP) in the middle of work
    HungWorker,
    /// The worker is killed (SIGKILL) again and again
    CrashLoop,
    /// The quotas change while jobs run, to valid and to invalid ones
    QuotaEdits,
    /// Clients that post and leave
    DisconnectStorm,
}

impl Scenario {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoisyNeighbour => "noisy-neighbour",
            Self::Flood => "flood",
            Self::HungWorker => "hung-worker",
            Self::CrashLoop => "crash-loop",
            Self::QuotaEdits => "quota-edits",
            Self::DisconnectStorm => "disconnect-storm",
        }
    }
}

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Of one phase.
    pub seconds: u32,
    /// Rounds, where a scenario has some.
    pub rounds: u32,
}

impl Extent {
    pub(crate) fn phase(self) -> Duration {
        Duration::from_secs(u64::from(self.seconds))
    }
}

/// What a scenario works with.
pub(crate) struct Stage<'a> {
    pub(crate) server: &'a Server,
    /// The quotas as they were, where this server can change them.
    pub(crate) original: Option<&'a Original>,
    pub(crate) extent: Extent,
    pub(crate) bar: ProgressBar,
}

/// Runs a scenario. The quotas are then those from before, whatever happened.
///
/// # Errors
/// Those of the connections, and [`CliError::Failed`] where somebody interrupts it, where it takes too long or where
/// the quotas can't be put back.
pub async fn run(
    scenario: Scenario,
    server: &Server,
    extent: Extent,
    bar: ProgressBar,
) -> Result<Findings, CliError> {
    let original = quotas::read(server).await?;
    let stage = Stage { server, original: original.as_ref(), extent, bar };
    let mut found = tokio::select! {
        found = timeout(SCENARIO_WAIT_MAX, play(scenario, &stage)) =>
            found.unwrap_or_else(|_| Err(failed(scenario, "too_long", "it did not end in time"))),
        stopped = interrupted() => stopped.and(Err(failed(scenario, "interrupted", "a signal ended it"))),
    };
    let Some(original) = &original else { return found };
    let restored = quotas::restore(server, original).await;
    if let Ok(findings) = &mut found
        && scenario == Scenario::QuotaEdits
    {
        quota_edits::judge_restored(findings, &restored);
        return found;
    }
    // That the quotas are not what they were is worse than whatever ended the scenario.
    restored.and(found)
}

async fn play(scenario: Scenario, stage: &Stage<'_>) -> Result<Findings, CliError> {
    match scenario {
        Scenario::NoisyNeighbour => noisy_neighbour::play(stage).await,
        Scenario::Flood => flood::play(stage).await,
        Scenario::HungWorker => hung_worker::play(stage).await,
        Scenario::CrashLoop => crash_loop::play(stage).await,
        Scenario::QuotaEdits => quota_edits::play(stage).await,
        Scenario::DisconnectStorm => disconnect_storm::play(stage).await,
    }
}

/// Ends when somebody wants us to.
async fn interrupted() -> Result<(), CliError> {
    let of = |kind| signal(kind).map_err(|source| CliError::io("signals", source));
    let (mut interrupt, mut terminate) = (of(SignalKind::interrupt())?, of(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn failed(scenario: Scenario, code: &'static str, what: &str) -> CliError {
    let advice = String::new();
    CliError::Failed { subject: scenario.name().to_owned(), code, source: what.into(), advice }
}

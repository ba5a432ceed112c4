//! Replay: what was recorded comes again, in virtual time, to a scheduler with other quotas and to simulated workers.
//! No IO, no clock, nothing random: the same trace and quotas give the same report.
//!
//! What a replay can't know: clients that would have asked otherwise had they been answered otherwise, long jobs that
//! share their cores, other threads than the recorded ones, crashes, and what jobs take of a lease.

mod report;
mod trace;
mod worker;
mod world;

pub use report::{Agreement, ClientReport, Comparison, Report, Waits};
pub use trace::{
    Cancelled, Ended, ErrorLine, Header, Impossible, Line, Stop, Submitted, TRACE_BYTES_MAX, TRACE_LINES_MAX,
    TRACE_VERSION, Trace, TraceError, TracedMachine, TracedModel, What,
};

use crate::config::ConfigError;
use crate::quotas::{QuotaError, Quotas};
use world::World;

/// The most that may happen in one replay: events of workers and timers.
pub const REPLAY_STEPS_MAX: u64 = 20_000_000;

/// Why a trace can't be replayed under quotas.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// On the machine of the trace they don't hold.
    #[error("on the machine of the trace: {0}")]
    Config(#[from] ConfigError),
    /// The quotas in the trace are wrong.
    #[error("the quotas in the trace: {0}")]
    Recorded(#[from] QuotaError),
    /// It would take too long.
    #[error("the replay takes more than {REPLAY_STEPS_MAX} steps")]
    TooLong,
}

/// What would have become of the trace's jobs under these quotas.
///
/// # Errors
/// The quotas don't hold on the trace's machine, or it takes too long.
pub fn replay(trace: &Trace, quotas: &Quotas) -> Result<Report, ReplayError> {
    World::new(trace, quotas)?.run()
}

/// Replays a trace under its own quotas and under others, and says how far the first agrees with what was recorded.
///
/// # Errors
/// As [`replay`]; also where the trace's own quotas can't be read.
pub fn compare(trace: &Trace, quotas: &Quotas) -> Result<Comparison, ReplayError> {
    let recorded = replay(trace, &Quotas::parse(&trace.header.quotas)?)?;
    let new = replay(trace, quotas)?;
    Ok(Comparison { agreement: report::agreement(trace, &recorded), recorded, new })
}

#[cfg(test)]
mod tests;

//! What a replay comes to, by client.

use super::trace::Trace;
use serde::Serialize;
use std::collections::BTreeMap;

/// What became of a trace's jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// By name.
    pub clients: BTreeMap<String, ClientReport>,
    /// By the job's place in the trace: how it ended.
    #[serde(skip)]
    pub(super) codes: Vec<Option<&'static str>>,
    /// Waits of all jobs that a worker had.
    pub wait: Waits,
}

/// One client.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClientReport {
    /// Jobs that came.
    pub submitted: u64,
    /// Jobs with their output.
    pub done: u64,
    /// Jobs that were not taken, by code.
    pub refused: BTreeMap<&'static str, u64>,
    /// Jobs that were taken and have none, by code.
    pub failed: BTreeMap<&'static str, u64>,
    /// From a job's arrival until a worker had it.
    pub wait: Waits,
    /// Device time in microseconds.
    pub device_us: u64,
    /// Of the device time that all clients had until the recording's end, from 0 to 1. What was still waiting then is
    /// played to its end, but would hide here who came first.
    pub share: f64,
}

/// Waits in microseconds; 0 where nobody waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waits {
    /// Half of the jobs waited for at most so long.
    pub p50_us: u64,
    /// 95 of 100.
    pub p95_us: u64,
    /// All.
    pub max_us: u64,
}

/// A trace under its own quotas and under others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Under the quotas of the recording.
    pub recorded: Report,
    /// Under the others.
    pub new: Report,
    /// How far the first is what was recorded: what to trust.
    pub agreement: Agreement,
}

/// How far a replay is what was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Agreement {
    /// Jobs whose end was recorded.
    pub jobs: u64,
    /// Of these, those that ended with the same code.
    pub same: u64,
    /// As recorded.
    pub recorded_wait: Waits,
    /// As replayed.
    pub replayed_wait: Waits,
}

impl Waits {
    pub(super) fn of(mut waits: Vec<u64>) -> Self {
        waits.sort_unstable();
        let Some(last) = waits.len().checked_sub(1) else { return Self::default() };
        let rank = |percent: usize| waits[(waits.len() * percent).div_ceil(100).max(1) - 1];
        Self { p50_us: rank(50), p95_us: rank(95), max_us: waits[last] }
    }
}

pub(super) fn agreement(trace: &Trace, replayed: &Report) -> Agreement {
    let ends =
        || trace.jobs.iter().zip(&replayed.codes).filter_map(|(job, code)| Some((job.ended.as_ref()?, code)));
    let same = ends().filter(|(ended, code)| **code == Some(ended.code.as_str())).count();
    Agreement {
        jobs: ends().count() as u64,
        same: same as u64,
        recorded_wait: Waits::of(ends().filter_map(|(ended, _)| ended.waited_us).collect()),
        replayed_wait: replayed.wait,
    }
}

//! What a run is reported as: a table for people, JSON for machines.

use super::load::{Outcome, Pace};
use super::tally::Micros;
use crate::output::{Style, table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::thread;

/// The JSON that `--json` prints, as shown by `--help`.
pub const SCHEMA: &str = "\
JSON of --json, times in milliseconds, Q = {\"p50\",\"p90\",\"p99\",\"max\"}:
  {\"bench\":\"embed\", \"model\", \"target\", \"batch\",
   \"tokens\" (wanted), \"tokens_per_input\" (the server's count),
   \"runs\":[{
     \"mode\":\"closed\"|\"open\", \"connections\", \"rate\"|null,
     \"machine\":{\"cores\",\"load_1m\",\"load_5m\"},
     \"answered\", \"errors\":{CODE:COUNT}, \"elapsed_s\",
     \"requests_per_s\", \"inputs_per_s\", \"tokens_per_s\", \"latency_ms\":Q,
     \"server_ms\":{\"total\":Q,\"queue\":Q,\"worker\":Q,\"compute\":Q}|null,
     \"overhead_ms\":{\"total_minus_worker\":Q,\"total_minus_compute\":Q}|null,
     \"schedule\":{\"overflow\" (due, not sent), \"lag_ms\":Q}|null}]}
server_ms and overhead_ms come from the server's own stamps, schedule from the open loop.";

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Always `embed`.
    pub bench: &'static str,
    /// The model that was asked.
    pub model: String,
    /// Socket or URL.
    pub target: String,
    /// Texts in a request.
    pub batch: u32,
    /// Tokens in a text, as wanted.
    pub tokens: u32,
    /// Tokens in a text, as the server counted them.
    pub tokens_per_input: f64,
    /// One for each number of connections.
    pub runs: Vec<RunReport>,
}

/// One run.
#[derive(Debug, Serialize)]
pub struct RunReport {
    mode: &'static str,
    connections: usize,
    rate: Option<f64>,
    machine: Machine,
    answered: u64,
    errors: BTreeMap<String, u64>,
    elapsed_s: f64,
    requests_per_s: f64,
    inputs_per_s: f64,
    tokens_per_s: f64,
    latency_ms: Quantiles,
    server_ms: Option<ServerTimes>,
    overhead_ms: Option<Overhead>,
    schedule: Option<ScheduleReport>,
}

/// How busy the machine was before a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Machine {
    pub(super) cores: usize,
    pub(super) load_1m: f64,
    load_5m: f64,
}

#[derive(Debug, Serialize)]
struct ServerTimes {
    total: Quantiles,
    queue: Quantiles,
    worker: Quantiles,
    compute: Quantiles,
}

#[derive(Debug, Serialize)]
struct Overhead {
    total_minus_worker: Quantiles,
    total_minus_compute: Quantiles,
}

#[derive(Debug, Serialize)]
struct ScheduleReport {
    overflow: u64,
    lag_ms: Quantiles,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Quantiles {
    fn of(histogram: &Micros) -> Self {
        let millis = |micros: u64| micros as f64 / 1e3;
        let quantile = |fraction| millis(histogram.value_at_quantile(fraction));
        Self { p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99), max: millis(histogram.max()) }
    }

    fn cells(self) -> [String; 4] {
        [self.p50, self.p90, self.p99, self.max].map(|millis| format!("{millis:.3}"))
    }
}

impl Machine {
    /// As the kernel says now; a load that can't be read is -1.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let mut loads = text.split(' ').map(|load| load.parse().unwrap_or(-1.0));
        let mut load = || loads.next().unwrap_or(-1.0);
        let cores = thread::available_parallelism().map_or(0, usize::from);
        Self { cores, load_1m: load(), load_5m: load() }
    }
}

impl Report {
    /// Requests answered in all runs.
    pub fn answered(&self) -> u64 {
        self.runs.iter().map(|run| run.answered).sum()
    }

    /// Errors by code, of all runs.
    pub fn errors(&self) -> String {
        let errors = self.runs.iter().flat_map(|run| &run.errors);
        errors.map(|(code, count)| format!("{count} {code}")).collect::<Vec<_>>().join(", ")
    }

    /// For people.
    pub fn page(&self, style: Style) -> String {
        let heading = format!(
            "{} on {}: {} texts of {:.0} tokens in a request",
            style.bold(&self.model),
            self.target,
            self.batch,
            self.tokens_per_input
        );
        let runs = self.runs.iter().map(|run| run.page(style));
        std::iter::once(heading).chain(runs).collect::<Vec<_>>().join("\n\n")
    }
}

impl RunReport {
    /// From what a run counted; `tokens` is those of a whole request.
    pub fn new(
        machine: Machine,
        (pace, connections): (Pace, usize),
        (batch, tokens): (u32, f64),
        outcome: &Outcome,
    ) -> Self {
        let tally = &outcome.tally;
        let elapsed_s = outcome.elapsed.as_secs_f64();
        let requests_per_s = tally.answered() as f64 / elapsed_s.max(1e-9);
        let (mode, rate) = match pace {
            Pace::Closed => ("closed", None),
            Pace::Open { per_second } => ("open", Some(per_second)),
        };
        let stamped = !tally.total.is_empty();
        Self {
            mode,
            connections,
            rate,
            machine,
            answered: tally.answered(),
            errors: tally.errors.clone(),
            elapsed_s,
            requests_per_s,
            inputs_per_s: requests_per_s * f64::from(batch),
            tokens_per_s: requests_per_s * tokens,
            latency_ms: Quantiles::of(&tally.latency),
            server_ms: stamped.then(|| ServerTimes {
                total: Quantiles::of(&tally.total),
                queue: Quantiles::of(&tally.queue),
                worker: Quantiles::of(&tally.worker),
                compute: Quantiles::of(&tally.compute),
            }),
            overhead_ms: stamped.then(|| Overhead {
                total_minus_worker: Quantiles::of(&tally.beside_worker),
                total_minus_compute: Quantiles::of(&tally.beside_compute),
            }),
            schedule: outcome.schedule.as_ref().map(|schedule| ScheduleReport {
                overflow: schedule.overflow,
                lag_ms: Quantiles::of(&schedule.lag),
            }),
        }
    }

    fn page(&self, style: Style) -> String {
        let rate = self.rate.map_or(String::new(), |rate| format!(" at {rate} requests/s"));
        let Machine { cores, load_1m, .. } = self.machine;
        let mut lines = vec![
            style.bold(&format!("{} loop{rate}, connections: {}", self.mode, self.connections)),
            style.dim(&format!("{cores} cores, load {load_1m} before the run")),
            format!(
                "{} answered in {:.1} s: {:.1} requests/s, {:.1} texts/s, {:.0} tokens/s",
                self.answered, self.elapsed_s, self.requests_per_s, self.inputs_per_s, self.tokens_per_s
            ),
            self.errors_line(style),
        ];
        if let Some(schedule) = &self.schedule {
            let lag = schedule.lag_ms.p99;
            lines.push(format!(
                "due but not sent: {}; generator late by {lag:.3} ms (p99)",
                schedule.overflow
            ));
        }
        lines.push(table(style, &["ms", "p50", "p90", "p99", "max"], &self.rows()));
        lines.join("\n")
    }

    fn errors_line(&self, style: Style) -> String {
        if self.errors.is_empty() {
            return "errors: none".to_owned();
        }
        let errors: Vec<String> = self.errors.iter().map(|(code, count)| format!("{count} {code}")).collect();
        style.red(&format!("errors: {}", errors.join(", ")))
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let mut times = vec![("latency", self.latency_ms)];
        if let Some(server) = &self.server_ms {
            times.extend([
                ("server total", server.total),
                ("server queue", server.queue),
                ("worker", server.worker),
                ("worker compute", server.compute),
            ]);
        }
        if let Some(overhead) = &self.overhead_ms {
            times.push(("total - worker", overhead.total_minus_worker));
            times.push(("total - compute", overhead.total_minus_compute));
        }
        let row = |(name, quantiles): (&str, Quantiles)| {
            [vec![name.to_owned()], quantiles.cells().to_vec()].concat()
        };
        times.into_iter().map(row).collect()
    }
}

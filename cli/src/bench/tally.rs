//! What a run counted: latencies, the server's stamps and errors by code.

use crate::error::CliError;
use hdrhistogram::Histogram;
use hyper::header::HeaderMap;
use std::collections::BTreeMap;
use std::time::Duration;

/// The most error codes that are told apart; the rest is counted as `other`.
pub const ERROR_CODES_MAX: usize = 64;

/// The longest latency that is recorded, in microseconds: an hour. Longer ones count as this.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Microseconds, in buckets of three digits.
pub type Micros = Histogram<u64>;

/// An empty histogram.
pub fn micros() -> Micros {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are legal")
}

/// What the server stamped on one answer, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// From receipt to answer.
    pub total: u64,
    /// Until the worker was told.
    pub queue: u64,
    /// From the message to the worker to its end of the job.
    pub worker: u64,
    /// The worker's own figure.
    pub compute: u64,
}

impl Stamps {
    /// From `Server-Timing` (W3C Server Timing, section 4.2): all four metrics, or nothing.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("server-timing")?.to_str().ok()?;
        let metric = |name: &str| {
            let of_name =
                |part: &str| part.trim().strip_prefix(name)?.strip_prefix(";dur=")?.parse::<f64>().ok();
            // Rounding to whole microseconds is what the header's three decimals hold.
            text.split(',').find_map(of_name).map(|millis| (millis * 1e3).round() as u64)
        };
        let [total, queue, worker, compute] = ["total", "queue", "worker", "compute"].map(metric);
        Some(Self { total: total?, queue: queue?, worker: worker?, compute: compute? })
    }
}

/// What a run, or one connection of it, counted.
#[derive(Clone, Debug)]
pub struct Tally {
    /// From the (intended) start to the whole answer; answered requests only.
    pub latency: Micros,
    /// The server's stamps.
    pub total: Micros,
    /// See [`Stamps`].
    pub queue: Micros,
    /// See [`Stamps`].
    pub worker: Micros,
    /// See [`Stamps`].
    pub compute: Micros,
    /// Total less worker, request by request.
    pub beside_worker: Micros,
    /// Total less compute, request by request.
    pub beside_compute: Micros,
    /// Requests that failed, by the stable code.
    pub errors: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let [latency, total, queue, worker, compute, beside_worker, beside_compute] =
            std::array::from_fn(|_| micros());
        let errors = BTreeMap::new();
        Self { latency, total, queue, worker, compute, beside_worker, beside_compute, errors }
    }
}

impl Tally {
    /// Requests answered with 2xx.
    pub fn answered(&self) -> u64 {
        self.latency.len()
    }

    /// Counts an answer.
    pub fn answer(&mut self, latency: Duration, stamps: Option<Stamps>) {
        self.latency.saturating_record(as_micros(latency));
        let Some(stamps) = stamps else { return };
        self.total.saturating_record(stamps.total);
        self.queue.saturating_record(stamps.queue);
        self.worker.saturating_record(stamps.worker);
        self.compute.saturating_record(stamps.compute);
        self.beside_worker.saturating_record(stamps.total.saturating_sub(stamps.worker));
        self.beside_compute.saturating_record(stamps.total.saturating_sub(stamps.compute));
    }

    /// Counts an error.
    pub fn error(&mut self, error: &CliError) {
        self.count_errors(error.code(), 1);
    }

    /// Adds what another connection counted.
    pub fn merge(&mut self, other: &Self) {
        let histograms = [
            (&mut self.latency, &other.latency),
            (&mut self.total, &other.total),
            (&mut self.queue, &other.queue),
            (&mut self.worker, &other.worker),
            (&mut self.compute, &other.compute),
            (&mut self.beside_worker, &other.beside_worker),
            (&mut self.beside_compute, &other.beside_compute),
        ];
        for (own, other) in histograms {
            own.add(other).expect("all histograms have the same bounds");
        }
        for (code, count) in &other.errors {
            self.count_errors(code, *count);
        }
    }

    fn count_errors(&mut self, code: &str, count: u64) {
        let known = self.errors.contains_key(code) || self.errors.len() < ERROR_CODES_MAX;
        let code = if known { code } else { "other" };
        *self.errors.entry(code.to_owned()).or_default() += count;
    }
}

/// Whole microseconds.
pub fn as_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn stamps(header: &'static str) -> Option<Stamps> {
        let mut headers = HeaderMap::new();
        headers.insert("server-timing", HeaderValue::from_static(header));
        Stamps::from_headers(&headers)
    }

    #[test]
    fn stamps_are_read_in_any_order_and_only_all_together() {
        let expected = Stamps { total: 5_250, queue: 40, worker: 5_001, compute: 4_900 };
        let check = |header, expected| assert_eq!(stamps(header), expected, "{header}");
        check("total;dur=5.250, queue;dur=0.040, worker;dur=5.001, compute;dur=4.900", Some(expected));
        check("compute;dur=4.9,worker;dur=5.001,db;dur=9,queue;dur=0.04,total;dur=5.25", Some(expected));
        check("total;dur=5.250, worker;dur=5.001, compute;dur=4.900", None);
        check("total;dur=x, queue;dur=0, worker;dur=0, compute;dur=0", None);
        check("", None);
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut tally = Tally::default();
        for millis in 1..=100 {
            let stamps = Stamps { total: millis * 1_000, queue: 0, worker: millis * 1_000 - 300, compute: 0 };
            tally.answer(Duration::from_millis(millis), Some(stamps));
        }
        let check = |histogram: &Micros, quantile, expected: u64| {
            let found = histogram.value_at_quantile(quantile);
            assert!(found.abs_diff(expected) <= expected / 500, "{quantile}: {found}, not {expected}");
        };
        check(&tally.latency, 0.50, 50_000);
        check(&tally.latency, 0.90, 90_000);
        check(&tally.latency, 0.99, 99_000);
        check(&tally.latency, 1.0, 100_000);
        check(&tally.beside_worker, 0.99, 300);
        assert_eq!(tally.answered(), 100);
    }

    #[test]
    fn merged_tallies_count_what_their_parts_counted() {
        let refused = CliError::Refused {
            request: "POST /v1/embeddings".to_owned(),
            status: 429,
            code: "queue_full".to_owned(),
            message: String::new(),
            retry_after_ms: None,
            rung: None,
        };
        let mut parts = [Tally::default(), Tally::default()];
        for part in &mut parts {
            part.answer(Duration::from_millis(2), None);
            part.error(&refused);
        }
        let mut whole = Tally::default();
        parts.iter().for_each(|part| whole.merge(part));
        assert_eq!((whole.answered(), whole.total.len(), whole.errors["queue_full"]), (2, 0, 2));
    }

    #[test]
    fn no_server_can_fill_memory_with_error_codes() {
        let mut tally = Tally::default();
        for code in 0..2 * ERROR_CODES_MAX {
            tally.count_errors(&code.to_string(), 1);
        }
        assert_eq!(tally.errors.len(), ERROR_CODES_MAX + 1);
        assert_eq!(tally.errors["other"], ERROR_CODES_MAX as u64);
    }
}

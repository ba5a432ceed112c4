//! The `Server-Timing` header: what a request spent where, by the server's own stamps.

use crate::dispatch::Output;
use std::time::Duration;

/// `total` from receipt to answer, `queue` until the worker was told, `worker` from there to its end of the job, and
/// `compute` as the worker states it.
pub(super) fn header(total: Duration, output: &Output) -> String {
    format!(
        "total;dur={:.3}, queue;dur={:.3}, worker;dur={:.3}, compute;dur={:.3}",
        millis(total),
        millis(output.queued),
        millis(output.in_worker),
        millis(output.compute),
    )
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

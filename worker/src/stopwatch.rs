//! Time in microseconds: the one place where the worker reads a clock.
#![expect(clippy::disallowed_methods, reason = "a program stamps its own work")]

use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn micros(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// CLOCK_BOOTTIME, by which the capturing program stamps its frames.
pub(crate) fn boot_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(now.tv_sec).saturating_mul(1_000_000).saturating_add(part(now.tv_nsec) / 1_000)
}

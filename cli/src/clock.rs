//! The one place of this program that reads the clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Now.
#[expect(clippy::disallowed_methods, reason = "commands stamp what they do; nothing here is simulated")]
pub fn now() -> Instant {
    Instant::now()
}

/// Unix milliseconds with what is behind the point, to be held against the server's; 0 before 1970.
pub fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

/// Unix seconds; 0 where the clock stands before 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The kernel's own clock, which stamps its log: milliseconds since the start, without the time that the machine slept.
pub fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

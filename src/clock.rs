//! The one place where the server reads clocks. Everything else is handed a value.
#![allow(clippy::disallowed_methods, reason = "this module is where the clock is read")]

use ringfence_grants::Moment;
use ringfence_scheduler::Time;
use rustix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static START: OnceLock<Instant> = OnceLock::new();

/// A stamp of the monotonic clock.
pub(crate) fn instant() -> Instant {
    Instant::now()
}

/// Time since the first call in this process, as the scheduler counts it.
pub(crate) fn now() -> Time {
    let start = *START.get_or_init(Instant::now);
    Time(u64::try_from(start.elapsed().as_micros()).expect("a process does not run for 584,000 years"))
}

/// When the scheduler's time will be `time`, for timers.
pub(crate) fn at(time: Time) -> Instant {
    *START.get_or_init(Instant::now) + Duration::from_micros(time.0)
}

/// Now by the boot clock and by the wall clock.
pub(crate) fn moment() -> Moment {
    let boot = clock_gettime(ClockId::Boottime);
    let millis = |seconds: i64, nanos: i64| u64::try_from(seconds * 1_000 + nanos / 1_000_000).unwrap_or(0);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment {
        boot_ms: millis(boot.tv_sec, boot.tv_nsec),
        wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Seconds since 1970 by the wall clock.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

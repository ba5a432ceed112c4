//! The clock of grants: it goes on while the machine sleeps and can't be set.

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME in microseconds.
pub fn boot_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.expect("it counts from the start") * 1_000_000 + nanoseconds.expect("a part of a second") / 1_000
}

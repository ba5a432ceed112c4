//! GCRA, the generic cell rate algorithm: one moment for each client and resource. A job is taken if the moment at which
//! everything so far would be paid for, at the rate's pace, is at most a burst ahead.

use crate::config::Rate;
use crate::ids::Time;
use std::time::Duration;

const MINUTE_NS: u128 = 60_000_000_000;

/// What one client has taken of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// When everything so far is paid for, in nanoseconds: the theoretical arrival time.
    paid: u64,
}

impl Bucket {
    /// How long from now until so many units may be taken; zero if they may now. More than a burst counts as a burst: it
    /// may be taken after a long enough pause.
    pub(crate) fn wait(self, rate: Rate, now: Time, units: u64) -> Duration {
        let now = nanos(now);
        let ahead = (self.paid.max(now) - now).saturating_add(price(rate, units.min(rate.burst)));
        Duration::from_nanos(ahead.saturating_sub(price(rate, rate.burst)))
    }

    /// Takes so many units, whether they may be taken or not.
    pub(crate) fn take(&mut self, rate: Rate, now: Time, units: u64) {
        self.paid = self.paid.max(nanos(now)).saturating_add(price(rate, units));
    }

    /// Replaces units that were taken by those that were used.
    pub(crate) fn reconcile(&mut self, rate: Rate, now: Time, taken: u64, used: u64) {
        if used > taken {
            self.take(rate, now, used - taken);
        } else {
            self.paid = self.paid.saturating_sub(price(rate, taken) - price(rate, used));
        }
    }

    /// Units that may be taken now; negative where more was used than could be foreseen.
    pub(crate) fn available(self, rate: Rate, now: Time) -> i64 {
        let ahead = u128::from(self.paid.saturating_sub(nanos(now)));
        let owed = (ahead * u128::from(rate.per_minute)).div_ceil(MINUTE_NS);
        let left = i128::from(rate.burst) - i128::try_from(owed).unwrap_or(i128::MAX);
        i64::try_from(left.max(i128::from(i64::MIN))).unwrap_or(i64::MAX)
    }
}

fn nanos(time: Time) -> u64 {
    time.0.saturating_mul(1_000)
}

/// How long the rate takes for so many units, in nanoseconds.
fn price(rate: Rate, units: u64) -> u64 {
    let nanos = (u128::from(units) * MINUTE_NS).div_ceil(u128::from(rate.per_minute));
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_burst_at_once_then_the_pace_of_the_rate() {
        let rate = Rate { per_minute: 60, burst: 3 };
        let mut bucket = Bucket::default();
        let start = Time(5 * SECOND);
        for left in [3, 2, 1] {
            assert_eq!((bucket.available(rate, start), bucket.wait(rate, start, 1)), (left, Duration::ZERO));
            bucket.take(rate, start, 1);
        }
        assert_eq!(bucket.wait(rate, start, 1), Duration::from_secs(1));
        assert_eq!(bucket.wait(rate, Time(6 * SECOND - 1), 1), Duration::from_micros(1));
        assert_eq!(bucket.wait(rate, Time(6 * SECOND), 1), Duration::ZERO);
    }

    #[test]
    fn more_than_a_burst_waits_for_a_whole_one_and_what_was_not_used_comes_back() {
        let rate = Rate { per_minute: 600, burst: 100 };
        let mut bucket = Bucket::default();
        let now = Time(SECOND);
        assert_eq!(bucket.wait(rate, now, 1_000), Duration::ZERO);
        bucket.take(rate, now, 100);
        assert_eq!(bucket.wait(rate, now, 1_000), Duration::from_secs(10));
        bucket.reconcile(rate, now, 100, 40);
        assert_eq!(bucket.available(rate, now), 60);
        bucket.reconcile(rate, now, 40, 240);
        assert_eq!(bucket.available(rate, now), -140);
        assert_eq!(bucket.wait(rate, now, 1), Duration::from_millis(14_100));
    }

    #[test]
    fn the_largest_numbers_don_t_overflow() {
        let rate = Rate { per_minute: 1, burst: u64::MAX };
        let mut bucket = Bucket::default();
        bucket.take(rate, Time(u64::MAX), u64::MAX);
        let _ = (bucket.wait(rate, Time(0), u64::MAX), bucket.available(rate, Time(0)));
        bucket.reconcile(rate, Time(0), u64::MAX, 0);
    }
}

//! How many streams a worker can hear in real time, by what their phrases have taken so far.

/// The share of its time that phrases may take, in percent; the rest is for what is being said, and for other jobs.
const CAPACITY_PERCENT: u64 = 80;
/// Before anything was measured: nothing.
const WEIGHT: u64 = 4;

/// The measured speed of a worker. Numbers only.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Of a second of speech that becomes a text, in microseconds; each phrase counts a quarter.
    second_us: Option<u64>,
}

impl Load {
    /// A phrase of so many milliseconds has taken so long.
    pub(super) fn measured(&mut self, sound_ms: u64, busy_us: u64) {
        let now = busy_us.saturating_mul(1_000) / sound_ms.max(1);
        let mixed = |before: u64| (before.saturating_mul(WEIGHT - 1).saturating_add(now)) / WEIGHT;
        self.second_us = Some(self.second_us.map_or(now, mixed));
    }

    /// Whether so many streams are heard in real time, if somebody speaks in all of them all the time. Unknown before the
    /// first phrase, where the answer is yes.
    pub(crate) fn holds(&self, streams: usize) -> bool {
        let second_us = self.second_us.unwrap_or(0);
        second_us.saturating_mul(streams as u64) <= CAPACITY_PERCENT * 10_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_takes_as_many_streams_as_its_speed_allows() {
        let mut load = Load::default();
        assert!(load.holds(1_000));
        // A tenth of real time.
        load.measured(5_000, 500_000);
        assert!(load.holds(8) && !load.holds(9));
        (0..40).for_each(|_| load.measured(1_000, 1_000_000));
        assert!(!load.holds(1));
        (0..40).for_each(|_| load.measured(0, 0));
        assert!(load.holds(16));
    }
}

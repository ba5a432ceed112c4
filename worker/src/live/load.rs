//! How many streams a worker can hear in real time, by what their phrases have taken so far.

/// The share of its time that phrases may take, in percent; the rest is for what is being said, and for other jobs.
const CAPACITY_PERCENT: u64 = 80;
/// What was measured before counts so much less with each phrase: in eighths.
const KEPT: u64 = 7;
/// What a phrase takes before one was measured: it is as long as this, and its text takes as long as the encoder.
const PHRASE_S: u64 = 3;

/// What phrases have taken, and how long they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// In microseconds, attempts that were given up included.
    pub(super) busy_us: u64,
    /// Of phrases that have their texts, in milliseconds.
    pub(super) sound_ms: u64,
}

/// The measured speed of a worker. Numbers only.
#[derive(Debug, Default)]
pub(crate) struct Load(Spent);

impl Load {
    /// A stream has got this much further.
    pub(crate) fn measured(&mut self, spent: Spent) {
        let Self(all) = self;
        if spent.sound_ms > 0 {
            *all = Spent { busy_us: all.busy_us / 8 * KEPT, sound_ms: all.sound_ms / 8 * KEPT };
        }
        all.busy_us = all.busy_us.saturating_add(spent.busy_us);
        all.sound_ms = all.sound_ms.saturating_add(spent.sound_ms);
    }

    /// Whether so many streams are heard in real time, if somebody speaks in all of them all the time; by what the encoder
    /// takes for a phrase where no phrase was heard yet, and yes where that is unknown too.
    pub(crate) fn holds(&self, streams: usize, encoder_us: Option<u64>) -> bool {
        let guessed = encoder_us.map(|encoder_us| encoder_us.saturating_mul(2) / PHRASE_S);
        let Self(Spent { busy_us, sound_ms }) = *self;
        let measured = busy_us.saturating_mul(1_000).checked_div(sound_ms);
        let second_us = measured.or(guessed).unwrap_or(0);
        second_us.saturating_mul(streams as u64) <= CAPACITY_PERCENT * 10_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_takes_as_many_streams_as_its_speed_allows() {
        let mut load = Load::default();
        assert!(load.holds(1_000, None));
        assert!(load.holds(12, Some(100_000)) && !load.holds(13, Some(100_000)));
        // A tenth of real time.
        load.measured(Spent { busy_us: 100_000, sound_ms: 0 });
        load.measured(Spent { busy_us: 400_000, sound_ms: 5_000 });
        assert!(load.holds(8, Some(1)) && !load.holds(9, Some(1)));
        (0..40).for_each(|_| load.measured(Spent { busy_us: 1_000_000, sound_ms: 1_000 }));
        assert!(!load.holds(1, None));
        (0..80).for_each(|_| load.measured(Spent { busy_us: 1_000, sound_ms: 1_000 }));
        assert!(load.holds(16, None));
    }
}

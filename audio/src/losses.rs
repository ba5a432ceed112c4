//! What a source owes: sound that the clock says should have come and that never came.

/// How long it is watched before it is judged, in microseconds.
const WINDOW_US: u64 = 1_000_000;

/// The source's deficit against the clock, of which only a lasting step counts: chunks come late and catch up, and two
/// clocks drift apart slowly.
#[derive(Debug)]
pub struct Losses {
    frame_us: u64,
    first_us: Option<u64>,
    received_us: u64,
    /// The smallest deficit of the window before; `None` before one is full.
    before_us: Option<i64>,
    smallest_us: i64,
    window_until_us: u64,
    frames: u64,
}

impl Losses {
    /// Counts in frames of this length in microseconds.
    pub fn new(frame_us: u64) -> Self {
        let smallest_us = i64::MAX;
        Self {
            frame_us,
            first_us: None,
            received_us: 0,
            before_us: None,
            smallest_us,
            window_until_us: 0,
            frames: 0,
        }
    }

    /// Sound of this length came at this time.
    pub fn arrived(&mut self, length_us: u64, now_us: u64) {
        let Some(first_us) = self.first_us else {
            // How long the first took is not known.
            (self.first_us, self.window_until_us) = (Some(now_us), now_us.saturating_add(WINDOW_US));
            return;
        };
        self.received_us += length_us;
        let deficit = now_us.saturating_sub(first_us).cast_signed() - self.received_us.cast_signed();
        self.smallest_us = self.smallest_us.min(deficit);
        if now_us >= self.window_until_us {
            self.judge();
            self.window_until_us = now_us.saturating_add(WINDOW_US);
        }
    }

    /// The same count, after a pause whose length is nobody's loss.
    pub fn resumed(&self) -> Self {
        Self { frames: self.frames, ..Self::new(self.frame_us) }
    }

    /// Frames that never came, so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    fn judge(&mut self) {
        if let Some(before) = self.before_us {
            let step = u64::try_from(self.smallest_us - before).unwrap_or(0);
            self.frames += step / self.frame_us;
        }
        self.before_us = Some(self.smallest_us);
        self.smallest_us = i64::MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks of 20 ms, each at its own time and late by this.
    fn lost(late: impl Fn(u64) -> Option<u64>) -> u64 {
        let mut losses = Losses::new(20_000);
        for at in 0..3_000_u64 {
            if let Some(late) = late(at) {
                losses.arrived(20_000, at * 20_000 + late);
            }
        }
        losses.frames()
    }

    #[test]
    fn only_what_never_comes_is_lost() {
        assert_eq!(lost(|_| Some(0)), 0, "even");
        assert_eq!(lost(|at| Some(at % 7 * 9_000)), 0, "uneven");
        assert_eq!(
            lost(|at| Some(if (500..520).contains(&at) { (520 - at) * 20_000 } else { 0 })),
            0,
            "caught up"
        );
        assert_eq!(lost(|at| Some(at * 20)), 0, "a clock that drifts by a thousandth");
        assert_eq!(lost(|at| (!(500..507).contains(&at)).then_some(0)), 7, "seven in a row");
        assert_eq!(lost(|at| (!(500..507).contains(&at)).then_some(at % 3 * 5_000)), 7, "the same, uneven");
    }
}

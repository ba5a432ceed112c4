//! Leaves what a lower sampling rate holds: a low-pass, every so-manieth sample, and the same low-pass between them.

use std::f64::consts::PI;

/// Taps of the low-pass: a sinc under a Hamming window.
const TAPS: usize = 63;

/// Past samples of both filters.
#[derive(Debug)]
pub(super) struct Decimate {
    factor: usize,
    taps: [f32; TAPS],
    before: Delay,
    behind: Delay,
    at: usize,
}

#[derive(Debug)]
struct Delay {
    samples: [f32; TAPS],
    next: usize,
}

impl Delay {
    const NONE: Self = Self { samples: [0.0; TAPS], next: 0 };

    /// Takes a sample and filters.
    fn filter(&mut self, sample: f32, taps: &[f32; TAPS]) -> f32 {
        self.samples[self.next] = sample;
        self.next = (self.next + 1) % TAPS;
        let (newer, older) = self.samples.split_at(self.next);
        older.iter().chain(newer).zip(taps).map(|(sample, tap)| sample * tap).sum()
    }
}

impl Decimate {
    /// By 2 or 4.
    pub(super) fn new(factor: u8) -> Option<Self> {
        let factor = usize::from(factor);
        matches!(factor, 2 | 4).then(|| Self {
            factor,
            taps: low_pass(0.43 / factor as f64),
            before: Delay::NONE,
            behind: Delay::NONE,
            at: 0,
        })
    }

    pub(super) fn apply(&mut self, frame: &mut [f32]) {
        for sample in frame {
            let low = self.before.filter(*sample, &self.taps);
            let kept = if self.at == 0 { low * self.factor as f32 } else { 0.0 };
            self.at = (self.at + 1) % self.factor;
            *sample = self.behind.filter(kept, &self.taps);
        }
    }
}

/// With its corner at this part of the sampling rate; the taps add up to 1.
fn low_pass(corner: f64) -> [f32; TAPS] {
    let middle = (TAPS - 1) as f64 / 2.0;
    let tap = |at: usize| {
        let from_middle = at as f64 - middle;
        let sinc = if from_middle == 0.0 {
            2.0 * corner
        } else {
            (2.0 * PI * corner * from_middle).sin() / (PI * from_middle)
        };
        sinc * (0.54 - 0.46 * (2.0 * PI * at as f64 / (TAPS - 1) as f64).cos())
    };
    let sum: f64 = (0..TAPS).map(tap).sum();
    std::array::from_fn(|at| (tap(at) / sum) as f32)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{applied, rms, tone};
    use super::*;

    fn left_db(factor: u8, hz: f32) -> f32 {
        let mut stage = Decimate::new(factor).unwrap();
        let sound = tone(hz, 0.5, 50);
        let out = applied(sound.clone(), |frame| stage.apply(frame));
        20.0 * (rms(&out[1_000..]) / rms(&sound[1_000..])).log10()
    }

    #[test]
    fn low_tones_stay_and_high_ones_go() {
        for (factor, stays, goes) in [(2, 2_500.0, 4_300.0), (4, 1_000.0, 2_300.0)] {
            let (low, high) = (left_db(factor, stays), left_db(factor, goes));
            assert!(low.abs() < 0.5 && high < -40.0, "by {factor}: {low} dB, {high} dB");
        }
    }
}

//! How loud it is, and whether there is anything but silence.

use ringfence_protocol::{FRAME_SAMPLES, Level, Notice};

/// Full scale in a message.
const FULL_SCALE: f64 = 32_767.0;
/// What no sample of silence exceeds: -80 dB of full scale, three steps of 16 bits.
const SILENCE_PEAK: f32 = 1e-4;
/// The length of a frame in milliseconds.
const FRAME_MS: u64 = 20;

/// Sums since the last level.
#[derive(Debug, Default)]
pub struct Meter {
    squares: f64,
    samples: u64,
    peak: f32,
    silent_frames: u64,
    silence_ms: u64,
    notice: Option<Notice>,
    told: bool,
}

impl Meter {
    /// After so much silence in a row it is told; 0 for never.
    pub fn new(silence_ms: u32) -> Self {
        Self { silence_ms: u64::from(silence_ms), ..Self::default() }
    }

    /// One frame, as it was captured.
    pub fn take(&mut self, frame: &[f32]) {
        debug_assert_eq!(frame.len(), FRAME_SAMPLES, "a frame has one length");
        let peak = frame.iter().fold(0.0_f32, |peak, sample| peak.max(sample.abs()));
        self.squares += frame.iter().map(|sample| f64::from(*sample).powi(2)).sum::<f64>();
        self.samples += frame.len() as u64;
        self.peak = self.peak.max(peak);
        if peak <= SILENCE_PEAK { self.silence() } else { self.sound() }
    }

    /// The level since it was last asked for; `None` where nothing came.
    pub fn level(&mut self) -> Option<Level> {
        if self.samples == 0 {
            return None;
        }
        let rms = (self.squares / self.samples as f64).sqrt();
        let level = Level { rms: scaled(rms), peak: scaled(f64::from(self.peak)) };
        (self.squares, self.samples, self.peak) = (0.0, 0, 0.0);
        Some(level)
    }

    /// What is to be told, once.
    pub fn notice(&mut self) -> Option<Notice> {
        self.notice.take()
    }

    fn silence(&mut self) {
        self.silent_frames += 1;
        let ms = self.silent_frames * FRAME_MS;
        if self.silence_ms > 0 && ms >= self.silence_ms && !self.told {
            self.told = true;
            self.notice = Some(Notice::OnlySilence { ms });
        }
    }

    fn sound(&mut self) {
        self.silent_frames = 0;
        if self.told {
            self.told = false;
            self.notice = Some(Notice::SoundAgain);
        }
    }
}

/// In parts of full scale, which louder sound has too.
fn scaled(part: f64) -> u16 {
    (part * FULL_SCALE).round().clamp(0.0, FULL_SCALE) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_of_what_came_since_the_last() {
        let mut meter = Meter::new(0);
        assert_eq!(meter.level(), None);
        let square: Vec<f32> = (0..FRAME_SAMPLES).map(|at| if at % 2 == 0 { 0.5 } else { -0.5 }).collect();
        meter.take(&square);
        assert_eq!(meter.level(), Some(Level { rms: 16_384, peak: 16_384 }));
        meter.take(&[0.0; FRAME_SAMPLES]);
        meter.take(&[3.0; FRAME_SAMPLES]);
        assert_eq!(meter.level(), Some(Level { rms: 32_767, peak: 32_767 }));
        assert_eq!(meter.level(), None);
    }

    #[test]
    fn silence_is_told_once_and_its_end_too() {
        let mut meter = Meter::new(100);
        let notices = |meter: &mut Meter, frames: usize, sample: f32| {
            (0..frames)
                .filter_map(|_| {
                    meter.take(&[sample; FRAME_SAMPLES]);
                    meter.notice()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(notices(&mut meter, 4, 0.0), []);
        assert_eq!(notices(&mut meter, 2, 0.1), []);
        assert_eq!(notices(&mut meter, 50, 3e-5), [Notice::OnlySilence { ms: 100 }]);
        assert_eq!(notices(&mut meter, 3, 0.1), [Notice::SoundAgain]);
        assert_eq!(notices(&mut Meter::new(0), 1_000, 0.0), []);
    }
}

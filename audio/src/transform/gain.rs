//! Automatic gain control: one gain a frame towards a loudness, slowly up, quickly down, and never over full scale.

/// Where speech is brought to: -20 dB of full scale.
const TARGET_RMS: f32 = 0.1;
/// What is taken for a pause and leaves the gain as it is: -55 dB.
const PAUSE_RMS: f32 = 0.0018;
/// The most: 30 dB.
const GAIN_MAX: f32 = 31.6;
/// The least: -20 dB.
const GAIN_MIN: f32 = 0.1;
/// The part of the way to the wanted gain that one frame goes, up and down.
const UP: f32 = 0.04;
const DOWN: f32 = 0.5;
/// No sample is louder than this.
const CEILING: f32 = 0.98;

/// The gain of the last frame's end.
#[derive(Debug)]
pub(super) struct GainControl {
    gain: f32,
}

impl Default for GainControl {
    fn default() -> Self {
        Self { gain: 1.0 }
    }
}

impl GainControl {
    pub(super) fn apply(&mut self, frame: &mut [f32]) {
        let count = frame.len() as f32;
        let rms = (frame.iter().map(|sample| sample * sample).sum::<f32>() / count).sqrt();
        let next = self.next(rms);
        let step = (next - self.gain) / count;
        for (at, sample) in frame.iter_mut().enumerate() {
            *sample = (*sample * (self.gain + step * at as f32)).clamp(-CEILING, CEILING);
        }
        self.gain = next;
    }

    fn next(&self, rms: f32) -> f32 {
        if rms < PAUSE_RMS {
            return self.gain;
        }
        let wanted = (TARGET_RMS / rms).clamp(GAIN_MIN, GAIN_MAX);
        let part = if wanted > self.gain { UP } else { DOWN };
        self.gain + (wanted - self.gain) * part
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{applied, rms, tone};
    use super::*;

    #[test]
    fn quiet_and_loud_speech_come_to_one_loudness() {
        for height in [0.01, 0.05, 0.3, 0.9] {
            let mut stage = GainControl::default();
            let out = applied(tone(300.0, height, 200), |frame| stage.apply(frame));
            let reached = rms(&out[48_000..]);
            assert!((0.09..=0.11).contains(&reached), "{height}: {reached}");
        }
    }

    #[test]
    fn a_pause_is_not_turned_up() {
        let mut stage = GainControl::default();
        let out = applied(tone(300.0, 0.001, 200), |frame| stage.apply(frame));
        assert!(rms(&out) < 0.001);
    }

    #[test]
    fn a_sudden_shout_stays_in_scale() {
        let mut stage = GainControl::default();
        let mut sound = tone(300.0, 0.005, 100);
        sound.extend(tone(300.0, 1.0, 10));
        let out = applied(sound, |frame| stage.apply(frame));
        assert!(out.iter().all(|sample| sample.abs() <= CEILING));
    }
}

//! A high-pass of second order: R. Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients", with a
//! quality of 1/sqrt(2).

use ringfence_protocol::STREAM_RATE;
use std::f64::consts::{FRAC_1_SQRT_2, TAU};

/// Two past samples in, two out, in direct form 1.
#[derive(Debug)]
pub(super) struct HighPass {
    b: [f64; 3],
    a: [f64; 2],
    input: [f64; 2],
    output: [f64; 2],
}

impl HighPass {
    /// With its corner at this frequency, from 20 to 2000 Hz.
    pub(super) fn new(hz: u16) -> Option<Self> {
        if !(20..=2_000).contains(&hz) {
            return None;
        }
        let angle = TAU * f64::from(hz) / f64::from(STREAM_RATE);
        let (sine, cosine) = angle.sin_cos();
        let alpha = sine / (2.0 * FRAC_1_SQRT_2);
        let whole = 1.0 + alpha;
        let side = (1.0 + cosine) / 2.0 / whole;
        let a = [-2.0 * cosine / whole, (1.0 - alpha) / whole];
        Some(Self { b: [side, -2.0 * side, side], a, input: [0.0; 2], output: [0.0; 2] })
    }

    pub(super) fn apply(&mut self, frame: &mut [f32]) {
        for sample in frame {
            let now = f64::from(*sample);
            let out = self.b[0] * now + self.b[1] * self.input[0] + self.b[2] * self.input[1]
                - self.a[0] * self.output[0]
                - self.a[1] * self.output[1];
            (self.input, self.output) = ([now, self.input[0]], [out, self.output[0]]);
            *sample = out as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{applied, rms, tone};
    use super::*;

    /// How much of a tone is left, in dB, after it has settled.
    fn left_db(corner: u16, hz: f32) -> f32 {
        let mut stage = HighPass::new(corner).unwrap();
        let sound = tone(hz, 0.5, 100);
        let out = applied(sound.clone(), |frame| stage.apply(frame));
        20.0 * (rms(&out[16_000..]) / rms(&sound[16_000..])).log10()
    }

    #[test]
    fn what_lies_below_the_corner_goes() {
        for (corner, hz, low, high) in [
            (100, 25.0, -26.0, -22.0),
            (100, 100.0, -3.2, -2.8),
            (100, 1_000.0, -0.1, 0.1),
            (300, 50.0, -33.0, -29.0),
        ] {
            let left = left_db(corner, hz);
            assert!((low..=high).contains(&left), "{corner} Hz, {hz} Hz: {left} dB");
        }
    }

    #[test]
    fn a_constant_offset_goes() {
        let mut stage = HighPass::new(80).unwrap();
        let out = applied(vec![0.25; 320 * 50], |frame| stage.apply(frame));
        assert!(out[15_000..].iter().all(|sample| sample.abs() < 1e-6));
    }
}

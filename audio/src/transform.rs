//! What is done to the sound before it leaves the program: each a pure function of what came before and one frame.

mod decimate;
mod gain;
mod high_pass;
mod obfuscate;
mod roots;

use decimate::Decimate;
use gain::GainControl;
use high_pass::HighPass;
use obfuscate::Obfuscate;
use ringfence_protocol::{TRANSFORMS_MAX, Transform};

/// Transforms with their memories, in the order in which they are applied.
#[derive(Debug, Default)]
pub struct Chain(Vec<Stage>);

#[derive(Debug)]
enum Stage {
    HighPass(HighPass),
    GainControl(GainControl),
    Obfuscate(Box<Obfuscate>),
    Decimate(Box<Decimate>),
}

impl Chain {
    /// For these; `random` is drawn for each stream and chooses the coefficient of obfuscation. `None` where one of them
    /// has a number that is not taken, or there are too many.
    pub fn new(transforms: &[Transform], random: u64) -> Option<Self> {
        if transforms.len() > TRANSFORMS_MAX {
            return None;
        }
        transforms.iter().map(|transform| stage(*transform, random)).collect::<Option<_>>().map(Self)
    }

    /// Changes one frame in place.
    pub fn apply(&mut self, frame: &mut [f32]) {
        for stage in &mut self.0 {
            match stage {
                Stage::HighPass(stage) => stage.apply(frame),
                Stage::GainControl(stage) => stage.apply(frame),
                Stage::Obfuscate(stage) => stage.apply(frame),
                Stage::Decimate(stage) => stage.apply(frame),
            }
        }
    }
}

fn stage(transform: Transform, random: u64) -> Option<Stage> {
    match transform {
        Transform::HighPass { hz } => HighPass::new(hz).map(Stage::HighPass),
        Transform::GainControl => Some(Stage::GainControl(GainControl::default())),
        Transform::Obfuscate => Some(Stage::Obfuscate(Box::new(Obfuscate::new(random)))),
        Transform::Decimate { factor } => Decimate::new(factor).map(|stage| Stage::Decimate(Box::new(stage))),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use ringfence_protocol::{FRAME_SAMPLES, STREAM_RATE};
    use std::f32::consts::TAU;

    /// A tone of this frequency and height.
    pub(crate) fn tone(hz: f32, height: f32, frames: usize) -> Vec<f32> {
        let at = |at: usize| height * (TAU * hz * at as f32 / STREAM_RATE as f32).sin();
        (0..frames * FRAME_SAMPLES).map(at).collect()
    }

    /// Noise of the same height for the same seed.
    pub(crate) fn noise(height: f32, frames: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 40) as f32 / (1 << 23) as f32 - 1.0) * height
        };
        (0..frames * FRAME_SAMPLES).map(|_| next()).collect()
    }

    /// What a stage makes of it, frame by frame.
    pub(crate) fn applied(mut sound: Vec<f32>, mut apply: impl FnMut(&mut [f32])) -> Vec<f32> {
        sound.chunks_exact_mut(FRAME_SAMPLES).for_each(&mut apply);
        sound
    }

    pub(crate) fn rms(sound: &[f32]) -> f32 {
        (sound.iter().map(|sample| sample * sample).sum::<f32>() / sound.len() as f32).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{applied, noise};
    use super::*;

    #[test]
    fn an_empty_chain_changes_nothing() {
        let sound = noise(0.3, 10, 1);
        let mut chain = Chain::new(&[], 0).unwrap();
        assert_eq!(applied(sound.clone(), |frame| chain.apply(frame)), sound);
    }

    #[test]
    fn numbers_that_are_not_taken_make_no_chain() {
        let wrong = [
            Transform::HighPass { hz: 19 },
            Transform::HighPass { hz: 2_001 },
            Transform::Decimate { factor: 0 },
            Transform::Decimate { factor: 3 },
        ];
        for transform in wrong {
            assert!(Chain::new(&[transform], 0).is_none(), "{transform:?}");
        }
        assert!(Chain::new(&[Transform::GainControl; TRANSFORMS_MAX + 1], 0).is_none());
    }

    #[test]
    fn whatever_comes_in_what_goes_out_is_finite_and_in_scale_with_gain_control_last() {
        let all = [
            Transform::HighPass { hz: 80 },
            Transform::Obfuscate,
            Transform::Decimate { factor: 2 },
            Transform::GainControl,
        ];
        for (height, seed) in [(0.0, 1), (1e-6, 2), (0.1, 3), (1.0, 4), (100.0, 5)] {
            let mut chain = Chain::new(&all, seed).unwrap();
            let out = applied(noise(height, 100, seed), |frame| chain.apply(frame));
            assert!(out.iter().all(|sample| sample.is_finite() && sample.abs() <= 1.0), "{height}");
        }
    }
}

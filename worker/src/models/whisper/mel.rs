//! The spectrogram that Whisper hears: powers of 25 ms every 10 ms in bands of the mel scale, in decades, as openai/whisper
//! computes it. Samples are let go as soon as they are in a frame, so a sound takes half of its own bytes.

use crate::memory::{Memory, Refusal};
use realfft::num_complex::Complex32;
use realfft::{RealFftPlanner, RealToComplex};
use ringfence_kernels::OutOfMemory;
use std::f64::consts::TAU;
use std::sync::Arc;
use zeroize::Zeroize;

/// Samples a second.
pub const RATE: usize = 16_000;
/// Samples from one frame to the next.
pub const HOP: usize = 160;
/// Samples of a frame.
const LENGTH: usize = 400;
/// Frequencies of a frame.
const BINS: usize = LENGTH / 2 + 1;
/// What counts as no power at all.
const POWER_MIN: f32 = 1e-10;
/// How far below the loudest a band is still told apart, in decades.
const RANGE: f32 = 8.0;
/// Frames that are allocated together.
const BLOCK_FRAMES: usize = 3000;

/// A sound as its spectrogram, while it comes and once it is whole.
pub struct Mel {
    bands: Vec<Band>,
    window: Vec<f32>,
    transform: Arc<dyn RealToComplex<f32>>,
    input: Vec<f32>,
    spectrum: Vec<Complex32>,
    scratch: Vec<Complex32>,
    /// What the next frame begins with.
    samples: Vec<f32>,
    /// Samples so far.
    count: usize,
    /// Powers in decades, frame by frame.
    blocks: Vec<Vec<f32>>,
    frames: usize,
    loudest: f32,
    whole: bool,
}

/// What a band adds up: so much of each frequency from `first` on.
struct Band {
    first: usize,
    weights: Vec<f32>,
}

/// A sound may be a live one, of which nothing is to stay.
impl Drop for Mel {
    fn drop(&mut self) {
        self.samples.zeroize();
        self.input.zeroize();
        self.blocks.zeroize();
    }
}

impl std::fmt::Debug for Mel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mel({} frames in {} bands)", self.frames, self.bands.len())
    }
}

impl Mel {
    /// No sound yet, for so many bands.
    pub fn new(bands: usize) -> Self {
        let transform = RealFftPlanner::<f32>::new().plan_fft_forward(LENGTH);
        let hann = |at: usize| (0.5 - 0.5 * (TAU * at as f64 / LENGTH as f64).cos()) as f32;
        Self {
            bands: filters(bands),
            window: (0..LENGTH).map(hann).collect(),
            input: transform.make_input_vec(),
            spectrum: transform.make_output_vec(),
            scratch: transform.make_scratch_vec(),
            transform,
            samples: Vec::new(),
            count: 0,
            blocks: Vec::new(),
            frames: 0,
            loudest: POWER_MIN.log10(),
            whole: false,
        }
    }

    /// Bytes that a sound of so many samples takes at most.
    pub fn bytes(samples: usize, bands: usize) -> u64 {
        let blocks = (samples / HOP + LENGTH / HOP + 1).div_ceil(BLOCK_FRAMES);
        (blocks as u64).saturating_mul((BLOCK_FRAMES * bands * size_of::<f32>()) as u64)
    }

    /// Takes the next samples, of 16 kHz and within -1 and 1. It is quick work: half a millisecond for a second of sound.
    ///
    /// # Errors
    /// There is no memory.
    ///
    /// # Panics
    /// If the sound is whole.
    pub fn push(&mut self, samples: &[f32], memory: &dyn Memory) -> Result<(), Refusal> {
        assert!(!self.whole, "the sound is whole");
        // The first frame is centred on the first sample, what is before it mirrored: it waits for what it mirrors.
        for piece in samples.chunks(RATE) {
            let held = self.count;
            self.samples.extend_from_slice(piece);
            self.count += piece.len();
            if held <= LENGTH / 2 && self.count > LENGTH / 2 {
                self.mirror();
            }
            if self.count > LENGTH / 2 {
                self.take_frames(memory)?;
            }
        }
        Ok(())
    }

    /// Says that nothing follows: as in openai/whisper silence does, so the last frames have less sound in them.
    ///
    /// # Errors
    /// There is no memory.
    pub fn finish(&mut self, memory: &dyn Memory) -> Result<(), Refusal> {
        if !self.whole {
            let count = self.count;
            self.push(&[0.0; LENGTH], memory)?;
            self.count = count;
            self.whole = true;
        }
        Ok(())
    }

    /// How many frames are of the sound itself: one for each 10 ms.
    pub fn frames(&self) -> usize {
        self.count / HOP
    }

    /// Samples so far.
    pub fn samples(&self) -> usize {
        self.count
    }

    /// Bands of a frame.
    pub fn bands(&self) -> usize {
        self.bands.len()
    }

    /// What the model is given of the frames from `first` on: `count` of them, then zeros up to `length`.
    ///
    /// # Panics
    /// If they are more than `length`, or the sound isn't whole.
    pub fn window(&self, first: usize, count: usize, length: usize, to: &mut Vec<f32>) {
        assert!(self.whole && count <= length, "{count} of {length} frames");
        to.clear();
        let least = self.loudest - RANGE;
        let scaled = |power: f32| (power.max(least) + 4.0) / 4.0;
        for frame in first..first + count {
            match self.frame(frame) {
                Some(powers) => to.extend(powers.iter().map(|power| scaled(*power))),
                // After the end there is silence.
                None => to.extend(std::iter::repeat_n(scaled(POWER_MIN.log10()), self.bands())),
            }
        }
        to.resize(length * self.bands(), 0.0);
    }

    fn frame(&self, frame: usize) -> Option<&[f32]> {
        let block = self.blocks.get(frame / BLOCK_FRAMES)?;
        block.get(frame % BLOCK_FRAMES * self.bands()..)?.get(..self.bands())
    }

    /// Puts the samples after the first one before it, the other way round.
    fn mirror(&mut self) {
        let mirrored: Vec<f32> = self.samples[1..=LENGTH / 2].iter().rev().copied().collect();
        self.samples.splice(..0, mirrored);
    }

    fn take_frames(&mut self, memory: &dyn Memory) -> Result<(), Refusal> {
        let mut at = 0;
        while at + LENGTH <= self.samples.len() {
            for ((to, sample), weight) in self.input.iter_mut().zip(&self.samples[at..]).zip(&self.window) {
                *to = sample * weight;
            }
            self.take_frame(memory)?;
            at += HOP;
        }
        self.samples.drain(..at);
        Ok(())
    }

    fn take_frame(&mut self, memory: &dyn Memory) -> Result<(), Refusal> {
        if self.frames.is_multiple_of(BLOCK_FRAMES) {
            self.blocks.push(block(self.bands.len(), memory)?);
        }
        let (input, spectrum) = (&mut self.input, &mut self.spectrum);
        let transformed = self.transform.process_with_scratch(input, spectrum, &mut self.scratch);
        transformed.expect("the buffers are of the transform's own lengths");
        let mut powers = [0.0; BINS];
        for (power, bin) in powers.iter_mut().zip(&self.spectrum) {
            *power = bin.norm_sqr();
        }
        let block = self.blocks.last_mut().expect("one was pushed");
        for band in &self.bands {
            let powers = &powers[band.first..][..band.weights.len()];
            let power: f32 = band.weights.iter().zip(powers).map(|(weight, power)| weight * power).sum();
            let decades = power.max(POWER_MIN).log10();
            self.loudest = self.loudest.max(decades);
            block.push(decades);
        }
        self.frames += 1;
        Ok(())
    }
}

fn block(bands: usize, memory: &dyn Memory) -> Result<Vec<f32>, Refusal> {
    let bytes = BLOCK_FRAMES * bands * size_of::<f32>();
    memory.check(bytes as u64).map_err(Refusal::Denied)?;
    let mut block = Vec::new();
    let reserved = block.try_reserve_exact(BLOCK_FRAMES * bands);
    reserved.map_err(|_| Refusal::Denied(memory.denied(OutOfMemory { bytes })))?;
    Ok(block)
}

/// Triangles of equal area, evenly spaced on Slaney's mel scale from 0 Hz to half the rate: 1 kHz and 15 mel are the same;
/// below the scale is linear, above it is logarithmic, 27 mel for a factor of 6.4.
fn filters(bands: usize) -> Vec<Band> {
    const KNEE_HZ: f64 = 1000.0;
    const KNEE: f64 = 15.0;
    let step = 6.4f64.ln() / 27.0;
    let top = KNEE + (RATE as f64 / 2.0 / KNEE_HZ).ln() / step;
    let hertz = |mel: f64| {
        if mel < KNEE { mel * KNEE_HZ / KNEE } else { KNEE_HZ * ((mel - KNEE) * step).exp() }
    };
    let edge = |at: usize| hertz(top * at as f64 / (bands + 1) as f64);
    let weight = |band: usize, bin: usize| {
        let (low, middle, high) = (edge(band), edge(band + 1), edge(band + 2));
        let frequency = bin as f64 * RATE as f64 / LENGTH as f64;
        let height = ((frequency - low) / (middle - low)).min((high - frequency) / (high - middle));
        (height.max(0.0) * 2.0 / (high - low)) as f32
    };
    let band = |band: usize| {
        let weights: Vec<f32> = (0..BINS).map(|bin| weight(band, bin)).collect();
        let first = weights.iter().position(|weight| *weight > 0.0).unwrap_or(0);
        let end = weights.iter().rposition(|weight| *weight > 0.0).map_or(first, |last| last + 1);
        Band { first, weights: weights[first..end].to_vec() }
    };
    (0..bands).map(band).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Lease;

    const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/whisper.mel.json");

    /// Whole numbers that f32 holds exactly, over a slower wave.
    fn samples() -> Vec<f32> {
        let fast = |n: i32| (n * 37 % 256 - 128) as f32 / 256.0;
        (0..24_000).map(|n| fast(n) * ((n / 40 % 100) as f32 / 100.0)).collect()
    }

    fn heard(samples: &[f32], piece: usize) -> Mel {
        let mut mel = Mel::new(80);
        samples.chunks(piece).for_each(|piece| mel.push(piece, &Lease).unwrap());
        mel.finish(&Lease).unwrap();
        mel
    }

    #[test]
    fn frames_are_those_of_openai() {
        let expected: serde_json::Value = serde_json::from_slice(&std::fs::read(EXPECTED).unwrap()).unwrap();
        let mel = heard(&samples(), 24_000);
        assert_eq!((mel.frames(), mel.samples()), (150, 24_000));
        let mut window = Vec::new();
        mel.window(0, 160, 170, &mut window);
        let frames = expected["frames"].as_array().unwrap().iter().zip(expected["bands"].as_array().unwrap());
        for (frame, bands) in frames {
            let frame = frame.as_u64().unwrap() as usize;
            for (band, expected) in bands.as_array().unwrap().iter().enumerate() {
                let found = f64::from(window[frame * 80 + band]);
                let off = (found - expected.as_f64().unwrap()).abs();
                assert!(off < 2e-4, "frame {frame}, band {band}: {found} instead of {expected}");
            }
        }
        assert!(window[160 * 80..].iter().all(|float| *float == 0.0), "what is not of the sound is zeros");
    }

    #[test]
    fn pieces_make_no_difference() {
        let samples = samples();
        let (mut whole, mut pieces) = (Vec::new(), Vec::new());
        heard(&samples, 24_000).window(0, 150, 150, &mut whole);
        for piece in [1, 7, 160, 201, 5000] {
            heard(&samples, piece).window(0, 150, 150, &mut pieces);
            assert!(whole == pieces, "pieces of {piece}");
        }
    }

    #[test]
    fn short_and_silent_sounds_are_heard() {
        for count in [0, 1, 159, 160, 200, 201, 399, 400] {
            let mel = heard(&vec![0.0; count], 50);
            assert_eq!(mel.frames(), count / HOP);
            let mut window = Vec::new();
            mel.window(0, mel.frames(), 5, &mut window);
            assert!(window[..mel.frames() * 80].iter().all(|float| *float == -1.5), "{count}");
        }
    }

    #[test]
    fn a_sound_takes_no_more_than_it_says() {
        for count in [1, 480_000, 479_000, 1_000_000] {
            let mel = heard(&vec![0.1; count], 100_000);
            let taken: usize = mel.blocks.iter().map(|block| block.capacity() * size_of::<f32>()).sum();
            assert!(taken as u64 <= Mel::bytes(count, 80), "{count} samples take {taken} bytes");
        }
    }
}

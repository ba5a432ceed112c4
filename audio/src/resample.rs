//! From a source's rate to 16 kHz, one channel, chunk by chunk.

use crate::format::Format;
use ringfence_protocol::{AudioError, STREAM_RATE};
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler};

/// The longest chunk of input: 20 ms at the highest rate.
pub const CHUNK_SAMPLES_MAX: usize = 3_840;
/// The longest chunk of output, of a chunk of 40 ms.
pub const RESAMPLED_SAMPLES_MAX: usize = 640;

/// One rate to 16 kHz.
pub struct ToStreamRate {
    /// None where the rate is 16 kHz already.
    by_fft: Option<Fft<f32>>,
    chunk: usize,
    delay_us: u64,
}

impl std::fmt::Debug for ToStreamRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ToStreamRate").field("chunk", &self.chunk).finish_non_exhaustive()
    }
}

impl ToStreamRate {
    /// For a source of this rate.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`] where no chunk of it is short enough.
    pub fn new(format: Format) -> Result<Self, AudioError> {
        let (rate, wanted) = (format.rate() as usize, STREAM_RATE as usize);
        let frame = rate / 50;
        if rate == wanted {
            return Ok(Self { by_fft: None, chunk: frame, delay_us: 0 });
        }
        let fft =
            Fft::<f32>::new(rate, wanted, frame, 1, FixedSync::Both).map_err(|_| AudioError::BadFormat)?;
        let (chunk, most) = (fft.input_frames_max(), fft.output_frames_max());
        if chunk > CHUNK_SAMPLES_MAX || most > RESAMPLED_SAMPLES_MAX {
            return Err(AudioError::BadFormat);
        }
        let delay_us = fft.output_delay() as u64 * 1_000_000 / u64::from(STREAM_RATE);
        Ok(Self { by_fft: Some(fft), chunk, delay_us })
    }

    /// Samples of each chunk that goes in.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// How much later a sample comes out than it went in, in microseconds.
    pub fn delay_us(&self) -> u64 {
        self.delay_us
    }

    /// Resamples one chunk; how many samples came out.
    pub fn resample(&mut self, chunk: &[f32], out: &mut [f32]) -> usize {
        assert_eq!(chunk.len(), self.chunk, "chunks are whole");
        let Some(fft) = &mut self.by_fft else {
            out[..chunk.len()].copy_from_slice(chunk);
            return chunk.len();
        };
        let room = out.len();
        let chunk = InterleavedSlice::new(chunk, 1, chunk.len()).expect("one channel of that length");
        let mut out = InterleavedSlice::new_mut(out, 1, room).expect("one channel of that length");
        let (_, written) =
            fft.process_into_buffer(&chunk, &mut out, None).expect("lengths were checked when it was made");
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_protocol::AUDIO_RATES;
    use std::f64::consts::TAU;

    /// A tone of 440 Hz after resampling, against the same tone made at 16 kHz.
    #[test]
    fn a_tone_stays_the_tone_from_every_rate() {
        for rate in AUDIO_RATES {
            let mut resampler = ToStreamRate::new(Format::new(rate, 1).unwrap()).unwrap();
            let tone = |rate: u32, at: f64| (TAU * 440.0 * at / f64::from(rate)).sin();
            let (mut made, mut at) = (Vec::new(), 0);
            let mut out = [0.0; RESAMPLED_SAMPLES_MAX];
            while made.len() < 8_000 {
                let chunk: Vec<f32> =
                    (at..at + resampler.chunk()).map(|at| tone(rate, at as f64) as f32).collect();
                at += chunk.len();
                let written = resampler.resample(&chunk, &mut out);
                made.extend_from_slice(&out[..written]);
            }
            // The filter's middle may lie between two samples of the source.
            let half = 0.5 * f64::from(STREAM_RATE) / f64::from(rate);
            let delay = resampler.delay_us() as f64 * f64::from(STREAM_RATE) / 1e6;
            let worst = |delay: f64| {
                let error = |at: usize| (f64::from(made[at]) - tone(STREAM_RATE, at as f64 - delay)).abs();
                (2_000..8_000).map(error).fold(0.0, f64::max)
            };
            let worst = worst(delay).min(worst(delay - half)).min(worst(delay + half));
            assert!(worst < 2e-3, "{rate} Hz: {worst}");
        }
    }
}

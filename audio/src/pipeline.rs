//! From a source's samples to frames of the stream: mixed down, resampled, transformed, cut.

use crate::format::Format;
use crate::meter::Meter;
use crate::resample::{CHUNK_SAMPLES_MAX, RESAMPLED_SAMPLES_MAX, ToStreamRate};
use crate::ring::FrameRing;
use crate::transform::Chain;
use ringfence_protocol::{
    AudioError, FRAME_SAMPLES, FRAME_US, STREAM_RATE, Transform, frame_samples, write_frame_head,
};
use ringfence_sandbox::{LockError, Locked};

/// Where sound lies on its way, in locked memory.
#[derive(Debug)]
pub struct Workspace {
    mono: Locked<f32>,
    resampled: Locked<f32>,
    frame: Locked<f32>,
}

impl Workspace {
    /// Room for any format. Not inside the filter.
    ///
    /// # Errors
    /// The memory can't be locked.
    pub fn new() -> Result<Self, LockError> {
        Ok(Self {
            mono: Locked::new(CHUNK_SAMPLES_MAX)?,
            resampled: Locked::new(RESAMPLED_SAMPLES_MAX)?,
            frame: Locked::new(FRAME_SAMPLES)?,
        })
    }

    /// Leaves no sample.
    pub fn wipe(&mut self) {
        self.mono.wipe();
        self.resampled.wipe();
        self.frame.wipe();
    }
}

/// What has been made of one source since it was started or resumed.
#[derive(Debug)]
pub struct Pipeline {
    format: Format,
    resampler: ToStreamRate,
    chain: Chain,
    mix: Mix,
    /// Samples in `Workspace::mono` and in `Workspace::frame`.
    mono: usize,
    framed: usize,
}

/// A sample of some channels so far.
#[derive(Debug, Default)]
struct Mix {
    sum: f32,
    channels: u16,
}

/// Where frames go, and how they are counted.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Those that wait.
    pub ring: &'a mut FrameRing,
    /// The number of the next.
    pub sequence: &'a mut u64,
    /// How loud they were.
    pub meter: &'a mut Meter,
}

impl Pipeline {
    /// For samples of this format. `random` is drawn for the stream.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`].
    pub fn new(format: Format, transforms: &[Transform], random: u64) -> Result<Self, AudioError> {
        let resampler = ToStreamRate::new(format)?;
        let chain = Chain::new(transforms, random).ok_or(AudioError::BadFormat)?;
        Ok(Self { format, resampler, chain, mix: Mix::default(), mono: 0, framed: 0 })
    }

    /// Takes interleaved samples, of which the last was captured at `newest_us`.
    pub fn take(
        &mut self,
        samples: impl ExactSizeIterator<Item = f32>,
        newest_us: u64,
        space: &mut Workspace,
        out: &mut Outgoing<'_>,
    ) {
        let channels = self.format.channels();
        let mut left = samples.len();
        for sample in samples {
            left -= 1;
            self.mix.sum += sample;
            self.mix.channels += 1;
            if self.mix.channels < channels {
                continue;
            }
            space.mono[self.mono] = self.mix.sum / f32::from(channels);
            self.mix = Mix::default();
            self.mono += 1;
            if self.mono == self.resampler.chunk() {
                let behind = self.format.duration_us(left as u64 / u64::from(channels));
                self.chunk(newest_us.saturating_sub(behind), space, out);
            }
        }
    }

    /// Brings out what is still inside, with silence behind it up to the end of a frame.
    pub fn finish(&mut self, newest_us: u64, space: &mut Workspace, out: &mut Outgoing<'_>) {
        let inside = self.resampler.delay_us() + FRAME_US;
        let silence = inside * u64::from(self.format.rate()) / 1_000_000;
        let channels = usize::from(self.format.channels());
        let count = (silence as usize + self.resampler.chunk()) * channels;
        self.take(std::iter::repeat_n(0.0, count), newest_us, space, out);
    }

    fn chunk(&mut self, newest_us: u64, space: &mut Workspace, out: &mut Outgoing<'_>) {
        let chunk = &space.mono[..self.mono];
        let made = self.resampler.resample(chunk, &mut space.resampled);
        self.mono = 0;
        let newest_us = newest_us.saturating_sub(self.resampler.delay_us());
        for at in 0..made {
            space.frame[self.framed] = space.resampled[at];
            self.framed += 1;
            if self.framed == FRAME_SAMPLES {
                self.framed = 0;
                let behind = (made - 1 - at) as u64 * 1_000_000 / u64::from(STREAM_RATE);
                out.frame(&mut self.chain, &mut space.frame, newest_us.saturating_sub(behind));
            }
        }
    }
}

impl Outgoing<'_> {
    fn frame(&mut self, chain: &mut Chain, samples: &mut [f32], captured_us: u64) {
        self.meter.take(samples);
        chain.apply(samples);
        let frame = self.ring.push();
        write_frame_head(frame, *self.sequence, captured_us);
        *self.sequence += 1;
        for (two, sample) in frame_samples(frame).chunks_exact_mut(2).zip(samples.iter()) {
            two.copy_from_slice(&to_16_bits(*sample).to_le_bytes());
        }
    }
}

/// The nearest, and full scale for what is louder; no number becomes 0.
fn to_16_bits(sample: f32) -> i16 {
    (sample * 32_768.0).round() as i16
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_protocol::frame_captured_us;

    struct Made {
        samples: Vec<i16>,
        times: Vec<u64>,
    }

    fn run(format: Format, chunks: &[(Vec<f32>, u64)]) -> Made {
        let mut space = Workspace::new().unwrap();
        let mut ring = FrameRing::new().unwrap();
        let (mut sequence, mut meter) = (0, Meter::new(0));
        let mut pipeline = Pipeline::new(format, &[], 0).unwrap();
        let mut made = Made { samples: vec![], times: vec![] };
        for (chunk, newest_us) in chunks {
            let mut out = Outgoing { ring: &mut ring, sequence: &mut sequence, meter: &mut meter };
            pipeline.take(chunk.iter().copied(), *newest_us, &mut space, &mut out);
            while let Some(frame) = ring.front() {
                made.times.push(frame_captured_us(frame));
                let samples = frame_samples(frame).chunks_exact(2);
                made.samples.extend(samples.map(|two| i16::from_le_bytes([two[0], two[1]])));
                ring.pop();
            }
        }
        made
    }

    #[test]
    fn at_16_khz_samples_pass_as_they_are_whatever_the_chunks() {
        let sound: Vec<f32> = (0..3_200).map(|at| at as f32 / 32_768.0).collect();
        let chunks: Vec<_> = sound.chunks(77).map(|chunk| (chunk.to_vec(), 0)).collect();
        let made = run(Format::new(16_000, 1).unwrap(), &chunks);
        assert_eq!(made.samples, (0..3_200).collect::<Vec<i16>>());
    }

    #[test]
    fn channels_are_averaged_even_if_a_chunk_ends_between_them() {
        let sound: Vec<f32> = (0..640).flat_map(|at| [at as f32 / 16_384.0, 0.0]).collect();
        let chunks: Vec<_> = sound.chunks(33).map(|chunk| (chunk.to_vec(), 0)).collect();
        let made = run(Format::new(16_000, 2).unwrap(), &chunks);
        assert_eq!(made.samples, (0..640).collect::<Vec<i16>>());
    }

    #[test]
    fn a_frame_s_time_is_that_of_its_last_sample() {
        // Two and a half frames in one chunk, of which the last sample was captured at 1 s.
        let made = run(Format::new(16_000, 1).unwrap(), &[(vec![0.0; 800], 1_000_000)]);
        assert_eq!(made.times, [970_000, 990_000]);
        // 10 ms later by the resampler.
        let made = run(Format::new(48_000, 1).unwrap(), &[(vec![0.0; 960 * 2], 1_000_000)]);
        assert_eq!(made.times, [970_000, 990_000]);
    }

    #[test]
    fn what_is_too_loud_or_no_number_stays_in_scale() {
        let chunk = [2.0, -2.0, f32::NAN, f32::INFINITY];
        let made = run(Format::new(16_000, 1).unwrap(), &[(chunk.repeat(80), 0)]);
        assert_eq!(made.samples[..4], [i16::MAX, i16::MIN, 0, i16::MAX]);
    }

    #[test]
    fn finishing_brings_out_the_last_sample() {
        let format = Format::new(48_000, 1).unwrap();
        let mut space = Workspace::new().unwrap();
        let mut ring = FrameRing::new().unwrap();
        let (mut sequence, mut meter) = (0, Meter::new(0));
        let mut pipeline = Pipeline::new(format, &[], 0).unwrap();
        let mut out = Outgoing { ring: &mut ring, sequence: &mut sequence, meter: &mut meter };
        pipeline.take(std::iter::repeat_n(0.5, 1_000), 0, &mut space, &mut out);
        assert_eq!(*out.sequence, 1);
        pipeline.finish(0, &mut space, &mut out);
        let mut loud = 0;
        while let Some(frame) = ring.front() {
            let samples = frame_samples(frame).chunks_exact(2);
            loud += samples.filter(|two| i16::from_le_bytes([two[0], two[1]]) > 8_000).count();
            ring.pop();
        }
        // 1000 samples at 48 kHz are 333 at 16 kHz.
        assert!(loud.abs_diff(333) < 10, "{loud}");
    }
}

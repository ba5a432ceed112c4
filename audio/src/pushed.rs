//! A stream that somebody pushes: bytes become samples, no faster than its pace allows.

use crate::format::Format;
use ringfence_protocol::{AudioError, PUSHED_AHEAD_MS_MAX, Pace, Pushed, SampleEncoding};

/// The longest sample of any encoding in bytes.
const SAMPLE_BYTES_MAX: usize = 4;

/// Bytes to samples, of which one may be cut between two chunks.
#[derive(Debug)]
pub struct Decoder {
    encoding: SampleEncoding,
    channels: u64,
    part: [u8; SAMPLE_BYTES_MAX],
    part_len: usize,
    samples: u64,
}

impl Decoder {
    /// For this encoding and number of channels.
    pub fn new(encoding: SampleEncoding, channels: u16) -> Self {
        let part = [0; SAMPLE_BYTES_MAX];
        Self { encoding, channels: u64::from(channels), part, part_len: 0, samples: 0 }
    }

    /// The samples that are whole with these bytes, at the start of `out`, which takes as many as there are bytes.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`] for what is no finite number.
    pub fn decode(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<usize, AudioError> {
        let size = self.sample_bytes();
        let mut count = 0;
        for byte in bytes {
            self.part[self.part_len] = *byte;
            self.part_len += 1;
            if self.part_len == size {
                self.part_len = 0;
                out[count] = self.sample()?;
                count += 1;
            }
        }
        self.samples += count as u64;
        Ok(count)
    }

    /// Samples of each channel so far.
    pub fn samples(&self) -> u64 {
        self.samples / self.channels
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// [`AudioError::Truncated`] inside a sample, or between the channels of one.
    pub fn finish(&self) -> Result<(), AudioError> {
        let whole = self.part_len == 0 && self.samples.is_multiple_of(self.channels);
        if whole { Ok(()) } else { Err(AudioError::Truncated) }
    }

    fn sample_bytes(&self) -> usize {
        match self.encoding {
            SampleEncoding::S16Le => 2,
            SampleEncoding::F32Le => 4,
        }
    }

    fn sample(&self) -> Result<f32, AudioError> {
        let [a, b, c, d] = self.part;
        match self.encoding {
            SampleEncoding::S16Le => Ok(f32::from(i16::from_le_bytes([a, b])) / 32_768.0),
            SampleEncoding::F32Le => {
                let sample = f32::from_le_bytes([a, b, c, d]);
                if sample.is_finite() { Ok(sample) } else { Err(AudioError::BadFormat) }
            }
        }
    }
}

/// A pushed stream's numbers, checked.
#[derive(Debug)]
pub struct Feed {
    /// Its format.
    pub format: Format,
    /// How fast it may come.
    pub pace: Pace,
    /// Its bytes so far.
    pub decoder: Decoder,
    first_us: Option<u64>,
}

impl Feed {
    /// Of what the server says.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`].
    pub fn new(pushed: &Pushed) -> Result<Self, AudioError> {
        let format = Format::new(pushed.rate, pushed.channels)?;
        let decoder = Decoder::new(pushed.encoding, pushed.channels);
        Ok(Self { format, pace: pushed.pace, decoder, first_us: None })
    }

    /// Whether as much may have come by now.
    ///
    /// # Errors
    /// [`AudioError::TooFast`].
    pub fn check_pace(&mut self, now_us: u64) -> Result<(), AudioError> {
        let first_us = *self.first_us.get_or_insert(now_us);
        let allowed_us = now_us.saturating_sub(first_us) + PUSHED_AHEAD_MS_MAX * 1_000;
        match self.pace {
            Pace::RealTime if self.format.duration_us(self.decoder.samples()) > allowed_us => {
                Err(AudioError::TooFast)
            }
            Pace::RealTime | Pace::Buffered => Ok(()),
        }
    }

    /// A pause is no time in which sound may be saved up, nor one that counts.
    pub fn resumed(&mut self, now_us: u64) {
        let so_far = self.format.duration_us(self.decoder.samples());
        self.first_us = Some(now_us.saturating_sub(so_far));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_protocol::{ChunkBytes, Framing};

    fn decoded(encoding: SampleEncoding, bytes: &[u8], at_a_time: usize) -> Result<Vec<f32>, AudioError> {
        let mut decoder = Decoder::new(encoding, 1);
        let mut all = Vec::new();
        for chunk in bytes.chunks(at_a_time) {
            let mut out = [0.0; 64];
            let count = decoder.decode(chunk, &mut out)?;
            all.extend_from_slice(&out[..count]);
        }
        decoder.finish().map(|()| all)
    }

    #[test]
    fn samples_are_the_same_whatever_the_chunks() {
        let s16: Vec<u8> =
            [0_i16, 16_384, -32_768, 32_767].iter().flat_map(|sample| sample.to_le_bytes()).collect();
        let f32: Vec<u8> = [0.0_f32, 0.5, -1.0, 1.5].iter().flat_map(|sample| sample.to_le_bytes()).collect();
        for at_a_time in 1..=16 {
            let samples = decoded(SampleEncoding::S16Le, &s16, at_a_time).unwrap();
            assert_eq!(samples, [0.0, 0.5, -1.0, 32_767.0 / 32_768.0]);
            assert_eq!(decoded(SampleEncoding::F32Le, &f32, at_a_time).unwrap(), [0.0, 0.5, -1.0, 1.5]);
        }
    }

    #[test]
    fn what_is_no_number_or_not_whole_is_refused() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(decoded(SampleEncoding::F32Le, &wrong.to_le_bytes(), 4), Err(AudioError::BadFormat));
        }
        assert_eq!(decoded(SampleEncoding::S16Le, &[1, 2, 3], 3), Err(AudioError::Truncated));
        let mut stereo = Decoder::new(SampleEncoding::S16Le, 2);
        stereo.decode(&[0; 6], &mut [0.0; 6]).unwrap();
        assert_eq!((stereo.samples(), stereo.finish()), (1, Err(AudioError::Truncated)));
    }

    #[test]
    fn real_time_may_be_a_little_ahead_and_no_more() {
        let feed = |pace| {
            let head = ChunkBytes(vec![]);
            Feed::new(&Pushed {
                framing: Framing::Plain,
                encoding: SampleEncoding::S16Le,
                rate: 16_000,
                channels: 1,
                pace,
                head,
            })
            .unwrap()
        };
        let push = |feed: &mut Feed, ms: usize| {
            feed.decoder.decode(&vec![0; 32 * ms], &mut vec![0.0; 32 * ms]).unwrap()
        };
        let mut live = feed(Pace::RealTime);
        push(&mut live, 2_000);
        assert_eq!(live.check_pace(0), Ok(()));
        push(&mut live, 20);
        assert_eq!(live.check_pace(20_000), Ok(()));
        push(&mut live, 1);
        assert_eq!(live.check_pace(20_000), Err(AudioError::TooFast));
        live.resumed(1_000_000);
        assert_eq!(live.check_pace(1_000_000), Ok(()));
        push(&mut live, 2_001);
        assert_eq!(live.check_pace(1_000_000), Err(AudioError::TooFast));
        let mut buffered = feed(Pace::Buffered);
        push(&mut buffered, 60_000);
        assert_eq!(buffered.check_pace(0), Ok(()));
    }
}

//! What a source's samples are like, checked once.

use ringfence_protocol::{AUDIO_CHANNELS_MAX, AUDIO_RATES, AudioError};

/// A rate that becomes whole frames, and a number of channels that is mixed down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    rate: u32,
    channels: u16,
}

impl Format {
    /// Takes a rate in Hz and a number of channels.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`] where either is none that is taken.
    pub fn new(rate: u32, channels: u16) -> Result<Self, AudioError> {
        let taken = AUDIO_RATES.contains(&rate) && (1..=AUDIO_CHANNELS_MAX).contains(&channels);
        if taken { Ok(Self { rate, channels }) } else { Err(AudioError::BadFormat) }
    }

    /// Samples a second of each channel.
    pub fn rate(self) -> u32 {
        self.rate
    }

    /// Interleaved channels.
    pub fn channels(self) -> u16 {
        self.channels
    }

    /// How long so many samples of each channel last, in microseconds.
    pub fn duration_us(self, samples: u64) -> u64 {
        samples.saturating_mul(1_000_000) / u64::from(self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_rates_and_a_few_channels_are_taken() {
        for rate in AUDIO_RATES {
            assert!(Format::new(rate, 1).is_ok());
        }
        for (rate, channels) in [(0, 1), (44_101, 1), (u32::MAX, 1), (16_000, 0), (16_000, 9)] {
            assert_eq!(Format::new(rate, channels), Err(AudioError::BadFormat));
        }
        assert_eq!(Format::new(48_000, 2).unwrap().duration_us(960), 20_000);
    }
}

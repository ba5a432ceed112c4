//! What a job of speech recognition is, and what comes of it.

use crate::stream::FRAME_US;
use serde::{Deserialize, Serialize};

/// The longest prompt of a transcription, in bytes.
pub const PROMPT_BYTES_MAX: usize = 4 * 1024;
/// The longest name of a language, in bytes: two or three letters.
pub const LANGUAGE_BYTES_MAX: usize = 8;
/// The largest audio file of one job, in bytes.
pub const AUDIO_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest audio of one job, in milliseconds.
pub const AUDIO_MS_MAX: u64 = 2 * 3_600 * 1_000;
/// The longest text of one segment, in bytes.
pub const SEGMENT_TEXT_BYTES_MAX: usize = 16 * 1024;
/// The most tokens of one segment.
pub const SEGMENT_TOKENS_MAX: usize = 1_024;
/// The most segments of one job: one for each tenth of a second.
pub const SEGMENTS_MAX: u32 = (AUDIO_MS_MAX / 100) as u32;

/// How audio becomes text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TranscribeOptions {
    /// English, whatever is spoken.
    pub translate: bool,
    /// What is spoken, as the model names it (`en`); else the model finds out, at most [`LANGUAGE_BYTES_MAX`].
    pub language: Option<String>,
    /// What was said before, or how things are spelled; at most [`PROMPT_BYTES_MAX`].
    pub prompt: Option<String>,
    /// From 0 to 1. Without it: 0, and higher where that gives nothing good.
    pub temperature: Option<f32>,
}

impl TranscribeOptions {
    /// Whether everything is within its bounds.
    pub fn is_legal(&self) -> bool {
        let short = |text: &Option<String>, max: usize| text.as_ref().is_none_or(|text| text.len() <= max);
        short(&self.language, LANGUAGE_BYTES_MAX)
            && short(&self.prompt, PROMPT_BYTES_MAX)
            && self.temperature.is_none_or(|temperature| (0.0..=1.0).contains(&temperature))
    }
}

/// Where the audio of a job is: the bytes of a file, in whatever form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Audio {
    /// In the sealed memfd that came with the message.
    Sealed {
        /// How many bytes.
        bytes: u64,
    },
    /// A granted file: a [`crate::FileLink`] came with the message, non-blocking.
    File,
}

/// Why audio can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AudioFault {
    /// It is in no form that is known, or damaged beyond use.
    #[error("the file is no WAV, FLAC, MP3 or OGG Vorbis, or it is damaged")]
    Format,
    /// The file ends before the sound does.
    #[error("the file ends before its sound does")]
    Truncated,
    /// It has no sound.
    #[error("the file has no sound")]
    Silent,
    /// Its sound is coded in another way.
    #[error("the file's sound is coded in a way that is not known; WAV, FLAC, MP3 and OGG Vorbis are")]
    Codec,
    /// It is too long.
    #[error("the sound is longer than {} s", AUDIO_MS_MAX / 1_000)]
    TooLong,
    /// It has too many channels.
    #[error("the sound has too many channels; at most 8 are mixed into one")]
    Channels,
    /// Its rate is out of bounds.
    #[error("the sound's rate is not from 4,000 to 192,000 samples a second")]
    Rate,
}

/// A live job says how it stands after so much sound, in milliseconds.
pub const LISTENED_MS: u64 = 1_000;

/// What a live job has heard so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listened {
    /// Sound, in milliseconds: what is charged.
    pub audio_ms: u64,
    /// Frames that came.
    pub frames: u64,
    /// Frames that were given up before they came, by their numbers.
    pub missing: u64,
    /// How unevenly frames came (RFC 3550, section 6.4.1), in microseconds.
    pub jitter_us: u32,
    /// From the capture of a frame until it was here, in microseconds: the longest since the message before.
    pub latency_us: u32,
    /// Whether somebody speaks.
    pub speech: bool,
}

impl Listened {
    /// How far the stream has come, in milliseconds: what is missing counts, as it does in the times of texts, which
    /// [`Segment::is_legal`] holds against this.
    pub fn stream_ms(&self) -> u64 {
        self.audio_ms.saturating_add(self.missing.saturating_mul(FRAME_US / 1_000))
    }
}

/// Why a stream of live sound can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StreamFault {
    /// There is no voice detector, or its package can't be run.
    #[error(
        "the worker has no voice detector, which live sound is cut into phrases by; add the package `silero-vad`"
    )]
    NoDetector,
    /// A packet that the capturing program did not make.
    #[error("the stream was changed on its way")]
    Forged,
    /// The capturing program ended without a word.
    #[error("the stream was cut off")]
    CutOff,
    /// As many streams as the worker hears in real time.
    #[error("the worker hears as many streams as it can in real time")]
    Busy,
}

/// A piece of what was said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Where its window begins in the audio, in milliseconds.
    pub seek_ms: u64,
    /// Where it begins, in milliseconds.
    pub start_ms: u64,
    /// Where it ends; not before it begins.
    pub end_ms: u64,
    /// What was said, at most [`SEGMENT_TEXT_BYTES_MAX`].
    pub text: String,
    /// Its tokens, at most [`SEGMENT_TOKENS_MAX`].
    pub tokens: Vec<u32>,
    /// At which it was sampled.
    pub temperature: f32,
    /// Mean logarithm of its tokens' probabilities.
    pub avg_logprob: f32,
    /// Bytes of the text to bytes of the text compressed: high where the model repeats itself.
    pub compression_ratio: f32,
    /// How likely it is that nothing was said.
    pub no_speech_prob: f32,
}

impl Segment {
    /// Whether it can be one of audio of this length: numbers are numbers, and texts and times within their bounds.
    pub fn is_legal(&self, audio_ms: u64) -> bool {
        let numbers = [self.temperature, self.avg_logprob, self.compression_ratio, self.no_speech_prob];
        self.start_ms <= self.end_ms
            && self.end_ms <= audio_ms.saturating_add(WINDOW_MS)
            && self.seek_ms <= audio_ms
            && self.text.len() <= SEGMENT_TEXT_BYTES_MAX
            && self.tokens.len() <= SEGMENT_TOKENS_MAX
            && numbers.iter().all(|number| number.is_finite())
    }
}

/// A model hears this much at a time; the last window ends behind the audio.
const WINDOW_MS: u64 = 30_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_lies_within_its_audio_and_its_numbers_are_numbers() {
        let listened = Listened { audio_ms: 980, missing: 1, ..Listened::default() };
        assert_eq!(listened.stream_ms(), 1_000);
        let good = Segment {
            seek_ms: 0,
            start_ms: 100,
            end_ms: 900,
            text: " Hello.".to_owned(),
            tokens: vec![1, 2],
            temperature: 0.0,
            avg_logprob: -0.2,
            compression_ratio: 0.9,
            no_speech_prob: 0.01,
        };
        assert!(good.is_legal(1_000));
        for wrong in [
            Segment { start_ms: 901, ..good.clone() },
            Segment { end_ms: 31_001, ..good.clone() },
            Segment { seek_ms: 1_001, ..good.clone() },
            Segment { text: "x".repeat(SEGMENT_TEXT_BYTES_MAX + 1), ..good.clone() },
            Segment { tokens: vec![0; SEGMENT_TOKENS_MAX + 1], ..good.clone() },
            Segment { avg_logprob: f32::NAN, ..good.clone() },
        ] {
            assert!(!wrong.is_legal(1_000), "{wrong:?}");
        }
    }
}

//! One attempt at the text of a phrase, or of what there is of it.

use crate::memory::Memory;
use crate::models::whisper::mel::Mel;
use crate::models::whisper::transcription::{Options, Segment, Step, Transcription};
use crate::models::{LoadedTranscriber, State};
use crate::pace::Pace;
use crate::speech::{Failed, POSITIONS_PER_S, of_job, of_start, transcribe};
use crate::stopwatch::Stopwatch;
use ringfence_protocol::{SEGMENT_TEXT_BYTES_MAX, SEGMENT_TOKENS_MAX, STREAM_RATE};
use std::ops::Range;
use zeroize::Zeroizing;

use super::phrases::Phrase;

/// Tokens of a text: nobody says more in a second than this, and some more. A model that does hears nothing.
const TOKENS_PER_S: u64 = 12;
const TOKENS_MORE: u64 = 16;

/// Silence behind a phrase, in samples: by it the model knows that it is over.
const SILENCE: usize = STREAM_RATE as usize;

/// What an attempt works with.
pub(crate) struct Ears<'a> {
    pub(crate) loaded: &'a mut LoadedTranscriber,
    pub(crate) pace: &'a mut Pace,
    pub(crate) memory: &'a dyn Memory,
    /// Counts turns, so that streams can tell who began before whom.
    pub(crate) turn: u64,
}

/// What an attempt is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To show something.
    Partial,
    /// The phrase may have ended there.
    Rest { end: u64 },
    /// It has; where somebody spoke.
    Final(Range<u64>),
}

/// The text of a sound.
#[derive(Clone, Debug, Default)]
pub(super) struct Text {
    /// Empty where nothing was said.
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
    pub(super) temperature: f32,
    pub(super) avg_logprob: f32,
    pub(super) compression_ratio: f32,
    pub(super) no_speech_prob: f32,
}

/// A sound that becomes a text.
pub(super) struct Attempt {
    /// Which, in samples of the stream.
    pub(super) sound: Range<u64>,
    pub(super) purpose: Purpose,
    work: Option<Transcription>,
    state: Option<State>,
    text: Text,
    busy_us: u64,
}

impl Attempt {
    pub(super) fn begin(
        sound: Range<u64>,
        purpose: Purpose,
        samples: &[i16],
        options: Options,
        state: State,
        ears: &mut Ears<'_>,
    ) -> Result<Self, Failed> {
        let watch = Stopwatch::start();
        let mut mel = Mel::new(ears.loaded.model.config().mels);
        let floats: Zeroizing<Vec<f32>> =
            Zeroizing::new(samples.iter().map(|sample| f32::from(*sample) / 32768.0).collect());
        mel.push(&floats, ears.memory).map_err(of_job)?;
        mel.push(&[0.0; SILENCE], ears.memory).map_err(of_job)?;
        mel.finish(ears.memory).map_err(of_job)?;
        let tokens = samples.len() as u64 * TOKENS_PER_S / u64::from(STREAM_RATE) + TOKENS_MORE;
        let mut options = Options { tokens_max: usize::try_from(tokens).ok(), ..options };
        if purpose == Purpose::Partial {
            // Another try would come too late.
            options.temperatures.truncate(1);
        }
        let work = Transcription::begin(ears.loaded, options, mel, state).map_err(of_start)?;
        Ok(Self {
            sound,
            purpose,
            work: Some(work),
            state: None,
            text: Text::default(),
            busy_us: watch.micros(),
        })
    }

    /// Whether it is at the text of a phrase that is over now.
    pub(super) fn answers(&self, phrase: &Phrase) -> bool {
        self.sound == phrase.sound && self.purpose == (Purpose::Rest { end: phrase.speech.end })
    }

    /// Whether its text is there.
    pub(super) fn is_heard(&self) -> bool {
        self.work.is_none()
    }

    /// Its text, once it is there.
    pub(super) fn text(&self) -> Option<&Text> {
        self.is_heard().then_some(&self.text)
    }

    /// One piece of the work; whether it was the last.
    pub(super) fn step(&mut self, ears: &mut Ears<'_>) -> Result<bool, Failed> {
        let Some(work) = &mut self.work else { return Ok(true) };
        let watch = Stopwatch::start();
        let step = transcribe(work, ears.loaded, ears.pace)?;
        self.busy_us += watch.micros();
        match step {
            Step::More => return Ok(false),
            Step::Segment(segment) => {
                self.text.add(segment);
                return Ok(false);
            }
            Step::Done => {}
        }
        self.state = self.work.take().map(Transcription::into_state);
        Ok(true)
    }

    /// What the model had for it, once it is done.
    pub(super) fn take_state(&mut self) -> Option<State> {
        self.state.take()
    }

    /// Ends it, done or not.
    pub(super) fn into_state(self) -> Option<State> {
        self.state.or(self.work.map(Transcription::into_state))
    }

    /// Of the encoder, counted as tokens; at least one.
    pub(super) fn positions(&self) -> u32 {
        let positions = (self.sound.end - self.sound.start) * POSITIONS_PER_S / u64::from(STREAM_RATE);
        u32::try_from(positions).unwrap_or(u32::MAX).max(1)
    }

    /// Of the text.
    pub(super) fn tokens(&self) -> u32 {
        u32::try_from(self.text.tokens.len()).unwrap_or(u32::MAX)
    }

    /// How long it has taken.
    pub(super) fn busy_us(&self) -> u64 {
        self.busy_us
    }
}

impl Text {
    /// A window has one segment mostly; the numbers are those of the first.
    fn add(&mut self, segment: Segment) {
        if segment.text.trim().is_empty() {
            return;
        }
        if self.text.is_empty() {
            self.temperature = segment.temperature;
            self.avg_logprob = segment.avg_logprob as f32;
            self.compression_ratio = segment.compression_ratio as f32;
            self.no_speech_prob = segment.no_speech_prob as f32;
        }
        self.text.push_str(&segment.text);
        self.text.truncate(self.text.floor_char_boundary(SEGMENT_TEXT_BYTES_MAX));
        self.tokens.extend(segment.tokens);
        self.tokens.truncate(SEGMENT_TOKENS_MAX);
    }
}

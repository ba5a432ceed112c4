//! Live sound: a stream of frames is cut into phrases, and each becomes a text soon after it was said.
//!
//! ```text
//! frames -> detector -> phrases -> attempts -> Partial.. Segment
//! ```
//! While somebody speaks, what there is so far is heard now and then, for a `Partial`. Once nobody has spoken for a moment,
//! the phrase is heard as if it were over; if it then ends, its text is there already, and if it goes on, that was one more
//! partial. A phrase's `Segment` is said once. A phrase that has ended is heard before anything of one that has not, so a
//! worker that can't keep up says fewer partials first; if it still falls behind, it stops reading, and what the capturing
//! program drops then is counted in `missing`.
//!
//! Phrases know nothing of each other: no text is given to the next, so that a mistake stays where it was made.

mod attempt;
mod held;
mod load;
mod phrases;

pub(crate) use attempt::Ears;
pub(crate) use load::Load;

use crate::lanes::Share;
use crate::memory::{Memory, Refusal};
use crate::models::State;
use crate::models::silero::{Silero, SileroState};
use crate::models::whisper::transcription::Options;
use crate::package::silero::CHUNK;
use crate::speech::Failed;
use crate::stopwatch::{Stopwatch, boot_us};
use attempt::{Attempt, Purpose, Text};
use held::Held;
use load::Spent;
use phrases::{PHRASE_MAX, Phrase, Phrases};
use ringfence_kernels::OutOfMemory;
use ringfence_protocol::{
    AUDIO_MS_MAX, FRAME_SAMPLES, FRAME_US, FromWorker, JobError, LISTENED_MS, Listened, STREAM_RATE, Segment,
    StreamError, StreamEvent, StreamFault, StreamFrame, StreamReader,
};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use zeroize::{Zeroize, Zeroizing};

/// The most streams of one worker.
pub(crate) const STREAMS_MAX: usize = 16;
/// How long the capturing program may take until its first handshake, in microseconds.
const OPENING_US_MAX: u64 = 120_000_000;
/// Frames that are taken of one stream before another's turn.
const FRAMES_AT_ONCE: usize = 16;
/// Missing frames that are heard as silence; more of them end the phrase.
const GAP_FRAMES_MAX: u64 = 50;
/// Samples of phrases that wait for their texts; while there are more, nothing is read.
const WAITING_SAMPLES_MAX: usize = 10 * STREAM_RATE as usize;
/// Sound between two partials, at least.
const PARTIAL_EVERY: u64 = STREAM_RATE as u64;
/// A partial may take this share of the time since the one before, divided by all streams.
const PARTIAL_SHARE: u64 = 4;
/// No frame has such a number: a stream ends after [`AUDIO_MS_MAX`].
const SEQUENCE_MAX: u64 = u32::MAX as u64;
/// Samples that a phrase and what follows it until it is looked at can have.
const HELD_SAMPLES: usize = PHRASE_MAX as usize + 4 * CHUNK;
/// Bytes that a stream takes on the host beside what the model has for a job: sound that is held and that waits, a
/// spectrogram, keys.
pub(crate) const STREAM_BYTES: u64 = 8 << 20;

/// A live job, from its `Listen` to its end.
pub(crate) struct Stream {
    pub(crate) slot: u32,
    pub(crate) share: Share,
    options: Options,
    reader: StreamReader,
    stage: Stage,
    detector: SileroState,
    phrases: Phrases,
    held: Held,
    /// Phrases that are over and have no text yet, oldest first.
    waiting: VecDeque<Waiting>,
    attempt: Option<Attempt>,
    /// What the model has for this job, while no attempt has it.
    state: Option<State>,
    /// In which turn it last began an attempt.
    began: u64,
    /// Until where the phrase that is open was heard.
    heard_until: u64,
    /// What the last attempt took.
    attempt_us: u64,
    /// What phrases have taken, as far as nobody has asked yet.
    spent: Spent,
    /// Whether a partial stands for which there is no segment.
    is_shown: bool,
    listened: Listened,
    sequence: u32,
    /// What the server is to be told.
    told: VecDeque<FromWorker>,
    /// What was used since it was last said: tokens in steps, and time for the detector, in microseconds.
    pub(crate) step_tokens: u32,
    detector_us: u64,
    pub(crate) tokens: u32,
    pub(crate) compute_us: u64,
}

/// How far a stream is.
enum Stage {
    /// No handshake yet, since then.
    Opening(Stopwatch),
    Open,
    /// Nothing more comes.
    Ended,
}

/// A phrase with its sound.
struct Waiting {
    phrase: Phrase,
    samples: Zeroizing<Vec<i16>>,
}

/// What a stream wants of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    /// Where nobody else wants anything: a partial.
    Later,
    Now,
}

impl Stream {
    /// Waits for the handshake.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn new(
        slot: u32,
        share: Share,
        options: Options,
        reader: StreamReader,
        state: State,
        memory: &dyn Memory,
    ) -> Result<Self, Refusal> {
        let refused = |bytes| Refusal::Denied(memory.denied(OutOfMemory { bytes }));
        Ok(Self {
            slot,
            share,
            options,
            reader,
            stage: Stage::Opening(Stopwatch::start()),
            detector: SileroState::default(),
            phrases: Phrases::new(CHUNK),
            held: Held::new(HELD_SAMPLES).map_err(refused)?,
            waiting: VecDeque::new(),
            attempt: None,
            state: Some(state),
            began: 0,
            heard_until: 0,
            attempt_us: 0,
            spent: Spent::default(),
            is_shown: false,
            listened: Listened::default(),
            sequence: 0,
            told: VecDeque::new(),
            step_tokens: 0,
            detector_us: 0,
            tokens: 0,
            compute_us: 0,
        })
    }

    /// Whether its socket is to be read.
    pub(crate) fn listens(&self) -> bool {
        !matches!(self.stage, Stage::Ended) && self.waiting_samples() <= WAITING_SAMPLES_MAX
    }

    /// Whether phrases wait behind others.
    pub(crate) fn is_behind(&self) -> bool {
        self.waiting.len() > 1
    }

    /// Whether a phrase waits that has ended.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether everything was said.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Ended) && self.waiting.is_empty() && self.attempt.is_none()
    }

    fn waiting_samples(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.samples.len()).sum()
    }

    /// What the server is to be told next.
    pub(crate) fn next_told(&mut self) -> Option<FromWorker> {
        self.told.pop_front()
    }

    /// Time that the detector took since this was last asked, in microseconds.
    pub(crate) fn take_detector_us(&mut self) -> u64 {
        std::mem::take(&mut self.detector_us)
    }

    /// What its phrases have taken since this was last asked.
    pub(crate) fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    /// Takes the frames that have come.
    ///
    /// # Errors
    /// The stream is worth nothing any more.
    pub(crate) fn read(&mut self, silero: &mut Silero) -> Result<(), JobError> {
        for _ in 0..FRAMES_AT_ONCE {
            if !self.listens() {
                return Ok(());
            }
            match self.reader.receive(boot_us()) {
                Ok(StreamEvent::Opened { .. }) => self.stage = Stage::Open,
                Ok(StreamEvent::Frame(frame)) => self.take(frame, silero)?,
                Ok(StreamEvent::Paused) => self.end_sound(self.held.end()),
                Ok(StreamEvent::Ended) => self.end(),
                Err(StreamError::WouldBlock) => break,
                Err(error) => return Err(fault(&error)),
            }
        }
        match self.stage {
            Stage::Opening(since) if since.micros() > OPENING_US_MAX => Err(fault(&StreamError::CutOff)),
            Stage::Opening(_) | Stage::Open | Stage::Ended => Ok(()),
        }
    }

    fn take(&mut self, mut frame: StreamFrame, silero: &mut Silero) -> Result<(), JobError> {
        let taken = self.place(&frame, silero);
        frame.samples.zeroize();
        taken
    }

    /// Hears a frame where it belongs.
    fn place(&mut self, frame: &StreamFrame, silero: &mut Silero) -> Result<(), JobError> {
        if frame.sequence > SEQUENCE_MAX {
            return Err(fault(&StreamError::Malformed("a number that is too large")));
        }
        let place = frame.sequence * FRAME_SAMPLES as u64;
        if millis(place) >= AUDIO_MS_MAX - FRAME_US / 1_000 {
            self.end();
            return Ok(());
        }
        if frame.gap > GAP_FRAMES_MAX {
            self.end_sound(place);
        }
        while self.held.end() < place {
            self.hear(&[0; FRAME_SAMPLES], silero)?;
        }
        self.hear(&frame.samples[..], silero)?;
        self.count();
        Ok(())
    }

    /// Looks at the next samples.
    fn hear(&mut self, samples: &[i16], silero: &mut Silero) -> Result<(), JobError> {
        self.held.push(samples);
        while self.held.end() - self.phrases.at() >= CHUNK as u64 {
            let watch = Stopwatch::start();
            let at = self.phrases.at();
            let (probability, loudness) =
                look(silero, &mut self.detector, self.held.part(at..at + CHUNK as u64));
            self.detector_us += watch.micros();
            if !probability.is_finite() {
                return Err(JobError::NotFinite { item: 0 });
            }
            if let Some(phrase) = self.phrases.take(probability, loudness) {
                self.finish(phrase);
            }
            self.settle();
            self.held.forget_until(self.phrases.needed_from());
        }
        Ok(())
    }

    fn count(&mut self) {
        let seen = self.reader.statistics();
        self.listened = Listened {
            audio_ms: seen.frames * FRAME_US / 1_000,
            frames: seen.frames,
            missing: seen.missing,
            jitter_us: seen.jitter_us,
            latency_us: self.listened.latency_us.max(seen.delay_us),
            speech: self.phrases.open().is_some(),
        };
        if self.listened.audio_ms.is_multiple_of(LISTENED_MS) {
            self.tell_listened();
        }
    }

    /// Says how it stands: the server holds the times of texts against it.
    pub(crate) fn tell_listened(&mut self) {
        self.told.push_back(FromWorker::Listened { slot: self.slot, listened: self.listened });
        self.listened.latency_us = 0;
    }

    /// Nothing more comes: what was said becomes final.
    fn end(&mut self) {
        self.end_sound(self.held.end());
        self.stage = Stage::Ended;
    }

    /// What comes next is another sound, from a place in the stream on.
    fn end_sound(&mut self, next: u64) {
        if let Some(phrase) = self.phrases.end(self.held.end(), next) {
            self.finish(phrase);
        }
        self.settle();
        self.held.restart(next);
        self.detector = SileroState::default();
    }

    /// A phrase is over: it has been heard already, or waits to be.
    fn finish(&mut self, phrase: Phrase) {
        match &mut self.attempt {
            Some(attempt) if attempt.answers(&phrase) => {
                attempt.purpose = Purpose::Final(phrase.speech);
                self.conclude();
            }
            _ => {
                let samples = self.held.part(phrase.sound.clone()).to_vec().into();
                self.waiting.push_back(Waiting { phrase, samples });
            }
        }
        self.heard_until = 0;
    }

    /// Gives up an attempt that is worth nothing any more.
    fn settle(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let rests_since = self.phrases.rests_since();
        let is_of_open = self.phrases.open().is_some_and(|(from, _)| from == attempt.sound.start);
        match attempt.purpose {
            Purpose::Final(_) => {}
            Purpose::Partial | Purpose::Rest { .. } if !is_of_open => {
                self.give_up();
                // The phrase that it was of was a noise, or waits to be heard anew.
                if self.waiting.is_empty() {
                    self.withdraw();
                }
            }
            // Speech has gone on: it is a partial like others.
            Purpose::Rest { end } if rests_since != Some(end) => {
                if attempt.is_heard() {
                    self.give_up();
                } else {
                    attempt.purpose = Purpose::Partial;
                }
            }
            // There is a better moment to hear it.
            Purpose::Partial if rests_since.is_some() => self.give_up(),
            Purpose::Partial | Purpose::Rest { .. } => {}
        }
    }

    fn give_up(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            self.state = self.state.take().or(attempt.into_state());
        }
    }

    /// What it wants, where so many streams share the model; `pressed`: phrases that have ended wait somewhere.
    pub(crate) fn wish(&self, streams: usize, pressed: bool) -> Wish {
        match &self.attempt {
            Some(Attempt { purpose: Purpose::Partial, .. }) => Wish::Later,
            Some(attempt) if !attempt.is_heard() => Wish::Now,
            // It was heard in a rest that lasts.
            Some(_) => Wish::Nothing,
            None if !self.waiting.is_empty() => Wish::Now,
            None if self.phrases.rests_since().is_some() && !pressed => Wish::Now,
            None if self.partial_is_due(streams) => Wish::Later,
            None => Wish::Nothing,
        }
    }

    /// Of streams that wish for the same the least goes first: one whose attempt is at work, then the one that began its last
    /// longest ago.
    pub(crate) fn precedence(&self) -> (bool, u64) {
        (self.attempt.is_none(), self.began)
    }

    fn partial_is_due(&self, streams: usize) -> bool {
        let Some((_, start)) = self.phrases.open() else { return false };
        let cost = self.attempt_us.saturating_mul(streams as u64 * PARTIAL_SHARE);
        let interval = PARTIAL_EVERY.max(cost.saturating_mul(u64::from(STREAM_RATE)) / 1_000_000);
        self.phrases.rests_since().is_none()
            && self.phrases.at() >= self.heard_until.max(start).saturating_add(interval)
    }

    /// One bounded piece of what it wants.
    ///
    /// # Errors
    /// The job fails, or the worker.
    pub(crate) fn piece(&mut self, ears: &mut Ears<'_>) -> Result<(), Failed> {
        match &mut self.attempt {
            Some(attempt) => {
                if !attempt.step(ears)? {
                    return Ok(());
                }
            }
            None => return self.begin(ears),
        }
        let attempt = self.attempt.as_mut().expect("it was there just now");
        self.state = self.state.take().or(attempt.take_state());
        self.tokens = self.tokens.saturating_add(attempt.tokens());
        self.attempt_us = attempt.busy_us();
        if attempt.purpose != Purpose::Partial {
            self.spent.busy_us += attempt.busy_us();
        }
        self.conclude();
        Ok(())
    }

    fn begin(&mut self, ears: &mut Ears<'_>) -> Result<(), Failed> {
        let (sound, purpose, samples) = match self.waiting.pop_front() {
            Some(Waiting { phrase, samples }) => (phrase.sound, Purpose::Final(phrase.speech), samples),
            None => {
                let Some((from, _)) = self.phrases.open() else { return Ok(()) };
                let (to, purpose) = match self.phrases.rests_since() {
                    Some(end) => ((end + phrases::REST).min(self.held.end()), Purpose::Rest { end }),
                    None => (self.phrases.at(), Purpose::Partial),
                };
                self.heard_until = to;
                (from..to, purpose, self.held.part(from..to).to_vec().into())
            }
        };
        let Some(state) = self.state.take() else { return Ok(()) };
        self.began = ears.turn;
        let attempt = Attempt::begin(sound, purpose, &samples, self.options.clone(), state, ears)?;
        let positions = attempt.positions();
        self.step_tokens = self.step_tokens.saturating_add(positions);
        self.tokens = self.tokens.saturating_add(positions);
        self.attempt = Some(attempt);
        Ok(())
    }

    /// Says what an attempt that has its text was for.
    fn conclude(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let Some(text) = attempt.text() else { return };
        match attempt.purpose.clone() {
            Purpose::Final(speech) => {
                let (sound, text) = (attempt.sound.start, text.clone());
                self.spent.sound_ms += millis(attempt.sound.end - sound);
                self.attempt = None;
                self.say(sound, speech, text);
            }
            Purpose::Rest { .. } => {
                let text = text.text.clone();
                self.show(text);
            }
            Purpose::Partial => {
                let text = text.text.clone();
                self.attempt = None;
                self.show(text);
            }
        }
    }

    /// A partial. Without a text there is none, unless one stands.
    fn show(&mut self, text: String) {
        let Some((_, start)) = self.phrases.open() else { return };
        if !text.is_empty() || self.is_shown {
            self.is_shown = !text.is_empty();
            self.tell_listened();
            self.told.push_back(FromWorker::Partial { slot: self.slot, start_ms: millis(start), text });
        }
    }

    /// Takes back a partial for which there will be no segment.
    fn withdraw(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let start_ms = millis(self.phrases.at());
            self.told.push_back(FromWorker::Partial { slot: self.slot, start_ms, text: String::new() });
        }
    }

    fn say(&mut self, sound: u64, speech: std::ops::Range<u64>, text: Text) {
        if text.text.is_empty() {
            return self.withdraw();
        }
        self.is_shown = false;
        self.tell_listened();
        let segment = Segment {
            seek_ms: millis(sound),
            start_ms: millis(speech.start),
            end_ms: millis(speech.end),
            text: text.text,
            tokens: text.tokens,
            temperature: text.temperature,
            avg_logprob: text.avg_logprob,
            compression_ratio: text.compression_ratio,
            no_speech_prob: text.no_speech_prob,
        };
        self.told.push_back(FromWorker::Segment { slot: self.slot, sequence: self.sequence, segment });
        self.sequence += 1;
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// How likely it is that somebody speaks in these samples, and how loud they are.
fn look(silero: &mut Silero, state: &mut SileroState, samples: &[i16]) -> (f32, f32) {
    let mut floats = Zeroizing::new([0.0; CHUNK]);
    for (float, sample) in floats.iter_mut().zip(samples) {
        *float = f32::from(*sample) / 32768.0;
    }
    let loudness = floats.iter().map(|x| x * x).sum();
    (silero.look(state, &floats[..]), loudness)
}

fn millis(samples: u64) -> u64 {
    samples * 1_000 / u64::from(STREAM_RATE)
}

fn fault(error: &StreamError) -> JobError {
    let fault = match error {
        StreamError::Forged | StreamError::Malformed(_) | StreamError::Key => StreamFault::Forged,
        StreamError::CutOff | StreamError::WouldBlock | StreamError::Os(_) => StreamFault::CutOff,
    };
    JobError::StreamRefused { fault }
}

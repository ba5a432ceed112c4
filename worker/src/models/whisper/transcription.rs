//! One sound on its way to text, in steps: window by window, each of 30 seconds, as openai/whisper's `transcribe` goes.
//!
//! ```text
//! window -> encode.. -> (language) -> prompt.. -> token.. -> segments -> the window after the last timestamp
//!                                       ^ again, hotter: where the text repeats itself or is unlikely
//! ```
//! A transcription owns everything that belongs to its job; between two steps other jobs can use the model, and dropping
//! one ends it.

use super::attempt::{Attempt, Fault, Heard};
use super::mel::Mel;
use super::vocabulary::{Prompt, TIMESTAMP_FRAMES, TIMESTAMP_SECONDS, Task, Vocabulary};
use super::{mel, rules};
use crate::device::DeviceFailure;
use crate::memory::{Memory, Refusal};
use crate::models::{LoadedTranscriber, State, Transcriber};
use crate::package::whisper::WhisperConfig;
use crate::random::Random;
use std::collections::VecDeque;
use zeroize::Zeroizing;

/// What a text that is unlike speech is tried again at.
const TEMPERATURES: [f32; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
/// Above this temperature a text says nothing about what follows.
const TEMPERATURE_KEPT: f32 = 0.5;

/// What a client asks for, and the limits by which a text is tried again. The defaults are openai/whisper's.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The code of the language; the model finds out by the first window where there is none.
    pub language: Option<String>,
    /// What to write.
    pub task: Task,
    /// Whether the model tells times, by which long sounds are cut where nobody speaks.
    pub timestamps: bool,
    /// What is said to have been said before.
    pub prompt: Option<String>,
    /// Tried one after another until a text is as it should be; at least one, each at least 0.
    pub temperatures: Vec<f32>,
    /// A text that is this many times as long as it is compressed repeats itself.
    pub compression_ratio_max: f64,
    /// A text whose tokens are less likely than this, as a logarithm, is not trusted.
    pub log_probability_min: f64,
    /// Above this probability that nobody speaks, a text that is not trusted is dropped.
    pub no_speech_max: f64,
    /// Whether a window's text goes on from the former one's.
    pub condition_on_previous: bool,
    /// Of what is random above temperature 0.
    pub seed: u64,
    /// How much the model hears at a time.
    pub window: Window,
    /// The most tokens of a window's text, if fewer than the model's own bound.
    pub tokens_max: Option<usize>,
}

/// How long a window is that the model hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// As the model was trained, with silence behind a sound that is shorter.
    Whole,
    /// Rounded up from the sound to whole seconds, ten at least: the encoder's work grows with it. What it makes of a short
    /// sound is nearly the same: in JFK and five LibriVox clips, tiny.en misheard 5 of 93 words by it instead of 3
    /// ("ill-disposed" once more). In windows of less than ten seconds it said short phrases again and again.
    Fitted,
}

/// Frames of a fitted window, at least, and what it is a multiple of.
const FITTED_FRAMES_MIN: usize = 1_000;
const FITTED_STEP_FRAMES: usize = 100;

impl Window {
    /// Rows of the encoder's work for a sound so short that its window is the shortest, all parts together.
    pub(crate) fn rows_min(self, config: &WhisperConfig) -> usize {
        let frames = self.frames(0, config.frames());
        frames + frames / 2 * (1 + 2 * config.audio_layers + config.text_layers)
    }

    /// Frames of a window of so many frames of sound, in a model whose windows have `whole`.
    fn frames(self, sound: usize, whole: usize) -> usize {
        match self {
            Self::Whole => whole,
            Self::Fitted => sound.next_multiple_of(FITTED_STEP_FRAMES).max(FITTED_FRAMES_MIN).min(whole),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            language: None,
            task: Task::Transcribe,
            timestamps: true,
            prompt: None,
            temperatures: TEMPERATURES.to_vec(),
            compression_ratio_max: 2.4,
            log_probability_min: -1.0,
            no_speech_max: 0.6,
            condition_on_previous: true,
            seed: 0,
            window: Window::Whole,
            tokens_max: None,
        }
    }
}

/// A piece of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Counted from 0.
    pub id: usize,
    /// The first frame of its window; a frame is 10 ms.
    pub seek: usize,
    /// Where it begins, in seconds.
    pub start: f64,
    /// Where it ends, in seconds.
    pub end: f64,
    /// Its text, with the space before it that the model says.
    pub text: String,
    /// Its tokens, timestamps included.
    pub tokens: Vec<u32>,
    /// The temperature of its window.
    pub temperature: f32,
    /// The mean logarithm of its window's tokens' probabilities.
    pub avg_logprob: f64,
    /// Bytes of its window's text for each byte of it compressed.
    pub compression_ratio: f64,
    /// The probability that nobody speaks in its window.
    pub no_speech_prob: f64,
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing to tell yet.
    More,
    /// A segment is there.
    Segment(Segment),
    /// All segments have been told.
    Done,
}

/// What a step works on; each kind has its own speed, by which a caller chooses how many rows a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing that takes time.
    Nothing,
    /// Rows of the encoder.
    Sound,
    /// Tokens that the model is given.
    Prompt,
    /// A token that the model says.
    Token,
}

/// Why a transcription can't begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The model doesn't know the language.
    #[error("the model doesn't know the language `{language}`")]
    LanguageUnknown {
        /// Its code, as it was given.
        language: String,
    },
    /// The model writes English from English only.
    #[error("the model knows English only and can't translate")]
    EnglishOnly,
    /// The prompt can't be tokenised.
    #[error("the prompt can't be tokenised")]
    Prompt,
    /// There is no temperature, or one that is no number from 0 on.
    #[error("a temperature is no number from 0 on, or there is none")]
    Temperature,
    /// There is no room for it, or the device failed.
    #[error("{0}")]
    Refused(Refusal),
}

/// Why a transcription can't go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The device failed.
    #[error("{0}")]
    Device(#[from] DeviceFailure),
    /// The model computed what is no number.
    #[error("the model's output is not finite")]
    NotFinite,
    /// The tokeniser can't say the text of tokens.
    #[error("the model's tokens have no text")]
    Tokenizer,
}

impl From<Fault> for StepError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotFinite => Self::NotFinite,
            Fault::Tokenizer => Self::Tokenizer,
        }
    }
}

/// A job: a sound, what was heard of it, and where it is.
pub struct Transcription {
    options: Options,
    sound: Mel,
    state: State,
    random: Random,
    language: Option<String>,
    phase: Phase,
    /// The first frame of the window.
    seek: usize,
    /// What was said so far, the client's prompt first, and from where on the next window may go on.
    said: Vec<u32>,
    kept_from: usize,
    segments: usize,
    told: VecDeque<Segment>,
    /// Of the next token.
    logits: Vec<f32>,
    /// Of the first token, for another attempt.
    first: Vec<f32>,
    window: Zeroizing<Vec<f32>>,
}

/// What comes next.
#[derive(Debug)]
enum Phase {
    Window,
    Encode,
    Language,
    Prompt(Feeding),
    Token(Saying),
}

/// A prompt on its way to the model.
#[derive(Debug)]
struct Feeding {
    prompt: Prompt,
    /// How many of its tokens the model has taken.
    fed: usize,
    /// The probability that nobody speaks, once the start token is among those.
    no_speech: f64,
}

/// A window's text on its way from the model.
#[derive(Debug)]
struct Saying {
    /// Tokens of the prompt before it.
    prompt: usize,
    no_speech: f64,
    /// How many temperatures were given up.
    retry: usize,
    attempt: Attempt,
}

impl std::fmt::Debug for Transcription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transcription(frame {} of {})", self.seek, self.sound.frames())
    }
}

impl Transcription {
    /// Begins with a sound that is whole, and takes what the job needs beside it: [`Transcriber::bytes_per_job`].
    ///
    /// # Errors
    /// The model can't do what is asked, or there is no room.
    ///
    /// # Panics
    /// If the sound has other bands than the model, or isn't whole.
    pub fn new(
        loaded: &LoadedTranscriber,
        options: Options,
        sound: Mel,
        memory: &dyn Memory,
    ) -> Result<Self, StartError> {
        let state = loaded.model.open(memory).map_err(StartError::Refused)?;
        Self::begin(loaded, options, sound, state)
    }

    /// Begins with a sound that is whole, and what [`Transcriber::open`] made for it.
    ///
    /// # Errors
    /// The model can't do what is asked.
    ///
    /// # Panics
    /// If the sound has other bands than the model, or isn't whole.
    pub fn begin(
        loaded: &LoadedTranscriber,
        options: Options,
        sound: Mel,
        state: State,
    ) -> Result<Self, StartError> {
        let LoadedTranscriber { model, vocabulary } = loaded;
        assert_eq!(sound.bands(), model.config().mels, "bands");
        let said = check(&options, vocabulary)?;
        Ok(Self {
            random: Random::new(options.seed),
            language: options.language.clone(),
            options,
            sound,
            state,
            phase: Phase::Window,
            seek: 0,
            said,
            kept_from: 0,
            segments: 0,
            told: VecDeque::new(),
            logits: Vec::new(),
            first: Vec::new(),
            window: Zeroizing::default(),
        })
    }

    /// Whether the model can do what is asked.
    ///
    /// # Errors
    /// It can't.
    pub fn check(loaded: &LoadedTranscriber, options: &Options) -> Result<(), StartError> {
        check(options, &loaded.vocabulary).map(|_| ())
    }

    /// Ends it, and gives back what [`Transcriber::open`] made.
    pub fn into_state(self) -> State {
        self.state
    }

    /// The code of the language, once it is known; nothing where the model knows English only.
    pub fn language(&self) -> Option<&str> {
        self.language.as_deref()
    }

    /// How many frames have been turned into text, and how many there are.
    pub fn progress(&self) -> (usize, usize) {
        let frames = self.sound.frames();
        (self.seek.min(frames), frames)
    }

    /// Seconds of the sound.
    pub fn seconds(&self) -> f64 {
        self.sound.samples() as f64 / mel::RATE as f64
    }

    /// What the next step works on.
    pub fn next_work(&self) -> Work {
        match &self.phase {
            _ if !self.told.is_empty() => Work::Nothing,
            Phase::Window => Work::Nothing,
            Phase::Encode => Work::Sound,
            Phase::Language => Work::Token,
            Phase::Prompt(_) => Work::Prompt,
            Phase::Token(_) => Work::Token,
        }
    }

    /// One bounded piece of work: at most `rows` rows of one part of the encoder, `rows` tokens of a prompt, or one token of
    /// the text; room for as many rows was made by [`Transcriber::reserve`].
    ///
    /// # Errors
    /// The device failed, or the model's output is unusable. The transcription is worth nothing then.
    pub fn step(&mut self, loaded: &mut LoadedTranscriber, rows: usize) -> Result<Step, StepError> {
        if let Some(segment) = self.told.pop_front() {
            return Ok(Step::Segment(segment));
        }
        let LoadedTranscriber { model, vocabulary } = loaded;
        let model = &mut **model;
        match std::mem::replace(&mut self.phase, Phase::Window) {
            Phase::Window => {
                if self.seek >= self.sound.frames() {
                    return Ok(Step::Done);
                }
                self.begin_window(model);
            }
            Phase::Encode => self.encode(model, vocabulary, rows)?,
            Phase::Language => self.find_language(model, vocabulary)?,
            Phase::Prompt(feeding) => self.feed(model, vocabulary, rows, feeding)?,
            Phase::Token(saying) => self.say(model, vocabulary, saying)?,
        }
        Ok(Step::More)
    }

    /// Frames of the window that are of the sound.
    fn window_frames(&self, model: &dyn Transcriber) -> usize {
        model.config().frames().min(self.sound.frames() - self.seek)
    }

    fn begin_window(&mut self, model: &mut dyn Transcriber) {
        let frames = self.window_frames(model);
        let length = self.options.window.frames(frames, model.config().frames());
        self.sound.window(self.seek, frames, length, &mut self.window);
        model.hear(&mut self.state, &self.window);
        self.phase = Phase::Encode;
    }

    fn encode(
        &mut self,
        model: &mut dyn Transcriber,
        vocabulary: &Vocabulary,
        rows: usize,
    ) -> Result<(), StepError> {
        self.phase = if !model.encode(&mut self.state, rows)? {
            Phase::Encode
        } else if vocabulary.is_multilingual() && self.language.is_none() {
            Phase::Language
        } else {
            self.prompt(model, vocabulary)
        };
        Ok(())
    }

    fn find_language(
        &mut self,
        model: &mut dyn Transcriber,
        vocabulary: &Vocabulary,
    ) -> Result<(), StepError> {
        model.decode(&mut self.state, &[vocabulary.start()], 0, Some(&mut self.logits))?;
        if self.logits.iter().any(|logit| logit.is_nan()) {
            return Err(StepError::NotFinite);
        }
        self.language = vocabulary.language_of(&self.logits).map(str::to_owned);
        self.phase = self.prompt(model, vocabulary);
        Ok(())
    }

    fn prompt(&self, model: &dyn Transcriber, vocabulary: &Vocabulary) -> Phase {
        let before = &self.said[self.kept_from..];
        // Half of the model's memory is for what was said before, less the token that begins it.
        let most = (model.config().text_positions / 2).saturating_sub(1);
        let before = &before[before.len().saturating_sub(most)..];
        let Options { task, timestamps, .. } = self.options;
        let prompt = vocabulary.prompt(before, self.language(), task, timestamps);
        Phase::Prompt(Feeding { prompt, fed: 0, no_speech: 0.0 })
    }

    /// Gives the model the next tokens of the prompt.
    fn feed(
        &mut self,
        model: &mut dyn Transcriber,
        vocabulary: &Vocabulary,
        rows: usize,
        feeding: Feeding,
    ) -> Result<(), StepError> {
        let Feeding { prompt, fed, mut no_speech } = feeding;
        // What the model says at the start token tells whether somebody speaks.
        let stop = if fed <= prompt.start { prompt.start + 1 } else { prompt.ids.len() };
        let end = stop.min(fed + rows.max(1));
        let logits = (end == stop).then_some(&mut self.logits);
        model.decode(&mut self.state, &prompt.ids[fed..end], fed, logits)?;
        if end == prompt.start + 1 {
            let logit = f64::from(self.logits[vocabulary.no_speech() as usize]);
            no_speech = (logit - rules::log_sum(&self.logits)).exp();
        }
        self.phase = if end < prompt.ids.len() {
            Phase::Prompt(Feeding { prompt, fed: end, no_speech })
        } else {
            self.first.clone_from(&self.logits);
            let attempt = Attempt::new(self.options.temperatures[0]);
            Phase::Token(Saying { prompt: end, no_speech, retry: 0, attempt })
        };
        Ok(())
    }

    /// Says the next token, or ends the window.
    fn say(
        &mut self,
        model: &mut dyn Transcriber,
        vocabulary: &Vocabulary,
        saying: Saying,
    ) -> Result<(), StepError> {
        let Saying { prompt, no_speech, retry, mut attempt } = saying;
        let timestamps = self.options.timestamps;
        let token = attempt.choose(&mut self.logits, vocabulary, timestamps, &mut self.random)?;
        let positions = model.config().text_positions;
        // Half of the model's memory is for the text, and none is beyond its end.
        let most = self.options.tokens_max.unwrap_or(usize::MAX).min(positions / 2);
        let full = attempt.tokens() >= most || prompt + attempt.tokens() > positions;
        if let Some(token) = token.filter(|_| !full) {
            let at = prompt + attempt.tokens() - 1;
            model.decode(&mut self.state, &[token], at, Some(&mut self.logits))?;
            self.phase = Phase::Token(Saying { prompt, no_speech, retry, attempt });
            return Ok(());
        }
        let heard = attempt.finish(vocabulary)?;
        match self.options.temperatures.get(retry + 1) {
            Some(temperature) if self.is_doubtful(&heard, no_speech) => {
                self.logits.clone_from(&self.first);
                let attempt = Attempt::new(*temperature);
                self.phase = Phase::Token(Saying { prompt, no_speech, retry: retry + 1, attempt });
                Ok(())
            }
            _ => self.end_window(model, vocabulary, heard, no_speech),
        }
    }

    fn is_doubtful(&self, heard: &Heard, no_speech: f64) -> bool {
        let Options { compression_ratio_max, log_probability_min, .. } = self.options;
        let unlikely = heard.log_probability < log_probability_min;
        let silent = no_speech > self.options.no_speech_max && unlikely;
        !silent && (unlikely || heard.compression_ratio > compression_ratio_max)
    }

    /// Cuts a window's text into segments, and goes to the next.
    fn end_window(
        &mut self,
        model: &dyn Transcriber,
        vocabulary: &Vocabulary,
        heard: Heard,
        no_speech: f64,
    ) -> Result<(), StepError> {
        let frames = self.window_frames(model);
        let trusted = heard.log_probability > self.options.log_probability_min;
        if no_speech > self.options.no_speech_max && !trusted {
            self.seek += frames;
            return Ok(());
        }
        let (pieces, advance) = cut(&heard.tokens, frames, vocabulary);
        for piece in pieces {
            let segment = self.segment(vocabulary, &heard, piece, no_speech)?;
            self.said.extend_from_slice(&segment.tokens);
            self.told.push_back(segment);
            self.segments += 1;
        }
        if !self.options.condition_on_previous || heard.temperature > TEMPERATURE_KEPT {
            self.kept_from = self.said.len();
        }
        self.seek += advance;
        Ok(())
    }

    fn segment(
        &self,
        vocabulary: &Vocabulary,
        heard: &Heard,
        piece: Piece<'_>,
        no_speech: f64,
    ) -> Result<Segment, StepError> {
        let seconds = |frames: f64| frames * mel::HOP as f64 / mel::RATE as f64;
        let offset = seconds(self.seek as f64);
        let (start, end) = (offset + piece.start, offset + piece.end);
        let mut text = vocabulary.text(piece.tokens).ok_or(StepError::Tokenizer)?;
        let mut tokens = piece.tokens.to_vec();
        // What lasts no time or has no text is told as empty.
        if start == end || text.trim().is_empty() {
            text.clear();
            tokens.clear();
        }
        Ok(Segment {
            id: self.segments,
            seek: self.seek,
            start,
            end,
            text,
            tokens,
            temperature: heard.temperature,
            avg_logprob: heard.log_probability,
            compression_ratio: heard.compression_ratio,
            no_speech_prob: no_speech,
        })
    }
}

/// The tokens of the client's prompt, if the rest is in order.
fn check(options: &Options, vocabulary: &Vocabulary) -> Result<Vec<u32>, StartError> {
    let multilingual = vocabulary.is_multilingual();
    if let Some(language) = &options.language
        && !(vocabulary.has_language(language) || !multilingual && language == "en")
    {
        return Err(StartError::LanguageUnknown { language: language.clone() });
    }
    if !multilingual && options.task == Task::Translate {
        return Err(StartError::EnglishOnly);
    }
    if options.temperatures.is_empty() || !options.temperatures.iter().all(|t| t.is_finite() && *t >= 0.0) {
        return Err(StartError::Temperature);
    }
    match options.prompt.as_deref().map(str::trim) {
        None | Some("") => Ok(Vec::new()),
        Some(prompt) => vocabulary.encode(&format!(" {prompt}")).ok_or(StartError::Prompt),
    }
}

/// Some of a window's tokens, and when they are said, in seconds from its beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece<'a> {
    tokens: &'a [u32],
    start: f64,
    end: f64,
}

/// Cuts the tokens of a window of so many frames where two timestamps meet, and says how many frames they are of.
fn cut<'a>(tokens: &'a [u32], frames: usize, vocabulary: &Vocabulary) -> (Vec<Piece<'a>>, usize) {
    let place = |id: u32| (id - vocabulary.timestamps()) as usize;
    let seconds = |place: usize| place as f64 * TIMESTAMP_SECONDS;
    let is_timestamp = |at: usize| vocabulary.is_timestamp(tokens[at]);
    let count = tokens.len();
    // One timestamp alone at the end: after it nobody speaks.
    let ends_alone = count >= 2 && !is_timestamp(count - 2) && is_timestamp(count - 1);
    let mut ends: Vec<usize> = (1..count).filter(|at| is_timestamp(at - 1) && is_timestamp(*at)).collect();
    if ends.is_empty() {
        let latest = tokens.iter().rfind(|id| vocabulary.is_timestamp(**id)).map_or(0, |id| place(*id));
        let all = (frames * mel::HOP) as f64 / mel::RATE as f64;
        let end = if latest > 0 { seconds(latest) } else { all };
        return (vec![Piece { tokens, start: 0.0, end }], frames);
    }
    if ends_alone {
        ends.push(count);
    }
    let mut pieces = Vec::new();
    let mut first = 0;
    for end in ends {
        let tokens = &tokens[first..end];
        // A model that was asked for no timestamps may still say some, and begin without.
        let time = |id: Option<&u32>| {
            id.filter(|id| vocabulary.is_timestamp(**id)).map_or(0.0, |id| seconds(place(*id)))
        };
        pieces.push(Piece { tokens, start: time(tokens.first()), end: time(tokens.last()) });
        first = end;
    }
    if ends_alone {
        return (pieces, frames);
    }
    // The rules let no time stand still, so this is not 0; if it were, the same window would come for ever.
    let advance = place(tokens[first - 1]) * TIMESTAMP_FRAMES;
    (pieces, if advance == 0 { frames } else { advance })
}

#[cfg(test)]
mod tests {
    use super::super::tiny;
    use super::super::vocabulary::tests::vocabulary;
    use super::*;
    use crate::device::Usage;
    use crate::memory::Lease;
    use std::cell::RefCell;
    use std::rc::Rc;

    const T: u32 = tiny::TIMESTAMPS;
    /// Samples of a window.
    const WINDOW: usize = 2 * tiny::POSITIONS * mel::HOP;
    const SURE: f32 = 20.0;

    /// Says a window's tokens for sure, then its end.
    struct Fake {
        config: WhisperConfig,
        /// A window whose text is empty is one of silence: any token is as likely as another.
        windows: Vec<Vec<u32>>,
        heard: usize,
        ids: Vec<u32>,
        language: u32,
        prompts: Rc<RefCell<Vec<Vec<u32>>>>,
    }

    impl Fake {
        /// What comes after the prompt, if all of it is there.
        fn said(&self) -> Option<&[u32]> {
            let start = self.ids.iter().position(|id| *id == tiny::START)?;
            let task = if self.config.multilingual { 2 } else { 0 };
            self.ids.get(start + 1 + task..)
        }

        fn logits(&self) -> Vec<f32> {
            let mut logits = vec![0.0; tiny::VOCABULARY];
            let window = &self.windows[self.heard - 1];
            if window.is_empty() {
                if self.ids.last() == Some(&tiny::START) {
                    logits[tiny::NO_SPEECH as usize] = SURE;
                }
                return logits;
            }
            let next = self.said().map(|said| window.get(said.len()).copied().unwrap_or(tiny::END));
            logits[next.unwrap_or(self.language) as usize] = SURE;
            logits
        }
    }

    impl Transcriber for Fake {
        fn config(&self) -> &WhisperConfig {
            &self.config
        }

        fn bytes_per_row(&self) -> u64 {
            0
        }

        fn bytes_per_job(&self) -> u64 {
            0
        }

        fn host_bytes_per_job(&self) -> u64 {
            0
        }

        fn reserve(&mut self, _: usize, _: &dyn Memory) -> Result<(), Refusal> {
            Ok(())
        }

        fn release(&mut self) {}

        fn usage(&self, _: &dyn Memory) -> Usage {
            Usage { used: 0, peak: 0 }
        }

        fn restart_peak(&self, _: &dyn Memory) {}

        fn forget(&mut self) {}

        fn open(&self, _: &dyn Memory) -> Result<State, Refusal> {
            Ok(State(Box::new(())))
        }

        fn hear(&mut self, _: &mut State, mel: &[f32]) {
            assert_eq!(mel.len(), self.config.frames() * self.config.mels);
            self.heard += 1;
        }

        fn encode(&mut self, _: &mut State, rows: usize) -> Result<bool, DeviceFailure> {
            Ok(rows > 0)
        }

        fn decode(
            &mut self,
            _: &mut State,
            ids: &[u32],
            at: usize,
            logits: Option<&mut Vec<f32>>,
        ) -> Result<(), DeviceFailure> {
            assert!(at <= self.ids.len() && at + ids.len() <= self.config.text_positions);
            self.ids.truncate(at);
            self.ids.extend_from_slice(ids);
            if self.said().is_some_and(<[u32]>::is_empty) {
                self.prompts.borrow_mut().push(self.ids.clone());
            }
            if let Some(logits) = logits {
                *logits = self.logits();
            }
            Ok(())
        }
    }

    struct Outcome {
        segments: Vec<Segment>,
        prompts: Vec<Vec<u32>>,
        language: Option<String>,
    }

    fn run(multilingual: bool, windows: &[&[u32]], samples: usize, options: Options) -> Outcome {
        let prompts = Rc::new(RefCell::new(Vec::new()));
        let config = WhisperConfig {
            mels: tiny::MELS,
            state: tiny::STATE,
            audio_positions: tiny::POSITIONS,
            audio_heads: 1,
            audio_layers: 1,
            text_positions: tiny::TEXT,
            text_heads: 1,
            text_layers: 1,
            vocabulary: tiny::VOCABULARY,
            multilingual,
            suppressed: Vec::new(),
        };
        let model = Fake {
            config,
            windows: windows.iter().map(|window| window.to_vec()).collect(),
            heard: 0,
            ids: Vec::new(),
            language: tiny::START + 2,
            prompts: Rc::clone(&prompts),
        };
        let vocabulary = vocabulary(multilingual);
        let mut loaded = LoadedTranscriber { model: Box::new(model), vocabulary };
        let mut sound = Mel::new(tiny::MELS);
        sound.push(&vec![0.1; samples], &Lease).unwrap();
        sound.finish(&Lease).unwrap();
        let mut job = Transcription::new(&loaded, options, sound, &Lease).unwrap();
        let mut segments = Vec::new();
        loop {
            match job.step(&mut loaded, 3).unwrap() {
                Step::More => {}
                Step::Segment(segment) => segments.push(segment),
                Step::Done => break,
            }
        }
        assert_eq!(job.progress().0, job.progress().1);
        assert_eq!(job.step(&mut loaded, 3).unwrap(), Step::Done);
        let prompts = prompts.borrow().clone();
        Outcome { segments, prompts, language: job.language().map(str::to_owned) }
    }

    fn times(segments: &[Segment]) -> Vec<(String, String, &str)> {
        let seconds = |time: f64| format!("{time:.2}");
        segments.iter().map(|s| (seconds(s.start), seconds(s.end), s.text.as_str())).collect()
    }

    fn expect(segments: &[Segment], expected: &[(&str, &str, &str)]) {
        let expected: Vec<_> =
            expected.iter().map(|(a, b, text)| ((*a).to_owned(), (*b).to_owned(), *text)).collect();
        assert_eq!(times(segments), expected);
    }

    #[test]
    fn windows_begin_where_the_last_pair_of_times_is() {
        let first = [T, 97, 98, T + 5, T + 5, 99, T + 10, T + 10];
        let second = [T, 100, T + 8];
        let Outcome { segments, prompts, .. } = run(false, &[&first, &second], WINDOW, Options::default());
        expect(&segments, &[("0.00", "0.10", "ab"), ("0.10", "0.20", "c"), ("0.20", "0.36", "d")]);
        assert_eq!(segments.iter().map(|s| s.seek).collect::<Vec<_>>(), [0, 0, 20]);
        assert_eq!(segments[1].tokens, [T + 5, 99, T + 10]);
        assert_eq!(segments.iter().map(|s| s.id).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(
            segments.iter().all(|s| s.temperature == 0.0 && s.avg_logprob > -0.1 && s.no_speech_prob < 0.1)
        );
        // The second goes on from all that was said, times included, the token before the last pair's half is not.
        let said = [&[tiny::PREVIOUS][..], &first[..7], &[tiny::START]].concat();
        assert_eq!(prompts, [vec![tiny::START], said]);
    }

    #[test]
    fn a_text_that_stops_before_the_window_does_is_all_there_is_in_it() {
        // One time alone at the end, none, and none but the first.
        for (tokens, end) in [(&[T, 97, T + 9][..], "0.18"), (&[T, 97], "0.30"), (&[T + 3, 97], "0.06")] {
            let samples = 30 * mel::HOP;
            let Outcome { segments, .. } = run(false, &[tokens], samples, Options::default());
            expect(&segments, &[("0.00", end, "a")]);
        }
        let options = Options { timestamps: false, ..Options::default() };
        let untimed = [tiny::TIMESTAMPS - 1, 97, 98];
        // The fake counts the token that asks for no times as said.
        let Outcome { segments, .. } = run(false, &[&untimed, &untimed], WINDOW + 1600, options);
        expect(&segments, &[("0.00", "0.40", "ab"), ("0.40", "0.50", "ab")]);
    }

    #[test]
    fn silence_has_no_text() {
        let spoken = [T, 97, T + 9];
        let Outcome { segments, .. } = run(false, &[&[], &spoken], 2 * WINDOW, Options::default());
        expect(&segments, &[("0.40", "0.58", "a")]);
    }

    #[test]
    fn what_repeats_itself_is_tried_hotter_and_says_nothing_about_what_follows() {
        let mut repeated = vec![T];
        repeated.extend([97; 40]);
        let spoken = [T, 98, T + 9];
        let options = Options { compression_ratio_max: 1.1, ..Options::default() };
        let Outcome { segments, prompts, .. } = run(false, &[&repeated, &spoken], 2 * WINDOW, options);
        assert_eq!(segments.iter().map(|s| s.temperature).collect::<Vec<_>>(), [1.0, 0.0]);
        assert!(segments[0].compression_ratio > 1.1, "{segments:?}");
        assert_eq!(prompts, [[tiny::START], [tiny::START]]);
        let once = Options { compression_ratio_max: 1.1, temperatures: vec![0.0], ..Options::default() };
        let Outcome { segments, prompts, .. } = run(false, &[&repeated, &spoken], 2 * WINDOW, once);
        assert_eq!(segments[0].temperature, 0.0);
        // As much of it as half of the model's memory holds.
        assert_eq!(prompts[1].len(), tiny::TEXT / 2 + 1);
    }

    #[test]
    fn windows_go_on_from_a_prompt_unless_told_otherwise() {
        let spoken = [T, 98, T + 9];
        let options = |condition_on_previous| Options {
            prompt: Some(" hi ".to_owned()),
            condition_on_previous,
            ..Options::default()
        };
        let windows = [&spoken[..], &spoken];
        let Outcome { prompts, .. } = run(false, &windows, 2 * WINDOW, options(true));
        let hi = [tiny::PREVIOUS, 32, 104, 105];
        assert_eq!(prompts[0], [&hi[..], &[tiny::START]].concat());
        assert_eq!(prompts[1], [&hi[..], &spoken, &[tiny::START]].concat());
        let Outcome { prompts, .. } = run(false, &windows, 2 * WINDOW, options(false));
        assert_eq!(prompts, [[&hi[..], &[tiny::START]].concat(), vec![tiny::START]]);
    }

    #[test]
    fn the_language_is_found_once_or_given() {
        let spoken = [T, 98, T + 9];
        let task = |language: u32| vec![tiny::START, tiny::START + 1 + language, tiny::TRANSLATE + 1];
        let found = run(true, &[&spoken, &spoken], 2 * WINDOW, Options::default());
        assert_eq!(found.language.as_deref(), Some("de"));
        assert_eq!(found.prompts[0], task(1));
        assert!(found.prompts[1].ends_with(&task(1)));
        let options = Options { language: Some("fr".to_owned()), ..Options::default() };
        let given = run(true, &[&spoken], WINDOW, options);
        assert_eq!((given.prompts, given.language.as_deref()), (vec![task(2)], Some("fr")));
    }
}

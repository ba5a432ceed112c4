//! Serves a transcriber: jobs whose audio is read, decoded and heard piece by piece, beside each other.
//!
//! ```text
//! Reading   a granted file comes, step by step
//! Decoding  the file becomes sound, the sound a spectrogram, half a second at a time
//! Waiting   for room on the device, which jobs before it have
//! Hearing   the spectrogram becomes text, a piece of a layer or a token at a time
//! ```
//! A step is as many such pieces of one job as last about as long as a step should.

use crate::files::{Progress, Reading};
use crate::jobs::{Owner, SlotFault};
use crate::lanes::{Lanes, Share};
use crate::memory::{Memory, Refusal, job_error};
use crate::models::whisper::mel::{Mel, RATE};
use crate::models::whisper::transcription::{
    Options, Segment as Said, StartError, Step, StepError, Transcription, Work,
};
use crate::models::whisper::vocabulary::Task;
use crate::models::{LoadedTranscriber, State};
use crate::pace::Pace;
use crate::package::FileBytes;
use crate::serve::{End, Next, await_bytes, message_waits, send};
use crate::sound::{Sound, SoundError, WORKING_BYTES};
use crate::stopwatch::Stopwatch;
use ringfence_protocol::{
    AUDIO_BYTES_MAX, Audio, AudioFault, FromWorker, JobError, Received, SLOTS_MAX, Segment, Start, ToWorker,
    TranscribeOptions, WorkerSideLink,
};
use ringfence_sandbox::{SealedFile, hoard};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The language of models that know one.
const ENGLISH: &str = "en";
/// Rows of the model's workspace: more in a step only make it longer.
const ROWS_MAX: usize = 512;
/// Tokens that a server expects of a job in a step, at least: what a job takes of the device is stated for so many.
const TOKENS_STATED: u64 = 448;
/// Positions of the encoder for a second of sound: what is counted as tokens, beside those of the text.
const POSITIONS_PER_S: u64 = 50;

/// A job from its `Transcribe` to its end.
struct Job {
    slot: u32,
    domain: u64,
    options: TranscribeOptions,
    phase: Phase,
    /// Whether the server knows how long the audio is.
    is_told: bool,
    sequence: u32,
    tokens: u32,
    /// Seconds of the audio that are counted in those.
    counted_s: u64,
    start_ms: u64,
    audio_ms: u64,
    compute_us: u64,
}

/// What is next.
enum Phase {
    Decoding {
        sound: Box<Sound>,
        mel: Box<Mel>,
        samples: Vec<f32>,
    },
    Waiting(Box<Mel>),
    Hearing(Box<Transcription>),
    /// Between two phases, and after the last.
    Over,
}

/// What a piece of work came to.
enum Piece {
    More,
    /// There is no room until another job ends.
    NoRoom,
    Said(Box<Said>),
    Done,
}

/// Why a piece of work failed.
enum Failed {
    /// For the job alone.
    Job(JobError),
    /// For the worker.
    Worker(End),
}

impl From<JobError> for Failed {
    fn from(error: JobError) -> Self {
        Self::Job(error)
    }
}

/// A loaded model and its jobs.
struct Server<'a> {
    link: &'a WorkerSideLink,
    memory: &'a dyn Memory,
    loaded: &'a mut LoadedTranscriber,
    pace: Pace,
    rows_max: usize,
    step_us: u64,
    readings: Vec<(Reading, TranscribeOptions)>,
    /// Oldest first.
    jobs: Vec<Job>,
    lanes: Lanes,
    /// Of the model's workspace.
    owner: Owner,
    /// Slots that have had a job: a cancel may cross its job's end on the way.
    used: Vec<bool>,
    /// That some job waits for room, and none has ended since.
    is_full: bool,
}

/// Serves jobs of speech, from `Ready` on.
///
/// # Errors
/// Whatever ends the worker otherwise than by `Stop`.
pub(crate) fn serve_speech(
    link: &WorkerSideLink,
    loaded: &mut LoadedTranscriber,
    start: &Start,
    memory: &dyn Memory,
) -> Result<(), End> {
    let rows_max = (start.step_tokens as usize).clamp(1, ROWS_MAX);
    let server = Server {
        link,
        memory,
        loaded,
        pace: Pace::new(rows_max as u32, start.step_us),
        rows_max,
        step_us: u64::from(start.step_us),
        readings: Vec::new(),
        jobs: Vec::new(),
        lanes: Lanes::default(),
        owner: Owner::default(),
        used: vec![false; SLOTS_MAX as usize],
        is_full: false,
    };
    server.run()
}

impl Server<'_> {
    fn run(mut self) -> Result<(), End> {
        self.send_ready()?;
        loop {
            while !self.has_work() || message_waits(self.link)? {
                let readings = self.readings.iter().map(|(reading, _)| reading);
                if !self.has_work() && !self.readings.is_empty() && !await_bytes(self.link, readings)? {
                    self.read_on()?;
                    continue;
                }
                match self.handle(self.link.receive()?)? {
                    Next::Go => {}
                    Next::Stop => return Ok(()),
                }
            }
            self.read_on()?;
            self.step()?;
        }
    }

    fn send_ready(&self) -> Result<(), End> {
        let LoadedTranscriber { model, vocabulary } = &*self.loaded;
        let usage = model.usage(self.memory);
        let narrow = |n: usize| u32::try_from(n).expect("the configuration bounds it");
        let rows = model.bytes_per_row().saturating_mul(self.rows_max as u64);
        let job = model.bytes_per_job().saturating_add(model.host_bytes_per_job());
        let ready = FromWorker::Ready {
            dimensions: 1,
            bytes_per_token: rows.saturating_add(job).div_ceil(TOKENS_STATED),
            used_bytes: usage.used,
            peak_bytes: usage.peak,
            max_tokens: narrow(model.config().text_positions),
            vocabulary: narrow(vocabulary.size()),
        };
        send(self.link, ready)
    }

    /// Whether a step has something to do.
    fn has_work(&self) -> bool {
        self.jobs.iter().any(|job| self.can_go_on(job))
    }

    fn can_go_on(&self, job: &Job) -> bool {
        match job.phase {
            Phase::Waiting(_) => !self.is_full,
            Phase::Decoding { .. } | Phase::Hearing(_) | Phase::Over => true,
        }
    }

    fn handle(&mut self, received: Received<ToWorker>) -> Result<Next, End> {
        let Received { message, mut descriptors, .. } = received;
        match (message, descriptors.len()) {
            (ToWorker::Transcribe { weight: 0, .. }, _) => return Err(End::Illegal("a weight of nothing")),
            (ToWorker::Transcribe { slot, domain, weight, options, audio }, 1) => {
                if !options.is_legal() {
                    return Err(End::Illegal("options out of bounds"));
                }
                self.occupy(slot)?;
                let share = Share { domain, weight };
                let descriptor = descriptors.remove(0);
                match audio {
                    Audio::Sealed { bytes } => self.run_sealed(slot, share, options, bytes, descriptor)?,
                    Audio::File => {
                        let reading = Reading::new(slot, share, AUDIO_BYTES_MAX, descriptor);
                        self.readings.push((reading, options));
                        // Nothing comes before it is asked for.
                        self.read_on()?;
                    }
                }
            }
            (ToWorker::Cancel { slot }, 0) => self.cancel(slot)?,
            (ToWorker::Drill { bytes }, 0) => hoard(bytes),
            (ToWorker::Stop, 0) => return Ok(Next::Stop),
            (
                ToWorker::Transcribe { .. }
                | ToWorker::Cancel { .. }
                | ToWorker::Drill { .. }
                | ToWorker::Stop,
                _,
            ) => return Err(End::Illegal("descriptors that don't belong to the message")),
            (ToWorker::LoadDetector { .. } | ToWorker::Listen { .. }, _) => {
                return Err(End::Illegal("live sound, which is not heard yet"));
            }
            (ToWorker::Run { .. }, _) => return Err(End::Illegal("texts for a model of audio")),
            (ToWorker::Start(_) | ToWorker::Load { .. }, _) => {
                return Err(End::Illegal("a second start or package"));
            }
        }
        Ok(Next::Go)
    }

    fn occupy(&mut self, slot: u32) -> Result<(), SlotFault> {
        let used = self.used.get_mut(slot as usize).ok_or(SlotFault::Beyond)?;
        let is_taken = self.jobs.iter().any(|job| job.slot == slot)
            || self.readings.iter().any(|(reading, _)| reading.slot == slot);
        if is_taken {
            return Err(SlotFault::Taken);
        }
        *used = true;
        Ok(())
    }

    fn cancel(&mut self, slot: u32) -> Result<(), End> {
        match self.used.get(slot as usize) {
            None => return Err(SlotFault::Beyond.into()),
            Some(false) => return Err(SlotFault::Never.into()),
            Some(true) => {}
        }
        let before = self.readings.len() + self.jobs.len();
        self.readings.retain(|(reading, _)| reading.slot != slot);
        self.remove(slot);
        if self.readings.len() + self.jobs.len() < before {
            send(self.link, FromWorker::Failed { slot, error: JobError::Cancelled })?;
        }
        Ok(())
    }

    fn remove(&mut self, slot: u32) {
        self.jobs.retain(|job| job.slot != slot);
        self.is_full = false;
    }

    fn run_sealed(
        &mut self,
        slot: u32,
        share: Share,
        options: TranscribeOptions,
        bytes: u64,
        descriptor: OwnedFd,
    ) -> Result<(), End> {
        let file = SealedFile::from_descriptor(descriptor)?;
        if bytes != file.len() || bytes > AUDIO_BYTES_MAX as u64 {
            return Err(End::Illegal("audio of another length, or out of bounds"));
        }
        let map = file.map()?;
        self.begin(slot, share, options, Arc::new(map))
    }

    /// Takes what has come of the files; those that are whole become jobs.
    fn read_on(&mut self) -> Result<(), End> {
        let mut at = 0;
        while let Some((reading, _)) = self.readings.get_mut(at) {
            match reading.advance(self.memory) {
                Progress::Waits => at += 1,
                Progress::Read(bytes) => {
                    let (reading, options) = self.readings.swap_remove(at);
                    self.begin(reading.slot, reading.share, options, Arc::new(bytes))?;
                }
                Progress::Failed(error) => {
                    let (reading, _) = self.readings.swap_remove(at);
                    send(self.link, FromWorker::Failed { slot: reading.slot, error })?;
                }
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        slot: u32,
        share: Share,
        options: TranscribeOptions,
        bytes: FileBytes,
    ) -> Result<(), End> {
        // What the library allocates meanwhile can't be refused one by one.
        let sound = self.memory.check(WORKING_BYTES).map_err(job_error);
        match sound.and_then(|()| Sound::open(bytes).map_err(refused)) {
            Ok(sound) => {
                let mel = Mel::new(self.loaded.model.config().mels);
                let phase =
                    Phase::Decoding { sound: Box::new(sound), mel: Box::new(mel), samples: Vec::new() };
                self.lanes.join(share);
                self.jobs.push(Job {
                    slot,
                    domain: share.domain,
                    options,
                    phase,
                    is_told: false,
                    sequence: 0,
                    tokens: 0,
                    counted_s: 0,
                    start_ms: 0,
                    audio_ms: 0,
                    compute_us: 0,
                });
                Ok(())
            }
            Err(error) => send(self.link, FromWorker::Failed { slot, error }),
        }
    }

    /// As many pieces of one job as a step lasts.
    fn step(&mut self) -> Result<(), End> {
        self.lanes.retain(|domain| self.jobs.iter().any(|job| job.domain == domain));
        let wants = |domain| self.jobs.iter().any(|job| job.domain == domain && self.can_go_on(job));
        let Some(domain) = self.lanes.next(wants) else { return Ok(()) };
        let at = self.jobs.iter().position(|job| job.domain == domain && self.can_go_on(job));
        let at = at.expect("a job of it was found just now");
        let watch = Stopwatch::start();
        if self.owner.passes_to(std::iter::once(domain)) {
            self.loaded.model.forget();
        }
        let mut said = VecDeque::new();
        let end = loop {
            match self.piece(at) {
                Ok(Piece::More) => {}
                Ok(Piece::NoRoom) => {
                    self.is_full = true;
                    break None;
                }
                Ok(Piece::Said(segment)) => said.push_back(*segment),
                Ok(Piece::Done) => break Some(Ok(())),
                Err(Failed::Job(error)) => break Some(Err(error)),
                Err(Failed::Worker(end)) => return Err(end),
            }
            if watch.micros() >= self.step_us {
                break None;
            }
        };
        let busy_us = watch.micros();
        self.lanes.charge(domain, busy_us);
        let job = &mut self.jobs[at];
        job.compute_us += busy_us;
        let (slot, tokens) = (job.slot, job.count());
        send(self.link, FromWorker::Step { busy_us, tokens: vec![(slot, tokens)] })?;
        for segment in said {
            self.say(at, segment)?;
        }
        match end {
            None => Ok(()),
            Some(Ok(())) => self.finish(at),
            Some(Err(error)) => {
                self.remove(slot);
                send(self.link, FromWorker::Failed { slot, error })
            }
        }
    }

    /// One bounded piece of a job's work.
    fn piece(&mut self, at: usize) -> Result<Piece, Failed> {
        let job = &mut self.jobs[at];
        match std::mem::replace(&mut job.phase, Phase::Over) {
            Phase::Decoding { mut sound, mut mel, mut samples } => {
                samples.clear();
                let more = sound.read(&mut samples).map_err(refused)?;
                mel.push(&samples, self.memory).map_err(of_job)?;
                if more {
                    job.phase = Phase::Decoding { sound, mel, samples };
                } else {
                    mel.finish(self.memory).map_err(of_job)?;
                    job.audio_ms = (mel.samples() * 1_000 / RATE) as u64;
                    job.phase = Phase::Waiting(mel);
                }
                Ok(Piece::More)
            }
            Phase::Waiting(mel) => self.open(at, mel),
            Phase::Hearing(mut transcription) => {
                let (rows, measured) = (self.pace.tokens(), transcription.next_work() == Work::Sound);
                let watch = Stopwatch::start();
                let step = transcription.step(self.loaded, rows).map_err(of_step)?;
                if measured {
                    self.pace.measured(rows, watch.micros());
                }
                job.phase = Phase::Hearing(transcription);
                Ok(match step {
                    Step::More => Piece::More,
                    Step::Segment(segment) => Piece::Said(Box::new(segment)),
                    Step::Done => Piece::Done,
                })
            }
            Phase::Over => Ok(Piece::Done),
        }
    }

    /// Makes room on the device for a job.
    fn open(&mut self, at: usize, mel: Box<Mel>) -> Result<Piece, Failed> {
        let is_heard = |job: &Job| matches!(job.phase, Phase::Hearing(_));
        match self.room() {
            Ok(state) => {
                let job = &mut self.jobs[at];
                let options = options(&job.options);
                let started = Transcription::begin(self.loaded, options, *mel, state);
                job.phase = Phase::Hearing(Box::new(started.map_err(of_start)?));
                Ok(Piece::More)
            }
            Err(Refusal::Denied(_)) if self.jobs.iter().any(is_heard) => {
                self.jobs[at].phase = Phase::Waiting(mel);
                Ok(Piece::NoRoom)
            }
            Err(refusal) => Err(of_job(refusal)),
        }
    }

    fn room(&mut self) -> Result<State, Refusal> {
        self.loaded.model.reserve(self.rows_max, self.memory)?;
        self.loaded.model.open(self.memory)
    }

    /// Tells how long the audio is, once, as soon as its language is known.
    fn tell(&mut self, at: usize) -> Result<(), End> {
        let job = &mut self.jobs[at];
        if job.is_told {
            return Ok(());
        }
        job.is_told = true;
        let known = match &job.phase {
            Phase::Hearing(transcription) => transcription.language().map(str::to_owned),
            Phase::Decoding { .. } | Phase::Waiting(_) | Phase::Over => None,
        };
        let language = known.unwrap_or_else(|| ENGLISH.to_owned());
        send(self.link, FromWorker::Heard { slot: job.slot, audio_ms: job.audio_ms, language })
    }

    fn say(&mut self, at: usize, said: Said) -> Result<(), End> {
        self.tell(at)?;
        let job = &mut self.jobs[at];
        let millis = |seconds: f64| (seconds.max(0.0) * 1e3).round() as u64;
        let start_ms = millis(said.start).max(job.start_ms);
        job.start_ms = start_ms;
        job.tokens = job.tokens.saturating_add(u32::try_from(said.tokens.len()).unwrap_or(u32::MAX));
        let segment = Segment {
            seek_ms: said.seek as u64 * 10,
            start_ms,
            end_ms: millis(said.end).max(start_ms),
            text: said.text,
            tokens: said.tokens,
            temperature: said.temperature,
            avg_logprob: said.avg_logprob as f32,
            compression_ratio: said.compression_ratio as f32,
            no_speech_prob: said.no_speech_prob as f32,
        };
        send(self.link, FromWorker::Segment { slot: job.slot, sequence: job.sequence, segment })?;
        job.sequence += 1;
        Ok(())
    }

    fn finish(&mut self, at: usize) -> Result<(), End> {
        self.tell(at)?;
        let usage = self.loaded.model.usage(self.memory);
        let job = &self.jobs[at];
        let done = FromWorker::Done {
            slot: job.slot,
            tokens: job.tokens,
            truncated: 0,
            compute_us: job.compute_us,
            used_bytes: usage.used,
            peak_bytes: usage.peak,
        };
        self.remove(job.slot);
        send(self.link, done)
    }
}

impl Job {
    /// Tokens of the step that ends: positions of the encoder since the one before, at least one.
    fn count(&mut self) -> u32 {
        let Phase::Hearing(transcription) = &self.phase else { return 1 };
        let seconds = transcription.progress().0 as u64 / 100;
        let positions = (seconds - self.counted_s.min(seconds)) * POSITIONS_PER_S;
        self.counted_s = seconds;
        let tokens = u32::try_from(positions).unwrap_or(u32::MAX).max(1);
        self.tokens = self.tokens.saturating_add(tokens);
        tokens
    }
}

fn options(options: &TranscribeOptions) -> Options {
    let TranscribeOptions { translate, language, prompt, temperature } = options.clone();
    let task = if translate { Task::Translate } else { Task::Transcribe };
    let default = Options { language, task, prompt, ..Options::default() };
    match temperature {
        // Nothing was asked for, or what is the beginning of the usual ones.
        None | Some(0.0) => default,
        Some(temperature) => Options { temperatures: vec![temperature], ..default },
    }
}

fn refused(error: SoundError) -> JobError {
    let fault = match error {
        SoundError::Format => AudioFault::Format,
        SoundError::Truncated => AudioFault::Truncated,
        SoundError::NoAudio => AudioFault::Silent,
        SoundError::Codec => AudioFault::Codec,
        SoundError::TooLong => AudioFault::TooLong,
        SoundError::Channels => AudioFault::Channels,
        SoundError::Rate => AudioFault::Rate,
    };
    JobError::AudioRefused { fault }
}

fn of_job(refusal: Refusal) -> Failed {
    match refusal {
        Refusal::Denied(denial) => Failed::Job(job_error(denial)),
        Refusal::Failed(failure) => Failed::Worker(failure.into()),
    }
}

fn of_start(error: StartError) -> Failed {
    match error {
        StartError::LanguageUnknown { language } => Failed::Job(JobError::LanguageUnknown {
            what: format!("the language {language} is not known to it"),
        }),
        StartError::EnglishOnly => {
            Failed::Job(JobError::LanguageUnknown { what: "it knows English only".to_owned() })
        }
        StartError::Prompt | StartError::Temperature => Failed::Job(JobError::Tokenizer { item: 0 }),
        StartError::Refused(refusal) => of_job(refusal),
    }
}

fn of_step(error: StepError) -> Failed {
    match error {
        StepError::Device(failure) => Failed::Worker(failure.into()),
        StepError::NotFinite => Failed::Job(JobError::NotFinite { item: 0 }),
        StepError::Tokenizer => Failed::Job(JobError::Tokenizer { item: 0 }),
    }
}

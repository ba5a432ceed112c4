//! Serves a transcriber: jobs whose audio is read, decoded and heard piece by piece, beside each other.
//!
//! ```text
//! Reading   a granted file comes, step by step
//! Decoding  the file becomes sound, the sound a spectrogram, half a second at a time
//! Waiting   for room on the device, which jobs before it have
//! Hearing   the spectrogram becomes text, a piece of a layer or a token at a time
//! ```
//! A step is as many such pieces of one job as last about as long as a step should. Live sound has no such phases: see
//! live.rs. Domains share the steps by their weights; within one, stored and live sound take turns.

mod answers;

pub(crate) use answers::{Failed, of_job, of_start};

use crate::files::{Progress, Reading};
use crate::jobs::{Owner, SlotFault, UsedSlots};
use crate::lanes::{Lanes, Share};
use crate::live::{Ears, Load, STREAM_BYTES, STREAMS_MAX, Stream, Wish};
use crate::memory::{Memory, Refusal, job_error};
use crate::models::silero::Silero;
use crate::models::whisper::mel::{Mel, RATE};
use crate::models::whisper::transcription::{Options, Segment as Said, Step, Transcription, Window, Work};
use crate::models::{LoadedTranscriber, State};
use crate::pace::Pace;
use crate::package::{FileBytes, Files};
use crate::serve::{End, Next, are_distinct, await_bytes, map_file, message_waits, send};
use crate::sound::{Sound, WORKING_BYTES};
use crate::stopwatch::Stopwatch;
use answers::{of_step, options, refused};
use ringfence_protocol::{
    AUDIO_BYTES_MAX, Audio, FromWorker, JobError, LoadError, Received, Segment, Start, StreamFault,
    StreamKey, StreamPublic, StreamReader, ToWorker, TranscribeOptions, WorkerSideLink,
};
use ringfence_sandbox::{SealedFile, hoard};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The language of models that know one.
const ENGLISH: &str = "en";
/// Rows of the model's workspace: more in a step only make it longer.
const ROWS_MAX: usize = 512;
/// Tokens that a server expects of a job in a step, at least: what a job takes of the device is stated for so many.
const TOKENS_STATED: u64 = 448;
/// What the text of a live phrase is tried at: few, since somebody waits for it.
const LIVE_TEMPERATURES: [f32; 3] = [0.0, 0.4, 0.8];
/// Positions of the encoder for a second of sound: what is counted as tokens, beside those of the text.
pub(crate) const POSITIONS_PER_S: u64 = 50;

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

/// Who has a turn: a place in the list of jobs, or of streams.
#[derive(Clone, Copy)]
enum Turn {
    Job(usize),
    Stream(usize),
}

/// What finds out where somebody speaks in live sound.
enum Detector {
    /// Nobody has sent one.
    None,
    Loaded(Box<Silero>),
    /// It can't be run; the reason was said.
    Refused,
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
    /// Oldest first.
    streams: Vec<Stream>,
    detector: Detector,
    load: Load,
    /// Whether the last step was a stream's.
    was_live: bool,
    /// Pieces of work for streams so far.
    turns: u64,
    lanes: Lanes,
    /// Of the model's workspace.
    owner: Owner,
    used: UsedSlots,
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
        streams: Vec::new(),
        detector: Detector::None,
        load: Load::default(),
        was_live: false,
        turns: 0,
        lanes: Lanes::default(),
        owner: Owner::default(),
        used: UsedSlots::default(),
        is_full: false,
    };
    server.run()
}

impl Server<'_> {
    fn run(mut self) -> Result<(), End> {
        self.send_ready()?;
        loop {
            while !self.has_work() || message_waits(self.link)? {
                if !self.has_work() && self.has_sources() && !self.await_sources()? {
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
            || self.streams.iter().any(|s| self.wish(s) != Wish::Nothing)
    }

    fn has_sources(&self) -> bool {
        !self.readings.is_empty() || !self.streams.is_empty()
    }

    /// Whether a message came first.
    fn await_sources(&self) -> Result<bool, End> {
        let streams = self.streams.iter().filter(|stream| stream.listens()).map(AsFd::as_fd);
        await_bytes(self.link, self.readings.iter().map(|(reading, _)| reading.as_fd()).chain(streams))
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
            (ToWorker::LoadDetector { files }, count) if files.len() == count && are_distinct(&files) => {
                self.load_detector(files, descriptors)?;
            }
            (ToWorker::Listen { weight: 0, .. }, _) => return Err(End::Illegal("a weight of nothing")),
            (ToWorker::Listen { slot, domain, weight, options, audio }, 1) => {
                if !options.is_legal() {
                    return Err(End::Illegal("options out of bounds"));
                }
                self.occupy(slot)?;
                let heard =
                    self.listen(slot, Share { domain, weight }, &options, audio, descriptors.remove(0));
                match heard {
                    Ok(key) => send(self.link, FromWorker::Listens { slot, key })?,
                    Err(Failed::Job(error)) => send(self.link, FromWorker::Failed { slot, error })?,
                    Err(Failed::Worker(end)) => return Err(end),
                }
            }
            (ToWorker::Cancel { slot }, 0) => self.cancel(slot)?,
            (ToWorker::Drill { bytes }, 0) => hoard(bytes),
            (ToWorker::Stop, 0) => return Ok(Next::Stop),
            (
                ToWorker::Transcribe { .. }
                | ToWorker::LoadDetector { .. }
                | ToWorker::Listen { .. }
                | ToWorker::Cancel { .. }
                | ToWorker::Drill { .. }
                | ToWorker::Stop,
                _,
            ) => return Err(End::Illegal("descriptors that don't belong to the message")),
            (ToWorker::Run { .. } | ToWorker::Generate { .. }, _) => {
                return Err(End::Illegal("texts for a model of audio"));
            }
            (ToWorker::Start(_) | ToWorker::Load { .. }, _) => {
                return Err(End::Illegal("a second start or package"));
            }
        }
        Ok(Next::Go)
    }

    fn occupy(&mut self, slot: u32) -> Result<(), SlotFault> {
        let is_taken = self.jobs.iter().any(|job| job.slot == slot)
            || self.streams.iter().any(|stream| stream.slot == slot)
            || self.readings.iter().any(|(reading, _)| reading.slot == slot);
        self.used.take(slot, is_taken)
    }

    fn cancel(&mut self, slot: u32) -> Result<(), End> {
        self.used.check(slot)?;
        let count = |server: &Self| server.readings.len() + server.jobs.len() + server.streams.len();
        let before = count(self);
        self.readings.retain(|(reading, _)| reading.slot != slot);
        self.remove(slot);
        if count(self) < before {
            send(self.link, FromWorker::Failed { slot, error: JobError::Cancelled })?;
        }
        Ok(())
    }

    fn remove(&mut self, slot: u32) {
        self.jobs.retain(|job| job.slot != slot);
        self.streams.retain(|stream| stream.slot != slot);
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

    fn load_detector(&mut self, files: Vec<String>, descriptors: Vec<OwnedFd>) -> Result<(), End> {
        if !matches!(self.detector, Detector::None) {
            return Err(End::Illegal("a second voice detector"));
        }
        let files: Result<Files, LoadError> = files.into_iter().zip(descriptors).map(map_file).collect();
        self.detector = match files.and_then(|files| Silero::read(&files, self.memory)) {
            Ok(silero) => Detector::Loaded(Box::new(silero)),
            Err(error) => {
                eprintln!("the voice detector can't be run: {error}");
                Detector::Refused
            }
        };
        Ok(())
    }

    /// Takes a stream, if one more can be heard; the key of this end.
    fn listen(
        &mut self,
        slot: u32,
        share: Share,
        asked: &TranscribeOptions,
        audio: StreamPublic,
        socket: OwnedFd,
    ) -> Result<StreamPublic, Failed> {
        let refused = |fault| Failed::Job(JobError::StreamRefused { fault });
        if !matches!(self.detector, Detector::Loaded(_)) {
            return Err(refused(StreamFault::NoDetector));
        }
        let options = Options {
            timestamps: false,
            window: Window::Fitted,
            temperatures: asked.temperature.map_or(LIVE_TEMPERATURES.to_vec(), |asked| vec![asked]),
            ..options(asked)
        };
        Transcription::check(self.loaded, &options).map_err(of_start)?;
        let streams = self.streams.len();
        let is_behind = self.streams.iter().any(Stream::is_behind);
        let encoder_us = self.pace.expected_us(options.window.rows_min(self.loaded.model.config()));
        if streams == STREAMS_MAX || is_behind || !self.load.holds(streams + 1, encoder_us) {
            return Err(refused(StreamFault::Busy));
        }
        self.memory.check(STREAM_BYTES).map_err(job_error)?;
        let state = self.room().map_err(of_job)?;
        let key = StreamKey::generate().map_err(|_| refused(StreamFault::CutOff))?;
        let public = key.public();
        let reader = StreamReader::new(socket, key, audio);
        let stream = Stream::new(slot, share, options, reader, state, self.memory).map_err(of_job)?;
        self.lanes.join(share);
        self.streams.push(stream);
        Ok(public)
    }

    /// Takes what has come of files and streams.
    fn read_on(&mut self) -> Result<(), End> {
        self.read_files()?;
        let mut at = 0;
        while let Some(stream) = self.streams.get_mut(at) {
            let Detector::Loaded(silero) = &mut self.detector else { break };
            let error = stream.read(silero).err();
            if self.settle(at, error)? {
                at += 1;
            }
        }
        Ok(())
    }

    /// Tells what a stream has to tell; whether it goes on.
    fn settle(&mut self, at: usize, error: Option<JobError>) -> Result<bool, End> {
        let stream = &mut self.streams[at];
        let slot = stream.slot;
        if let Some(error) = error {
            self.remove(slot);
            send(self.link, FromWorker::Failed { slot, error })?;
            return Ok(false);
        }
        self.load.measured(stream.take_spent());
        let is_over = stream.is_over();
        if is_over {
            stream.tell_listened();
        }
        while let Some(told) = stream.next_told() {
            if matches!(told, FromWorker::Listened { .. }) {
                let busy_us = stream.take_detector_us();
                stream.compute_us += busy_us;
                self.lanes.charge(stream.share.domain, busy_us);
                send(self.link, FromWorker::Step { busy_us, tokens: vec![(slot, 1)] })?;
            }
            send(self.link, told)?;
        }
        if is_over {
            let (tokens, compute_us) = (stream.tokens, stream.compute_us);
            let usage = self.loaded.model.usage(self.memory);
            self.remove(slot);
            let (used_bytes, peak_bytes) = (usage.used, usage.peak);
            send(
                self.link,
                FromWorker::Done { slot, tokens, truncated: 0, compute_us, used_bytes, peak_bytes },
            )?;
        }
        Ok(!is_over)
    }

    /// Those that are whole become jobs.
    fn read_files(&mut self) -> Result<(), End> {
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

    /// What a stream wants, beside the others.
    fn wish(&self, stream: &Stream) -> Wish {
        stream.wish(self.streams.len(), self.streams.iter().any(Stream::has_waiting))
    }

    /// Whose turn it is: partials are said where nobody wants anything else.
    fn turn(&mut self) -> Option<(u64, Turn)> {
        let Self { jobs, streams, .. } = self;
        self.lanes.retain(|domain| {
            jobs.iter().any(|job| job.domain == domain) || streams.iter().any(|s| s.share.domain == domain)
        });
        let wishes: Vec<(u64, Wish)> = self.streams.iter().map(|s| (s.share.domain, self.wish(s))).collect();
        let precedences: Vec<(bool, u64)> = self.streams.iter().map(Stream::precedence).collect();
        let stored: Vec<(u64, bool)> =
            self.jobs.iter().map(|job| (job.domain, self.can_go_on(job))).collect();
        let job = |domain| stored.iter().position(|job| *job == (domain, true));
        let live = |domain, wish| {
            (0..wishes.len()).filter(|at| wishes[*at] == (domain, wish)).min_by_key(|at| precedences[*at])
        };
        let wants = |domain| job(domain).is_some() || live(domain, Wish::Now).is_some();
        self.lanes.rest(wants);
        if let Some(domain) = self.lanes.next(wants) {
            let (job, live) = (job(domain).map(Turn::Job), live(domain, Wish::Now).map(Turn::Stream));
            let turn = if self.was_live { job.or(live) } else { live.or(job) };
            return turn.map(|turn| (domain, turn));
        }
        let domain = self.lanes.next(|domain| live(domain, Wish::Later).is_some())?;
        live(domain, Wish::Later).map(|at| (domain, Turn::Stream(at)))
    }

    /// As many pieces of one job as a step lasts.
    fn step(&mut self) -> Result<(), End> {
        let Some((domain, turn)) = self.turn() else { return Ok(()) };
        let watch = Stopwatch::start();
        if self.owner.passes_to(std::iter::once(domain)) {
            self.loaded.model.forget();
        }
        self.was_live = matches!(turn, Turn::Stream(_));
        match turn {
            Turn::Job(at) => self.step_job(at, watch),
            Turn::Stream(at) => self.step_stream(at, watch),
        }
    }

    fn step_stream(&mut self, at: usize, watch: Stopwatch) -> Result<(), End> {
        let wish = self.wish(&self.streams[at]);
        let mut error = None;
        while error.is_none() && watch.micros() < self.step_us && self.wish(&self.streams[at]) == wish {
            self.turns += 1;
            let (pace, turn) = (&mut self.pace, self.turns);
            let mut ears = Ears { loaded: self.loaded, pace, memory: self.memory, turn };
            match self.streams[at].piece(&mut ears) {
                Ok(()) => {}
                Err(Failed::Job(failed)) => error = Some(failed),
                Err(Failed::Worker(end)) => return Err(end),
            }
        }
        let stream = &mut self.streams[at];
        let busy_us = watch.micros();
        self.lanes.charge(stream.share.domain, busy_us);
        stream.compute_us += busy_us;
        let tokens = std::mem::take(&mut stream.step_tokens).max(1);
        send(self.link, FromWorker::Step { busy_us, tokens: vec![(stream.slot, tokens)] })?;
        self.settle(at, error).map(|_| ())
    }

    fn step_job(&mut self, at: usize, watch: Stopwatch) -> Result<(), End> {
        let domain = self.jobs[at].domain;
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
                let step = transcribe(&mut transcription, self.loaded, &mut self.pace)?;
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

/// One piece of a transcription's work.
pub(crate) fn transcribe(
    transcription: &mut Transcription,
    loaded: &mut LoadedTranscriber,
    pace: &mut Pace,
) -> Result<Step, Failed> {
    let (rows, measured) = (pace.tokens(), transcription.next_work() == Work::Sound);
    let watch = Stopwatch::start();
    let step = transcription.step(loaded, rows).map_err(of_step)?;
    if measured {
        pace.measured(rows, watch.micros());
    }
    Ok(step)
}

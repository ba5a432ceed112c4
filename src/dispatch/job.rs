//! One job between the request that brought it and the answer that ends it.

use super::abandon::Waiting;
use super::models::package_of_twin;
use super::{Dispatcher, State};
use crate::api::ApiError;
use crate::audit::{Audit, Lane, Masker, Place, Who};
use crate::clock;
use crate::grants::GrantedFile;
use crate::oom::Rung;
use crate::packages::Package;
use crate::workers::{End, Expected, Items, Made, Said};
use axum::http::StatusCode;
use ringfence_audit::{Event as Entry, Word};
use ringfence_protocol::{
    Architecture, Audio, ChatContent, Data, EmbedInput, GenerateData, GenerateInput, GrantedText,
    INLINE_INPUT_BYTES_MAX, Item, LISTENED_MS, Precedence, Prompt, Segment, Split, StreamPublic, TextPiece,
    ToWorker, TranscribeOptions,
};
use ringfence_scheduler::{Class, Event, Failure, JobId, ModelId, Outcome, Refusal, Submit};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Passages that a granted file is expected to have, until it is known.
const PASSAGES_EXPECTED: u64 = 8;

/// Bytes of a window of 30 s, at 16 kHz and 16 bits: other forms have fewer for as much.
const WINDOW_BYTES: u64 = 960_000;
/// How long that is.
const WINDOW_MS: u64 = 30_000;
/// What a window is to a model, in tokens.
const WINDOW_FRAMES: u64 = 1_500;
/// Of a granted file of audio, until it is known.
const AUDIO_BYTES_EXPECTED: u64 = WINDOW_BYTES;

/// Bytes of a token, as English has them.
const BYTES_PER_TOKEN: u64 = 4;
/// What a template puts around a message, in tokens.
const MESSAGE_TOKENS: u64 = 8;
/// Tokens of an answer whose client says nothing of its length.
const ANSWER_TOKENS_EXPECTED: u32 = 256;
/// Of a granted text, until it is known.
const TEXT_BYTES_EXPECTED: u64 = 4_096;

/// What a handler asks for.
#[derive(Debug, Clone)]
pub(crate) struct JobRequest {
    /// NAME or `uid:N`.
    pub(crate) client: String,
    /// The request's, for the log.
    pub(crate) request_id: String,
    /// Whose job it is, for the audit log.
    pub(crate) who: Who,
    /// The model's name.
    pub(crate) model: String,
    /// What to embed or to transcribe.
    pub(crate) input: JobInput,
    /// When the request's head had been read.
    pub(crate) received: Instant,
    /// From receipt until the answer is worthless.
    pub(crate) deadline: Option<Duration>,
    /// The width that the client expects.
    pub(crate) dimensions: Option<u32>,
    /// Whose wish it is.
    pub(crate) purpose: Purpose,
}

/// Where a job's texts or audio come from.
#[derive(Debug, Clone)]
pub(crate) enum JobInput {
    /// From the request.
    Items(EmbedInput),
    /// A granted file, one text: the worker reads it, the server does not.
    Granted {
        /// Opens it anew for each worker that gets the job.
        file: Arc<GrantedFile>,
        /// What becomes of the text.
        split: Split,
    },
    /// Audio: the bytes of a file, which only the worker reads.
    Audio {
        /// How it becomes text.
        options: TranscribeOptions,
        /// Where it is.
        source: AudioSource,
        /// Told what comes of it before its end, where somebody wants to know.
        pieces: Option<mpsc::Sender<Piece>>,
    },
    /// A prompt, to be answered.
    Generate {
        /// The prompt, and how it is answered.
        input: Box<GenerateInput>,
        /// The granted file that is a part of it: the worker reads it, the server does not.
        file: Option<Arc<GrantedFile>>,
        /// Told what comes of it before its end, where somebody wants to know.
        pieces: Option<mpsc::Sender<Piece>>,
    },
    /// Sound that comes while the job runs, over a stream of which the server has no key.
    Live(LiveInput),
}

/// What comes of a job before its end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// A worker has it. Where this comes again, what came before is void: its worker has died, or another model has it.
    Begun,
    /// Its audio was read to its end.
    Heard {
        /// How long it is, in milliseconds.
        audio_ms: u64,
    },
    /// The next of what is said.
    Segment(Segment),
    /// Its prompt was read.
    Prompted {
        /// The prompt's tokens.
        tokens: u32,
        /// Of these, those that were known from earlier jobs.
        cached: u32,
    },
    /// The next of its answer.
    Text(TextPiece),
}

/// What a live job is given, once: it is never replayed.
#[derive(Debug, Clone)]
pub(crate) struct LiveInput {
    /// How it becomes text.
    pub(crate) options: TranscribeOptions,
    /// The key of the program that captures.
    pub(crate) audio: StreamPublic,
    /// The reader's end of the stream.
    pub(crate) socket: Arc<Mutex<Option<OwnedFd>>>,
    /// Told what the worker says.
    pub(crate) said: mpsc::Sender<Said>,
    /// By which its worker cuts the sound into phrases.
    pub(crate) detector: Arc<Package>,
}

/// Where audio is.
#[derive(Debug, Clone)]
pub(crate) enum AudioSource {
    /// In sealed memory, as it came with the request.
    Sealed {
        /// The memory.
        memfd: Arc<OwnedFd>,
        /// Its length.
        bytes: u64,
    },
    /// In a granted file.
    Granted(Arc<GrantedFile>),
}

impl JobInput {
    /// The grant's file, where it is one.
    pub(super) fn granted(&self) -> Option<&Arc<GrantedFile>> {
        match self {
            Self::Granted { file, .. } | Self::Audio { source: AudioSource::Granted(file), .. } => Some(file),
            Self::Generate { file, .. } => file.as_ref(),
            Self::Items(_) | Self::Audio { source: AudioSource::Sealed { .. }, .. } | Self::Live(_) => None,
        }
    }

    fn expected(&self) -> Expected {
        match self {
            Self::Items(input) => {
                let items = u32::try_from(input.items.len()).expect("at most ITEMS_MAX");
                Expected::Vectors(Items::Given(items))
            }
            Self::Granted { split: Split::Whole { .. }, .. } => Expected::Vectors(Items::Given(1)),
            Self::Granted { split: Split::Passages { .. }, .. } => Expected::Vectors(Items::Awaited),
            Self::Audio { .. } => Expected::Speech,
            // What is told in pieces is kept by whoever is told.
            Self::Generate { pieces, .. } => Expected::Text { is_kept: pieces.is_none() },
            Self::Live(_) => Expected::Live,
        }
    }

    /// Whether models of this architecture do such jobs.
    fn fits(&self, architecture: Architecture) -> bool {
        match self {
            Self::Items(_) | Self::Granted { .. } => architecture == Architecture::Bert,
            Self::Audio { .. } | Self::Live(_) => architecture == Architecture::Whisper,
            Self::Generate { .. } => architecture == Architecture::Llama,
        }
    }
}

/// Why a job is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A client asked.
    Client,
    /// The server looks after its models.
    Canary,
}

/// What a finished job gives.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its number, for `GET /jobs/{job}`.
    pub(crate) job: u64,
    /// What came of it.
    pub(crate) made: Made,
    /// Tokens run.
    pub(crate) tokens: u32,
    /// From receipt until the worker was told.
    pub(crate) queued: Duration,
    /// From there until the worker's end of the job.
    pub(crate) in_worker: Duration,
    /// What the worker says of it.
    pub(crate) compute: Duration,
    /// Where it ran: `cpu`, or the name of a GPU.
    pub(crate) device: String,
}

/// A job that has not ended.
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) request_id: String,
    pub(super) who: Who,
    /// Its place in the audit log's queue; a canary has none, and no entry.
    place: Option<Place>,
    pub(super) client: String,
    pub(super) model: ModelId,
    pub(super) expected: Expected,
    pub(super) input: Input,
    pub(super) domain: u64,
    pub(super) dimensions: Option<u32>,
    pub(super) received: Instant,
    pub(super) started: Option<Instant>,
    /// What the worker said at the end of its slot, until the scheduler says that this is the job's end.
    pub(super) result: Option<End>,
    /// Where it was last given to a worker.
    pub(super) device: String,
    /// What stopped its worker for want of memory, or the load that it waits for.
    pub(super) rung: Option<Rung>,
    answer: oneshot::Sender<Result<Output, ApiError>>,
    /// As the scheduler was told, and the deadline that the client asked for: for a recording that begins later.
    pub(super) submit: Submit,
    pub(super) asked: Option<Duration>,
}

/// What the audit log says of a job's end, beside what the job knows itself.
pub(super) struct Facts {
    audit: Audit,
    model: Word,
    digest: Option<Word>,
    device_ms: u64,
}

impl State {
    /// Of a job that has just ended.
    pub(super) fn audit_facts(&self, job: &Job) -> Facts {
        let (name, digest) = (self.models.name(job.model), self.models.digest(job.model));
        let device = self.scheduler.device_time_of(job.id).unwrap_or_default();
        Facts {
            audit: self.audit.clone(),
            model: Word::lossy(package_of_twin(&name).unwrap_or(&name)),
            digest: digest.map(Word::lossy),
            device_ms: u64::try_from(device.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Job {
    /// Answers the client, once the audit log has it. A client that has left does not hear it.
    pub(super) fn end(mut self, outcome: &Outcome, facts: Facts) {
        metrics::counter!("ringfence_jobs_total", "outcome" => outcome.code()).increment(1);
        tracing::debug!(request = self.request_id, client = self.client, outcome = outcome.code(), "ended");
        let rung = self.stopped_on(outcome);
        let result = self.result.take();
        let tokens = match &result {
            Some(End::Done { tokens, .. }) => Some(u64::from(*tokens)),
            Some(End::Failed(_)) | None => None,
        };
        let answer = match (outcome, result) {
            (Outcome::Done, Some(done @ End::Done { .. })) => self.output(done),
            (Outcome::Failed(Failure::InWorker | Failure::OutOfMemory), Some(End::Failed(error))) => {
                Err(ApiError::from(&error))
            }
            (Outcome::Done, _) => Err(ApiError::internal(&"a finished job without output")),
            (Outcome::Refused(refusal), _) => Err(refused(refusal)),
            (Outcome::Failed(failure), _) => Err(failed(failure)),
        };
        let answer = answer.map_err(|error| error.of_job(self.id.0).stopped_on(rung));
        match (self.place.take(), outcome) {
            (Some(place), Outcome::Done | Outcome::Failed(_)) => self.record(place, answer, tokens, facts),
            // What was refused did not run: it is counted with the other refusals.
            (Some(_), Outcome::Refused(_)) | (None, _) => drop(self.answer.send(answer)),
        }
    }

    /// Puts the end into the audit log; the client hears of it when that is durable.
    fn record(self, place: Place, answer: Result<Output, ApiError>, tokens: Option<u64>, facts: Facts) {
        let Facts { audit, model, digest, device_ms } = facts;
        let grant = self.input.granted().map(|file| file.grant());
        let result = Word::lossy(answer.as_ref().map_or_else(ApiError::code, |_| "ok"));
        let job = self.id.0;
        let ended = move |_: &mut Masker<'_>| Entry::JobEnded {
            job,
            model,
            digest,
            grant,
            result,
            device_ms,
            tokens,
        };
        let to = self.answer;
        audit.put(place, &self.who, ended, move |written| {
            let answer = match written {
                Ok(()) => answer.map_err(ApiError::recorded),
                Err(error) => Err(ApiError::from(error).of_job(job)),
            };
            drop(to.send(answer));
        });
    }

    /// Tells the audit log that a worker had no memory for this job. What was refused before it ran is a refusal there.
    pub(super) fn note_oom(&self, audit: &Audit, rung: Rung, model: &str, device: &str) {
        if self.place.is_none() || rung == Rung::RefusedByProfile {
            return;
        }
        let model = Word::lossy(package_of_twin(model).unwrap_or(model));
        let (rung, device, job) = (Word::lossy(rung.code()), Word::lossy(device), Some(self.id.0));
        audit.note(&self.who, move |_| Entry::OutOfMemory { rung, model, device, job });
    }

    /// What refused this job for want of memory, if that is why it is over.
    pub(super) fn refused_on(&self, outcome: &Outcome) -> Option<Rung> {
        match outcome {
            Outcome::Refused(
                Refusal::LeaseTooLargeForDevice { .. } | Refusal::JobTooLargeForLease { .. },
            ) => Some(Rung::RefusedByProfile),
            Outcome::Failed(Failure::OutOfMemory) if self.result.is_some() => Some(Rung::RefusedByWorker),
            Outcome::Done | Outcome::Refused(_) | Outcome::Failed(_) => None,
        }
    }

    /// Why it is over, for the operator: numbers, and nothing of its input.
    pub(super) fn in_words(&self, outcome: &Outcome) -> String {
        match (outcome, &self.result) {
            (Outcome::Failed(Failure::OutOfMemory), Some(End::Failed(error))) => error.to_string(),
            (Outcome::Refused(refusal), _) => refusal.to_string(),
            (Outcome::Failed(failure), _) => failure.to_string(),
            (Outcome::Done, _) => String::new(),
        }
    }

    /// The same, or what ended the worker or the load that it needed.
    fn stopped_on(&self, outcome: &Outcome) -> Option<Rung> {
        let with_worker = matches!(
            outcome,
            Outcome::Failed(Failure::OutOfMemory | Failure::LoadFailed | Failure::WorkerDied { .. })
        );
        self.refused_on(outcome).or(self.rung.filter(|_| with_worker))
    }

    fn output(&self, end: End) -> Result<Output, ApiError> {
        let End::Done { made, tokens, compute_us } = end else {
            return Err(ApiError::internal(&"a finished job without output"));
        };
        if let (Some(wanted), Made::Vectors { data, passages, .. }) = (self.dimensions, &made) {
            let items = match (&self.expected, passages) {
                (Expected::Vectors(Items::Given(items)), _) => *items as usize,
                (_, passages) => passages.as_ref().map_or(0, Vec::len),
            };
            // A text without passages has no width.
            let width = (data.len() / 4).checked_div(items);
            if let Some(width) = width.filter(|width| wanted as usize != *width) {
                let message = format!("dimensions is {wanted}, this model has {width} and can't change it");
                return Err(ApiError::invalid("dimensions_unsupported", "dimensions", message));
            }
        }
        let started = self.started.unwrap_or(self.received);
        Ok(Output {
            job: self.id.0,
            made,
            tokens,
            queued: started.duration_since(self.received),
            in_worker: clock::instant().duration_since(started),
            compute: Duration::from_micros(compute_us),
            device: self.device.clone(),
        })
    }
}

fn task_unsupported(model: &str, architecture: Architecture) -> ApiError {
    let route = match architecture {
        Architecture::Bert => "POST /v1/embeddings",
        Architecture::Whisper => "POST /v1/audio/transcriptions",
        Architecture::Llama => "POST /v1/chat/completions and /v1/completions",
    };
    let message = format!("{model} does not do this; it is for {route}");
    ApiError::invalid("task_unsupported", "model", message)
}

fn refused(refusal: &Refusal) -> ApiError {
    let status = match refusal {
        Refusal::UnknownModel => StatusCode::NOT_FOUND,
        Refusal::QueueFullClient { .. } | Refusal::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
        Refusal::JobTooLargeForLease { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Refusal::QueueFullModel { .. }
        | Refusal::QueueFullTotal { .. }
        | Refusal::DeadlineUnmeetable { .. }
        | Refusal::ModelBroken { .. }
        | Refusal::NotIdle
        | Refusal::Draining => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::LeaseTooLargeForDevice { .. } => StatusCode::INSUFFICIENT_STORAGE,
    };
    let error = ApiError::new(status, refusal.code(), refusal.to_string()).retry_after(refusal.retry_after());
    if refusal.retry_is_exact() { error.retry_is_exact() } else { error }
}

fn failed(failure: &Failure) -> ApiError {
    let status = match failure {
        Failure::DeadlinePassed | Failure::TimeoutPassed { .. } => StatusCode::GATEWAY_TIMEOUT,
        Failure::OutOfMemory => StatusCode::INSUFFICIENT_STORAGE,
        Failure::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
        Failure::ModelRemoved => StatusCode::NOT_FOUND,
        Failure::LoadFailed | Failure::ModelBroken { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Failure::WorkerDied { .. } | Failure::Cancelled | Failure::InWorker => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    ApiError::new(status, failure.code(), failure.to_string()).retry_after(failure.retry_after())
}

/// Kept until the end, as a crash of its worker replays a job.
pub(super) enum Input {
    Items(Encoded<EmbedInput>),
    Granted {
        file: Arc<GrantedFile>,
        split: Split,
    },
    Audio {
        options: TranscribeOptions,
        source: AudioSource,
        pieces: Option<mpsc::Sender<Piece>>,
    },
    Live(LiveInput),
    Generate {
        prompt: Encoded<Box<GenerateInput>>,
        file: Option<Arc<GrantedFile>>,
        pieces: Option<mpsc::Sender<Piece>>,
        precedence: Precedence,
    },
}

/// Small inputs travel in the message, large ones as sealed memory.
pub(super) enum Encoded<T> {
    Inline(T),
    Sealed { memfd: Arc<OwnedFd>, bytes: u64 },
}

impl<T> Encoded<T> {
    fn new(input: T, encoded: &[u8]) -> Result<Self, std::io::Error> {
        if encoded.len() <= INLINE_INPUT_BYTES_MAX {
            return Ok(Self::Inline(input));
        }
        let memfd = memfd_create("input", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = std::fs::File::from(memfd);
        file.write_all(encoded)?;
        Ok(Self::Sealed { memfd: seal(file)?, bytes: encoded.len() as u64 })
    }
}

impl Input {
    fn new(input: JobInput, precedence: Precedence) -> Result<Self, std::io::Error> {
        Ok(match input {
            JobInput::Items(input) => {
                let encoded = input.encode();
                Self::Items(Encoded::new(input, &encoded)?)
            }
            JobInput::Granted { file, split } => Self::Granted { file, split },
            JobInput::Audio { options, source, pieces } => Self::Audio { options, source, pieces },
            JobInput::Live(live) => Self::Live(live),
            JobInput::Generate { input, file, pieces } => {
                let encoded = input.encode();
                let prompt = Encoded::new(input, &encoded)?;
                Self::Generate { prompt, file, pieces, precedence }
            }
        })
    }

    fn granted(&self) -> Option<&Arc<GrantedFile>> {
        match self {
            Self::Granted { file, .. } | Self::Audio { source: AudioSource::Granted(file), .. } => Some(file),
            Self::Generate { file, .. } => file.as_ref(),
            Self::Items(_) | Self::Audio { source: AudioSource::Sealed { .. }, .. } | Self::Live(_) => None,
        }
    }

    /// Where it is a live job's.
    pub(super) fn live(&self) -> Option<&LiveInput> {
        match self {
            Self::Live(live) => Some(live),
            Self::Items(_) | Self::Granted { .. } | Self::Audio { .. } | Self::Generate { .. } => None,
        }
    }

    /// Whom to tell what comes of it before its end.
    pub(super) fn pieces(&self) -> Option<&mpsc::Sender<Piece>> {
        match self {
            Self::Audio { pieces, .. } | Self::Generate { pieces, .. } => pieces.as_ref(),
            Self::Items(_) | Self::Granted { .. } | Self::Live(_) => None,
        }
    }

    /// What the worker is told.
    pub(super) fn message(&self, slot: u32, domain: u64, weight: u16) -> (ToWorker, Vec<Arc<OwnedFd>>) {
        let run = |input| ToWorker::Run { slot, domain, weight, input };
        match self {
            Self::Items(Encoded::Inline(input)) => (run(Data::Inline(input.clone())), Vec::new()),
            Self::Items(Encoded::Sealed { memfd, bytes }) => {
                (run(Data::Descriptor { bytes: *bytes }), vec![memfd.clone()])
            }
            Self::Granted { file, split } => {
                let (bytes, descriptor) = file.hand_over();
                let data = match bytes {
                    Some(bytes) => Data::Text { bytes, split: *split },
                    None => Data::File { split: *split },
                };
                (run(data), vec![descriptor])
            }
            Self::Audio { options, source, .. } => {
                let (bytes, descriptor) = match source {
                    AudioSource::Sealed { memfd, bytes } => (Some(*bytes), memfd.clone()),
                    AudioSource::Granted(file) => file.hand_over(),
                };
                let audio = bytes.map_or(Audio::File, |bytes| Audio::Sealed { bytes });
                let options = options.clone();
                (ToWorker::Transcribe { slot, domain, weight, options, audio }, vec![descriptor])
            }
            Self::Generate { prompt, file, precedence, .. } => {
                let (input, mut descriptors) = match prompt {
                    Encoded::Inline(input) => (GenerateData::Inline((**input).clone()), Vec::new()),
                    Encoded::Sealed { memfd, bytes } => {
                        (GenerateData::Descriptor { bytes: *bytes }, vec![memfd.clone()])
                    }
                };
                let file = file.as_ref().map(|file| {
                    let (bytes, descriptor) = file.hand_over();
                    descriptors.push(descriptor);
                    bytes.map_or(GrantedText::Link, |bytes| GrantedText::Copy { bytes })
                });
                let precedence = *precedence;
                (ToWorker::Generate { slot, domain, weight, precedence, input, file }, descriptors)
            }
            Self::Live(LiveInput { options, audio, socket, .. }) => {
                let socket = socket.lock().expect("no thread panics with this lock").take();
                let socket = socket.expect("the scheduler gives a live job to one worker");
                let (options, audio) = (options.clone(), *audio);
                (ToWorker::Listen { slot, domain, weight, options, audio }, vec![Arc::new(socket)])
            }
        }
    }
}

/// Nobody changes these bytes any more.
pub(crate) fn seal(file: std::fs::File) -> Result<Arc<OwnedFd>, std::io::Error> {
    let memfd = OwnedFd::from(file);
    fcntl_add_seals(&memfd, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(Arc::new(memfd))
}

/// Most tokens that an input can have: a token has at least one byte, and two special ones stand around it. A file is one
/// text, of which nobody here knows the length; one that is split may be as long as an input may be.
fn tokens_bound(input: &JobInput, max_tokens: u32) -> u64 {
    let input = match input {
        JobInput::Items(input) => input,
        JobInput::Granted { split: Split::Whole { .. }, .. } => return u64::from(max_tokens),
        JobInput::Granted { split: Split::Passages { .. }, .. } => {
            return u64::from(max_tokens) * PASSAGES_EXPECTED;
        }
        JobInput::Audio { source, .. } => return audio_tokens(source, max_tokens),
        JobInput::Generate { input, file, .. } => return prompt_tokens(input, file.as_deref(), max_tokens),
        // It is part of many steps and of none as long as nobody speaks.
        JobInput::Live(_) => return 1,
    };
    let of = |item: &Item| match item {
        Item::Text(text) => text.len() as u64 + 2,
        Item::Tokens(tokens) => tokens.len() as u64 + 2,
    };
    input.items.iter().map(|item| of(item).min(u64::from(max_tokens))).sum()
}

/// What a prompt and its answer are expected to take, until the worker has counted them.
fn prompt_tokens(input: &GenerateInput, file: Option<&GrantedFile>, max_tokens: u32) -> u64 {
    let of_piece = |piece: &ChatContent| match piece {
        ChatContent::Text(text) => text.len() as u64,
        ChatContent::File => file.and_then(GrantedFile::size).unwrap_or(TEXT_BYTES_EXPECTED),
    };
    let prompt = match &input.prompt {
        Prompt::Text(text) => text.len() as u64 / BYTES_PER_TOKEN,
        Prompt::Tokens(tokens) => tokens.len() as u64,
        Prompt::Chat(messages) => {
            let bytes: u64 = messages.iter().flat_map(|message| &message.content).map(of_piece).sum();
            bytes / BYTES_PER_TOKEN + messages.len() as u64 * MESSAGE_TOKENS
        }
    };
    let answer = input.options.max_tokens.unwrap_or(ANSWER_TOKENS_EXPECTED);
    (prompt + 1).saturating_add(u64::from(answer)).min(u64::from(max_tokens))
}

/// What audio is expected to take: for each window its frames and as many tokens as the model may write.
fn audio_tokens(source: &AudioSource, max_tokens: u32) -> u64 {
    let windows = audio_bytes(source).div_ceil(WINDOW_BYTES).max(1);
    windows * (WINDOW_FRAMES + u64::from(max_tokens) / 4)
}

/// What an input's audio is expected to last.
fn audio_ms(input: &JobInput) -> u64 {
    match input {
        JobInput::Items(_) | JobInput::Granted { .. } | JobInput::Generate { .. } => 0,
        // The rest is charged as it is heard.
        JobInput::Live(_) => LISTENED_MS,
        JobInput::Audio { source, .. } => (audio_bytes(source) * WINDOW_MS / WINDOW_BYTES).max(1),
    }
}

fn audio_bytes(source: &AudioSource) -> u64 {
    match source {
        AudioSource::Sealed { bytes, .. } => *bytes,
        AudioSource::Granted(file) => file.size().unwrap_or(AUDIO_BYTES_EXPECTED),
    }
}

impl Dispatcher {
    /// Runs one job to its end.
    pub(crate) async fn run(self: &Arc<Self>, request: JobRequest) -> Result<Output, ApiError> {
        let grant = request.input.granted().map(|file| file.end());
        let place = match request.purpose {
            Purpose::Client => Some(self.audit.place(Lane::Job).await?),
            Purpose::Canary => None,
        };
        let (job, answer) = self.submit(request, place)?;
        let waiting = Waiting::new(self.clone(), job, grant);
        let output = answer.await;
        waiting.answered();
        output.unwrap_or_else(|_| Err(ApiError::internal(&"a job ended without an answer")))
    }

    pub(super) fn submit(
        self: &Arc<Self>,
        request: JobRequest,
        place: Option<Place>,
    ) -> Result<(JobId, oneshot::Receiver<Result<Output, ApiError>>), ApiError> {
        let expected = request.input.expected();
        let (answer, answered) = oneshot::channel();
        let JobRequest { client, request_id, who, model, input, received, deadline, dimensions, purpose } =
            request;
        let (model, max_tokens, step_tokens, class) = {
            let state = self.lock();
            if purpose == Purpose::Client
                && !state.quotas.quotas.may_use(&client, package_of_twin(&model).unwrap_or(&model))
            {
                return Err(ApiError::model_unknown(&model));
            }
            let found = state.models.named(&model).ok_or_else(|| state.unusable(&model))?;
            // A canary asks about what runs, whatever the disk holds.
            if purpose != Purpose::Canary {
                state.models.refuse_changed(found.id)?;
            }
            if !input.fits(found.architecture) {
                return Err(task_unsupported(&model, found.architecture));
            }
            // Canaries have nobody's quota.
            let class =
                state.quotas.quotas.client(&client).map_or(Class::Interactive, |quota| quota.values().class);
            (found.id, found.max_tokens, found.step_tokens, class)
        };
        // Counting, encoding and sealing megabytes would hold up everybody under the lock.
        let tokens = tokens_bound(&input, max_tokens);
        let audio_ms = audio_ms(&input);
        let live = matches!(input, JobInput::Live(_));
        let of_window = WINDOW_FRAMES + u64::from(max_tokens) / 4;
        let tokens_bound = if live { of_window } else { tokens }.min(u64::from(step_tokens.max(max_tokens)));
        let precedence = match class {
            Class::Realtime => Precedence::Realtime,
            Class::Interactive => Precedence::Interactive,
            Class::Batch => Precedence::Batch,
        };
        let input = Input::new(input, precedence).map_err(|error| ApiError::internal(&error))?;
        let mut state = self.lock();
        let client_numbers = self.client(&mut state, &client)?;
        let asked = deadline;
        let deadline = match purpose {
            // The longest that a job may take says nothing of how long somebody speaks.
            Purpose::Client if live => None,
            Purpose::Client => state.quotas.quotas.deadline(&client, deadline),
            Purpose::Canary => deadline,
        };
        state.last_job += 1;
        let id = JobId(state.last_job);
        tracing::debug!(request = request_id, job = id.0, client, "submitted");
        let waited = clock::instant().duration_since(received);
        let deadline = deadline.map(|deadline| clock::now() + deadline.saturating_sub(waited));
        let submit = Submit {
            job: id,
            client: client_numbers.id,
            model,
            deadline,
            tokens,
            tokens_bound,
            audio_ms,
            canary: purpose == Purpose::Canary,
            live,
        };
        let job = Job {
            id,
            request_id,
            who,
            place,
            client,
            model,
            expected,
            input,
            domain: client_numbers.domain,
            dimensions,
            received,
            started: None,
            result: None,
            rung: None,
            device: String::new(),
            answer,
            submit: submit.clone(),
            asked,
        };
        state.jobs.insert(id, job);
        state.record_submit(&submit, asked.map(|asked| asked.saturating_sub(waited)));
        self.step(&mut state, Event::Submit(submit));
        Ok((id, answered))
    }
}

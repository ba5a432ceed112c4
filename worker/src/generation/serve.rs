//! Serves a generator: prompts that are read, tokenised and computed piece by piece, and answers that are written token by
//! token, all in the same steps.
//!
//! ```text
//! Reading     a granted file comes, step by step
//! Tokenising  the prompt becomes tokens, some kilobytes at a time
//! Running     its sequence is in the batch: tokens of the prompt, then the answer
//! ```

use super::batch::{Batch, Move, Part, Sequence};
use super::language::Prompting;
use super::pace::StepPace;
use super::writing::{Writing, Written};
use crate::device::CACHE_BLOCK_TOKENS;
use crate::files::{self, Progress, Reading};
use crate::jobs::{Owner, SlotFault, UsedSlots};
use crate::lanes::Share;
use crate::memory::{Memory, job_error};
use crate::models::LoadedGenerator;
use crate::models::llama::Run;
use crate::serve::{End, Next, are_cancelled, await_bytes, listen, message_waits, send};
use crate::stopwatch::Stopwatch;
use ringfence_protocol::{
    FinishReason, FromWorker, GenerateData, GenerateInput, GenerateOptions, GrantedText, INPUT_BYTES_MAX,
    JobError, Precedence, Received, Start, ToWorker, WorkerSideLink,
};
use ringfence_sandbox::{Map, SealedFile, hoard};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of prompts that are tokenised between two looks at the link.
const TOKENISE_BYTES: usize = 16 * 1024;
/// A prompt takes at most so many times its bytes: as it came, as text with the template's words, in pieces and as tokens.
const PROMPT_FACTOR: u64 = 12;

/// A job from its `Generate` to its end.
struct Job {
    slot: u32,
    share: Share,
    precedence: Precedence,
    is_private: bool,
    phase: Phase,
    /// Tokens of its prompt.
    prompt: u32,
    sequence: u32,
    compute_us: u64,
}

/// What is next.
enum Phase {
    Tokenising { prompting: Prompting, options: Box<GenerateOptions> },
    Running(Box<Writing>),
}

/// A job whose file is still being read.
struct Awaiting {
    reading: Reading,
    precedence: Precedence,
    input: GenerateInput,
}

/// A loaded model and its jobs.
struct Server<'a> {
    link: &'a WorkerSideLink,
    memory: &'a dyn Memory,
    loaded: Box<LoadedGenerator>,
    pace: StepPace,
    batch: Batch,
    /// Sequences that room was made for; the server may give more jobs, if its quota has changed.
    sequences_max: usize,
    readings: Vec<Awaiting>,
    /// Oldest first.
    jobs: Vec<Job>,
    /// Of the model's workspace.
    owner: Owner,
    /// What came while a step ran.
    heard: VecDeque<Received<ToWorker>>,
    used: UsedSlots,
    logits: Vec<f32>,
}

/// Serves jobs of text generation, from `Ready` on.
///
/// # Errors
/// Whatever ends the worker otherwise than by `Stop`.
pub(crate) fn serve_generation(
    link: &WorkerSideLink,
    loaded: Box<LoadedGenerator>,
    start: &Start,
    memory: &dyn Memory,
) -> Result<(), End> {
    let server = Server {
        link,
        memory,
        pace: StepPace::new(loaded.rows_max, start.step_us),
        batch: Batch::new(loaded.model.blocks()),
        sequences_max: usize::from(start.slots),
        loaded,
        readings: Vec::new(),
        jobs: Vec::new(),
        owner: Owner::default(),
        heard: VecDeque::new(),
        used: UsedSlots::default(),
        logits: Vec::new(),
    };
    server.run()
}

impl Server<'_> {
    fn run(mut self) -> Result<(), End> {
        self.send_ready()?;
        loop {
            while let Some(received) = self.heard.pop_front() {
                match self.handle(received)? {
                    Next::Go => {}
                    Next::Stop => return Ok(()),
                }
            }
            while self.jobs.is_empty() || message_waits(self.link)? {
                if self.jobs.is_empty()
                    && !self.readings.is_empty()
                    && !await_bytes(self.link, self.readings.iter().map(|one| one.reading.as_fd()))?
                {
                    self.read_on()?;
                    continue;
                }
                match self.handle(self.link.receive()?)? {
                    Next::Go => {}
                    Next::Stop => return Ok(()),
                }
            }
            self.read_on()?;
            self.tokenise()?;
            self.step()?;
        }
    }

    fn send_ready(&self) -> Result<(), End> {
        let usage = self.loaded.model.usage(self.memory);
        let max_tokens = self.loaded.max_tokens.min(self.batch.tokens_max());
        let ready = FromWorker::Ready {
            dimensions: 1,
            // Blocks and workspace are there already.
            bytes_per_token: 0,
            used_bytes: usage.used,
            peak_bytes: usage.peak,
            max_tokens: u32::try_from(max_tokens).expect("the configuration bounds it"),
            vocabulary: self.loaded.language.vocabulary(),
        };
        send(self.link, ready)
    }

    fn handle(&mut self, received: Received<ToWorker>) -> Result<Next, End> {
        let Received { message, descriptors, .. } = received;
        match (message, descriptors.len()) {
            (ToWorker::Generate { weight: 0, .. }, _) => return Err(End::Illegal("a weight of nothing")),
            (ToWorker::Generate { slot, domain, weight, precedence, input, file }, _) => {
                self.generate((slot, Share { domain, weight }, precedence), input, file, descriptors)?;
            }
            (ToWorker::Cancel { slot }, 0) => self.cancel(slot)?,
            (ToWorker::Drill { bytes }, 0) => hoard(bytes),
            (ToWorker::Stop, 0) => return Ok(Next::Stop),
            (ToWorker::Cancel { .. } | ToWorker::Drill { .. } | ToWorker::Stop, _) => {
                return Err(End::Illegal("descriptors that don't belong to the message"));
            }
            (ToWorker::Start(_) | ToWorker::Load { .. }, _) => {
                return Err(End::Illegal("a second start or package"));
            }
            (
                ToWorker::Run { .. }
                | ToWorker::Transcribe { .. }
                | ToWorker::LoadDetector { .. }
                | ToWorker::Listen { .. },
                _,
            ) => return Err(End::Illegal("another task for a model that writes text")),
        }
        Ok(Next::Go)
    }

    fn occupy(&mut self, slot: u32) -> Result<(), SlotFault> {
        let is_taken = self.jobs.iter().any(|job| job.slot == slot)
            || self.readings.iter().any(|one| one.reading.slot == slot);
        self.used.take(slot, is_taken)
    }

    fn generate(
        &mut self,
        (slot, share, precedence): (u32, Share, Precedence),
        data: GenerateData,
        file: Option<GrantedText>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), End> {
        self.occupy(slot)?;
        let mut descriptors = descriptors.into_iter();
        let surplus = || End::Illegal("descriptors that don't belong to the message");
        let input = match data {
            GenerateData::Inline(input) if input.is_legal() => input,
            GenerateData::Inline(_) => return Err(End::Illegal("a prompt out of bounds")),
            GenerateData::Descriptor { bytes } => {
                let descriptor = descriptors.next().ok_or_else(surplus)?;
                let Some(map) = self.sealed(slot, bytes, descriptor)? else { return Ok(()) };
                GenerateInput::decode(&map).ok_or(End::Illegal("a prompt that doesn't decode"))?
            }
        };
        if input.files() != usize::from(file.is_some()) || descriptors.len() != input.files() {
            return Err(surplus());
        }
        match (file, descriptors.next()) {
            (Some(GrantedText::Copy { bytes }), Some(descriptor)) => {
                let Some(map) = self.sealed(slot, bytes, descriptor)? else { return Ok(()) };
                self.begin_with((slot, share, precedence), input, map.to_vec())
            }
            (Some(GrantedText::Link), Some(descriptor)) => {
                let reading = Reading::new(slot, share, INPUT_BYTES_MAX, descriptor);
                self.readings.push(Awaiting { reading, precedence, input });
                // Nothing comes before it is asked for.
                self.read_on()
            }
            _ => self.begin((slot, share, precedence), input, None),
        }
    }

    /// Sealed bytes; nothing where there is no memory for what becomes of them, which the server is told.
    fn sealed(&mut self, slot: u32, bytes: u64, descriptor: OwnedFd) -> Result<Option<Map>, End> {
        let file = SealedFile::from_descriptor(descriptor)?;
        if bytes != file.len() || bytes > INPUT_BYTES_MAX as u64 {
            return Err(End::Illegal("an input of another length, or out of bounds"));
        }
        if let Err(denial) = self.memory.check(bytes * PROMPT_FACTOR) {
            send(self.link, FromWorker::Failed { slot, error: job_error(denial) })?;
            return Ok(None);
        }
        Ok(Some(file.map()?))
    }

    /// Takes what has come of the files; those that are whole are a part of their prompts.
    fn read_on(&mut self) -> Result<(), End> {
        let mut at = 0;
        while let Some(one) = self.readings.get_mut(at) {
            match one.reading.advance(self.memory) {
                Progress::Waits => at += 1,
                Progress::Read(bytes) => {
                    let Awaiting { reading, precedence, input } = self.readings.swap_remove(at);
                    match self.memory.check(bytes.len() as u64 * PROMPT_FACTOR) {
                        Ok(()) => self.begin_with((reading.slot, reading.share, precedence), input, bytes)?,
                        Err(denial) => self.refuse(reading.slot, job_error(denial))?,
                    }
                }
                Progress::Failed(error) => {
                    let slot = self.readings.swap_remove(at).reading.slot;
                    self.refuse(slot, error)?;
                }
            }
        }
        Ok(())
    }

    fn refuse(&self, slot: u32, error: JobError) -> Result<(), End> {
        send(self.link, FromWorker::Failed { slot, error })
    }

    fn begin_with(
        &mut self,
        of: (u32, Share, Precedence),
        input: GenerateInput,
        bytes: Vec<u8>,
    ) -> Result<(), End> {
        match files::text(bytes) {
            Ok((text, _)) => self.begin(of, input, Some(&text)),
            Err(error) => self.refuse(of.0, error),
        }
    }

    fn begin(
        &mut self,
        (slot, share, precedence): (u32, Share, Precedence),
        input: GenerateInput,
        file: Option<&str>,
    ) -> Result<(), End> {
        let GenerateInput { prompt, options } = input;
        match self.loaded.language.prompting(prompt, file, self.memory) {
            Ok(prompting) => {
                let phase = Phase::Tokenising { prompting, options: Box::new(options) };
                let is_private = file.is_some();
                self.jobs.push(Job {
                    slot,
                    share,
                    precedence,
                    is_private,
                    phase,
                    prompt: 0,
                    sequence: 0,
                    compute_us: 0,
                });
                Ok(())
            }
            Err(error) => self.refuse(slot, error),
        }
    }

    /// What the job left in blocks and buffers goes as well: it may be cancelled because it may not be kept.
    fn cancel(&mut self, slot: u32) -> Result<(), End> {
        self.used.check(slot)?;
        let count = |server: &Self| server.readings.len() + server.jobs.len();
        let before = count(self);
        self.readings.retain(|one| one.reading.slot != slot);
        self.remove(slot);
        if count(self) < before {
            self.loaded.model.forget();
            self.logits.fill(0.0);
            self.refuse(slot, JobError::Cancelled)?;
        }
        Ok(())
    }

    fn remove(&mut self, slot: u32) {
        self.jobs.retain(|job| job.slot != slot);
        let wiped = self.batch.leave(slot);
        self.loaded.model.wipe(&wiped);
    }

    fn fail(&mut self, slot: u32, error: JobError) -> Result<(), End> {
        self.remove(slot);
        self.refuse(slot, error)
    }

    /// Tokenises a bounded piece of the first prompt that is not done, if there is room for its sequence.
    fn tokenise(&mut self) -> Result<(), End> {
        if self.batch.len() == self.sequences_max {
            return Ok(());
        }
        let is_tokenising = |job: &Job| matches!(job.phase, Phase::Tokenising { .. });
        let Some(at) = self.jobs.iter().position(is_tokenising) else { return Ok(()) };
        let watch = Stopwatch::start();
        let job = &mut self.jobs[at];
        let slot = job.slot;
        let Phase::Tokenising { prompting, .. } = &mut job.phase else { return Ok(()) };
        let is_done = prompting.advance(&self.loaded.language, TOKENISE_BYTES);
        let busy_us = watch.micros();
        job.compute_us += busy_us;
        match is_done {
            // Else a long prompt would look like a worker that hangs.
            Ok(false) => send(self.link, FromWorker::Step { busy_us, tokens: vec![(slot, 1)] }),
            Ok(true) => match self.join(at) {
                Ok(()) => Ok(()),
                Err(error) => self.fail(slot, error),
            },
            Err(error) => self.fail(slot, error),
        }
    }

    /// Puts a job's prompt into the batch.
    fn join(&mut self, at: usize) -> Result<(), JobError> {
        let max_tokens = self.loaded.max_tokens;
        let job = &mut self.jobs[at];
        let Phase::Tokenising { prompting, options } = &mut job.phase else { return Ok(()) };
        let tokens = std::mem::take(prompting).into_tokens();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let answer = options.max_tokens.unwrap_or(1);
        if tokens.len().saturating_add(answer as usize) > max_tokens {
            let (tokens, max_tokens) = (count(tokens.len()), count(max_tokens));
            return Err(JobError::ContextTooLong { tokens, answer, max_tokens });
        }
        let room = self.batch.tokens_max();
        if tokens.len() + answer as usize > room {
            let block_bytes = self.loaded.model.block_bytes();
            let wanted = (tokens.len() + answer as usize).div_ceil(CACHE_BLOCK_TOKENS) as u64 * block_bytes;
            // What is not the blocks' is used, and all blocks together are what is left.
            let limit = self.loaded.model.usage(self.memory).used;
            let used = limit.saturating_sub(self.batch.blocks().count() as u64 * block_bytes);
            return Err(JobError::OutOfMemory { wanted, used, limit });
        }
        let options = std::mem::take(&mut **options);
        let writing =
            Writing::new(&self.loaded.language, &tokens, options, max_tokens.min(room), self.memory)?;
        job.prompt = count(tokens.len());
        job.phase = Phase::Running(Box::new(writing));
        self.batch.join(Sequence::new(job.slot, job.share, job.precedence, job.is_private, tokens));
        Ok(())
    }

    fn step(&mut self) -> Result<(), End> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let watch = Stopwatch::start();
        for one in self.batch.plan(self.pace.rows()).moves {
            match one {
                Move::Wipe(block) => self.loaded.model.wipe(&[block]),
                Move::Copy { from, to } => self.loaded.model.copy(from, to),
            }
        }
        let parts: Vec<Part<'_>> = self.batch.parts().collect();
        let domains = parts.iter().filter_map(|part| self.batch.get(part.slot)).map(|s| s.share.domain);
        if self.owner.passes_to(domains) {
            self.loaded.model.forget();
        }
        let tokens: Vec<(u32, u32)> = parts.iter().map(|part| (part.slot, part.ids.len() as u32)).collect();
        let answers: Vec<u32> = parts.iter().filter(|part| part.answers).map(|part| part.slot).collect();
        let runs: Vec<Run<'_>> = parts.iter().map(run).collect();
        let mut fault = None;
        let (link, heard) = (self.link, &mut self.heard);
        let mut go_on = || match listen(link, heard) {
            Ok(()) => !are_cancelled(heard, &tokens),
            Err(end) => {
                fault = Some(end);
                false
            }
        };
        let is_whole = self.loaded.model.step_while(&runs, &mut self.logits, &mut go_on)?;
        if let Some(end) = fault {
            return Err(end);
        }
        let busy_us = watch.micros();
        send(self.link, FromWorker::Step { busy_us, tokens: tokens.clone() })?;
        // Nobody wants it any more; its jobs end when what came is handled, before anything else.
        if !is_whole {
            return Ok(());
        }
        let rows: u32 = tokens.iter().map(|(_, tokens)| tokens).sum();
        self.pace.measured(rows as usize, busy_us);
        self.batch.computed();
        for (slot, tokens) in tokens {
            self.charge(slot, busy_us * u64::from(tokens) / u64::from(rows.max(1)))?;
        }
        let logits = std::mem::take(&mut self.logits);
        let vocabulary = self.loaded.language.vocabulary() as usize;
        let outcome = self.write(&answers, logits, vocabulary);
        outcome.map(|logits| self.logits = logits)
    }

    /// A job's part of a step; its prompt is in the model's hands, of which the server hears once.
    fn charge(&mut self, slot: u32, busy_us: u64) -> Result<(), End> {
        let job = self.jobs.iter_mut().find(|job| job.slot == slot).expect("it is in the batch");
        job.compute_us += busy_us;
        let (tokens, cached) = (job.prompt, self.batch.get(slot).map_or(0, Sequence::cached));
        let Phase::Running(writing) = &mut job.phase else { return Ok(()) };
        if writing.tell_prompt() {
            send(self.link, FromWorker::Prompted { slot, tokens, cached: cached as u32 })?;
        }
        Ok(())
    }

    /// Chooses the next token of each answer; gives the logits' memory back.
    fn write(&mut self, answers: &[u32], mut logits: Vec<f32>, vocabulary: usize) -> Result<Vec<f32>, End> {
        for (slot, logits) in answers.iter().zip(logits.chunks_exact_mut(vocabulary)) {
            let watch = Stopwatch::start();
            let job = self.jobs.iter_mut().find(|job| job.slot == *slot).expect("it is in the batch");
            let Phase::Running(writing) = &mut job.phase else { continue };
            let written = writing.write(&self.loaded.language, logits);
            job.compute_us += watch.micros();
            match written {
                Err(error) => self.fail(*slot, error)?,
                Ok(Written { token, piece, finish }) => {
                    if let Some(piece) = piece {
                        let sequence = job.sequence;
                        job.sequence += 1;
                        send(self.link, FromWorker::Text { slot: *slot, sequence, piece })?;
                    }
                    match finish {
                        Some(reason) => self.finish(*slot, reason)?,
                        None => self.batch.push(*slot, token),
                    }
                }
            }
        }
        Ok(logits)
    }

    fn finish(&mut self, slot: u32, reason: FinishReason) -> Result<(), End> {
        let usage = self.loaded.model.usage(self.memory);
        let job = self.jobs.iter().find(|job| job.slot == slot).expect("it is in the batch");
        let answer = match &job.phase {
            Phase::Running(writing) => writing.tokens(),
            Phase::Tokenising { .. } => 0,
        };
        let done = FromWorker::Done {
            slot,
            tokens: job.prompt.saturating_add(answer),
            truncated: 0,
            compute_us: job.compute_us,
            used_bytes: usage.used,
            peak_bytes: usage.peak,
        };
        self.remove(slot);
        send(self.link, FromWorker::Finished { slot, reason })?;
        send(self.link, done)
    }
}

fn run<'a>(part: &Part<'a>) -> Run<'a> {
    let Part { ids, first, blocks, answers, .. } = *part;
    Run { ids, first, blocks, answers }
}

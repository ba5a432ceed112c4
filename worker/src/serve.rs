//! The worker's side of the link: what it says and takes in which state. Anything else ends the worker.

#[cfg(feature = "wgpu")]
use crate::device::Wgpu;
use crate::device::{Cpu, DeviceFailure};
use crate::files::{self, Progress, Reading};
use crate::generation::serve_generation;
use crate::jobs::{Jobs, Owner, SlotFault};
use crate::lanes::Share;
#[cfg(feature = "wgpu")]
use crate::memory::load_refused;
use crate::memory::{Memory, Refusal, job_error};
use crate::models::{self, Batch, Loaded, LoadedEmbedder, Sizes};
use crate::pace::Pace;
use crate::package::{FileBytes, Files};
use crate::shell::{Shell, layer};
use crate::speech::serve_speech;
use crate::stopwatch::Stopwatch;
use ringfence_kernels::{Compute, Isa, Pool, THREADS_MAX};
use ringfence_protocol::{
    Architecture, CHUNK_BYTES_MAX, ChunkBytes, DIGEST, Data, Device, EmbedInput, FromWorker,
    INLINE_INPUT_BYTES_MAX, INPUT_BYTES_MAX, Item, JobError, KeptBlocks, LinkError, LoadError,
    REASON_BYTES_MAX, Received, SLOTS_MAX, Split, Start, ToWorker, WorkerSideLink,
};
use ringfence_sandbox::{Denial, EnterError, Map, SealedFile, SealedFileError, hoard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How often a file that gives nothing is looked at.
const FILE_LOOK_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Bytes of input that are tokenised between two looks at the link.
const TOKENISE_BYTES: usize = 16 * 1024;

/// The most messages that are taken while a step runs; each may hold a descriptor, of which a worker may have few.
const HEARD_MAX: usize = 8;

/// Decoded items take at most this many times their encoding: a token id is one byte there and four here, and the list
/// may have grown to twice its length.
const DECODED_FACTOR: u64 = 9;

/// Tokens and offsets of a text that is split take at most this many bytes for each byte of it.
const SPLIT_FACTOR: u64 = 5;

/// Why a worker ends otherwise than by `Stop`.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The link is closed, or what came over it is no message.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// A message that is not legal now.
    #[error("illegal message: {0}")]
    Illegal(&'static str),
    /// A message about a slot that can't be.
    #[error("illegal message: {0}")]
    Slot(#[from] SlotFault),
    /// A job's descriptor is not what it must be.
    #[error("a job's input: {0}")]
    Input(#[from] SealedFileError),
    /// The filter can't be applied.
    #[error("{0}")]
    Seal(#[from] EnterError),
    /// The system starts no more threads.
    #[error("no compute threads: {0}")]
    Threads(#[from] std::io::Error),
    /// There is no device, or it failed; the server knows.
    #[error("{0}")]
    Device(#[from] DeviceFailure),
    /// The package can't be run, or there is no memory to get ready for it; the server knows.
    #[error("the package can't be run: {0}")]
    Load(LoadError),
}

impl From<LoadError> for End {
    fn from(error: LoadError) -> Self {
        match error {
            // The package may be as it must be.
            LoadError::Device { reason } => Self::Device(DeviceFailure { reason }),
            error => Self::Load(error),
        }
    }
}

/// Serves one link from `Hello` to `Stop`.
///
/// # Errors
/// Whatever else ends the worker.
pub fn serve(link: &WorkerSideLink, shell: impl Shell, memory: &dyn Memory) -> Result<(), End> {
    send(link, FromWorker::Hello { digest: DIGEST.to_owned() })?;
    let start = receive_start(link)?;
    match told(link, load(link, shell, &start, memory))? {
        Loaded::Embedder(mut loaded) => serve_jobs(link, &mut loaded, &start, memory),
        Loaded::Transcriber(mut loaded) => told(link, serve_speech(link, &mut loaded, &start, memory)),
        Loaded::Generator(loaded) => told(link, serve_generation(link, loaded, &start, memory)),
    }
}

/// As [`serve`], from `Ready` on.
///
/// # Errors
/// As for [`serve`].
pub fn serve_jobs(
    link: &WorkerSideLink,
    loaded: &mut LoadedEmbedder,
    start: &Start,
    memory: &dyn Memory,
) -> Result<(), End> {
    let pace = Pace::new(start.step_tokens, start.step_us);
    let server = Server {
        link,
        memory,
        loaded,
        pace,
        calibrate: start.calibrate,
        jobs: Jobs::default(),
        readings: Vec::new(),
        owner: Owner::default(),
        heard: VecDeque::new(),
    };
    told(link, server.run())
}

/// Says why the worker ends, where the server can't know.
fn told<T>(link: &WorkerSideLink, outcome: Result<T, End>) -> Result<T, End> {
    match &outcome {
        Err(End::Load(error)) => send(link, FromWorker::LoadFailed { error: error.clone() })?,
        Err(End::Device(DeviceFailure { reason })) => {
            let bytes = reason.floor_char_boundary(REASON_BYTES_MAX);
            send(link, FromWorker::DeviceFailed { reason: reason[..bytes].to_owned() })?;
        }
        Ok(_)
        | Err(
            End::Link(_) | End::Illegal(_) | End::Slot(_) | End::Input(_) | End::Seal(_) | End::Threads(_),
        ) => {}
    }
    outcome
}

/// From the start to a model that is ready.
fn load(link: &WorkerSideLink, shell: impl Shell, start: &Start, memory: &dyn Memory) -> Result<Loaded, End> {
    let ready = seal(link, shell, start, memory)?;
    let (files, blocks) = receive_files(link)??;
    let (architecture, max_tokens) = (start.architecture, start.max_tokens as usize);
    let sizes =
        Sizes { max_tokens, step_tokens: start.step_tokens as usize, slots: usize::from(start.slots) };
    Ok(match ready {
        Ready::Cpu(cpu) if architecture == Architecture::Llama => {
            Loaded::Generator(Box::new(models::load_generator(&files, &blocks, cpu, sizes, memory)?))
        }
        Ready::Cpu(cpu) => models::load_on(&files, architecture, cpu, max_tokens, memory)?,
        #[cfg(feature = "wgpu")]
        Ready::Wgpu(wgpu) => models::load_on(&files, architecture, *wgpu, max_tokens, memory)?,
    })
}

pub(crate) fn send(link: &WorkerSideLink, message: FromWorker) -> Result<(), End> {
    Ok(link.send(&message, &[])?)
}

fn receive_start(link: &WorkerSideLink) -> Result<Start, End> {
    let Received { message, descriptors, .. } = link.receive()?;
    match message {
        ToWorker::Start(start) if descriptors.is_empty() => legal_start(start),
        ToWorker::Start(_) => Err(End::Illegal("descriptors with a start")),
        ToWorker::Load { .. }
        | ToWorker::Run { .. }
        | ToWorker::Transcribe { .. }
        | ToWorker::Generate { .. }
        | ToWorker::Cancel { .. }
        | ToWorker::Drill { .. }
        | ToWorker::LoadDetector { .. }
        | ToWorker::Listen { .. }
        | ToWorker::Stop => Err(End::Illegal("something before the start")),
    }
}

fn legal_start(start: Start) -> Result<Start, End> {
    if !(1..=THREADS_MAX).contains(&usize::from(start.threads)) {
        return Err(End::Illegal("a number of threads out of bounds"));
    }
    if start.max_tokens == 0 || start.step_tokens == 0 || start.step_us == 0 {
        return Err(End::Illegal("a bound of nothing"));
    }
    if !(1..=SLOTS_MAX).contains(&u32::from(start.slots)) {
        return Err(End::Illegal("a number of slots out of bounds"));
    }
    Ok(start)
}

/// A device, warmed up.
enum Ready {
    Cpu(Cpu),
    #[cfg(feature = "wgpu")]
    Wgpu(Box<Wgpu>),
}

/// Starts the threads or opens the device, and runs everything once.
fn warmed_up(start: &Start, memory: &dyn Memory) -> Result<Ready, End> {
    match start.device {
        Device::Cpu => {
            let compute = Compute::new(Isa::detect(), Pool::new(usize::from(start.threads))?);
            let cpu = match start.architecture {
                Architecture::Llama => models::warm_up_generator(Cpu::new(compute), memory)?,
                architecture => models::warm_up(architecture, Cpu::new(compute), memory)?,
            };
            cpu.compute().pool().run_on_each_thread(&|_| {});
            Ok(Ready::Cpu(cpu))
        }
        #[cfg(not(feature = "wgpu"))]
        Device::Wgpu { .. } => {
            Err(DeviceFailure { reason: "this program was built without GPUs".to_owned() }.into())
        }
        #[cfg(feature = "wgpu")]
        Device::Wgpu { lease_bytes } => {
            let wgpu = Wgpu::first(lease_bytes, memory)
                .map_err(|error| load_refused(Refusal::new(error, memory)))?;
            let wgpu = models::warm_up(start.architecture, wgpu, memory)?;
            Ok(Ready::Wgpu(Box::new(wgpu)))
        }
    }
}

/// Gets the device ready and turns on the filter.
fn seal(link: &WorkerSideLink, shell: impl Shell, start: &Start, memory: &dyn Memory) -> Result<Ready, End> {
    let setup = Stopwatch::start();
    shell.set_lease(start.lease_bytes);
    let warm_up = Stopwatch::start();
    let ready = warmed_up(start, memory)?;
    let warm_up_us = warm_up.micros();
    let entered_us = shell.entered_us();
    // Finds the fast clock while it may still look for it.
    crate::stopwatch::boot_us();
    let sealed = shell.seal()?;
    let setup_us = entered_us + setup.micros() - warm_up_us;
    let layers = sealed.layers.into_iter().map(layer).collect();
    send(link, FromWorker::Sealed { layers, landlock_abi: sealed.landlock_abi, setup_us, warm_up_us })?;
    Ok(ready)
}

/// The inner error is the package's, the outer one the server's.
fn receive_files(link: &WorkerSideLink) -> Result<Result<(Files, Vec<KeptBlocks>), LoadError>, End> {
    let Received { message, descriptors, .. } = link.receive()?;
    match message {
        ToWorker::Load { files, blocks } if files.len() == descriptors.len() && are_distinct(&files) => {
            let files: Result<Files, LoadError> = files.into_iter().zip(descriptors).map(map_file).collect();
            Ok(files.map(|files| (files, blocks)))
        }
        ToWorker::Load { .. } => Err(End::Illegal("a package whose names and descriptors don't pair")),
        ToWorker::Start(_)
        | ToWorker::Run { .. }
        | ToWorker::Transcribe { .. }
        | ToWorker::Generate { .. }
        | ToWorker::Cancel { .. }
        | ToWorker::Drill { .. }
        | ToWorker::LoadDetector { .. }
        | ToWorker::Listen { .. }
        | ToWorker::Stop => Err(End::Illegal("something before the package")),
    }
}

pub(crate) fn are_distinct(names: &[String]) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    names.iter().all(|name| seen.insert(name))
}

pub(crate) fn map_file((name, descriptor): (String, OwnedFd)) -> Result<(String, FileBytes), LoadError> {
    let map = SealedFile::from_descriptor(descriptor).and_then(|file| file.map());
    match map {
        Ok(map) => Ok((name, Arc::new(map))),
        Err(_) => Err(LoadError::NotSealed { file: name }),
    }
}

/// Waits for bytes of a file or a stream, or for a message; whether there is a message.
pub(crate) fn await_bytes<'a>(
    link: &WorkerSideLink,
    sources: impl Iterator<Item = BorrowedFd<'a>>,
) -> Result<bool, End> {
    let watch = |source| PollFd::from_borrowed_fd(source, PollFlags::IN);
    let mut watched: Vec<PollFd<'_>> = sources.map(watch).collect();
    watched.push(PollFd::new(link, PollFlags::IN));
    loop {
        match poll(&mut watched, Some(&FILE_LOOK_EVERY)) {
            Ok(_) => return Ok(watched.last().is_some_and(|link| !link.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(LinkError::Os(error).into()),
        }
    }
}

/// Whether the link can be read without waiting; its end counts.
pub(crate) fn message_waits(link: &WorkerSideLink) -> Result<bool, End> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(link, PollFlags::IN)], Some(&now)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(LinkError::Os(error).into()),
        }
    }
}

/// Takes the messages that wait, as far as there is room for them.
pub(crate) fn listen(link: &WorkerSideLink, heard: &mut VecDeque<Received<ToWorker>>) -> Result<(), End> {
    while heard.len() < HEARD_MAX && message_waits(link)? {
        heard.push_back(link.receive()?);
    }
    Ok(())
}

/// Whether the jobs of these slots are cancelled by what came.
pub(crate) fn are_cancelled(heard: &VecDeque<Received<ToWorker>>, slots: &[(u32, u32)]) -> bool {
    let is_cancelled =
        |slot| heard.iter().any(|one| matches!(one.message, ToWorker::Cancel { slot: it } if it == slot));
    slots.iter().all(|(slot, _)| is_cancelled(*slot))
}

/// A loaded package and its jobs.
struct Server<'a> {
    link: &'a WorkerSideLink,
    memory: &'a dyn Memory,
    loaded: &'a mut LoadedEmbedder,
    pace: Pace,
    calibrate: bool,
    jobs: Jobs,
    /// Jobs whose text is still being read, and what becomes of it.
    readings: Vec<(Reading, Split)>,
    /// Of the model's buffers.
    owner: Owner,
    /// What came while a step ran.
    heard: VecDeque<Received<ToWorker>>,
}

/// Whether to go on.
pub(crate) enum Next {
    Go,
    Stop,
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
                    && !await_bytes(self.link, self.readings.iter().map(|(reading, _)| reading.as_fd()))?
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
            match self.jobs.tokenise(&self.loaded.text, TOKENISE_BYTES) {
                Ok(()) => {
                    self.tell_passages()?;
                    self.step()?;
                }
                Err((slot, error)) => self.fail(slot, error)?,
            }
        }
    }

    fn send_ready(&self) -> Result<(), End> {
        let LoadedEmbedder { model, text } = &*self.loaded;
        let usage = model.usage(self.memory);
        let narrow = |n: usize| u32::try_from(n).expect("the configuration bounds it");
        let ready = FromWorker::Ready {
            dimensions: narrow(model.dimensions()),
            bytes_per_token: model.bytes_per_token(),
            used_bytes: usage.used,
            peak_bytes: usage.peak,
            max_tokens: narrow(text.max_tokens()),
            vocabulary: text.vocabulary(),
        };
        send(self.link, ready)
    }

    /// Takes what has come of the files; texts that are whole become jobs.
    fn read_on(&mut self) -> Result<(), End> {
        let mut at = 0;
        while let Some((reading, split)) = self.readings.get_mut(at) {
            let (slot, share, split) = (reading.slot, reading.share, *split);
            match reading.advance(self.memory) {
                Progress::Waits => {
                    at += 1;
                    continue;
                }
                Progress::Read(bytes) => {
                    self.readings.swap_remove(at);
                    self.run_bytes(slot, share, split, bytes)?;
                    continue;
                }
                Progress::Failed(error) => send(self.link, FromWorker::Failed { slot, error })?,
            }
            self.readings.swap_remove(at);
        }
        Ok(())
    }

    /// A slot that may take a job now.
    fn free(&mut self, slot: u32) -> Result<(), End> {
        if self.readings.iter().any(|(reading, _)| reading.slot == slot) {
            return Err(SlotFault::Taken.into());
        }
        Ok(self.jobs.free(slot)?)
    }

    fn handle(&mut self, received: Received<ToWorker>) -> Result<Next, End> {
        let Received { message, mut descriptors, .. } = received;
        if self.calibrate && matches!(message, ToWorker::Run { .. }) {
            self.measure_anew()?;
        }
        match (message, descriptors.len()) {
            (ToWorker::Run { weight: 0, .. }, _) => return Err(End::Illegal("a weight of nothing")),
            (ToWorker::Run { slot, domain, weight, input: Data::Inline(input) }, 0) => {
                self.run_inline(slot, Share { domain, weight }, input)?
            }
            (ToWorker::Run { slot, domain, weight, input: Data::Descriptor { bytes } }, 1) => {
                self.run_descriptor(slot, Share { domain, weight }, bytes, descriptors.remove(0))?;
            }
            (ToWorker::Run { slot, domain, weight, input: Data::Text { bytes, split } }, 1) => {
                self.run_text(slot, Share { domain, weight }, (bytes, split), descriptors.remove(0))?;
            }
            (ToWorker::Run { slot, domain, weight, input: Data::File { split } }, 1) => {
                self.free(slot)?;
                let share = Share { domain, weight };
                let reading = Reading::new(slot, share, INPUT_BYTES_MAX, descriptors.remove(0));
                self.readings.push((reading, split));
                // Nothing comes before it is asked for.
                self.read_on()?;
            }
            (ToWorker::Cancel { slot }, 0) => self.cancel(slot)?,
            (ToWorker::Drill { bytes }, 0) => hoard(bytes),
            (ToWorker::Stop, 0) => return Ok(Next::Stop),
            (ToWorker::Run { .. } | ToWorker::Cancel { .. } | ToWorker::Drill { .. } | ToWorker::Stop, _) => {
                return Err(End::Illegal("descriptors that don't belong to the message"));
            }
            (ToWorker::Start(_) | ToWorker::Load { .. }, _) => {
                return Err(End::Illegal("a second start or package"));
            }
            (ToWorker::Transcribe { .. } | ToWorker::LoadDetector { .. } | ToWorker::Listen { .. }, _) => {
                return Err(End::Illegal("audio for a model of texts"));
            }
            (ToWorker::Generate { .. }, _) => {
                return Err(End::Illegal("a prompt for a model of vectors"));
            }
        }
        Ok(Next::Go)
    }

    /// The next job's peak is its own. No other thread is at work between two jobs.
    fn measure_anew(&mut self) -> Result<(), End> {
        if !self.jobs.is_empty() {
            return Err(End::Illegal("a second job in a calibration"));
        }
        self.loaded.model.release();
        self.loaded.model.restart_peak(self.memory);
        Ok(())
    }

    fn run_inline(&mut self, slot: u32, share: Share, input: EmbedInput) -> Result<(), End> {
        self.free(slot)?;
        let bytes: usize = input.items.iter().map(least_encoding).sum();
        if !input.is_legal() || bytes > INLINE_INPUT_BYTES_MAX {
            return Err(End::Illegal("an inline input out of bounds"));
        }
        self.jobs.add(slot, share, input);
        Ok(())
    }

    fn run_descriptor(
        &mut self,
        slot: u32,
        share: Share,
        bytes: u64,
        descriptor: OwnedFd,
    ) -> Result<(), End> {
        if let Some(map) = self.sealed_input(slot, bytes, descriptor)? {
            let input = EmbedInput::decode(&map).ok_or(End::Illegal("an input that doesn't decode"))?;
            self.jobs.add(slot, share, input);
        }
        Ok(())
    }

    /// A job's sealed bytes; nothing where there is no memory to decode them, which the server is told.
    fn sealed_input(&mut self, slot: u32, bytes: u64, descriptor: OwnedFd) -> Result<Option<Map>, End> {
        self.free(slot)?;
        let file = SealedFile::from_descriptor(descriptor)?;
        if bytes != file.len() || bytes > INPUT_BYTES_MAX as u64 {
            return Err(End::Illegal("an input of another length, or out of bounds"));
        }
        if let Err(denial) = self.memory.check(bytes * DECODED_FACTOR) {
            send(self.link, FromWorker::Failed { slot, error: job_error(denial) })?;
            return Ok(None);
        }
        Ok(Some(file.map()?))
    }

    fn run_text(
        &mut self,
        slot: u32,
        share: Share,
        (bytes, split): (u64, Split),
        descriptor: OwnedFd,
    ) -> Result<(), End> {
        let Some(map) = self.sealed_input(slot, bytes, descriptor)? else { return Ok(()) };
        self.run_bytes(slot, share, split, map.to_vec())
    }

    fn run_bytes(&mut self, slot: u32, share: Share, split: Split, bytes: Vec<u8>) -> Result<(), End> {
        match files::decode(bytes, split) {
            Ok(input) => self.run_text_of(slot, share, input),
            Err(error) => send(self.link, FromWorker::Failed { slot, error }),
        }
    }

    fn run_text_of(&mut self, slot: u32, share: Share, input: files::Input) -> Result<(), End> {
        match input {
            files::Input::Whole(input) => self.jobs.add(slot, share, input),
            files::Input::Split(text) => {
                // Most bytes are a token of their own in no text, but may be.
                if let Err(denial) = self.memory.check(text.text.len() as u64 * SPLIT_FACTOR) {
                    return send(self.link, FromWorker::Failed { slot, error: job_error(denial) });
                }
                self.jobs.add_split(slot, share, text);
            }
        }
        Ok(())
    }

    /// Says of what has been split where its passages are; a text that has none ends here.
    fn tell_passages(&mut self) -> Result<(), End> {
        for (slot, passages) in self.jobs.split() {
            send(self.link, FromWorker::Passages { slot, passages })?;
            if self.jobs.get_mut(slot).is_finished() {
                self.finish(slot)?;
            }
        }
        Ok(())
    }

    /// What the job left in the model's buffers goes as well: it may be cancelled because it may not be kept.
    fn cancel(&mut self, slot: u32) -> Result<(), End> {
        let readings = self.readings.len();
        self.readings.retain(|(reading, _)| reading.slot != slot);
        if self.jobs.cancel(slot)? || self.readings.len() < readings {
            self.loaded.model.forget();
            send(self.link, FromWorker::Failed { slot, error: JobError::Cancelled })?;
        }
        Ok(())
    }

    fn fail(&mut self, slot: u32, error: JobError) -> Result<(), End> {
        self.jobs.remove(slot);
        send(self.link, FromWorker::Failed { slot, error })
    }

    fn step(&mut self) -> Result<(), End> {
        let mut chosen = self.jobs.choose(self.pace.tokens());
        if chosen.is_empty() {
            return Ok(());
        }
        if let Err((slot, denial)) = self.reserve(&mut chosen)? {
            return self.fail(slot, job_error(denial));
        }
        let domains = chosen.iter().map(|(slot, _)| self.jobs.domain_of(*slot));
        let passes = self.owner.passes_to(domains);
        let (batch, tokens) = self.take(&chosen);
        let watch = Stopwatch::start();
        if passes {
            self.loaded.model.forget();
        }
        let mut fault = None;
        let (link, heard) = (self.link, &mut self.heard);
        let mut go_on = || match listen(link, heard) {
            Ok(()) => !are_cancelled(heard, &tokens),
            Err(end) => {
                fault = Some(end);
                false
            }
        };
        let output = self.loaded.model.embed_while(&batch, &mut go_on)?.map(<[f32]>::to_vec);
        if let Some(end) = fault {
            return Err(end);
        }
        let busy_us = watch.micros();
        send(self.link, FromWorker::Step { busy_us, tokens: tokens.clone() })?;
        // Nobody wants it any more; its jobs end when what came is handled, before anything else.
        let Some(output) = output else { return Ok(()) };
        self.pace.measured(batch.tokens(), busy_us);
        let mut rest = &output[..];
        for ((slot, items), (_, tokens)) in chosen.into_iter().zip(tokens) {
            let (own, others) = rest.split_at(items * self.loaded.model.dimensions());
            rest = others;
            let share = busy_us * u64::from(tokens) / batch.tokens() as u64;
            self.deliver(slot, own, share)?;
        }
        Ok(())
    }

    /// Makes room for what was chosen; if there is none, for the first item alone; if not even for that, its job fails.
    /// The outer error is a device that failed.
    fn reserve(&mut self, chosen: &mut Vec<(u32, usize)>) -> Result<Result<(), (u32, Denial)>, End> {
        let tokens = chosen.iter().map(|(slot, items)| self.jobs.tokens_of(*slot, *items)).sum();
        if self.room_for(tokens)?.is_ok() {
            return Ok(Ok(()));
        }
        chosen.truncate(1);
        chosen[0].1 = 1;
        let (slot, tokens) = (chosen[0].0, self.jobs.tokens_of(chosen[0].0, 1));
        Ok(self.room_for(tokens)?.map_err(|denial| (slot, denial)))
    }

    fn room_for(&mut self, tokens: usize) -> Result<Result<(), Denial>, End> {
        match self.loaded.model.reserve(tokens, self.memory) {
            Ok(()) => Ok(Ok(())),
            Err(Refusal::Denied(denial)) => Ok(Err(denial)),
            Err(Refusal::Failed(failure)) => Err(failure.into()),
        }
    }

    /// The chosen items as a batch, with the tokens of each slot.
    fn take(&mut self, chosen: &[(u32, usize)]) -> (Batch, Vec<(u32, u32)>) {
        let mut batch = Batch::default();
        let mut tokens = Vec::with_capacity(chosen.len());
        for (slot, items) in chosen {
            let before = batch.tokens();
            let job = self.jobs.get_mut(*slot);
            (0..*items).for_each(|_| batch.push(&job.take().ids));
            tokens.push((*slot, (batch.tokens() - before) as u32));
        }
        (batch, tokens)
    }

    /// Sends the vectors of a slot's items, and its end if they were the last.
    fn deliver(&mut self, slot: u32, floats: &[f32], share_us: u64) -> Result<(), End> {
        let dimensions = self.loaded.model.dimensions();
        let job = self.jobs.get_mut(slot);
        job.compute_us += share_us;
        if let Some(at) = floats.iter().position(|float| !float.is_finite()) {
            let item = job.finished + (at / dimensions) as u32;
            return self.fail(slot, JobError::NotFinite { item });
        }
        for part in floats.chunks(CHUNK_BYTES_MAX / size_of::<f32>()) {
            let data = ChunkBytes(part.iter().flat_map(|float| float.to_le_bytes()).collect());
            send(self.link, FromWorker::Chunk { slot, sequence: job.sequence, data })?;
            job.sequence += 1;
        }
        job.finished += (floats.len() / dimensions) as u32;
        if job.is_finished() { self.finish(slot) } else { Ok(()) }
    }

    fn finish(&mut self, slot: u32) -> Result<(), End> {
        let usage = self.loaded.model.usage(self.memory);
        let job = self.jobs.get_mut(slot);
        let done = FromWorker::Done {
            slot,
            tokens: job.tokens,
            truncated: job.truncated,
            compute_us: job.compute_us,
            used_bytes: usage.used,
            peak_bytes: usage.peak,
        };
        self.jobs.remove(slot);
        send(self.link, done)
    }
}

/// A lower bound of an item's encoded bytes.
fn least_encoding(item: &Item) -> usize {
    match item {
        Item::Text(text) => text.len(),
        Item::Tokens(ids) => ids.len(),
    }
}

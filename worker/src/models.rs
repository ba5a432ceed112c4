//! Models, written once over [`crate::device`], and how a package becomes one.

pub mod bert;
pub mod llama;
pub mod silero;
mod weights;
pub mod whisper;

pub use weights::{Blocks, PackageWeights, RandomWeights, Weights};

use crate::device::{Cpu, DecodingDevice, Device, DeviceFailure, OutOfMemory, Usage};
use crate::generation::batch::rows_least;
use crate::generation::language::Language;
use crate::memory::{Memory, Refusal, load_refused};
use crate::package::Files;
use crate::package::config::BertConfig;
use crate::package::llama::LlamaConfig;
use crate::package::modules::{Head, Pooling};
use crate::package::whisper::WhisperConfig;
use crate::text::Text;
use bert::Bert;
use llama::{Llama, Run};
use ringfence_kernels::Compute;
use ringfence_protocol::{Architecture, KeptBlocks, LoadError};
use std::any::Any;
use std::collections::BTreeMap;
use whisper::Whisper;
use whisper::vocabulary::Vocabulary;

/// Sequences one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    starts: Vec<usize>,
}

impl Batch {
    /// Adds a sequence.
    pub fn push(&mut self, ids: &[u32]) {
        if self.starts.is_empty() {
            self.starts.push(0);
        }
        self.ids.extend_from_slice(ids);
        self.starts.push(self.ids.len());
    }

    /// The token ids of all sequences.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where each sequence starts, and where the last one ends; empty if there is none.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// How many sequences.
    pub fn sequences(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
}

/// A model that makes one vector of a sequence.
pub trait Embedder {
    /// Floats of a vector.
    fn dimensions(&self) -> usize;

    /// Upper bound of the bytes that a token of a batch takes, all buffers together.
    fn bytes_per_token(&self) -> u64;

    /// Makes room for batches of this many tokens, or fewer.
    ///
    /// # Errors
    /// There is none. What there was before may be gone, and comes back with a smaller batch.
    fn reserve(&mut self, tokens: usize, memory: &dyn Memory) -> Result<(), Refusal>;

    /// Gives back what [`Embedder::reserve`] took.
    fn release(&mut self);

    /// What the lease that its device counts against has handed out.
    fn usage(&self, memory: &dyn Memory) -> Usage;

    /// Counts the peak of that anew.
    fn restart_peak(&self, memory: &dyn Memory);

    /// Overwrites what earlier batches left on the device, before a batch of another domain.
    fn forget(&mut self);

    /// The vectors of a batch, one after another; room for it was made. `go_on` is asked between layers, and where it says
    /// no there are none.
    ///
    /// # Errors
    /// The device failed.
    fn embed_while(
        &mut self,
        batch: &Batch,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<&[f32]>, DeviceFailure>;

    /// The same to its end.
    ///
    /// # Errors
    /// The device failed.
    fn embed(&mut self, batch: &Batch) -> Result<&[f32], DeviceFailure> {
        Ok(self.embed_while(batch, &mut || true)?.expect("it is not stopped"))
    }
}

/// What a job of a [`Transcriber`] has on the device. Dropping it gives everything back.
pub struct State(Box<dyn Any>);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

/// A model that hears speech and says tokens. Jobs are independent of each other; each has a [`State`].
pub trait Transcriber {
    /// The network's shape.
    fn config(&self) -> &WhisperConfig;

    /// Upper bound of the bytes that [`Transcriber::reserve`] takes for a row, less what the logits take once.
    fn bytes_per_row(&self) -> u64;

    /// Upper bound of the bytes that [`Transcriber::open`] takes on the device.
    fn bytes_per_job(&self) -> u64;

    /// What a job takes of the host's memory beside that and beside its sound.
    fn host_bytes_per_job(&self) -> u64;

    /// Makes room for steps of this many rows, or fewer.
    ///
    /// # Errors
    /// There is none. What there was before may be gone, and comes back with fewer rows.
    fn reserve(&mut self, rows: usize, memory: &dyn Memory) -> Result<(), Refusal>;

    /// Gives back what [`Transcriber::reserve`] took.
    fn release(&mut self);

    /// What the lease that its device counts against has handed out.
    fn usage(&self, memory: &dyn Memory) -> Usage;

    /// Counts the peak of that anew.
    fn restart_peak(&self, memory: &dyn Memory);

    /// Overwrites what earlier steps left on the device, before a step of another domain.
    fn forget(&mut self);

    /// Makes room for a job.
    ///
    /// # Errors
    /// There is none.
    fn open(&self, memory: &dyn Memory) -> Result<State, Refusal>;

    /// Begins with a window's spectrogram, frame by frame, two for each position: as long as the network's windows, or
    /// shorter.
    ///
    /// # Panics
    /// If it is empty, longer or no whole positions, here and below also if the state is another model's.
    fn hear(&mut self, state: &mut State, mel: &[f32]);

    /// Takes a window at most this many rows further through the encoder; whether it is through.
    ///
    /// # Errors
    /// The device failed.
    fn encode(&mut self, state: &mut State, rows: usize) -> Result<bool, DeviceFailure>;

    /// Takes tokens of an encoded window from position `at` on, which may have been said before, and gives the logits of
    /// what follows the last one where they are wanted.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If there are no tokens, or more than there are positions or room was made for.
    fn decode(
        &mut self,
        state: &mut State,
        ids: &[u32],
        at: usize,
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DeviceFailure>;
}

/// A model that writes text: it says what may follow a token. What a sequence has said before is in blocks of keys and
/// values, whose numbers its caller gives out.
pub trait Generator {
    /// The network's shape.
    fn config(&self) -> &LlamaConfig;

    /// Blocks of keys and values; they are numbered from 0.
    fn blocks(&self) -> usize;

    /// Bytes that one of them takes.
    fn block_bytes(&self) -> u64;

    /// What the lease that its device counts against has handed out.
    fn usage(&self, memory: &dyn Memory) -> Usage;

    /// Overwrites what earlier steps left on the device beside the blocks, before a step of another domain.
    fn forget(&mut self);

    /// Overwrites a block with another.
    fn copy(&mut self, from: u32, to: u32);

    /// Overwrites blocks with zeros.
    fn wipe(&mut self, blocks: &[u32]);

    /// As [`Llama::step_while`].
    ///
    /// # Errors
    /// The device failed.
    fn step_while(
        &mut self,
        runs: &[Run<'_>],
        logits: &mut Vec<f32>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool, DeviceFailure>;
}

/// A package, ready for jobs.
#[derive(Debug)]
pub enum Loaded {
    /// It makes vectors of texts.
    Embedder(LoadedEmbedder),
    /// It makes texts of speech.
    Transcriber(LoadedTranscriber),
    /// It makes texts of texts.
    Generator(Box<LoadedGenerator>),
}

/// An embedder, ready for jobs.
pub struct LoadedEmbedder {
    /// The network.
    pub model: Box<dyn Embedder>,
    /// What turns items into tokens.
    pub text: Text,
}

/// A transcriber, ready for jobs.
pub struct LoadedTranscriber {
    /// The network.
    pub model: Box<dyn Transcriber>,
    /// What its tokens mean.
    pub vocabulary: Vocabulary,
}

/// A generator, ready for jobs.
pub struct LoadedGenerator {
    /// The network.
    pub model: Box<dyn Generator>,
    /// What its tokens mean.
    pub language: Language,
    /// The longest sequence, prompt and answer, in tokens.
    pub max_tokens: usize,
    /// Rows of the longest step.
    pub rows_max: usize,
}

/// What a generator makes room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The longest sequence in tokens, or fewer where the package says so.
    pub max_tokens: usize,
    /// Tokens of the longest step; at most [`STEP_ROWS_MAX`] count.
    pub step_tokens: usize,
    /// Most sequences at a time.
    pub slots: usize,
}

/// More rows in a step of a generator only make it longer.
pub const STEP_ROWS_MAX: usize = 512;

impl std::fmt::Debug for LoadedGenerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoadedGenerator({:?}, {} blocks)", self.model.config(), self.model.blocks())
    }
}

impl std::fmt::Debug for LoadedEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoadedEmbedder({} floats, {:?})", self.model.dimensions(), self.text)
    }
}

impl std::fmt::Debug for LoadedTranscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoadedTranscriber({:?})", self.model.config())
    }
}

impl Loaded {
    /// The embedder, if it is one.
    pub fn embedder(self) -> Option<LoadedEmbedder> {
        match self {
            Self::Embedder(loaded) => Some(loaded),
            Self::Transcriber(_) | Self::Generator(_) => None,
        }
    }

    /// The transcriber, if it is one.
    pub fn transcriber(self) -> Option<LoadedTranscriber> {
        match self {
            Self::Transcriber(loaded) => Some(loaded),
            Self::Embedder(_) | Self::Generator(_) => None,
        }
    }
}

fn reserve<T>(count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut vector = Vec::new();
    vector
        .try_reserve_exact(count)
        .map_err(|_| OutOfMemory { bytes: count.saturating_mul(size_of::<T>()) })?;
    Ok(vector)
}

/// Loads a package onto the CPU, for sequences of at most `max_tokens` tokens, or fewer where the package says so.
///
/// # Errors
/// The package is not what its architecture needs, or does not fit in memory.
pub fn load(
    files: &Files,
    architecture: Architecture,
    compute: Compute,
    max_tokens: usize,
    memory: &dyn Memory,
) -> Result<Loaded, LoadError> {
    load_on(files, architecture, Cpu::new(compute), max_tokens, memory)
}

/// As [`load`], onto any device.
///
/// # Errors
/// As for [`load`], or the device fails.
pub fn load_on<D: Device + 'static>(
    files: &Files,
    architecture: Architecture,
    device: D,
    max_tokens: usize,
    memory: &dyn Memory,
) -> Result<Loaded, LoadError> {
    match architecture {
        Architecture::Bert => load_bert(files, device, max_tokens, memory).map(Loaded::Embedder),
        Architecture::Whisper => load_whisper(files, device, memory).map(Loaded::Transcriber),
        Architecture::Llama => Err(no_generators()),
    }
}

fn no_generators() -> LoadError {
    LoadError::Device { reason: "text is generated on the CPU only".to_owned() }
}

/// Loads a generator: its weights, room for a step, and then as many blocks of keys and values as the lease has room for,
/// but no more than all sequences can fill.
///
/// # Errors
/// The package is not what its architecture needs, or does not fit in memory.
pub fn load_generator<D: DecodingDevice + 'static>(
    files: &Files,
    blocks: &[KeptBlocks],
    device: D,
    sizes: Sizes,
    memory: &dyn Memory,
) -> Result<LoadedGenerator, LoadError> {
    let config = LlamaConfig::read(files)?;
    let max_tokens = sizes.max_tokens.min(config.positions);
    let language = Language::read(files, config.vocabulary, max_tokens, memory)?;
    let kept = |kept: &KeptBlocks| (kept.tensor.clone(), (kept.kind, kept.shape.clone()));
    let blocks: BTreeMap<_, _> = blocks.iter().map(kept).collect();
    let weights = PackageWeights::read_with_blocks(files, blocks, memory)?;
    let rows_max = sizes.step_tokens.clamp(1, STEP_ROWS_MAX);
    let rows = rows_max.max(rows_least(sizes.slots));
    let sizes = Sizes { max_tokens, step_tokens: rows, ..sizes };
    let model = Llama::within_lease(device, &config, &weights, sizes, memory)?;
    Ok(LoadedGenerator { model: Box::new(model), language, max_tokens, rows_max })
}

/// As [`warm_up`], for generators.
///
/// # Errors
/// As there.
pub fn warm_up_generator<D: DecodingDevice + 'static>(
    device: D,
    memory: &dyn Memory,
) -> Result<D, LoadError> {
    let config = LlamaConfig {
        hidden: 48,
        intermediate: 96,
        layers: 1,
        heads: 4,
        key_heads: 2,
        head: 12,
        positions: WARM_UP_TOKENS,
        vocabulary: 64,
        epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        biases: true,
    };
    let mut model = Llama::new(device, &config, &RandomWeights, 4, memory)?;
    let failed = |failure| load_refused(Refusal::Failed(failure));
    model.reserve(WARM_UP_TOKENS, 1, memory).map_err(load_refused)?;
    let mut logits = Vec::new();
    // Tokens that stay on one thread, and some that don't.
    let ids: Vec<u32> = (0..WARM_UP_TOKENS as u32 - 1).map(|id| id % 64).collect();
    let run = |ids, first| Run { ids, first, blocks: &[0, 1, 2, 3], answers: true };
    model.step(&[run(&ids[..], 0)], &mut logits).map_err(failed)?;
    model.step(&[run(&[1], ids.len())], &mut logits).map_err(failed)?;
    Ok(model.into_device())
}

fn load_bert<D: Device + 'static>(
    files: &Files,
    device: D,
    max_tokens: usize,
    memory: &dyn Memory,
) -> Result<LoadedEmbedder, LoadError> {
    let config = BertConfig::read(files)?;
    let head = Head::read(files, config.hidden)?;
    let max_tokens = max_tokens.min(config.positions).min(head.max_tokens.unwrap_or(usize::MAX));
    let text = Text::read(files, config.vocabulary, max_tokens, memory)?;
    let weights = PackageWeights::read(files, memory)?;
    let model = Bert::new(device, &config, head, max_tokens, &weights, memory)?;
    Ok(LoadedEmbedder { model: Box::new(model), text })
}

fn load_whisper<D: Device + 'static>(
    files: &Files,
    device: D,
    memory: &dyn Memory,
) -> Result<LoadedTranscriber, LoadError> {
    let config = WhisperConfig::read(files)?;
    let vocabulary = Vocabulary::read(files, &config, memory)?;
    let weights = PackageWeights::read(files, memory)?;
    let model = Whisper::new(device, &config, &weights, memory)?;
    Ok(LoadedTranscriber { model: Box::new(model), vocabulary })
}

/// Runs a small built-in model with random weights through every operation, so that nothing is done for the first time
/// once the system call filter is on. Gives the device back.
///
/// # Errors
/// There is no memory even for that, or the device fails.
pub fn warm_up<D: Device + 'static>(
    architecture: Architecture,
    device: D,
    memory: &dyn Memory,
) -> Result<D, LoadError> {
    match architecture {
        Architecture::Bert => warm_up_bert(device, memory),
        Architecture::Whisper => warm_up_whisper(device, memory),
        Architecture::Llama => Err(no_generators()),
    }
}

fn warm_up_whisper<D: Device + 'static>(device: D, memory: &dyn Memory) -> Result<D, LoadError> {
    let config = WhisperConfig {
        mels: 5,
        state: 48,
        audio_positions: WARM_UP_TOKENS,
        audio_heads: 3,
        audio_layers: 1,
        text_positions: 48,
        text_heads: 3,
        text_layers: 1,
        vocabulary: 64,
        multilingual: false,
        suppressed: Vec::new(),
    };
    let mut model = Whisper::new(device, &config, &RandomWeights, memory)?;
    model.reserve(WARM_UP_TOKENS, memory).map_err(load_refused)?;
    let mut state = model.open(memory).map_err(load_refused)?;
    let failed = |failure| load_refused(Refusal::Failed(failure));
    // The transform of sounds chooses its instructions when it is planned.
    whisper::mel::Mel::new(config.mels).finish(memory).map_err(load_refused)?;
    model.hear(&mut state, &vec![0.5; config.frames() * config.mels]);
    while !model.encode(&mut state, WARM_UP_TOKENS).map_err(failed)? {}
    let mut logits = Vec::new();
    // Tokens that stay on one thread, and some that don't.
    model.decode(&mut state, &[1; 40], 0, Some(&mut logits)).map_err(failed)?;
    model.decode(&mut state, &[2], 40, Some(&mut logits)).map_err(failed)?;
    drop(state);
    Ok(model.into_device())
}

fn warm_up_bert<D: Device>(device: D, memory: &dyn Memory) -> Result<D, LoadError> {
    let config = BertConfig {
        hidden: 48,
        intermediate: 96,
        layers: 1,
        heads: 3,
        positions: WARM_UP_TOKENS,
        types: 1,
        vocabulary: 64,
        epsilon: 1e-12,
    };
    let head = Head { pooling: Pooling::Mean, normalize: true, max_tokens: None };
    let mut model = Bert::new(device, &config, head, WARM_UP_TOKENS, &RandomWeights, memory)?;
    let ids: Vec<u32> = (0..WARM_UP_TOKENS as u32).map(|id| id % 64).collect();
    // One sequence that stays on one thread, and several that don't.
    for lengths in [&[1][..], &[1, 7, 33, WARM_UP_TOKENS]] {
        let mut batch = Batch::default();
        lengths.iter().for_each(|length| batch.push(&ids[..*length]));
        model.reserve(batch.tokens(), memory).map_err(load_refused)?;
        model.embed(&batch).map_err(Refusal::Failed).map_err(load_refused)?;
    }
    Ok(model.into_device())
}

/// Tokens of the longest sequence of the warm-up: more than any tile's rows.
const WARM_UP_TOKENS: usize = 100;

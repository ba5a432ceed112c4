//! Models, written once over [`crate::device`], and how a package becomes one.

pub mod bert;
mod weights;

pub use weights::{PackageWeights, RandomWeights, Weights};

use crate::device::{Cpu, Device, DeviceFailure, Usage};
use crate::memory::{Memory, Refusal, load_refused};
use crate::package::Files;
use crate::package::config::BertConfig;
use crate::package::modules::{Head, Pooling};
use crate::text::Text;
use bert::Bert;
use ringfence_kernels::Compute;
use ringfence_protocol::{Architecture, LoadError};

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

    /// The vectors of a batch, one after another; room for it was made.
    ///
    /// # Errors
    /// The device failed.
    fn embed(&mut self, batch: &Batch) -> Result<&[f32], DeviceFailure>;
}

/// A package, ready for jobs.
pub struct Loaded {
    /// The network.
    pub model: Box<dyn Embedder>,
    /// What turns items into tokens.
    pub text: Text,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loaded({} floats, {:?})", self.model.dimensions(), self.text)
    }
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
        Architecture::Bert => load_bert(files, device, max_tokens, memory),
    }
}

fn load_bert<D: Device + 'static>(
    files: &Files,
    device: D,
    max_tokens: usize,
    memory: &dyn Memory,
) -> Result<Loaded, LoadError> {
    let config = BertConfig::read(files)?;
    let head = Head::read(files, config.hidden)?;
    let max_tokens = max_tokens.min(config.positions).min(head.max_tokens.unwrap_or(usize::MAX));
    let text = Text::read(files, config.vocabulary, max_tokens, memory)?;
    let weights = PackageWeights::read(files, memory)?;
    let model = Bert::new(device, &config, head, max_tokens, &weights, memory)?;
    Ok(Loaded { model: Box::new(model), text })
}

/// Runs a small built-in model with random weights through every operation, so that nothing is done for the first time
/// once the system call filter is on. Gives the device back.
///
/// # Errors
/// There is no memory even for that, or the device fails.
pub fn warm_up<D: Device>(
    architecture: Architecture,
    device: D,
    memory: &dyn Memory,
) -> Result<D, LoadError> {
    match architecture {
        Architecture::Bert => warm_up_bert(device, memory),
    }
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

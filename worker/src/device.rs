//! The operations that models are written over, and the devices that implement them.
//!
//! A batch is ragged: its sequences' tokens are rows one after another, sequence i from `starts[i]` to `starts[i + 1]`.
//! Nothing is padded, so a mixed batch costs what its tokens cost.

mod cpu;
mod decoding;
#[cfg(feature = "wgpu")]
mod wgpu;

pub use cpu::Cpu;
pub use decoding::{
    AttentionShape, CACHE_BLOCK_TOKENS, CacheShape, CpuTextLinear, DecodingDevice, Sequence, TextPart,
    TextWeights,
};
pub use ringfence_kernels::{Activation, BlockKind, OutOfMemory, Seen, Window};
#[cfg(feature = "wgpu")]
pub use wgpu::{HOST_BYTES, Wgpu};

use crate::memory::Memory;
use crate::package::FileBytes;
use crate::package::modules::Pooling;
use ringfence_sandbox::Denial;
use std::ops::Range;

/// Why a device could not take something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The process's allocator refused; its lease knows the rest.
    #[error("{0}")]
    Host(#[from] OutOfMemory),
    /// It does not fit into the device's lease, or the driver has no more.
    #[error("out of device memory: {} bytes wanted, {} of {} in use", .0.wanted, .0.used, .0.limit)]
    Full(Denial),
    /// The device failed.
    #[error("{0}")]
    Failed(#[from] DeviceFailure),
}

/// A device failed: what it holds is worth nothing, and the process that has it should end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device failed: {reason}")]
pub struct DeviceFailure {
    /// The driver's word.
    pub reason: String,
}

/// Weights `outputs x inputs`, row-major, and a bias for each output.
pub struct LinearWeights {
    /// Row-major, one row for each output.
    pub weight: Vec<f32>,
    /// One for each output.
    pub bias: Vec<f32>,
}

/// Scale and shift of a layer normalisation.
pub struct NormWeights {
    /// One for each column.
    pub weight: Vec<f32>,
    /// One for each column.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// How the floats of a tensor are stored in a package, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
}

/// Rows that are looked up by number.
pub enum TableSource {
    /// Left in the package's file: a device may read them there.
    File {
        /// The file.
        file: FileBytes,
        /// The rows in it, one after another.
        bytes: Range<usize>,
        /// Their form.
        stored: Stored,
    },
    /// Computed at load.
    Floats(Vec<f32>),
}

/// Bytes of a lease that are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub used: u64,
    /// The most at one time.
    pub peak: u64,
}

/// A device. Tensors are matrices of f32, allocated once for a number of rows and reused.
///
/// Operations on them may only be recorded; what fails then shows at [`Device::read`].
pub trait Device {
    /// Weights of one or several linear layers over the same input, in the device's own order.
    type Linear;
    /// Weights of a layer normalisation.
    type Norm;
    /// Rows that are looked up by number.
    type Table;
    /// A matrix of activations.
    type Tensor;
    /// Working memory of [`Device::attention`].
    type Scratch;
    /// Keys and values of one layer that stay from step to step.
    type KeyValues;
    /// Working memory of [`Device::attend`].
    type Scores;

    /// Whether this many more bytes fit where the device keeps tensors, before anything is allocated.
    fn check(&self, bytes: u64, memory: &dyn Memory) -> Result<(), DeviceError>;

    /// What the lease that tensors count against has handed out.
    fn usage(&self, memory: &dyn Memory) -> Usage;

    /// Counts the peak of that anew from what is handed out now.
    fn restart_peak(&self, memory: &dyn Memory);

    /// Takes weights; several parts read the same input and write their outputs one after another. Where the package has
    /// them all as halves, a device may keep them so.
    fn linear_weights(
        &self,
        inputs: usize,
        parts: &[LinearWeights],
        stored: Stored,
    ) -> Result<Self::Linear, DeviceError>;

    /// Bytes that a weight of a linear layer takes here.
    fn weight_bytes(&self, stored: Stored) -> usize;

    /// As [`Device::linear_weights`], for products with few rows, which last as long as the weights take to be read: where
    /// the package has them as halves, they are kept so.
    fn streamed_weights(
        &self,
        inputs: usize,
        parts: &[LinearWeights],
        stored: Stored,
    ) -> Result<Self::Linear, DeviceError>;

    /// Bytes that a weight of those takes here.
    fn streamed_weight_bytes(&self, stored: Stored) -> usize;

    /// Takes weights.
    fn norm_weights(&self, weights: NormWeights) -> Result<Self::Norm, DeviceError>;

    /// Takes a table whose rows have this many columns.
    fn table(&self, columns: usize, source: TableSource) -> Result<Self::Table, DeviceError>;

    /// Zeros.
    fn tensor(&self, rows: usize, columns: usize) -> Result<Self::Tensor, DeviceError>;

    /// Bytes that a row of a tensor takes.
    fn row_bytes(&self, columns: usize) -> usize;

    /// Working memory for sequences of at most `tokens` tokens and heads of `head` floats.
    fn scratch(&self, tokens: usize, head: usize) -> Result<Self::Scratch, DeviceError>;

    /// Bytes that [`Device::scratch`] takes.
    fn scratch_bytes(&self, tokens: usize, head: usize) -> usize;

    /// Room for keys and values of so many tokens.
    fn key_values(&self, tokens: usize, heads: usize, head: usize) -> Result<Self::KeyValues, DeviceError>;

    /// Bytes that [`Device::key_values`] takes.
    fn key_values_bytes(&self, tokens: usize, heads: usize, head: usize) -> usize;

    /// Working memory for attention to at most `tokens` tokens.
    fn scores(&self, tokens: usize) -> Result<Self::Scores, DeviceError>;

    /// Bytes that [`Device::scores`] takes.
    fn scores_bytes(&self, tokens: usize) -> usize;

    /// Overwrites the first rows with these floats.
    fn write(&self, floats: &[f32], to: &mut Self::Tensor);

    /// to[i] = table[ids[i]]
    fn lookup(&self, table: &Self::Table, ids: &[u32], to: &mut Self::Tensor);

    /// to = activation(input * weights^T + bias), for the first `rows` rows.
    fn linear(
        &self,
        input: &Self::Tensor,
        rows: usize,
        weights: &Self::Linear,
        activation: Activation,
        to: &mut Self::Tensor,
    );

    /// x = norm(x + added), for the first `rows` rows.
    fn add_norm(&self, x: &mut Self::Tensor, added: &Self::Tensor, rows: usize, weights: &Self::Norm);

    /// Each sequence attends to itself; a row of `qkv` is a token's queries, keys and values.
    fn attention(
        &self,
        qkv: &Self::Tensor,
        starts: &[usize],
        scratch: &mut Self::Scratch,
        to: &mut Self::Tensor,
    );

    /// to[i] = norm(row `rows.start + i` of x)
    fn norm(&self, x: &Self::Tensor, rows: Range<usize>, weights: &Self::Norm, to: &mut Self::Tensor);

    /// Row `rows.start + i` of x += added[i].
    fn add(&self, x: &mut Self::Tensor, rows: Range<usize>, added: &Self::Tensor);

    /// Row `rows.start + i` of x = from[i].
    fn put(&self, x: &mut Self::Tensor, rows: Range<usize>, from: &Self::Tensor);

    /// What a convolution along time multiplies with its weights: to[i] = the rows of the first `steps` of x that result
    /// `results.start + i` is made of, as many as fit into a row of `to`, one after another, with zeros where there are none.
    fn unfold(
        &self,
        x: &Self::Tensor,
        steps: usize,
        window: Window,
        results: Range<usize>,
        to: &mut Self::Tensor,
    );

    /// Puts keys and values at the tokens from `at` on. Each of the first `count` rows has the keys of all heads, then
    /// their values.
    fn append(&self, rows: &Self::Tensor, count: usize, to: &mut Self::KeyValues, at: usize);

    /// Attention of the first `rows` rows of queries, which have the heads one after another, as have the results.
    fn attend(
        &self,
        queries: &Self::Tensor,
        rows: usize,
        memory: &Self::KeyValues,
        seen: Seen,
        scores: &mut Self::Scores,
        to: &mut Self::Tensor,
    );

    /// to[i] = the vectors of sequence i as one.
    fn pool(&self, x: &Self::Tensor, starts: &[usize], pooling: Pooling, to: &mut Self::Tensor);

    /// Scales the first `rows` rows to length 1.
    fn normalize(&self, x: &mut Self::Tensor, rows: usize);

    /// Overwrites the first `rows` rows, before a tensor holds what is another domain's. Memory that only this process can
    /// reach may stay as it is.
    fn clear(&self, x: &mut Self::Tensor, rows: usize);

    /// Appends the first `rows` rows to a vector with room for them, after all operations so far.
    fn read(&self, x: &Self::Tensor, rows: usize, to: &mut Vec<f32>) -> Result<(), DeviceFailure>;
}

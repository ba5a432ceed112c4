//! A GPU by our own shaders, every buffer counted against a lease of its own.
//!
//! Operations are recorded; [`Device::read`] submits and waits. Token ids and spans go by way of a list that each tensor
//! has beside its floats, so that an operation allocates nothing.

use super::{Device, DeviceError, DeviceFailure, LinearWeights, NormWeights, Stored, TableSource, Usage};
use crate::memory::Memory;
use crate::package::modules::Pooling;
use ringfence_gpu::{
    ATTENTION_WORDS_PER_ROW, Adapters, Convolution, Counted, GRAIN_BYTES, Gpu, GpuError, Matrix, NoAdapters,
    OpenError, Words,
};
use ringfence_kernels::{Activation, Seen, Window};
use ringfence_sandbox::Denial;
use std::ops::Range;

/// Numbers that a tensor has for each of its rows: attention needs most.
const WORDS_PER_ROW: usize = ATTENTION_WORDS_PER_ROW;
/// Bytes of the host's memory that must be free before a device is opened. Opening it and compiling its shaders takes a
/// quarter of that with Mesa's software driver, by allocations that can't fail typed.
pub const HOST_BYTES: u64 = 8 << 20;

/// A GPU.
#[derive(Debug)]
pub struct Wgpu {
    gpu: Gpu,
}

impl Wgpu {
    /// The GPU, which should be warmed up.
    pub fn new(gpu: Gpu) -> Self {
        Self { gpu }
    }

    /// The device and its gate.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

impl Wgpu {
    /// The first device that is in sight, under this lease of its memory, every shader compiled.
    ///
    /// # Errors
    /// There is none, it can't be opened or used, or one of the leases is too small for that.
    pub fn first(lease_bytes: u64, memory: &dyn Memory) -> Result<Self, DeviceError> {
        memory.check(HOST_BYTES).map_err(DeviceError::Full)?;
        let adapters = Adapters::list()?;
        let first = adapters.all().first().ok_or(NoAdapters)?;
        let gpu = Gpu::open(first, lease_bytes)?;
        gpu.warm_up()?;
        Ok(Self::new(gpu))
    }
}

/// A matrix of activations, and numbers that operations on its rows need.
#[derive(Debug)]
pub struct Tensor {
    floats: Matrix,
    words: Words,
}

/// What attention has to know; it needs no memory.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    tokens: usize,
    head: usize,
}

/// Keys and values of one layer: a row for each token.
#[derive(Debug)]
pub struct KeyValues {
    floats: Matrix,
    head: usize,
}

impl From<NoAdapters> for DeviceError {
    fn from(error: NoAdapters) -> Self {
        Self::Failed(DeviceFailure { reason: error.to_string() })
    }
}

impl From<OpenError> for DeviceError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::LeaseTooSmall { lease, headroom } => {
                Self::Full(Denial { wanted: headroom, used: 0, limit: lease })
            }
            OpenError::Driver { reason } => Self::Failed(DeviceFailure { reason }),
            OpenError::Failed(error) => error.into(),
        }
    }
}

impl From<GpuError> for DeviceError {
    fn from(error: GpuError) -> Self {
        match error {
            GpuError::OutOfMemory { wanted, used, limit, .. } => Self::Full(Denial { wanted, used, limit }),
            GpuError::TooLarge { bytes, limit } => Self::Full(Denial { wanted: bytes, used: 0, limit }),
            GpuError::Lost { .. } | GpuError::Refused { .. } | GpuError::Wrong { .. } => {
                Self::Failed(failure(&error))
            }
        }
    }
}

fn failure(error: &GpuError) -> DeviceFailure {
    DeviceFailure { reason: error.to_string() }
}

fn on_gpu(stored: Stored) -> ringfence_gpu::Stored {
    match stored {
        Stored::F32 => ringfence_gpu::Stored::F32,
        Stored::F16 => ringfence_gpu::Stored::F16,
    }
}

impl Device for Wgpu {
    type Linear = ringfence_gpu::LinearWeights;
    type Norm = ringfence_gpu::NormWeights;
    type Table = ringfence_gpu::Table;
    type Tensor = Tensor;
    type Scratch = Scratch;
    type KeyValues = KeyValues;
    /// Scores are never stored.
    type Scores = ();

    fn check(&self, bytes: u64, _: &dyn Memory) -> Result<(), DeviceError> {
        Ok(self.gpu.check(bytes)?)
    }

    fn usage(&self, _: &dyn Memory) -> Usage {
        let Counted { used, peak } = self.gpu.counted();
        Usage { used, peak }
    }

    fn restart_peak(&self, _: &dyn Memory) {
        self.gpu.restart_peak();
    }

    fn linear_weights(
        &self,
        inputs: usize,
        parts: &[LinearWeights],
        stored: Stored,
    ) -> Result<Self::Linear, DeviceError> {
        let layers: Vec<(&[f32], &[f32])> =
            parts.iter().map(|part| (&part.weight[..], &part.bias[..])).collect();
        Ok(self.gpu.linear_weights(inputs, &layers, on_gpu(stored))?)
    }

    fn weight_bytes(&self, stored: Stored) -> usize {
        stored.bytes()
    }

    fn streamed_weights(
        &self,
        inputs: usize,
        parts: &[LinearWeights],
        stored: Stored,
    ) -> Result<Self::Linear, DeviceError> {
        self.linear_weights(inputs, parts, stored)
    }

    fn streamed_weight_bytes(&self, stored: Stored) -> usize {
        self.weight_bytes(stored)
    }

    fn norm_weights(&self, weights: NormWeights) -> Result<Self::Norm, DeviceError> {
        let NormWeights { weight, bias, epsilon } = weights;
        Ok(self.gpu.norm_weights(&weight, Some(&bias), epsilon)?)
    }

    fn table(&self, columns: usize, source: TableSource) -> Result<Self::Table, DeviceError> {
        match source {
            TableSource::File { file, bytes, stored } => {
                Ok(self.gpu.table(columns, &file[bytes], on_gpu(stored))?)
            }
            TableSource::Floats(floats) => {
                let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
                Ok(self.gpu.table(columns, &bytes, ringfence_gpu::Stored::F32)?)
            }
        }
    }

    fn tensor(&self, rows: usize, columns: usize) -> Result<Tensor, DeviceError> {
        let (floats, words) = (self.gpu.matrix(rows, columns)?, self.gpu.words(WORDS_PER_ROW * rows)?);
        Ok(Tensor { floats, words })
    }

    fn row_bytes(&self, columns: usize) -> usize {
        // Of a matrix and of a list: a bound for one row, and generous for many, since only the whole is rounded.
        let grains =
            |words: usize| words.saturating_mul(size_of::<f32>()).next_multiple_of(GRAIN_BYTES as usize);
        grains(columns).saturating_add(grains(WORDS_PER_ROW))
    }

    fn scratch(&self, tokens: usize, head: usize) -> Result<Scratch, DeviceError> {
        Ok(Scratch { tokens, head })
    }

    fn scratch_bytes(&self, _: usize, _: usize) -> usize {
        0
    }

    fn key_values(&self, tokens: usize, heads: usize, head: usize) -> Result<KeyValues, DeviceError> {
        Ok(KeyValues { floats: self.gpu.matrix(tokens, 2 * heads * head)?, head })
    }

    fn key_values_bytes(&self, tokens: usize, heads: usize, head: usize) -> usize {
        let floats = heads.saturating_mul(head).saturating_mul(2).saturating_mul(tokens);
        floats.saturating_mul(size_of::<f32>()).next_multiple_of(GRAIN_BYTES as usize)
    }

    fn scores(&self, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    fn scores_bytes(&self, _: usize) -> usize {
        0
    }

    fn write(&self, floats: &[f32], to: &mut Tensor) {
        self.gpu.upload(&to.floats, floats);
    }

    fn lookup(&self, table: &Self::Table, ids: &[u32], to: &mut Tensor) {
        self.gpu.lookup(table, ids, &mut to.words, &mut to.floats);
    }

    fn linear(
        &self,
        input: &Tensor,
        rows: usize,
        weights: &Self::Linear,
        activation: Activation,
        to: &mut Tensor,
    ) {
        let activation = match activation {
            Activation::None => ringfence_gpu::Activation::None,
            Activation::Gelu => ringfence_gpu::Activation::Gelu,
        };
        self.gpu.linear(&input.floats, rows, weights, activation, &mut to.floats);
    }

    fn add_norm(&self, x: &mut Tensor, added: &Tensor, rows: usize, weights: &Self::Norm) {
        self.gpu.add_layer_norm(&mut x.floats, &added.floats, rows, weights);
    }

    fn attention(&self, qkv: &Tensor, starts: &[usize], scratch: &mut Scratch, to: &mut Tensor) {
        let fits = |pair: &[usize]| pair[1] - pair[0] <= scratch.tokens;
        assert!(starts.windows(2).all(fits), "sequences of at most {} tokens", scratch.tokens);
        self.gpu.attention(&qkv.floats, starts, scratch.head, &mut to.words, &mut to.floats);
    }

    fn norm(&self, x: &Tensor, rows: Range<usize>, weights: &Self::Norm, to: &mut Tensor) {
        self.gpu.layer_norm(&x.floats, rows, weights, &mut to.floats);
    }

    fn add(&self, x: &mut Tensor, rows: Range<usize>, added: &Tensor) {
        self.gpu.add_rows(&mut x.floats, rows, &added.floats);
    }

    fn put(&self, x: &mut Tensor, rows: Range<usize>, from: &Tensor) {
        self.gpu.put(&mut x.floats, rows.start, &from.floats, rows.len());
    }

    fn unfold(&self, x: &Tensor, steps: usize, window: Window, results: Range<usize>, to: &mut Tensor) {
        let how = Convolution { stride: window.stride, padding: window.padding };
        self.gpu.unfold(&x.floats, steps, how, results, &mut to.floats);
    }

    fn append(&self, rows: &Tensor, count: usize, to: &mut KeyValues, at: usize) {
        self.gpu.put(&mut to.floats, at, &rows.floats, count);
    }

    fn attend(
        &self,
        queries: &Tensor,
        rows: usize,
        memory: &KeyValues,
        seen: Seen,
        (): &mut (),
        to: &mut Tensor,
    ) {
        let seen = match seen {
            Seen::All(tokens) => ringfence_gpu::Seen::All(tokens),
            Seen::Before(token) => ringfence_gpu::Seen::Before(token),
        };
        self.gpu.attend(&queries.floats, rows, &memory.floats, seen, memory.head, &mut to.floats);
    }

    fn pool(&self, x: &Tensor, starts: &[usize], pooling: Pooling, to: &mut Tensor) {
        let (floats, words) = (&mut to.floats, &mut to.words);
        match pooling {
            Pooling::Mean => self.gpu.pool_mean(&x.floats, starts, words, floats),
            Pooling::Cls => self.gpu.pool_first(&x.floats, starts, words, floats),
        }
    }

    fn normalize(&self, x: &mut Tensor, rows: usize) {
        self.gpu.normalize(&mut x.floats, rows);
    }

    fn clear(&self, x: &mut Tensor, rows: usize) {
        self.gpu.clear(&mut x.floats, rows);
        self.gpu.clear_numbers(&mut x.words, WORDS_PER_ROW * rows);
        self.gpu.clear_staging();
    }

    fn read(&self, x: &Tensor, rows: usize, to: &mut Vec<f32>) -> Result<(), DeviceFailure> {
        self.gpu.read(&x.floats, rows, to).map_err(|error| failure(&error))
    }
}

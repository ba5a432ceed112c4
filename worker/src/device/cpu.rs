//! The CPU by our own kernels.
//!
//! candle's tensors are not used on this path: each of its operations allocates its result, infallibly, and its products
//! pack both sides at every call, which is most of the time of a small model. Here weights are packed once, activations
//! live in buffers that are reused, and every allocation can be refused. candle's BERT is the oracle in the tests.

use super::{Device, DeviceError, DeviceFailure, LinearWeights, NormWeights, Stored, TableSource, Usage};
use crate::convert::blocks::Type;
use crate::memory::Memory;
use crate::package::FileBytes;
use crate::package::modules::Pooling;
use ringfence_kernels::{
    Activation, AttentionScratch, BlockKind, Compute, KeyValues, Matrix, Numbers, PackedLinear, Part, Scores,
    Seen, Window, widen_half,
};
use std::ops::Range;

/// A vector shorter than this isn't scaled up, as in PyTorch's `normalize`.
const LENGTH_MIN: f32 = 1e-12;

/// The CPU.
#[derive(Debug)]
pub struct Cpu {
    compute: Compute,
}

impl Cpu {
    /// The CPU with these kernels and threads.
    pub fn new(compute: Compute) -> Self {
        Self { compute }
    }

    /// The kernels.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// The kernels, for another use.
    pub fn into_compute(self) -> Compute {
        self.compute
    }

    fn pack(
        &self,
        numbers: Numbers,
        inputs: usize,
        parts: &[LinearWeights],
    ) -> Result<PackedLinear, DeviceError> {
        let parts: Vec<Part<'_>> =
            parts.iter().map(|part| Part { weight: &part.weight, bias: &part.bias }).collect();
        Ok(PackedLinear::pack_as(numbers, self.compute.isa(), inputs, &parts)?)
    }
}

/// Rows that are looked up by number.
pub struct Table {
    columns: usize,
    rows: Rows,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table(_ x {})", self.columns)
    }
}

enum Rows {
    /// In the map that all workers of a model share; widened when a row is read.
    File {
        file: FileBytes,
        bytes: Range<usize>,
        stored: Stored,
    },
    Blocks {
        file: FileBytes,
        bytes: Range<usize>,
        kind: Type,
    },
    Floats(Vec<f32>),
}

impl Table {
    /// Rows in quantised blocks, which are widened when they are read.
    pub(super) fn of_blocks(columns: usize, kind: BlockKind, file: FileBytes, bytes: Range<usize>) -> Self {
        Self { columns, rows: Rows::Blocks { file, bytes, kind: Type::of_block(kind) } }
    }

    fn copy_row(&self, row: usize, to: &mut [f32]) {
        match &self.rows {
            Rows::Floats(floats) => to.copy_from_slice(&floats[row * self.columns..][..self.columns]),
            Rows::File { file, bytes, stored } => {
                let length = self.columns * stored.bytes();
                stored.widen(&file[bytes.clone()][row * length..][..length], to);
            }
            Rows::Blocks { file, bytes, kind } => {
                let length = self.columns / kind.block_weights() * kind.block_bytes();
                kind.dequantise_all(&file[bytes.clone()][row * length..][..length], to);
            }
        }
    }
}

impl Stored {
    /// Bytes of a float.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::F16 => 2,
        }
    }

    /// Reads as many floats as `to` has places.
    pub(crate) fn widen(self, from: &[u8], to: &mut [f32]) {
        match self {
            Stored::F32 => {
                for (float, bytes) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                    *float = f32::from_le_bytes(*bytes);
                }
            }
            Stored::F16 => {
                for (float, bytes) in to.iter_mut().zip(from.as_chunks::<2>().0) {
                    *float = widen_half(u16::from_le_bytes(*bytes));
                }
            }
        }
    }
}

impl Device for Cpu {
    type Linear = PackedLinear;
    type Norm = NormWeights;
    type Table = Table;
    type Tensor = Matrix;
    type Scratch = AttentionScratch;
    type KeyValues = KeyValues;
    type Scores = Scores;

    fn check(&self, bytes: u64, memory: &dyn Memory) -> Result<(), DeviceError> {
        memory.check(bytes).map_err(DeviceError::Full)
    }

    fn usage(&self, memory: &dyn Memory) -> Usage {
        Usage { used: memory.used(), peak: memory.peak() }
    }

    fn restart_peak(&self, memory: &dyn Memory) {
        memory.restart_peak();
    }

    fn linear_weights(
        &self,
        inputs: usize,
        parts: &[LinearWeights],
        _: Stored,
    ) -> Result<PackedLinear, DeviceError> {
        self.pack(Numbers::Singles, inputs, parts)
    }

    fn weight_bytes(&self, _: Stored) -> usize {
        Numbers::Singles.bytes()
    }

    fn streamed_weights(
        &self,
        inputs: usize,
        parts: &[LinearWeights],
        stored: Stored,
    ) -> Result<PackedLinear, DeviceError> {
        self.pack(numbers(stored), inputs, parts)
    }

    fn streamed_weight_bytes(&self, stored: Stored) -> usize {
        numbers(stored).bytes()
    }

    fn norm_weights(&self, weights: NormWeights) -> Result<NormWeights, DeviceError> {
        Ok(weights)
    }

    fn table(&self, columns: usize, source: TableSource) -> Result<Table, DeviceError> {
        let rows = match source {
            TableSource::File { file, bytes, stored } => Rows::File { file, bytes, stored },
            TableSource::Floats(floats) => Rows::Floats(floats),
        };
        Ok(Table { columns, rows })
    }

    fn tensor(&self, rows: usize, columns: usize) -> Result<Matrix, DeviceError> {
        Ok(Matrix::zeroed(rows, columns)?)
    }

    fn row_bytes(&self, columns: usize) -> usize {
        Matrix::bytes(1, columns)
    }

    fn scratch(&self, tokens: usize, head: usize) -> Result<AttentionScratch, DeviceError> {
        Ok(AttentionScratch::new(self.compute.isa(), self.compute.pool().threads(), tokens, head)?)
    }

    fn scratch_bytes(&self, tokens: usize, head: usize) -> usize {
        AttentionScratch::bytes(self.compute.isa(), self.compute.pool().threads(), tokens, head)
    }

    fn key_values(&self, tokens: usize, heads: usize, head: usize) -> Result<KeyValues, DeviceError> {
        Ok(KeyValues::new(self.compute.isa(), tokens, heads, head)?)
    }

    fn key_values_bytes(&self, tokens: usize, heads: usize, head: usize) -> usize {
        KeyValues::bytes(self.compute.isa(), tokens, heads, head)
    }

    fn scores(&self, tokens: usize) -> Result<Scores, DeviceError> {
        Ok(Scores::new(self.compute.isa(), self.compute.pool().threads(), tokens)?)
    }

    fn scores_bytes(&self, tokens: usize) -> usize {
        Scores::bytes(self.compute.isa(), self.compute.pool().threads(), tokens)
    }

    fn write(&self, floats: &[f32], to: &mut Matrix) {
        for (row, floats) in floats.chunks_exact(to.columns()).enumerate() {
            to.row_mut(row).copy_from_slice(floats);
        }
    }

    fn lookup(&self, table: &Table, ids: &[u32], to: &mut Matrix) {
        for (row, id) in ids.iter().enumerate() {
            table.copy_row(*id as usize, to.row_mut(row));
        }
    }

    fn linear(
        &self,
        input: &Matrix,
        rows: usize,
        weights: &PackedLinear,
        activation: Activation,
        to: &mut Matrix,
    ) {
        self.compute.linear(input, rows, weights, activation, to);
    }

    fn add_norm(&self, x: &mut Matrix, added: &Matrix, rows: usize, weights: &NormWeights) {
        self.compute.add_norm(x, added, rows, &weights.weight, &weights.bias, weights.epsilon);
    }

    fn attention(&self, qkv: &Matrix, starts: &[usize], scratch: &mut AttentionScratch, to: &mut Matrix) {
        self.compute.attention(qkv, starts, scratch, to);
    }

    fn norm(&self, x: &Matrix, rows: Range<usize>, weights: &NormWeights, to: &mut Matrix) {
        self.compute.norm(x, rows, &weights.weight, &weights.bias, weights.epsilon, to);
    }

    fn add(&self, x: &mut Matrix, rows: Range<usize>, added: &Matrix) {
        self.compute.add(x, rows, added);
    }

    fn put(&self, x: &mut Matrix, rows: Range<usize>, from: &Matrix) {
        self.compute.put(x, rows, from);
    }

    fn unfold(&self, x: &Matrix, steps: usize, window: Window, results: Range<usize>, to: &mut Matrix) {
        self.compute.unfold(x, steps, window, results, to);
    }

    fn append(&self, rows: &Matrix, count: usize, to: &mut KeyValues, at: usize) {
        self.compute.append(rows, count, to, at);
    }

    fn attend(
        &self,
        queries: &Matrix,
        rows: usize,
        memory: &KeyValues,
        seen: Seen,
        scores: &mut Scores,
        to: &mut Matrix,
    ) {
        self.compute.attend(queries, rows, memory, seen, scores, to);
    }

    fn pool(&self, x: &Matrix, starts: &[usize], pooling: Pooling, to: &mut Matrix) {
        for (row, span) in starts.windows(2).enumerate() {
            match pooling {
                Pooling::Cls => to.row_mut(row).copy_from_slice(x.row(span[0])),
                Pooling::Mean => mean(x, span[0]..span[1], to.row_mut(row)),
            }
        }
    }

    fn normalize(&self, x: &mut Matrix, rows: usize) {
        for row in 0..rows {
            let row = x.row_mut(row);
            let length = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32;
            row.iter_mut().for_each(|x| *x /= length.max(LENGTH_MIN));
        }
    }

    /// Its tensors are the process's own memory.
    fn clear(&self, _: &mut Matrix, _: usize) {}

    fn read(&self, x: &Matrix, rows: usize, to: &mut Vec<f32>) -> Result<(), DeviceFailure> {
        (0..rows).for_each(|row| to.extend_from_slice(x.row(row)));
        Ok(())
    }
}

/// What was stored as halves is the same as halves.
pub(super) fn numbers(stored: Stored) -> Numbers {
    match stored {
        Stored::F32 => Numbers::Singles,
        Stored::F16 => Numbers::Halves,
    }
}

fn mean(x: &Matrix, rows: Range<usize>, to: &mut [f32]) {
    let count = rows.len() as f32;
    to.fill(0.0);
    for row in rows {
        for (sum, value) in to.iter_mut().zip(x.row(row)) {
            *sum += value;
        }
    }
    to.iter_mut().for_each(|sum| *sum /= count);
}

//! What models that write text need of a device beside [`Device`]: products with weights that stay in quantised blocks,
//! rotation, gates, and keys and values in blocks that sequences share and give back.

use super::cpu::{Table, numbers};
use super::{Activation, Cpu, Device, DeviceError, LinearWeights, Stored};
use crate::package::FileBytes;
use ringfence_kernels::{
    BLOCK_TOKENS, BlockCache, BlockKind, BlockScores, Matrix, PackedLinear, QuantLinear, QuantPart,
    Quantised, Turns,
};
use std::ops::Range;

pub use ringfence_kernels::Sequence;

/// Tokens of a block of keys and values.
pub const CACHE_BLOCK_TOKENS: usize = BLOCK_TOKENS;

/// Weights of one layer, or of one of several that share their input: `rows x inputs`, row-major.
pub struct TextPart<'a> {
    /// Outputs.
    pub rows: usize,
    /// The weights.
    pub weights: TextWeights<'a>,
    /// One for each output, or none.
    pub bias: Option<Vec<f32>>,
}

/// How they come.
pub enum TextWeights<'a> {
    /// As floats, and how the package has them.
    Floats(Vec<f32>, Stored),
    /// As the package has them.
    Blocks(BlockKind, &'a [u8]),
}

/// What sequences' attention works with at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Rows of a step.
    pub rows: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// Heads that share keys and values.
    pub group: usize,
    /// Floats of a head.
    pub head: usize,
}

/// Keys and values of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Blocks of [`CACHE_BLOCK_TOKENS`] tokens.
    pub blocks: usize,
    /// Heads of keys and values.
    pub key_heads: usize,
    /// Floats of a head.
    pub head: usize,
    /// As what they are kept: attention lasts as long as they take to be read.
    pub stored: Stored,
}

/// A device that runs decoders.
pub trait DecodingDevice: Device {
    /// Weights of one or several layers over the same input.
    type TextLinear;
    /// Working memory of [`DecodingDevice::text_linear`]: rows of inputs in the form that blocks are multiplied with.
    type Inputs;
    /// Angles of a step's rows.
    type Turns;
    /// Keys and values of one layer.
    type Cache;
    /// Working memory of attention to them.
    type CacheScores;

    /// Takes weights; the parts write their outputs one after another. All of them are floats, or all are blocks.
    fn text_weights(&self, inputs: usize, parts: Vec<TextPart<'_>>) -> Result<Self::TextLinear, DeviceError>;

    /// Takes a table that stays in blocks of this kind, row by row in these bytes of a file.
    fn block_table(
        &self,
        columns: usize,
        kind: BlockKind,
        file: FileBytes,
        bytes: Range<usize>,
    ) -> Result<Self::Table, DeviceError>;

    /// Bytes that weights take, given the kind and rows of each part; floats have none.
    fn text_weight_bytes(&self, inputs: usize, parts: &[(Option<BlockKind>, Stored, usize)]) -> usize;

    /// Working memory for so many rows.
    fn inputs(&self, rows: usize, columns: usize) -> Result<Self::Inputs, DeviceError>;

    /// Bytes that it takes.
    fn inputs_bytes(&self, rows: usize, columns: usize) -> usize;

    /// to = input * weights^T + bias, for the first `rows` rows.
    fn text_linear(
        &self,
        input: &Self::Tensor,
        rows: usize,
        weights: &Self::TextLinear,
        inputs: &mut Self::Inputs,
        to: &mut Self::Tensor,
    );

    /// to[i] = row `i` of x over the root of its mean square plus epsilon, times the weights.
    fn rms_norm(&self, x: &Self::Tensor, rows: usize, weights: &Self::Norm, to: &mut Self::Tensor);

    /// Room for the angles of so many rows.
    fn turns(&self, rows: usize, head: usize) -> Result<Self::Turns, DeviceError>;

    /// Bytes that it takes.
    fn turns_bytes(&self, rows: usize, head: usize) -> usize;

    /// Says at which positions rows are.
    fn set_turns(&self, turns: &mut Self::Turns, positions: &[u32], inverse_frequencies: &[f64]);

    /// Turns the heads in these columns of the first `rows` rows.
    fn rotate(
        &self,
        x: &mut Self::Tensor,
        rows: usize,
        columns: Range<usize>,
        head: usize,
        turns: &Self::Turns,
    );

    /// to = silu(gate) * up, where a row of x has the gates and then as many others.
    fn gate(&self, x: &Self::Tensor, rows: usize, to: &mut Self::Tensor);

    /// to[i] = row `rows[i]` of x.
    fn select(&self, x: &Self::Tensor, rows: &[u32], to: &mut Self::Tensor);

    /// Blocks of keys and values.
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, DeviceError>;

    /// Bytes that they take.
    fn cache_bytes(&self, shape: CacheShape) -> usize;

    /// Working memory for steps of that shape.
    fn cache_scores(&self, shape: AttentionShape) -> Result<Self::CacheScores, DeviceError>;

    /// Bytes that it takes.
    fn cache_scores_bytes(&self, shape: AttentionShape) -> usize;

    /// Puts keys and values, which lie in these columns (keys of all heads, then values), at places: `block *
    /// CACHE_BLOCK_TOKENS + token` for each row.
    fn keep(&self, rows: &Self::Tensor, columns: Range<usize>, places: &[u32], to: &mut Self::Cache);

    /// Overwrites a block of keys and values with another.
    fn copy_block(&self, from: u32, to: u32, cache: &mut Self::Cache);

    /// Overwrites a block with zeros.
    fn wipe_block(&self, block: u32, cache: &mut Self::Cache);

    /// Each sequence's rows attend to its tokens up to themselves. The first columns of a row are its queries.
    fn attend_kept(
        &self,
        queries: &Self::Tensor,
        sequences: &[Sequence<'_>],
        cache: &Self::Cache,
        scores: &mut Self::CacheScores,
        to: &mut Self::Tensor,
    );
}

/// Weights on the CPU.
#[derive(Debug)]
pub enum CpuTextLinear {
    /// Floats, or halves where the package has halves.
    Packed(PackedLinear),
    /// In blocks.
    Blocks(QuantLinear),
}

impl DecodingDevice for Cpu {
    type TextLinear = CpuTextLinear;
    type Inputs = Quantised;
    type Turns = Turns;
    type Cache = BlockCache;
    type CacheScores = BlockScores;

    fn text_weights(&self, inputs: usize, parts: Vec<TextPart<'_>>) -> Result<CpuTextLinear, DeviceError> {
        let blocks: Option<Vec<QuantPart<'_>>> = parts.iter().map(quantised).collect();
        if let Some(parts) = blocks {
            return Ok(CpuTextLinear::Blocks(QuantLinear::pack(self.compute().isa(), inputs, &parts)?));
        }
        let mut stored = Stored::F16;
        let mut floats = Vec::with_capacity(parts.len());
        for part in parts {
            let TextWeights::Floats(weight, of_part) = part.weights else {
                unreachable!("parts are all floats or all blocks");
            };
            if of_part == Stored::F32 {
                stored = Stored::F32;
            }
            let bias = part.bias.unwrap_or_else(|| vec![0.0; part.rows]);
            floats.push(LinearWeights { weight, bias });
        }
        Ok(CpuTextLinear::Packed(self.streamed_weights(inputs, &floats, stored)?))
    }

    fn block_table(
        &self,
        columns: usize,
        kind: BlockKind,
        file: FileBytes,
        bytes: Range<usize>,
    ) -> Result<Table, DeviceError> {
        Ok(Table::of_blocks(columns, kind, file, bytes))
    }

    fn text_weight_bytes(&self, inputs: usize, parts: &[(Option<BlockKind>, Stored, usize)]) -> usize {
        let blocks: Option<Vec<(BlockKind, usize)>> =
            parts.iter().map(|(kind, _, rows)| Some(((*kind)?, *rows))).collect();
        match blocks {
            Some(parts) => QuantLinear::bytes(self.compute().isa(), inputs, &parts),
            None => {
                let halves = parts.iter().all(|(_, stored, _)| *stored == Stored::F16);
                let stored = if halves { Stored::F16 } else { Stored::F32 };
                let rows: usize = parts.iter().map(|(.., rows)| rows).sum();
                rows.saturating_mul(inputs).saturating_mul(self.streamed_weight_bytes(stored))
            }
        }
    }

    fn inputs(&self, rows: usize, columns: usize) -> Result<Quantised, DeviceError> {
        Ok(Quantised::new(rows, columns)?)
    }

    fn inputs_bytes(&self, rows: usize, columns: usize) -> usize {
        Quantised::bytes(rows, columns)
    }

    fn text_linear(
        &self,
        input: &Matrix,
        rows: usize,
        weights: &CpuTextLinear,
        inputs: &mut Quantised,
        to: &mut Matrix,
    ) {
        match weights {
            CpuTextLinear::Packed(weights) => {
                self.compute().linear(input, rows, weights, Activation::None, to);
            }
            CpuTextLinear::Blocks(weights) => self.compute().quant_linear(input, rows, weights, inputs, to),
        }
    }

    fn rms_norm(&self, x: &Matrix, rows: usize, weights: &Self::Norm, to: &mut Matrix) {
        self.compute().rms_norm(x, 0..rows, &weights.weight, weights.epsilon, to);
    }

    fn turns(&self, rows: usize, head: usize) -> Result<Turns, DeviceError> {
        Ok(Turns::new(rows, head)?)
    }

    fn turns_bytes(&self, rows: usize, head: usize) -> usize {
        Turns::bytes(rows, head)
    }

    fn set_turns(&self, turns: &mut Turns, positions: &[u32], inverse_frequencies: &[f64]) {
        for (row, position) in positions.iter().enumerate() {
            turns.set(row, *position as usize, inverse_frequencies);
        }
    }

    fn rotate(&self, x: &mut Matrix, rows: usize, columns: Range<usize>, head: usize, turns: &Turns) {
        self.compute().rotate(x, rows, columns, head, turns);
    }

    fn gate(&self, x: &Matrix, rows: usize, to: &mut Matrix) {
        self.compute().gate(x, rows, to);
    }

    fn select(&self, x: &Matrix, rows: &[u32], to: &mut Matrix) {
        for (place, row) in rows.iter().enumerate() {
            to.row_mut(place).copy_from_slice(x.row(*row as usize));
        }
    }

    fn cache(&self, shape: CacheShape) -> Result<BlockCache, DeviceError> {
        let CacheShape { blocks, key_heads, head, stored } = shape;
        Ok(BlockCache::new(numbers(stored), self.compute().isa(), blocks, key_heads, head)?)
    }

    fn cache_bytes(&self, shape: CacheShape) -> usize {
        let CacheShape { blocks, key_heads, head, stored } = shape;
        BlockCache::bytes(numbers(stored), self.compute().isa(), blocks, key_heads, head)
    }

    fn cache_scores(&self, shape: AttentionShape) -> Result<BlockScores, DeviceError> {
        let AttentionShape { rows, tokens, group, head } = shape;
        let (isa, threads) = (self.compute().isa(), self.compute().pool().threads());
        Ok(BlockScores::new(isa, threads, rows, tokens, group, head)?)
    }

    fn cache_scores_bytes(&self, shape: AttentionShape) -> usize {
        let AttentionShape { rows, tokens, group, head } = shape;
        let (isa, threads) = (self.compute().isa(), self.compute().pool().threads());
        BlockScores::bytes(isa, threads, rows, tokens, group, head)
    }

    fn keep(&self, rows: &Matrix, columns: Range<usize>, places: &[u32], to: &mut BlockCache) {
        self.compute().append_blocks(rows, columns, places, to);
    }

    fn copy_block(&self, from: u32, to: u32, cache: &mut BlockCache) {
        cache.copy_block(from, to);
    }

    fn wipe_block(&self, block: u32, cache: &mut BlockCache) {
        cache.wipe_block(block);
    }

    fn attend_kept(
        &self,
        queries: &Matrix,
        sequences: &[Sequence<'_>],
        cache: &BlockCache,
        scores: &mut BlockScores,
        to: &mut Matrix,
    ) {
        self.compute().attend_blocks(queries, sequences, cache, scores, to);
    }
}

fn quantised<'a>(part: &'a TextPart<'_>) -> Option<QuantPart<'a>> {
    match &part.weights {
        TextWeights::Blocks(kind, blocks) => {
            Some(QuantPart { kind: *kind, rows: part.rows, blocks, bias: part.bias.as_deref() })
        }
        TextWeights::Floats(..) => None,
    }
}

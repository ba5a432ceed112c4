//! ggml's types of tensors: how long a block is, and what the weights in it are.
//!
//! Source of the layouts: `ggml-common.h` and `ggml-quants.c` of <https://github.com/ggml-org/ggml>. Each is compared with
//! llama.cpp's own dequantisation in the tests.

use half::{bf16, f16};
use ringfence_kernels::BlockKind;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 weights: scale, nibbles.
    Q4_0,
    /// 32 weights: scale, minimum, nibbles.
    Q4_1,
    /// 32 weights: scale, fifth bits, nibbles.
    Q5_0,
    /// 32 weights: scale, minimum, fifth bits, nibbles.
    Q5_1,
    /// 32 weights: scale, signed bytes.
    Q8_0,
    /// 256 weights in 16 groups with scales and minimums of 4 bits; 2 bits each.
    Q2K,
    /// 256 weights in 16 groups with scales of 6 bits; 3 bits each.
    Q3K,
    /// 256 weights in 8 groups with scales and minimums of 6 bits; 4 bits each.
    Q4K,
    /// 256 weights in 8 groups with scales and minimums of 6 bits; 5 bits each.
    Q5K,
    /// 256 weights in 16 groups with scales of 8 bits; 6 bits each.
    Q6K,
}

/// The most weights of a block.
pub const BLOCK_WEIGHTS_MAX: usize = 256;

impl Type {
    /// By ggml's number; `None` for those that are not read.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Of a kind that there are products for.
    pub fn of_block(kind: BlockKind) -> Self {
        match kind {
            BlockKind::Q8_0 => Self::Q8_0,
            BlockKind::Q4_0 => Self::Q4_0,
            BlockKind::Q4_1 => Self::Q4_1,
            BlockKind::Q4K => Self::Q4K,
        }
    }

    /// The weights of several blocks.
    ///
    /// # Panics
    /// Unless they are whole, and there is a place for each weight.
    pub fn dequantise_all(self, blocks: &[u8], weights: &mut [f32]) {
        let (blocks, places) =
            (blocks.chunks_exact(self.block_bytes()), weights.chunks_exact_mut(self.block_weights()));
        assert_eq!(blocks.len(), places.len(), "a place for each weight");
        blocks.zip(places).for_each(|(block, place)| self.dequantise(block, place));
    }

    /// Weights of a block; 1 where there are no blocks.
    pub fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => BLOCK_WEIGHTS_MAX,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The weights of one block, in f32 as llama.cpp computes them.
    ///
    /// # Panics
    /// Unless `block` has [`Self::block_bytes`] bytes and `weights` has [`Self::block_weights`] places.
    pub fn dequantise(self, block: &[u8], weights: &mut [f32]) {
        assert_eq!((block.len(), weights.len()), (self.block_bytes(), self.block_weights()), "one block");
        match self {
            Self::F32 => weights[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Self::F16 => weights[0] = half(block, 0),
            Self::Bf16 => weights[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Self::Q4_0 => nibbles(&block[2..], weights, |_, q| f32::from(q as i8 - 8) * half(block, 0)),
            Self::Q4_1 => {
                nibbles(&block[4..], weights, |_, q| f32::from(q) * half(block, 0) + half(block, 2));
            }
            Self::Q5_0 => {
                let fifth = fifth_bits(&block[2..]);
                nibbles(&block[6..], weights, |i, q| f32::from((q | fifth(i)) as i8 - 16) * half(block, 0));
            }
            Self::Q5_1 => {
                let fifth = fifth_bits(&block[4..]);
                let weight = |i, q: u8| f32::from(q | fifth(i)) * half(block, 0) + half(block, 2);
                nibbles(&block[8..], weights, weight);
            }
            Self::Q8_0 => {
                let quants = block[2..].iter().map(|q| f32::from(*q as i8) * half(block, 0));
                weights.iter_mut().zip(quants).for_each(|(weight, value)| *weight = value);
            }
            Self::Q2K => q2k(block, weights),
            Self::Q3K => q3k(block, weights),
            Self::Q4K => q45k(block, &[], &block[16..], weights),
            Self::Q5K => q45k(block, &block[16..48], &block[48..], weights),
            Self::Q6K => q6k(block, weights),
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low nibbles are the first 16 weights, high ones the other 16.
fn nibbles(quants: &[u8], weights: &mut [f32], weight: impl Fn(usize, u8) -> f32) {
    for (i, byte) in quants.iter().enumerate() {
        weights[i] = weight(i, byte & 15);
        weights[i + 16] = weight(i + 16, byte >> 4);
    }
}

fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |i| (((bits >> i) & 1) as u8) << 4
}

/// 16 bytes of scale and minimum, 64 bytes of pairs of bits, the halves of both.
fn q2k(block: &[u8], weights: &mut [f32]) {
    let (scale, minimum) = (half(block, 80), half(block, 82));
    for (i, weight) in weights.iter_mut().enumerate() {
        let quant = (block[16 + pair_byte(i)] >> pair_shift(i)) & 3;
        let group = block[i / 16];
        *weight = scale * f32::from(group & 15) * f32::from(quant) - minimum * f32::from(group >> 4);
    }
}

/// 32 bytes of third bits, 64 bytes of pairs of bits, 12 bytes of scales, their half.
fn q3k(block: &[u8], weights: &mut [f32]) {
    let scale = half(block, 108);
    for (i, weight) in weights.iter_mut().enumerate() {
        let low = (block[32 + pair_byte(i)] >> pair_shift(i)) & 3;
        let third = (block[i % 32] >> (i / 32)) & 1;
        let quant = low as i8 - if third == 1 { 0 } else { 4 };
        *weight = scale * f32::from(q3k_scale(&block[96..108], i / 16)) * f32::from(quant);
    }
}

/// Where the two bits of a weight are: 128 weights share 32 bytes.
fn pair_byte(i: usize) -> usize {
    i / 128 * 32 + i % 32
}

fn pair_shift(i: usize) -> usize {
    i % 128 / 32 * 2
}

/// Of 16 groups: low nibbles in 8 bytes, the two high bits in 4.
fn q3k_scale(scales: &[u8], group: usize) -> i8 {
    let low = (scales[group % 8] >> (group / 8 * 4)) & 15;
    let high = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
    (low | high << 4) as i8 - 32
}

/// Halves of scale and minimum, 12 bytes of both, fifth bits where there are any, nibbles.
fn q45k(block: &[u8], fifth: &[u8], quants: &[u8], weights: &mut [f32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (i, weight) in weights.iter_mut().enumerate() {
        let group = i / 32;
        let (group_scale, group_minimum) = q45k_scale(&block[4..16], group);
        let low = (quants[i / 64 * 32 + i % 32] >> (group % 2 * 4)) & 15;
        let high = fifth.get(i % 32).map_or(0, |bits| (bits >> group) & 1);
        let quant = f32::from(low | high << 4);
        *weight = scale * f32::from(group_scale) * quant - minimum * f32::from(group_minimum);
    }
}

/// Scale and minimum of a group of 8: six bits each, the last four groups in pieces.
fn q45k_scale(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let low = packed[group + 4];
    (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
}

/// 128 bytes of nibbles, 64 bytes of pairs of bits above them, 16 bytes of scales, their half.
fn q6k(block: &[u8], weights: &mut [f32]) {
    let scale = half(block, 208);
    for (i, weight) in weights.iter_mut().enumerate() {
        let low = (block[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4)) & 15;
        let high = (block[128 + pair_byte(i)] >> pair_shift(i)) & 3;
        let quant = (low | high << 4) as i8 - 32;
        *weight = scale * f32::from(block[192 + i / 16] as i8) * f32::from(quant);
    }
}

//! ggml's kinds of blocks that there are products for, and where their numbers are.
//!
//! Source of the layouts: `ggml-common.h` of <https://github.com/ggml-org/ggml>.

/// Weights that share a scale, and inputs that do.
pub(crate) const GROUP: usize = 32;
/// Weights of a super-block.
const SUPER: usize = 256;

/// A kind of block. Scales and minimums are halves, `q` a weight's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// 32 weights: scale, signed bytes; scale * q.
    Q8_0,
    /// 32 weights: scale, nibbles; scale * (q - 8).
    Q4_0,
    /// 32 weights: scale, minimum, nibbles; scale * q + minimum.
    Q4_1,
    /// 256 weights in 8 groups with scales and minimums of 6 bits, which a scale and a minimum of the block multiply.
    Q4K,
}

impl BlockKind {
    /// Weights of a block.
    pub fn weights(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => GROUP,
            Self::Q4K => SUPER,
        }
    }

    /// Bytes of a block in a file.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q4K => 144,
        }
    }

    /// Bytes of a block in a panel: scales and minimums of six bits have a byte each.
    pub(crate) fn packed_bytes(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => self.bytes(),
            Self::Q4K => 148,
        }
    }
}

/// A super-block's scale and minimum of a group, six bits each; those of the last four groups are in pieces.
pub(crate) fn group_scale(block: &[u8], group: usize) -> [u8; 2] {
    let packed = &block[4..16];
    if group < 4 {
        return [packed[group] & 63, packed[group + 4] & 63];
    }
    let low = packed[group + 4];
    [low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4]
}

/// A super-block's nibbles of a group in the order of the small blocks: weight i, and above it weight i + 16.
pub(crate) fn group_nibbles(block: &[u8], group: usize) -> [u8; GROUP / 2] {
    let bytes = &block[16 + group / 2 * GROUP..][..GROUP];
    let nibble = |i: usize| bytes[i] >> (group % 2 * 4) & 15;
    std::array::from_fn(|i| nibble(i) | nibble(i + GROUP / 2) << 4)
}

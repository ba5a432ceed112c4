//! The innermost product: a few quantised rows times one panel of quantised weights, all sums in registers.

pub(crate) mod avx2;
pub(crate) mod avx512vnni;
pub(crate) mod avxvnni;
mod kinds;
mod registers256;
pub(crate) mod scalar;

use super::activations::{self as quantise, Group};
use super::kind::BlockKind;

/// Groups of a super-block.
const GROUPS: usize = 8;

/// What a tile reads and writes. With R the number of rows and P the panel's width, a call touches
/// `input[r * depth + k]`, the panel's blocks for `k < depth`, `bias[p]` and writes `output[r * output_stride + c]` for
/// r < R, k < depth, p < P, c < columns <= P.
pub(crate) struct QuantTile {
    pub(crate) input: *const Group,
    /// Groups of a row. With super-blocks, whole ones.
    pub(crate) depth: usize,
    pub(crate) panel: *const u8,
    pub(crate) bias: *const f32,
    pub(crate) output: *mut f32,
    pub(crate) output_stride: usize,
    pub(crate) columns: usize,
}

/// Computes this many rows of one panel.
type TileRoutine = unsafe fn(usize, &QuantTile);

/// The kernels of one level for quantised weights. Calling one is safe only on a CPU that has the level.
pub(crate) struct QuantRoutines {
    /// Outputs of a panel.
    pub(crate) panel: usize,
    /// Outputs whose weights are in one register.
    pub(crate) lanes: usize,
    /// The most rows of a tile.
    pub(crate) rows: usize,
    /// The bits of signed weights that are flipped: the top one where products want them without a sign, 128 added.
    pub(crate) flipped: u8,
    /// Bytes from singles, a row's whole groups.
    pub(crate) quantise: unsafe fn(&[f32], &mut [Group]),
    pub(crate) q8_0: TileRoutine,
    pub(crate) q4_0: TileRoutine,
    pub(crate) q4_1: TileRoutine,
    pub(crate) q4_k: TileRoutine,
}

impl QuantRoutines {
    pub(crate) fn tile(&self, kind: BlockKind) -> TileRoutine {
        match kind {
            BlockKind::Q8_0 => self.q8_0,
            BlockKind::Q4_0 => self.q4_0,
            BlockKind::Q4_1 => self.q4_1,
            BlockKind::Q4K => self.q4_k,
        }
    }
}

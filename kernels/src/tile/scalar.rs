//! 4 rows by 8 columns in plain Rust.

use super::{Tile, by_rows};
use crate::half::widen;

pub(crate) const PANEL: usize = 8;
pub(crate) const ROWS: usize = 4;

/// Defines the tiles over panels of one kind of number, given how one of them is read.
macro_rules! tiles {
    ($tile:ident, $tile_of:ident, $number:ty, $read:expr) => {
        /// # Safety
        /// `t` describes memory that is there, unaliased where it is written; see [`Tile`].
        pub(crate) unsafe fn $tile(rows: usize, t: &Tile<$number>) {
            // SAFETY: passed on.
            unsafe { by_rows!($tile_of, rows, t, [1 2 3 4]) }
        }

        unsafe fn $tile_of<const R: usize>(t: &Tile<$number>) {
            // SAFETY: every access is one that `Tile` names.
            unsafe {
                let mut sums = [[0.0; PANEL]; R];
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = *t.bias.add(r * t.bias_stride).cast::<[f32; PANEL]>();
                }
                for k in 0..t.depth {
                    let column = (*t.panel.add(k * PANEL).cast::<[$number; PANEL]>()).map($read);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let value = *t.input.add(r * t.input_stride + k);
                        for (s, c) in sum.iter_mut().zip(column) {
                            *s += value * c;
                        }
                    }
                }
                for (r, sum) in sums.iter().enumerate() {
                    let output = t.output.add(r * t.output_stride);
                    std::ptr::copy_nonoverlapping(sum.as_ptr(), output, t.columns);
                }
            }
        }
    };
}
tiles!(tile, tile_of, f32, |single| single);
tiles!(half_tile, half_tile_of, u16, widen);

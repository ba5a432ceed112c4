//! 4 rows by 8 columns in plain Rust.

use super::{Tile, by_rows};

pub(crate) const PANEL: usize = 8;
pub(crate) const ROWS: usize = 4;

/// # Safety
/// `t` describes memory that is there, unaliased where it is written; see [`Tile`].
pub(crate) unsafe fn tile(rows: usize, t: &Tile) {
    // SAFETY: passed on.
    unsafe { by_rows!(rows, t, [1 2 3 4]) }
}

unsafe fn tile_of<const R: usize>(t: &Tile) {
    // SAFETY: every access is one that `Tile` names.
    unsafe {
        let mut sums = [*t.bias.cast::<[f32; PANEL]>(); R];
        for k in 0..t.depth {
            let column = *t.panel.add(k * PANEL).cast::<[f32; PANEL]>();
            for (r, sum) in sums.iter_mut().enumerate() {
                let value = *t.input.add(r * t.input_stride + k);
                for (s, c) in sum.iter_mut().zip(column) {
                    *s += value * c;
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            std::ptr::copy_nonoverlapping(sum.as_ptr(), t.output.add(r * t.output_stride), t.columns);
        }
    }
}

//! 12 rows by 32 columns: 24 sums, two columns and one broadcast in the 32 registers.

use super::{Tile, by_rows};
use std::arch::x86_64::*;

pub(crate) const PANEL: usize = 32;
pub(crate) const ROWS: usize = 12;

/// Defines the tiles over panels of one kind of number, given how 16 of them are loaded.
macro_rules! tiles {
    ($tile:ident, $tile_of:ident, $number:ty, $load:ident) => {
        /// # Safety
        /// The CPU has AVX-512F, and `t` describes memory that is there, unaliased where it is written; see [`Tile`].
        #[target_feature(enable = "avx512f")]
        pub(crate) unsafe fn $tile(rows: usize, t: &Tile<$number>) {
            // SAFETY: passed on.
            unsafe { by_rows!($tile_of, rows, t, [1 2 3 4 5 6 7 8 9 10 11 12]) }
        }

        #[target_feature(enable = "avx512f")]
        unsafe fn $tile_of<const R: usize>(t: &Tile<$number>) {
            // SAFETY: every access is one that `Tile` names.
            unsafe {
                let mut sums = [[_mm512_setzero_ps(); 2]; R];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let bias = t.bias.add(r * t.bias_stride);
                    *sum = [_mm512_loadu_ps(bias), _mm512_loadu_ps(bias.add(16))];
                }
                for k in 0..t.depth {
                    let column = t.panel.add(k * PANEL);
                    let columns = [$load(column), $load(column.add(16))];
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let value = _mm512_set1_ps(*t.input.add(r * t.input_stride + k));
                        sum[0] = _mm512_fmadd_ps(value, columns[0], sum[0]);
                        sum[1] = _mm512_fmadd_ps(value, columns[1], sum[1]);
                    }
                }
                let masks = [mask(t.columns), mask(t.columns.saturating_sub(16))];
                for (r, sum) in sums.iter().enumerate() {
                    let output = t.output.add(r * t.output_stride);
                    _mm512_mask_storeu_ps(output, masks[0], sum[0]);
                    _mm512_mask_storeu_ps(output.wrapping_add(16), masks[1], sum[1]);
                }
            }
        }
    };
}
tiles!(tile, tile_of, f32, singles);
tiles!(half_tile, half_tile_of, u16, halves);

#[target_feature(enable = "avx512f")]
unsafe fn singles(from: *const f32) -> __m512 {
    // SAFETY: the caller has 16 of them there.
    unsafe { _mm512_loadu_ps(from) }
}

#[target_feature(enable = "avx512f")]
unsafe fn halves(from: *const u16) -> __m512 {
    // SAFETY: the caller has 16 of them there.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
}

/// The first `columns` of 16 lanes.
fn mask(columns: usize) -> __mmask16 {
    if columns >= 16 { !0 } else { (1 << columns) - 1 }
}

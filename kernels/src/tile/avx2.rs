//! 6 rows by 16 columns: 12 sums, two columns and one broadcast in the 16 registers.

use super::{Tile, by_rows};
use std::arch::x86_64::*;

pub(crate) const PANEL: usize = 16;
pub(crate) const ROWS: usize = 6;

/// Defines the tiles over panels of one kind of number, given how 8 of them are loaded.
macro_rules! tiles {
    ($tile:ident, $tile_of:ident, $number:ty, $load:ident) => {
        /// # Safety
        /// The CPU has AVX2, FMA and F16C, and `t` describes memory that is there, unaliased where it is written; see
        /// [`Tile`].
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) unsafe fn $tile(rows: usize, t: &Tile<$number>) {
            // SAFETY: passed on.
            unsafe { by_rows!($tile_of, rows, t, [1 2 3 4 5 6]) }
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $tile_of<const R: usize>(t: &Tile<$number>) {
            // SAFETY: every access is one that `Tile` names.
            unsafe {
                let mut sums = [[_mm256_setzero_ps(); 2]; R];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let bias = t.bias.add(r * t.bias_stride);
                    *sum = [_mm256_loadu_ps(bias), _mm256_loadu_ps(bias.add(8))];
                }
                for k in 0..t.depth {
                    let column = t.panel.add(k * PANEL);
                    let columns = [$load(column), $load(column.add(8))];
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let value = _mm256_set1_ps(*t.input.add(r * t.input_stride + k));
                        sum[0] = _mm256_fmadd_ps(value, columns[0], sum[0]);
                        sum[1] = _mm256_fmadd_ps(value, columns[1], sum[1]);
                    }
                }
                for (r, sum) in sums.iter().enumerate() {
                    store(*sum, t.output.add(r * t.output_stride), t.columns);
                }
            }
        }
    };
}
tiles!(tile, tile_of, f32, singles);
tiles!(half_tile, half_tile_of, u16, halves);

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn singles(from: *const f32) -> __m256 {
    // SAFETY: the caller has 8 of them there.
    unsafe { _mm256_loadu_ps(from) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(from: *const u16) -> __m256 {
    // SAFETY: the caller has 8 of them there.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

/// Stores the first `columns` of 16 lanes.
#[target_feature(enable = "avx2,fma")]
unsafe fn store(lanes: [__m256; 2], output: *mut f32, columns: usize) {
    // SAFETY: `columns` floats at `output` may be written; a partial row goes through the stack.
    unsafe {
        if columns == PANEL {
            _mm256_storeu_ps(output, lanes[0]);
            _mm256_storeu_ps(output.add(8), lanes[1]);
        } else {
            let mut row = [0.0f32; PANEL];
            _mm256_storeu_ps(row.as_mut_ptr(), lanes[0]);
            _mm256_storeu_ps(row.as_mut_ptr().add(8), lanes[1]);
            std::ptr::copy_nonoverlapping(row.as_ptr(), output, columns);
        }
    }
}

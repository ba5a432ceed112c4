//! 6 rows by 16 columns: 12 sums, two columns and one broadcast in the 16 registers.

use super::{Tile, by_rows};
use std::arch::x86_64::*;

pub(crate) const PANEL: usize = 16;
pub(crate) const ROWS: usize = 6;

/// # Safety
/// The CPU has AVX2 and FMA, and `t` describes memory that is there, unaliased where it is written; see [`Tile`].
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn tile(rows: usize, t: &Tile) {
    // SAFETY: passed on.
    unsafe { by_rows!(rows, t, [1 2 3 4 5 6]) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_of<const R: usize>(t: &Tile) {
    // SAFETY: every access is one that `Tile` names.
    unsafe {
        let bias = [_mm256_loadu_ps(t.bias), _mm256_loadu_ps(t.bias.add(8))];
        let mut sums = [bias; R];
        for k in 0..t.depth {
            let column = t.panel.add(k * PANEL);
            let columns = [_mm256_loadu_ps(column), _mm256_loadu_ps(column.add(8))];
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

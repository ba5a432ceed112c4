//! 4 rows by 16 columns: 8 sums of integers in the 16 registers; those of floats are touched once for a block.

use super::super::activations::{Group, avx2::quantise};
use super::{GROUPS, QuantRoutines, QuantTile};
use crate::tile::by_rows;
use std::arch::x86_64::*;

const PANEL: usize = 16;
const LANES: usize = 8;
/// Bytes of a register.
const REGISTER: usize = 32;

pub(crate) static ROUTINES: QuantRoutines =
    QuantRoutines { panel: PANEL, lanes: LANES, rows: 4, flipped: 0, quantise, q8_0, q4_0, q4_1, q4_k };

type Sums<const R: usize> = [[__m256; 2]; R];

/// Defines the tiles over one kind of block, given how one block, or one super-block, is added to the sums: its rows'
/// groups, the groups from a row to the next, its bytes.
macro_rules! tiles {
    ($tile:ident, $tile_of:ident, $bytes:literal, $groups:expr, $add:ident) => {
        /// # Safety
        /// The CPU has AVX2, FMA and F16C, and `t` describes memory that is there, unaliased where it is written; see
        /// [`QuantTile`].
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $tile(rows: usize, t: &QuantTile) {
            // SAFETY: passed on.
            unsafe { by_rows!($tile_of, rows, t, [1 2 3 4]) }
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $tile_of<const R: usize>(t: &QuantTile) {
            // SAFETY: every access is one that `QuantTile` names.
            unsafe {
                let mut sums = [[_mm256_loadu_ps(t.bias), _mm256_loadu_ps(t.bias.add(LANES))]; R];
                for block in 0..t.depth / $groups {
                    let bytes = t.panel.add(block * $bytes * PANEL);
                    $add(&mut sums, t.input.add(block * $groups), t.depth, bytes);
                }
                for (r, sum) in sums.iter().enumerate() {
                    store(*sum, t.output.add(r * t.output_stride), t.columns);
                }
            }
        }
    };
}
tiles!(q8_0, q8_0_of, 34, 1, add_q8_0);
tiles!(q4_0, q4_0_of, 18, 1, add_q4_0);
tiles!(q4_1, q4_1_of, 20, 1, add_q4_1);
tiles!(q4_k, q4_k_of, 148, GROUPS, add_q4_k);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_q8_0<const R: usize>(sums: &mut Sums<R>, input: *const Group, stride: usize, bytes: *const u8) {
    // SAFETY: the caller has a block there, and a group of each row.
    unsafe {
        let quants = bytes.add(2 * PANEL);
        let mut products = [[_mm256_setzero_si256(); 2]; R];
        for step in 0..rolled::<R>(8) {
            let weights = [register(quants, step), register(quants, step + 8)];
            // The first factor has no sign: it goes over to the second.
            let sizes = weights.map(|weights| _mm256_abs_epi8(weights));
            for (r, product) in products.iter_mut().enumerate() {
                let four = four(input.add(r * stride), step);
                for part in 0..2 {
                    let pairs = _mm256_maddubs_epi16(sizes[part], _mm256_sign_epi8(four, weights[part]));
                    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                    product[part] = _mm256_add_epi32(product[part], fours);
                }
            }
        }
        let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
        for (r, product) in products.iter().enumerate() {
            let own = _mm256_set1_ps((*input.add(r * stride)).scale);
            for part in 0..2 {
                let scale = _mm256_mul_ps(scales[part], own);
                sums[r][part] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product[part]), scale, sums[r][part]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_q4_0<const R: usize>(sums: &mut Sums<R>, input: *const Group, stride: usize, bytes: *const u8) {
    // SAFETY: the caller has a block there, and a group of each row.
    unsafe {
        let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
        let minimums = scales.map(|scale| _mm256_mul_ps(scale, _mm256_set1_ps(-8.0)));
        add_nibbles(sums, input, stride, scales, minimums, bytes.add(2 * PANEL));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_q4_1<const R: usize>(sums: &mut Sums<R>, input: *const Group, stride: usize, bytes: *const u8) {
    // SAFETY: the caller has a block there, and a group of each row.
    unsafe {
        let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
        let minimums = [halves(bytes.add(2 * PANEL)), halves(bytes.add(2 * PANEL + 2 * LANES))];
        add_nibbles(sums, input, stride, scales, minimums, bytes.add(4 * PANEL));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_q4_k<const R: usize>(sums: &mut Sums<R>, input: *const Group, stride: usize, bytes: *const u8) {
    // SAFETY: the caller has a super-block there, and its groups of each row.
    unsafe {
        let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
        let minimums = [halves(bytes.add(2 * PANEL)), halves(bytes.add(2 * PANEL + 2 * LANES))];
        let minimums = minimums.map(|minimum| _mm256_sub_ps(_mm256_setzero_ps(), minimum));
        for group in 0..GROUPS {
            let bytes = bytes.add(4 * PANEL + group * 18 * PANEL);
            let scales = [times_bytes(scales[0], bytes), times_bytes(scales[1], bytes.add(LANES))];
            let minimums = [
                times_bytes(minimums[0], bytes.add(PANEL)),
                times_bytes(minimums[1], bytes.add(PANEL + LANES)),
            ];
            add_nibbles(sums, input.add(group), stride, scales, minimums, bytes.add(2 * PANEL));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_nibbles<const R: usize>(
    sums: &mut Sums<R>,
    input: *const Group,
    stride: usize,
    scales: [__m256; 2],
    minimums: [__m256; 2],
    quants: *const u8,
) {
    // SAFETY: the caller has a group's nibbles there, and a group of each row.
    unsafe {
        // A sum of sixteen products stays below 16 * 15 * 127 < 2^15.
        let mut pairs = [[_mm256_setzero_si256(); 2]; R];
        for step in 0..rolled::<R>(4) {
            let both = [register(quants, step), register(quants, step + 4)];
            let low = both.map(|both| _mm256_and_si256(both, _mm256_set1_epi8(15)));
            let high = both.map(|both| _mm256_and_si256(_mm256_srli_epi16::<4>(both), _mm256_set1_epi8(15)));
            for (r, pairs) in pairs.iter_mut().enumerate() {
                let inputs = [four(input.add(r * stride), step), four(input.add(r * stride), step + 4)];
                for part in 0..2 {
                    pairs[part] = _mm256_add_epi16(pairs[part], _mm256_maddubs_epi16(low[part], inputs[0]));
                    pairs[part] = _mm256_add_epi16(pairs[part], _mm256_maddubs_epi16(high[part], inputs[1]));
                }
            }
        }
        for (r, pairs) in pairs.iter().enumerate() {
            let input = &*input.add(r * stride);
            for part in 0..2 {
                let product = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs[part], _mm256_set1_epi16(1)));
                let scale = _mm256_mul_ps(scales[part], _mm256_set1_ps(input.scale));
                let sum = _mm256_fmadd_ps(product, scale, sums[r][part]);
                sums[r][part] = _mm256_fmadd_ps(minimums[part], _mm256_set1_ps(input.sum), sum);
            }
        }
    }
}

/// The same number, which the compiler doesn't know if there are several rows: it would unroll the steps, do them row by
/// row, and keep on the stack what rows share.
#[inline]
fn rolled<const R: usize>(steps: usize) -> usize {
    if R == 1 { steps } else { std::hint::black_box(steps) }
}

/// One of several registers of weights.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn register(quants: *const u8, index: usize) -> __m256i {
    // SAFETY: the caller has it there.
    unsafe { _mm256_loadu_si256(quants.add(index * REGISTER).cast()) }
}

/// Four inputs in every lane.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four(group: *const Group, step: usize) -> __m256i {
    // SAFETY: the caller has a group there, which begins with 8 times 4 bytes.
    unsafe { _mm256_set1_epi32(group.cast::<i32>().add(step).read_unaligned()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(from: *const u8) -> __m256 {
    // SAFETY: the caller has 8 of them there.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn times_bytes(factor: __m256, bytes: *const u8) -> __m256 {
    // SAFETY: the caller has 8 of them there.
    unsafe {
        let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.cast()));
        _mm256_mul_ps(factor, _mm256_cvtepi32_ps(bytes))
    }
}

/// Stores the first `columns` of 16 lanes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(lanes: [__m256; 2], output: *mut f32, columns: usize) {
    // SAFETY: `columns` floats at `output` may be written; a partial row goes through the stack.
    unsafe {
        if columns == PANEL {
            _mm256_storeu_ps(output, lanes[0]);
            _mm256_storeu_ps(output.add(LANES), lanes[1]);
        } else {
            let mut row = [0.0f32; PANEL];
            _mm256_storeu_ps(row.as_mut_ptr(), lanes[0]);
            _mm256_storeu_ps(row.as_mut_ptr().add(LANES), lanes[1]);
            std::ptr::copy_nonoverlapping(row.as_ptr(), output, columns);
        }
    }
}

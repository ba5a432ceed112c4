//! 6 rows by 32 columns: 12 sums of integers and 12 of floats in the 32 registers.

use super::super::activations::{Group, avx2::quantise};
use super::{GROUPS, QuantRoutines, QuantTile};
use crate::tile::by_rows;
use std::arch::x86_64::*;

const PANEL: usize = 32;
const LANES: usize = 16;
/// Bytes of a register.
const REGISTER: usize = 64;

/// The instruction's first factor has no sign, so that signed weights have 128 added, and products begin at what that
/// adds to them.
pub(crate) static ROUTINES: QuantRoutines =
    QuantRoutines { panel: PANEL, lanes: LANES, rows: 6, flipped: 0x80, quantise, q8_0, q4_0, q4_1, q4_k };

type Sums<const R: usize> = [[__m512; 2]; R];

/// Defines the tiles over one kind of block, given how one block, or one super-block, is added to the sums: its rows'
/// groups, the groups from a row to the next, its bytes.
macro_rules! tiles {
    ($tile:ident, $tile_of:ident, $bytes:literal, $groups:expr, $add:ident) => {
        /// # Safety
        /// The CPU has AVX-512F and AVX-512 VNNI, and `t` describes memory that is there, unaliased where it is written;
        /// see [`QuantTile`].
        #[target_feature(enable = "avx512f,avx512vnni")]
        unsafe fn $tile(rows: usize, t: &QuantTile) {
            // SAFETY: passed on.
            unsafe { by_rows!($tile_of, rows, t, [1 2 3 4 5 6]) }
        }

        #[target_feature(enable = "avx512f,avx512vnni")]
        unsafe fn $tile_of<const R: usize>(t: &QuantTile) {
            // SAFETY: every access is one that `QuantTile` names.
            unsafe {
                let mut sums = [[_mm512_loadu_ps(t.bias), _mm512_loadu_ps(t.bias.add(LANES))]; R];
                for block in 0..t.depth / $groups {
                    let bytes = t.panel.add(block * $bytes * PANEL);
                    $add(&mut sums, t.input.add(block * $groups), t.depth, bytes);
                }
                let masks = [mask(t.columns), mask(t.columns.saturating_sub(LANES))];
                for (r, sum) in sums.iter().enumerate() {
                    let output = t.output.add(r * t.output_stride);
                    _mm512_mask_storeu_ps(output, masks[0], sum[0]);
                    _mm512_mask_storeu_ps(output.wrapping_add(LANES), masks[1], sum[1]);
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
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_q8_0<const R: usize>(sums: &mut Sums<R>, input: *const Group, stride: usize, bytes: *const u8) {
    // SAFETY: the caller has a block there, and a group of each row.
    unsafe {
        let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
        let quants = bytes.add(2 * PANEL);
        let mut products = [[_mm512_setzero_si512(); 2]; R];
        for (r, product) in products.iter_mut().enumerate() {
            *product = [_mm512_set1_epi32((*input.add(r * stride)).offset); 2];
        }
        for step in 0..8 {
            let weights = [register(quants, step), register(quants, step + 8)];
            for (r, product) in products.iter_mut().enumerate() {
                let four = four(input.add(r * stride), step);
                product[0] = _mm512_dpbusd_epi32(product[0], weights[0], four);
                product[1] = _mm512_dpbusd_epi32(product[1], weights[1], four);
            }
        }
        for (r, product) in products.iter().enumerate() {
            let own = _mm512_set1_ps((*input.add(r * stride)).scale);
            for part in 0..2 {
                let scale = _mm512_mul_ps(scales[part], own);
                sums[r][part] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product[part]), scale, sums[r][part]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_q4_0<const R: usize>(sums: &mut Sums<R>, input: *const Group, stride: usize, bytes: *const u8) {
    // SAFETY: the caller has a block there, and a group of each row.
    unsafe {
        let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
        let minimums = scales.map(|scale| _mm512_mul_ps(scale, _mm512_set1_ps(-8.0)));
        add_nibbles(sums, input, stride, scales, minimums, bytes.add(2 * PANEL));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_q4_1<const R: usize>(sums: &mut Sums<R>, input: *const Group, stride: usize, bytes: *const u8) {
    // SAFETY: the caller has a block there, and a group of each row.
    unsafe {
        let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
        let minimums = [halves(bytes.add(2 * PANEL)), halves(bytes.add(2 * PANEL + 2 * LANES))];
        add_nibbles(sums, input, stride, scales, minimums, bytes.add(4 * PANEL));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_q4_k<const R: usize>(sums: &mut Sums<R>, input: *const Group, stride: usize, bytes: *const u8) {
    // SAFETY: the caller has a super-block there, and its groups of each row.
    unsafe {
        let scales = [halves(bytes), halves(bytes.add(2 * LANES))];
        let minimums = [halves(bytes.add(2 * PANEL)), halves(bytes.add(2 * PANEL + 2 * LANES))];
        let minimums = minimums.map(|minimum| _mm512_sub_ps(_mm512_setzero_ps(), minimum));
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
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_nibbles<const R: usize>(
    sums: &mut Sums<R>,
    input: *const Group,
    stride: usize,
    scales: [__m512; 2],
    minimums: [__m512; 2],
    quants: *const u8,
) {
    // SAFETY: the caller has a group's nibbles there, and a group of each row.
    unsafe {
        let mut products = [[_mm512_setzero_si512(); 2]; R];
        for step in 0..4 {
            let both = [register(quants, step), register(quants, step + 4)];
            let low = both.map(|both| _mm512_and_si512(both, _mm512_set1_epi8(15)));
            let high = both.map(|both| _mm512_and_si512(_mm512_srli_epi32::<4>(both), _mm512_set1_epi8(15)));
            for (r, product) in products.iter_mut().enumerate() {
                let inputs = [four(input.add(r * stride), step), four(input.add(r * stride), step + 4)];
                for part in 0..2 {
                    product[part] = _mm512_dpbusd_epi32(product[part], low[part], inputs[0]);
                    product[part] = _mm512_dpbusd_epi32(product[part], high[part], inputs[1]);
                }
            }
        }
        for (r, product) in products.iter().enumerate() {
            let input = &*input.add(r * stride);
            for part in 0..2 {
                let scale = _mm512_mul_ps(scales[part], _mm512_set1_ps(input.scale));
                let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product[part]), scale, sums[r][part]);
                sums[r][part] = _mm512_fmadd_ps(minimums[part], _mm512_set1_ps(input.sum), sum);
            }
        }
    }
}

/// One of several registers of weights.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn register(quants: *const u8, index: usize) -> __m512i {
    // SAFETY: the caller has it there.
    unsafe { _mm512_loadu_si512(quants.add(index * REGISTER).cast()) }
}

/// Four inputs in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four(group: *const Group, step: usize) -> __m512i {
    // SAFETY: the caller has a group there, which begins with 8 times 4 bytes.
    unsafe { _mm512_set1_epi32(group.cast::<i32>().add(step).read_unaligned()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(from: *const u8) -> __m512 {
    // SAFETY: the caller has 16 of them there.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn times_bytes(factor: __m512, bytes: *const u8) -> __m512 {
    // SAFETY: the caller has 16 of them there.
    unsafe {
        let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.cast()));
        _mm512_mul_ps(factor, _mm512_cvtepi32_ps(bytes))
    }
}

/// The first `columns` of 16 lanes.
fn mask(columns: usize) -> __mmask16 {
    if columns >= LANES { !0 } else { (1 << columns) - 1 }
}

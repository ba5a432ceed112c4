//! 6 rows by 32 columns: 12 sums of integers and 12 of floats in the 32 registers.

use super::kinds::{kinds, vnni};
use super::{GROUPS, Group, QuantRoutines, QuantTile, quantise};
use crate::tile::by_rows;
use std::arch::x86_64::*;
use std::arch::x86_64::{
    __m512 as Floats, __m512i as Integers, _mm512_and_si512 as and, _mm512_cvtepi32_ps as floats,
    _mm512_dpbusd_epi32 as add_products, _mm512_fmadd_ps as multiply_add, _mm512_loadu_ps as load,
    _mm512_mul_ps as multiply, _mm512_set1_epi8 as set_byte, _mm512_set1_epi32 as set_integer,
    _mm512_set1_ps as set, _mm512_srli_epi32 as shift,
};

const PANEL: usize = 32;
const LANES: usize = 16;
/// Bytes of a register.
const REGISTER: usize = 64;

pub(crate) static ROUTINES: QuantRoutines = QuantRoutines {
    panel: PANEL,
    lanes: LANES,
    rows: 6,
    flipped: 0x80,
    quantise: quantise::avx2::quantise,
    q8_0,
    q4_0,
    q4_1,
    q4_k,
};

kinds!("avx512f,avx512vnni", [1 2 3 4 5 6]);
vnni!("avx512f,avx512vnni");

/// With 32 registers the compiler may unroll the steps.
#[inline]
fn rolled<const R: usize>(steps: usize) -> usize {
    steps
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

/// Stores the first `columns` of 32 lanes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(lanes: [__m512; 2], output: *mut f32, columns: usize) {
    // SAFETY: `columns` floats at `output` may be written; the others are masked.
    unsafe {
        _mm512_mask_storeu_ps(output, mask(columns), lanes[0]);
        _mm512_mask_storeu_ps(output.wrapping_add(LANES), mask(columns.saturating_sub(LANES)), lanes[1]);
    }
}

/// The first `columns` of 16 lanes.
fn mask(columns: usize) -> __mmask16 {
    if columns >= LANES { !0 } else { (1 << columns) - 1 }
}

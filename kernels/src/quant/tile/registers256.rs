//! What the levels with registers of 32 bytes share.

use super::Group;
use std::arch::x86_64::*;

pub(super) use std::arch::x86_64::{
    __m256 as Floats, __m256i as Integers, _mm256_cvtepi32_ps as floats, _mm256_fmadd_ps as multiply_add,
    _mm256_loadu_ps as load, _mm256_mul_ps as multiply, _mm256_set1_ps as set,
};

pub(super) const PANEL: usize = 16;
pub(super) const LANES: usize = 8;
/// Bytes of a register.
const REGISTER: usize = 32;

/// The same number, which the compiler doesn't know if there are several rows: it would unroll the steps, do them row by
/// row, and keep on the stack what rows share.
#[inline]
pub(super) fn rolled<const R: usize>(steps: usize) -> usize {
    if R == 1 { steps } else { std::hint::black_box(steps) }
}

/// One of several registers of weights.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn register(quants: *const u8, index: usize) -> __m256i {
    // SAFETY: the caller has it there.
    unsafe { _mm256_loadu_si256(quants.add(index * REGISTER).cast()) }
}

/// Four inputs in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn four(group: *const Group, step: usize) -> __m256i {
    // SAFETY: the caller has a group there, which begins with 8 times 4 bytes.
    unsafe { _mm256_set1_epi32(group.cast::<i32>().add(step).read_unaligned()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn halves(from: *const u8) -> __m256 {
    // SAFETY: the caller has 8 of them there.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn times_bytes(factor: __m256, bytes: *const u8) -> __m256 {
    // SAFETY: the caller has 8 of them there.
    unsafe {
        let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.cast()));
        _mm256_mul_ps(factor, _mm256_cvtepi32_ps(bytes))
    }
}

/// Stores the first `columns` of 16 lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn store(lanes: [__m256; 2], output: *mut f32, columns: usize) {
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

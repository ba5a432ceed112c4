//! 4 rows by 16 columns: 8 sums of integers in the 16 registers; those of floats are touched once for a block.

use super::kinds::kinds;
use super::registers256::*;
use super::{GROUPS, Group, QuantRoutines, QuantTile, quantise};
use crate::tile::by_rows;
use std::arch::x86_64::*;

pub(crate) static ROUTINES: QuantRoutines = QuantRoutines {
    panel: PANEL,
    lanes: LANES,
    rows: 4,
    flipped: 0,
    quantise: quantise::avx2::quantise,
    q8_0,
    q4_0,
    q4_1,
    q4_k,
};

kinds!("avx2,fma,f16c", [1 2 3 4]);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products_of_bytes<const R: usize>(
    input: *const Group,
    stride: usize,
    quants: *const u8,
) -> [[Integers; 2]; R] {
    // SAFETY: the caller has a block's weights there, and a group of each row.
    unsafe {
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
        products
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products_of_nibbles<const R: usize>(
    input: *const Group,
    stride: usize,
    quants: *const u8,
) -> [[Integers; 2]; R] {
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
        pairs.map(|pairs| pairs.map(|pairs| _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
    }
}

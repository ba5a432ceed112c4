//! Inputs as bytes.

use super::kind::GROUP;
use crate::compute::Shared;
use crate::{Compute, Matrix, OutOfMemory};

/// Rows that a thread quantises at a time.
const ROWS_EACH: usize = 8;

/// Inputs that share a scale.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Group {
    /// From -127 to 127.
    pub(crate) quants: [i8; GROUP],
    /// What a quant is multiplied with. NaN if an input is, so that what comes out is.
    pub(crate) scale: f32,
    /// The sum of the quants times the scale, which minimums of weights multiply.
    pub(crate) sum: f32,
    /// The sum of the quants times -128: a product with weights to which 128 was added begins here.
    pub(crate) offset: i32,
}

impl Group {
    const ZERO: Self = Self { quants: [0; GROUP], scale: 0.0, sum: 0.0, offset: 0 };

    /// What follows from the largest input, a zero or NaN, and the quants' sum.
    #[inline]
    fn scaled(&mut self, max: f32, poison: f32, total: i32) {
        self.scale = max / 127.0 + poison;
        self.sum = total as f32 * self.scale;
        self.offset = total.wrapping_mul(-128);
    }
}

/// Room for the quantised inputs of [`Compute::quant_linear`].
pub struct Quantised {
    rows: usize,
    /// Groups of the widest row.
    groups: usize,
    all: Vec<Group>,
}

impl std::fmt::Debug for Quantised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Quantised({} x {})", self.rows, self.groups * GROUP)
    }
}

impl Quantised {
    /// For at most `rows` rows of at most `columns` inputs.
    ///
    /// # Errors
    /// No memory.
    pub fn new(rows: usize, columns: usize) -> Result<Self, OutOfMemory> {
        let groups = columns.div_ceil(GROUP);
        let count = rows.saturating_mul(groups);
        let mut all = Vec::new();
        let refused = |_| OutOfMemory { bytes: Self::bytes(rows, columns) };
        all.try_reserve_exact(count).map_err(refused)?;
        all.resize(count, Group::ZERO);
        Ok(Self { rows, groups, all })
    }

    /// Bytes that [`Quantised::new`] asks for.
    pub fn bytes(rows: usize, columns: usize) -> usize {
        rows.saturating_mul(columns.div_ceil(GROUP)).saturating_mul(size_of::<Group>())
    }

    /// Quantises the first `rows` rows; the next row's groups follow at once.
    ///
    /// # Panics
    /// If there is no room.
    pub(crate) fn fill(&mut self, compute: &Compute, input: &Matrix, rows: usize) -> &[Group] {
        let groups = input.columns() / GROUP;
        assert!(rows <= self.rows && groups <= self.groups, "{rows} rows of {groups} groups");
        let routine = compute.isa.quant_routines().quantise;
        let to = Shared(self.all.as_mut_ptr());
        compute.pool.run(rows.div_ceil(ROWS_EACH), &|_, item| {
            for row in item * ROWS_EACH..rows.min((item + 1) * ROWS_EACH) {
                // SAFETY: each row's groups belong to one item, and there is room for them; the `Isa` witnesses the level.
                unsafe {
                    let place = std::slice::from_raw_parts_mut(to.at(row * groups), groups);
                    routine(input.row(row), place);
                }
            }
        });
        &self.all[..rows * groups]
    }
}

/// Inputs that are all below this are zeros: what they are multiplied with would be infinite.
const TINY: f32 = 1e-35;

/// Plain Rust.
pub(crate) mod scalar {
    use super::{GROUP, Group, TINY};

    /// # Safety
    /// None is needed; it is unsafe as its counterpart is.
    pub(crate) unsafe fn quantise(row: &[f32], to: &mut [Group]) {
        for (group, inputs) in to.iter_mut().zip(row.as_chunks::<GROUP>().0) {
            // A maximum passes over a NaN; nothing times it does not.
            let poison: f32 = inputs.iter().map(|x| x * 0.0).sum();
            let max = inputs.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let inverse = if max > TINY { 127.0 / max } else { 0.0 };
            group.quants = inputs.map(|x| (x * inverse).round_ties_even() as i8);
            let total: i32 = group.quants.iter().map(|quant| i32::from(*quant)).sum();
            group.scaled(max, poison, total);
        }
    }
}

/// The same by AVX2.
pub(crate) mod avx2 {
    use super::{GROUP, Group, TINY};
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn quantise(row: &[f32], to: &mut [Group]) {
        for (group, inputs) in to.iter_mut().zip(row.as_chunks::<GROUP>().0) {
            let (eights, _) = inputs.as_chunks::<8>();
            // SAFETY: a group is four times eight floats, and as many bytes.
            unsafe {
                let x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(eights[i].as_ptr()));
                let sizes = x.map(|x| _mm256_andnot_ps(_mm256_set1_ps(-0.0), x));
                let zeros = x.map(|x| _mm256_mul_ps(x, _mm256_setzero_ps()));
                let pairs = [_mm256_max_ps(sizes[0], sizes[1]), _mm256_max_ps(sizes[2], sizes[3])];
                let max = largest(_mm256_max_ps(pairs[0], pairs[1]));
                let pairs = [_mm256_add_ps(zeros[0], zeros[1]), _mm256_add_ps(zeros[2], zeros[3])];
                let poison = sum(_mm256_add_ps(pairs[0], pairs[1]));
                let inverse = _mm256_set1_ps(if max > TINY { 127.0 / max } else { 0.0 });
                let quants = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
                let pairs = [_mm256_add_epi32(quants[0], quants[1]), _mm256_add_epi32(quants[2], quants[3])];
                let total = sum(_mm256_cvtepi32_ps(_mm256_add_epi32(pairs[0], pairs[1])));
                // Packing goes by halves of registers.
                let words =
                    [_mm256_packs_epi32(quants[0], quants[1]), _mm256_packs_epi32(quants[2], quants[3])];
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), order);
                _mm256_storeu_si256(group.quants.as_mut_ptr().cast(), bytes);
                // A sum of 32 bytes is a float exactly.
                group.scaled(max, poison, total as i32);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn largest(lanes: __m256) -> f32 {
        let four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }

    #[target_feature(enable = "avx2")]
    fn sum(lanes: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

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

/// One row.
#[inline(always)]
fn quantise_row(row: &[f32], to: &mut [Group]) {
    // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    for (group, inputs) in to.iter_mut().zip(row.as_chunks::<GROUP>().0) {
        // A maximum passes over a NaN; nothing times it does not.
        let poison = lanes(inputs, |x| x * 0.0, |a, b| a + b);
        let max = lanes(inputs, f32::abs, |a, b| if a > b { a } else { b });
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        let mut total = 0;
        for (quant, x) in group.quants.iter_mut().zip(inputs) {
            *quant = (x * inverse + ROUND).to_bits() as i8;
            total += i32::from(*quant);
        }
        group.scale = max / 127.0 + poison;
        group.sum = total as f32 * group.scale;
        group.offset = -128 * total;
    }
}

/// A fold over eight lanes, in a form that becomes vector instructions.
#[inline(always)]
fn lanes(inputs: &[f32; GROUP], map: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 8];
    for eight in inputs.as_chunks::<8>().0 {
        for (lane, x) in lanes.iter_mut().zip(eight) {
            *lane = join(*lane, map(*x));
        }
    }
    lanes.into_iter().fold(0.0, join)
}

/// Plain Rust.
pub(crate) mod scalar {
    use super::Group;

    /// # Safety
    /// None is needed; it is unsafe as its counterpart is.
    pub(crate) unsafe fn quantise(row: &[f32], to: &mut [Group]) {
        super::quantise_row(row, to);
    }
}

/// The same under AVX2.
pub(crate) mod avx2 {
    use super::Group;

    /// # Safety
    /// The CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn quantise(row: &[f32], to: &mut [Group]) {
        super::quantise_row(row, to);
    }
}

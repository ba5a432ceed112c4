//! A level of instructions and a pool of threads: what the kernels run on.

use crate::rows::Norm;
use crate::{Isa, Matrix, Pool};

/// Rows that a thread normalises at a time.
const ROWS_EACH: usize = 16;

/// What the kernels run on. The operations are its methods, grouped by file.
#[derive(Debug)]
pub struct Compute {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
}

/// A pointer that several threads write through, to places that don't overlap.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);
// SAFETY: who makes one sees to it that threads write to different places.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer, moved by some floats. A method, so that closures capture the whole.
    ///
    /// # Safety
    /// The place is within the allocation.
    pub(crate) unsafe fn at(self, floats: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(floats) }
    }
}

impl Compute {
    /// Kernels of this level on this pool.
    pub fn new(isa: Isa, pool: Pool) -> Self {
        Self { isa, pool }
    }

    /// The level of instructions.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// For the first `rows` rows: x = layer norm of (x + added), with `weight` and `bias` of one row's length.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn add_norm(
        &self,
        x: &mut Matrix,
        added: &Matrix,
        rows: usize,
        weight: &[f32],
        bias: &[f32],
        epsilon: f32,
    ) {
        let columns = x.columns();
        assert!(rows <= x.rows() && rows <= added.rows(), "{rows} rows");
        assert!(
            added.columns() == columns && weight.len() == columns && bias.len() == columns,
            "one row's length"
        );
        let (stride, to) = (x.stride(), Shared(x.as_mut_ptr()));
        let norm = Norm { weight, bias, epsilon };
        let routines = self.isa.routines();
        self.pool.run(rows.div_ceil(ROWS_EACH), &|_, item| {
            for row in item * ROWS_EACH..rows.min((item + 1) * ROWS_EACH) {
                // SAFETY: the row is in `x`, which is borrowed mutably, and each row belongs to one item.
                let place = unsafe { std::slice::from_raw_parts_mut(to.at(row * stride), columns) };
                // SAFETY: an `Isa` is only made for a CPU that has its level.
                unsafe { (routines.add_norm)(place, added.row(row), norm) };
            }
        });
    }
}

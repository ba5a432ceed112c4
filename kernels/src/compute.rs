//! A level of instructions and a pool of threads: what the kernels run on.

use crate::rows::Norm;
use crate::{Isa, Matrix, Pool};
use std::ops::Range;

/// The most rows that a thread works on at a time.
const ROWS_EACH: usize = 16;
/// Fewer rows if they have more floats than these: a few wide rows are for several threads too.
const FLOATS_EACH: usize = 8192;

/// What the kernels run on. The operations are its methods, grouped by file.
#[derive(Debug)]
pub struct Compute {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
}

/// A pointer that several threads write through, to places that don't overlap.
#[derive(Clone, Copy)]
pub(crate) struct Shared<N = f32>(pub(crate) *mut N);
// SAFETY: who makes one sees to it that threads write to different places.
unsafe impl<N> Send for Shared<N> {}
// SAFETY: as above.
unsafe impl<N> Sync for Shared<N> {}

impl<N: Copy> Shared<N> {
    /// The pointer, moved by some numbers. A method, so that closures capture the whole.
    ///
    /// # Safety
    /// The place is within the allocation.
    pub(crate) unsafe fn at(self, numbers: usize) -> *mut N {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(numbers) }
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
        assert!(rows <= added.rows(), "{rows} rows");
        assert!(
            added.columns() == columns && weight.len() == columns && bias.len() == columns,
            "one row's length"
        );
        let norm = Norm { weight, bias, epsilon };
        let routine = self.isa.routines().add_norm;
        // SAFETY: an `Isa` is only made for a CPU that has its level.
        self.on_rows(x, 0..rows, |row, place| unsafe { routine(place, added.row(row), norm) });
    }

    /// to[i] = layer norm of row `rows.start + i` of x, with `weight` and `bias` of one row's length.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn norm(
        &self,
        x: &Matrix,
        rows: Range<usize>,
        weight: &[f32],
        bias: &[f32],
        epsilon: f32,
        to: &mut Matrix,
    ) {
        let columns = to.columns();
        assert!(rows.start <= rows.end && rows.end <= x.rows(), "rows {rows:?}");
        assert!(
            x.columns() == columns && weight.len() == columns && bias.len() == columns,
            "one row's length"
        );
        let norm = Norm { weight, bias, epsilon };
        let routine = self.isa.routines().norm;
        self.on_rows(to, 0..rows.len(), |row, place| {
            place.copy_from_slice(x.row(rows.start + row));
            // SAFETY: an `Isa` is only made for a CPU that has its level.
            unsafe { routine(place, norm) };
        });
    }

    /// to[i] = row `rows.start + i` of x, divided by the root of its mean square plus `epsilon`, times `weight`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn rms_norm(&self, x: &Matrix, rows: Range<usize>, weight: &[f32], epsilon: f32, to: &mut Matrix) {
        let columns = to.columns();
        assert!(rows.start <= rows.end && rows.end <= x.rows(), "rows {rows:?}");
        assert!(x.columns() == columns && weight.len() == columns, "one row's length");
        let routine = self.isa.routines().rms_norm;
        self.on_rows(to, 0..rows.len(), |row, place| {
            // SAFETY: an `Isa` is only made for a CPU that has its level.
            unsafe { routine(x.row(rows.start + row), weight, epsilon, place) };
        });
    }

    /// For the first `rows` rows: to = silu(gate) * up, where a row of x has the gates and then as many others.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn gate(&self, x: &Matrix, rows: usize, to: &mut Matrix) {
        assert!(rows <= x.rows(), "{rows} rows");
        assert_eq!(x.columns(), 2 * to.columns(), "gates and as many others");
        let routine = self.isa.routines().gate;
        // SAFETY: an `Isa` is only made for a CPU that has its level.
        self.on_rows(to, 0..rows, |row, place| unsafe { routine(x.row(row), place) });
    }

    /// Row `rows.start + i` of x += added[i].
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn add(&self, x: &mut Matrix, rows: Range<usize>, added: &Matrix) {
        assert!(rows.len() <= added.rows() && x.columns() == added.columns(), "rows {rows:?}");
        self.on_rows(x, rows, |row, place| {
            place.iter_mut().zip(added.row(row)).for_each(|(x, y)| *x += y);
        });
    }

    /// Row `rows.start + i` of x = from[i].
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn put(&self, x: &mut Matrix, rows: Range<usize>, from: &Matrix) {
        assert!(rows.len() <= from.rows() && x.columns() == from.columns(), "rows {rows:?}");
        self.on_rows(x, rows, |row, place| place.copy_from_slice(from.row(row)));
    }

    /// What a convolution along time multiplies with its weights: to[i] = the rows of `input` that result
    /// `results.start + i` is made of, one after another. A result is made of as many rows as fit into `to`, every
    /// `stride`-th begins one, and rows before the first and from `steps` on are zeros; `padding` of the first result's are.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn unfold(
        &self,
        input: &Matrix,
        steps: usize,
        window: Window,
        results: Range<usize>,
        to: &mut Matrix,
    ) {
        let columns = input.columns();
        assert!(steps <= input.rows(), "{steps} steps");
        assert!(columns > 0 && to.columns().is_multiple_of(columns), "whole rows");
        self.on_rows(to, 0..results.len(), |result, place| {
            let begin = (results.start + result) * window.stride;
            for (tap, place) in place.chunks_exact_mut(columns).enumerate() {
                match (begin + tap).checked_sub(window.padding).filter(|step| *step < steps) {
                    Some(step) => place.copy_from_slice(input.row(step)),
                    None => place.fill(0.0),
                }
            }
        });
    }

    /// Calls `work(i, row rows.start + i)` for each of these rows, on whichever threads come first.
    pub(crate) fn on_rows(
        &self,
        x: &mut Matrix,
        rows: Range<usize>,
        work: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        assert!(rows.start <= rows.end && rows.end <= x.rows(), "rows {rows:?}");
        let (columns, stride, to) = (x.columns(), x.stride(), Shared(x.as_mut_ptr()));
        let each = (FLOATS_EACH / columns.max(1)).clamp(1, ROWS_EACH);
        self.pool.run(rows.len().div_ceil(each), &|_, item| {
            for row in item * each..rows.len().min((item + 1) * each) {
                // SAFETY: the row is in `x`, which is borrowed mutably, and each row belongs to one item.
                let place =
                    unsafe { std::slice::from_raw_parts_mut(to.at((rows.start + row) * stride), columns) };
                work(row, place);
            }
        });
    }
}

/// How a convolution walks over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows from the beginning of one result to that of the next.
    pub stride: usize,
    /// Rows of zeros before the input.
    pub padding: usize,
}

//! Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>) in the order of Hugging Face's weights:
//! float i of a head makes a pair with float i + head / 2.

use crate::{Compute, Matrix, OutOfMemory};
use std::ops::Range;

/// For each row of a batch the cosines and sines by which its heads are turned.
#[derive(Debug)]
pub struct Turns {
    /// A row has the cosines of a head's pairs, then the sines.
    angles: Matrix,
}

impl Turns {
    /// For at most `rows` rows and heads of `head` floats.
    ///
    /// # Errors
    /// No memory.
    ///
    /// # Panics
    /// If `head` is odd.
    pub fn new(rows: usize, head: usize) -> Result<Self, OutOfMemory> {
        assert!(head.is_multiple_of(2), "a head of {head} floats has no pairs");
        Ok(Self { angles: Matrix::zeroed(rows, head)? })
    }

    /// Bytes that [`Turns::new`] asks for.
    pub fn bytes(rows: usize, head: usize) -> usize {
        Matrix::bytes(rows, head)
    }

    /// Says at which position of its sequence the token of a row is. A pair is turned by the position times its inverse
    /// frequency, in radians.
    ///
    /// # Panics
    /// If there is no such row, or not one frequency for each pair.
    pub fn set(&mut self, row: usize, position: usize, inverse_frequencies: &[f64]) {
        let (cosines, sines) = {
            let half = self.angles.columns() / 2;
            assert_eq!(inverse_frequencies.len(), half, "one frequency for each pair");
            self.angles.row_mut(row).split_at_mut(half)
        };
        for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(inverse_frequencies) {
            let (s, c) = (position as f64 * frequency).sin_cos();
            (*cosine, *sine) = (c as f32, s as f32);
        }
    }
}

impl Compute {
    /// Turns the heads that lie in these columns of the first `rows` rows of x, each row by its own angles.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn rotate(&self, x: &mut Matrix, rows: usize, columns: Range<usize>, head: usize, turns: &Turns) {
        assert!(columns.start <= columns.end && columns.end <= x.columns(), "columns {columns:?}");
        assert!(turns.angles.columns() == head && rows <= turns.angles.rows(), "angles of {rows} rows");
        assert!(head > 0 && columns.len().is_multiple_of(head), "whole heads");
        let routine = self.isa.routines().rotate;
        self.on_rows(x, 0..rows, |row, place| {
            // SAFETY: an `Isa` is only made for a CPU that has its level.
            unsafe { routine(&mut place[columns.clone()], turns.angles.row(row)) };
        });
    }
}

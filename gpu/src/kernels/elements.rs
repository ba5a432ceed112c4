//! Kernels that look at each element alone.

use crate::Activation;
use crate::buffers::{Matrix, Words};
use crate::device::Gpu;
use crate::error::GpuError;
use crate::kernels::groups_for;
use crate::pipelines::{Kernel, Parameters};
use std::ops::Range;

impl Gpu {
    /// x += added, for the first `rows` rows.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn add(&self, x: &mut Matrix, added: &Matrix, rows: usize) {
        self.add_rows(x, 0..rows, added);
    }

    /// Row `rows.start + i` of x += added[i].
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn add_rows(&self, x: &mut Matrix, rows: Range<usize>, added: &Matrix) {
        assert!(rows.start <= rows.end && rows.end <= x.rows(), "rows {rows:?}");
        assert!(rows.len() <= added.rows() && x.columns() == added.columns(), "rows {rows:?}");
        let count = rows.len() * x.columns();
        // The kernel's activation and columns are not used here.
        let parameters = Parameters::new(&[count, 0, 0, rows.start * x.columns()]);
        let buffers = [x.buffer.raw(), added.buffer.raw()];
        self.dispatch(Kernel::Add, &buffers, &parameters, groups_for(count));
    }

    /// x = activation(x), for the first `rows` rows.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn activate(&self, x: &mut Matrix, rows: usize, activation: Activation) {
        assert!(rows <= x.rows(), "{rows} rows");
        let count = rows * x.columns();
        let parameters = Parameters::new(&[count]).word(activation.word());
        self.dispatch(Kernel::Activate, &[x.buffer.raw()], &parameters, groups_for(count));
    }

    /// Cosines and sines for [`Gpu::rope`]: a row for each position, the angle of pair i at it being
    /// position * base^(-2 i / head). Made by the host: a shader's sines are only good to 11 bits.
    ///
    /// # Errors
    /// No memory.
    ///
    /// # Panics
    /// If the head is odd.
    pub fn rope_turns(&self, positions: usize, head: usize, base: f64) -> Result<Matrix, GpuError> {
        assert!(head.is_multiple_of(2), "pairs in a head of {head}");
        let turns = self.matrix(positions, head)?;
        let mut floats = Vec::with_capacity(positions * head);
        for position in 0..positions {
            let angle = |i: usize| position as f64 * base.powf(-2.0 * i as f64 / head as f64);
            floats.extend((0..head / 2).map(|i| angle(i).cos() as f32));
            floats.extend((0..head / 2).map(|i| angle(i).sin() as f32));
        }
        self.upload(&turns, &floats);
        Ok(turns)
    }

    /// Rotary position embedding (Su et al. 2021), each element with the one half a head further: turns `heads` heads of
    /// the rows' columns from `first` on. Row i is at `positions[i]`; these go by way of `words`.
    ///
    /// # Panics
    /// If the shapes disagree, or a position is beyond the turns.
    pub fn rope(
        &self,
        x: &mut Matrix,
        columns: Range<usize>,
        positions: &[u32],
        turns: &Matrix,
        words: &mut Words,
    ) {
        let (rows, head) = (positions.len(), turns.columns());
        assert!(columns.start <= columns.end && columns.end <= x.columns(), "columns {columns:?}");
        assert!(rows <= x.rows() && head > 0 && columns.len().is_multiple_of(head), "heads of {head}");
        assert!(positions.iter().all(|position| (*position as usize) < turns.rows()), "positions have turns");
        self.upload_numbers(words, positions);
        let heads = columns.len() / head;
        let count = rows * heads * head / 2;
        // The kernel's activation is not used here.
        let parameters = Parameters::new(&[count, 0, x.columns(), columns.start, heads, head]);
        let buffers = [x.buffer.raw(), words.buffer.raw(), turns.buffer.raw()];
        self.dispatch(Kernel::Rope, &buffers, &parameters, groups_for(count));
    }
}

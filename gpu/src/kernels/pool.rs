//! A sequence's rows as one.

use crate::buffers::{Matrix, Words};
use crate::device::Gpu;
use crate::kernels::groups_for;
use crate::pipelines::{Kernel, Parameters};

impl Gpu {
    /// `to[i]` = the mean of the rows of sequence i, from `starts[i]` to `starts[i + 1]`. The spans go by way of `words`, two
    /// for each sequence.
    ///
    /// # Panics
    /// If the shapes disagree, or a sequence is empty.
    pub fn pool_mean(&self, x: &Matrix, starts: &[usize], words: &mut Words, to: &mut Matrix) {
        self.pool(Kernel::PoolMean, x, starts, words, to);
    }

    /// `to[i]` = the first row of sequence i.
    ///
    /// # Panics
    /// As for [`Gpu::pool_mean`].
    pub fn pool_first(&self, x: &Matrix, starts: &[usize], words: &mut Words, to: &mut Matrix) {
        self.pool(Kernel::PoolFirst, x, starts, words, to);
    }

    fn pool(&self, kernel: Kernel, x: &Matrix, starts: &[usize], words: &mut Words, to: &mut Matrix) {
        let sequences = starts.len().saturating_sub(1);
        assert!(sequences <= to.rows() && x.columns() == to.columns(), "{sequences} sequences");
        assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "each sequence has a row");
        assert!(starts.last().is_none_or(|end| *end <= x.rows()), "sequences end in the matrix");
        let spans: Vec<u32> = starts.windows(2).flatten().map(|row| *row as u32).collect();
        self.upload_numbers(words, &spans);
        let parameters = Parameters::new(&[sequences, x.columns()]);
        let buffers = [x.buffer.raw(), words.buffer.raw(), to.buffer.raw()];
        self.dispatch(kernel, &buffers, &parameters, groups_for(sequences * x.columns()));
    }
}

//! Self-attention over a ragged batch.

use crate::buffers::{Matrix, Words};
use crate::device::Gpu;
use crate::pipelines::{Kernel, Parameters};

/// Floats of the widest head: four for each lane.
const HEAD_MAX: usize = 256;

impl Gpu {
    /// Attention of every head of every sequence. `qkv` has a token's queries, keys and values in a row, each the heads of
    /// `head` floats one after another; sequence i is the rows from `starts[i]` to `starts[i + 1]`, and the first one
    /// starts at 0. `to` gets the heads' results one after another. The spans go by way of `words`, two for each row.
    ///
    /// # Panics
    /// If the shapes disagree, `starts` doesn't rise from 0, a head is wider than 256, or there is no room.
    pub fn attention(&self, qkv: &Matrix, starts: &[usize], head: usize, words: &mut Words, to: &mut Matrix) {
        let width = to.columns();
        assert!(qkv.columns() == 3 * width && (1..=HEAD_MAX).contains(&head), "heads of {head} in {width}");
        assert!(width.is_multiple_of(head), "heads of {head} in {width}");
        let rows = starts.last().copied().unwrap_or(0);
        assert!(rows <= qkv.rows() && rows <= to.rows(), "{rows} rows");
        self.upload_numbers(words, &spans_of_rows(starts));
        let heads = width / head;
        let parameters = Parameters::new(&[rows, heads, head]).float(1.0 / (head as f32).sqrt());
        let buffers = [qkv.buffer.raw(), words.buffer.raw(), to.buffer.raw()];
        self.dispatch(Kernel::Attention, &buffers, &parameters, (rows * heads) as u64);
    }
}

/// For each row the first row of its sequence and the row after its last.
fn spans_of_rows(starts: &[usize]) -> Vec<u32> {
    assert!(starts.first().is_none_or(|first| *first == 0), "the first sequence starts at 0");
    let mut spans = Vec::with_capacity(2 * starts.last().copied().unwrap_or(0));
    for pair in starts.windows(2) {
        assert!(pair[0] <= pair[1], "sequences rise");
        (pair[0]..pair[1]).for_each(|_| spans.extend(pair.iter().map(|row| *row as u32)));
    }
    spans
}

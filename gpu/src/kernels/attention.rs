//! Self-attention over a ragged batch.

use crate::buffers::{Matrix, Words};
use crate::device::Gpu;
use crate::pipelines::{Kernel, Parameters};

/// Floats of the widest head: four for each lane.
pub(super) const HEAD_MAX: usize = 256;
/// Words of the list that [`Gpu::attention`] needs, for each row: those of a block, if all sequences are of one row.
pub const ATTENTION_WORDS_PER_ROW: usize = 3;
/// Rows of a sequence that a workgroup takes together.
const BLOCK_ROWS: usize = 4;

impl Gpu {
    /// Attention of every head of every sequence. `qkv` has a token's queries, keys and values in a row, each the heads of
    /// `head` floats one after another; sequence i is the rows from `starts[i]` to `starts[i + 1]`, and the first one
    /// starts at 0. `to` gets the heads' results one after another. Where each is goes by way of `words`, [`ATTENTION_WORDS_PER_ROW`] for
    /// each row.
    ///
    /// # Panics
    /// If the shapes disagree, `starts` doesn't rise from 0, a head is wider than 256, or there is no room.
    pub fn attention(&self, qkv: &Matrix, starts: &[usize], head: usize, words: &mut Words, to: &mut Matrix) {
        let width = to.columns();
        assert!(qkv.columns() == 3 * width && (1..=HEAD_MAX).contains(&head), "heads of {head} in {width}");
        assert!(width.is_multiple_of(head), "heads of {head} in {width}");
        let rows = starts.last().copied().unwrap_or(0);
        assert!(rows <= qkv.rows() && rows <= to.rows(), "{rows} rows");
        let blocks = blocks(starts);
        self.upload_numbers(words, &blocks);
        let heads = width / head;
        let parameters = Parameters::new(&[blocks.len() / ATTENTION_WORDS_PER_ROW, heads, head])
            .float(1.0 / (head as f32).sqrt());
        let groups = blocks.len() / ATTENTION_WORDS_PER_ROW * heads;
        let buffers = [qkv.buffer.raw(), words.buffer.raw(), to.buffer.raw()];
        self.dispatch(Kernel::Attention, &buffers, &parameters, groups as u64);
    }
}

/// For each block its first row, the first row of its sequence, and the row after that one's last.
fn blocks(starts: &[usize]) -> Vec<u32> {
    assert!(starts.first().is_none_or(|first| *first == 0), "the first sequence starts at 0");
    let mut blocks = Vec::new();
    for pair in starts.windows(2) {
        assert!(pair[0] <= pair[1], "sequences rise");
        for row in (pair[0]..pair[1]).step_by(BLOCK_ROWS) {
            blocks.extend([row, pair[0], pair[1]].map(|row| row as u32));
        }
    }
    blocks
}

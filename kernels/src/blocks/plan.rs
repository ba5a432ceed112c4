//! How a ragged batch is cut into pieces of work.

use super::BLOCK_TOKENS;
use super::scores::{BlockScores, CHUNK_TOKENS, QUERIES, SHARES, SPLIT_QUERIES};
use std::ops::Range;

/// Rows of a batch that are of one sequence. Each attends to what is before it in the sequence, and to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence<'a> {
    /// Its rows.
    pub rows: Range<usize>,
    /// The position of its first row in the sequence.
    pub first: usize,
    /// The blocks of its tokens, from the first of the sequence to that of the last row at least.
    pub blocks: &'a [u32],
}

impl Sequence<'_> {
    /// Tokens up to the last row.
    pub(super) fn tokens(&self) -> usize {
        self.first + self.rows.len()
    }

    /// Tokens that a query sees, where each row has `group` of them.
    pub(super) fn seen(&self, query: usize, group: usize) -> usize {
        self.first + query / group + 1
    }

    /// Which blocks its rows see.
    pub(super) fn seen_blocks(&self) -> &[u32] {
        let count = if self.rows.is_empty() { 0 } else { self.tokens().div_ceil(BLOCK_TOKENS) };
        assert!(count <= self.blocks.len(), "{count} blocks");
        &self.blocks[..count]
    }

    /// Its queries of one key head, in pieces that are computed together, each with the tokens that it sees.
    fn pieces(&self, group: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
        let queries = self.rows.len() * group;
        (0..queries).step_by(QUERIES).map(move |first| {
            let piece = first..queries.min(first + QUERIES);
            let tokens = self.seen(piece.end - 1, group);
            (piece, tokens)
        })
    }
}

/// What is done at a time for each key head.
pub(super) struct Unit {
    /// By number.
    pub(super) sequence: usize,
    /// Queries of a key head in this sequence: each row has a group of them.
    pub(super) queries: Range<usize>,
    /// Whole chunks, except for the last one's end.
    pub(super) tokens: Range<usize>,
    /// The first of the slots for results, one for each key head, where others have the other chunks.
    pub(super) slot: Option<usize>,
}

impl BlockScores {
    /// Plans a batch. Units that are long beside their share of the whole are split by chunks.
    pub(super) fn plan(&mut self, sequences: &[Sequence<'_>], key_heads: usize) {
        self.plan.clear();
        let group = self.group;
        let all: usize = sequences.iter().flat_map(|s| s.pieces(group)).map(|(_, tokens)| tokens).sum();
        let threads = self.buffers.len();
        let mut slots = 0;
        for (sequence, rows) in sequences.iter().enumerate() {
            for (queries, tokens) in rows.pieces(group) {
                let long = tokens * SHARES * threads > all * key_heads;
                let split = long && threads > 1 && queries.len() <= SPLIT_QUERIES && tokens > CHUNK_TOKENS;
                if !split {
                    self.plan.push(Unit { sequence, queries, tokens: 0..tokens, slot: None });
                    continue;
                }
                for first in (0..tokens).step_by(CHUNK_TOKENS) {
                    let tokens = first..tokens.min(first + CHUNK_TOKENS);
                    self.plan.push(Unit { sequence, queries: queries.clone(), tokens, slot: Some(slots) });
                    slots += key_heads;
                }
            }
        }
        assert!(slots * self.layout.state(SPLIT_QUERIES) <= self.slots.floats().len(), "{slots} slots");
    }
}

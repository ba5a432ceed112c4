//! The working memory of attention over blocks.

use super::plan::Unit;
use crate::buffer::Buffer;
use crate::rows::Weight;
use crate::{Isa, OutOfMemory};

/// Tokens whose scores are there at a time. Results of such chunks are joined in order, whether one thread or several have
/// computed them, so that a sequence's result doesn't depend on what else is in the batch.
pub(super) const CHUNK_TOKENS: usize = 256;
/// The most queries of a key head that are computed together: they read its keys and values from the nearest cache.
pub(super) const QUERIES: usize = 48;
/// Chunks of longer units are not given to several threads: there are enough units then.
pub(super) const SPLIT_QUERIES: usize = 16;
/// A unit is long if it is more than this part of what a thread has to do.
pub(super) const SHARES: usize = 4;
/// From one query's scores to the next one's: no multiple of what falls into the same cache sets.
pub(super) const SCORES_STRIDE: usize = CHUNK_TOKENS + 16;

/// Working memory of [`crate::Compute::attend_blocks`].
pub struct BlockScores {
    pub(super) isa: Isa,
    pub(super) layout: Layout,
    pub(super) rows: usize,
    pub(super) tokens: usize,
    pub(super) group: usize,
    /// One for each thread.
    pub(super) buffers: Vec<Buffer>,
    /// Results of chunks that several threads have computed.
    pub(super) slots: Buffer,
    pub(super) plan: Vec<Unit>,
}

impl std::fmt::Debug for BlockScores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockScores({} threads, {} rows, {} tokens)", self.buffers.len(), self.rows, self.tokens)
    }
}

impl BlockScores {
    /// For calls with at most `rows` rows, of sequences of at most `tokens` tokens, with `group` heads of `head` floats to
    /// each key head, on `threads` threads.
    ///
    /// # Errors
    /// No memory.
    pub fn new(
        isa: Isa,
        threads: usize,
        rows: usize,
        tokens: usize,
        group: usize,
        head: usize,
    ) -> Result<Self, OutOfMemory> {
        let layout = Layout::new(isa, head);
        let buffers = (0..threads).map(|_| Buffer::zeroed(layout.floats())).collect::<Result<_, _>>()?;
        let slots = slots(threads, tokens);
        let units = units(threads, rows, tokens, group);
        let mut plan = Vec::new();
        let refused = |_| OutOfMemory { bytes: units.saturating_mul(size_of::<Unit>()) };
        plan.try_reserve_exact(units).map_err(refused)?;
        let slots = Buffer::zeroed(slots.saturating_mul(layout.state(SPLIT_QUERIES)))?;
        Ok(Self { isa, layout, rows, tokens, group, buffers, slots, plan })
    }

    /// Bytes that [`BlockScores::new`] asks for.
    pub fn bytes(isa: Isa, threads: usize, rows: usize, tokens: usize, group: usize, head: usize) -> usize {
        let layout = Layout::new(isa, head);
        let own = Buffer::bytes_of(layout.floats()).saturating_mul(threads);
        let shared = Buffer::bytes_of(slots(threads, tokens).saturating_mul(layout.state(SPLIT_QUERIES)));
        let plan = units(threads, rows, tokens, group).saturating_mul(size_of::<Unit>());
        own.saturating_add(shared).saturating_add(plan)
    }
}

/// The most chunks that are given to several threads: fewer than [`SHARES`] units a thread are long, key heads counted.
fn slots(threads: usize, tokens: usize) -> usize {
    SHARES.saturating_mul(threads).saturating_mul(tokens.div_ceil(CHUNK_TOKENS))
}

/// The most units of a plan: a sequence has a row at least, and a unit less than [`QUERIES`] queries at its end only.
fn units(threads: usize, rows: usize, tokens: usize, group: usize) -> usize {
    rows.saturating_add(rows.saturating_mul(group) / QUERIES).saturating_add(slots(threads, tokens))
}

/// Floats of each part of a thread's working memory.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) head: usize,
    /// A head's floats, rounded up to panels.
    pub(super) width: usize,
}

/// A thread's working memory.
pub(super) struct Parts<'a> {
    /// Scaled, one after another.
    pub(super) queries: &'a mut [f32],
    /// A query's are [`SCORES_STRIDE`] from the next one's.
    pub(super) scores: &'a mut [f32],
    /// The chunk's result.
    pub(super) chunk: State<'a>,
    /// That of all chunks so far.
    pub(super) sum: State<'a>,
}

/// Values weighed by the scores of some tokens, for some queries.
pub(super) struct State<'a> {
    max: &'a mut [f32],
    sum: &'a mut [f32],
    /// Rows of a layout's width.
    pub(super) values: &'a mut [f32],
}

impl Layout {
    pub(super) fn new(isa: Isa, head: usize) -> Self {
        Self { head, width: head.next_multiple_of(isa.routines().panel) }
    }

    fn floats(self) -> usize {
        let own = self.head.saturating_add(SCORES_STRIDE).saturating_mul(QUERIES);
        own.saturating_add(self.state(QUERIES).saturating_mul(2))
    }

    /// Floats of the state of so many queries.
    pub(super) fn state(self, queries: usize) -> usize {
        self.width.saturating_add(2).saturating_mul(queries)
    }

    pub(super) fn parts(self, floats: &mut [f32]) -> Parts<'_> {
        let (queries, floats) = floats.split_at_mut(QUERIES * self.head);
        let (scores, floats) = floats.split_at_mut(QUERIES * SCORES_STRIDE);
        let (chunk, sum) = floats.split_at_mut(self.state(QUERIES));
        Parts { queries, scores, chunk: State::of(QUERIES, chunk), sum: State::of(QUERIES, sum) }
    }
}

impl<'a> State<'a> {
    pub(super) fn of(queries: usize, floats: &'a mut [f32]) -> Self {
        let (max, floats) = floats.split_at_mut(queries);
        let (sum, values) = floats.split_at_mut(queries);
        Self { max, sum, values }
    }

    pub(super) fn weight(&self, query: usize) -> Weight {
        Weight { max: self.max[query], sum: self.sum[query] }
    }

    pub(super) fn set(&mut self, query: usize, weight: Weight) {
        (self.max[query], self.sum[query]) = (weight.max, weight.sum);
    }

    pub(super) fn clear(&mut self) {
        self.max.fill(Weight::NOTHING.max);
        self.sum.fill(Weight::NOTHING.sum);
        self.values.fill(0.0);
    }
}

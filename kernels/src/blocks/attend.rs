//! Softmax(queries x keys) x values in one pass over the keys and values of each key head, chunk by chunk, with the
//! largest score and the sum so far (Milakov and Gimelshein 2018, <https://arxiv.org/abs/1805.02867>).

use super::cache::{Kept, Layout as BlockLayout};
use super::plan::Unit;
use super::scores::{CHUNK_TOKENS, Layout, Parts, SCORES_STRIDE, SPLIT_QUERIES, State};
use super::{BLOCK_TOKENS, BlockCache, BlockScores, Sequence};
use crate::buffer::Buffer;
use crate::compute::Shared;
use crate::isa::Routines;
use crate::tile::{PANEL_MAX, Tile};
use crate::{Compute, Matrix, Numbers};
use std::ops::Range;

/// What stands in for a bias where there is none.
static ZEROS: [f32; PANEL_MAX] = [0.0; PANEL_MAX];

impl Compute {
    /// Attention of each sequence's rows to the sequence's tokens up to themselves. The first columns of `queries`, as many
    /// as `to` has, are the heads one after another; as many of them as the scratch says share a key head. `to` gets
    /// the heads' results in the same order; rows of no sequence stay.
    ///
    /// # Panics
    /// If the shapes disagree, the sequences' rows don't rise, there is no such block, or a sequence is longer than the
    /// scratch was made for.
    pub fn attend_blocks(
        &self,
        queries: &Matrix,
        sequences: &[Sequence<'_>],
        cache: &BlockCache,
        scratch: &mut BlockScores,
        to: &mut Matrix,
    ) {
        let width = cache.key_heads() * scratch.group * cache.layout().head;
        assert!(cache.isa() == self.isa && scratch.isa == self.isa, "made for this level");
        assert!(scratch.buffers.len() >= self.pool.threads(), "one buffer for each thread");
        assert_eq!(scratch.layout.head, cache.layout().head, "floats of a head");
        assert!(queries.columns() >= width && to.columns() == width && width > 0, "{width} columns");
        check(sequences, queries.rows().min(to.rows()), cache, scratch);
        scratch.plan(sequences, cache.key_heads());
        match cache.numbers() {
            Numbers::Singles => self.attend_numbers::<f32>(queries, sequences, cache, scratch, to),
            Numbers::Halves => self.attend_numbers::<u16>(queries, sequences, cache, scratch, to),
        }
    }

    fn attend_numbers<N: Kept>(
        &self,
        queries: &Matrix,
        sequences: &[Sequence<'_>],
        cache: &BlockCache,
        scratch: &mut BlockScores,
        to: &mut Matrix,
    ) {
        let key_heads = cache.key_heads();
        let own = |buffer: &mut Buffer| {
            let floats = buffer.floats_mut();
            (Shared(floats.as_mut_ptr()), floats.len())
        };
        let buffers: Vec<(Shared, usize)> = scratch.buffers.iter_mut().map(own).collect();
        let attention = Attention::<N> {
            routines: self.isa.routines(),
            queries,
            sequences,
            group: scratch.group,
            blocks: cache.layout(),
            numbers: cache.all(),
            layout: scratch.layout,
            slots: Shared(scratch.slots.floats_mut().as_mut_ptr()),
            stride: to.stride(),
            to: Shared(to.as_mut_ptr()),
        };
        self.pool.run(scratch.plan.len() * key_heads, &|thread, item| {
            let (unit, key_head) = (&scratch.plan[item / key_heads], item % key_heads);
            let (buffer, length) = buffers[thread];
            // SAFETY: each thread has its own buffer.
            let floats = unsafe { std::slice::from_raw_parts_mut(buffer.0, length) };
            attention.unit(unit, key_head, floats);
        });
        let floats = scratch.buffers[0].floats_mut();
        // A unit's chunks are next to each other, and only the first begins at 0.
        for chunks in scratch.plan.chunk_by(|a, b| b.slot.is_some() && b.tokens.start == a.tokens.end) {
            if chunks[0].slot.is_some() {
                (0..key_heads).for_each(|key_head| attention.join(chunks, key_head, floats));
            }
        }
    }
}

fn check(sequences: &[Sequence<'_>], rows: usize, cache: &BlockCache, scratch: &BlockScores) {
    let mut end = 0;
    for sequence in sequences {
        let Sequence { rows, .. } = sequence;
        assert!(end <= rows.start && rows.start <= rows.end, "sequences' rows rise");
        end = rows.end;
        assert!(sequence.tokens() <= scratch.tokens, "{} tokens", sequence.tokens());
        let blocks = sequence.seen_blocks();
        assert!(blocks.iter().all(|block| (*block as usize) < cache.blocks()), "blocks are there");
    }
    assert!(end <= rows && end <= scratch.rows, "{end} rows");
}

/// One call.
struct Attention<'a, N> {
    routines: &'static Routines,
    queries: &'a Matrix,
    sequences: &'a [Sequence<'a>],
    /// Heads to a key head.
    group: usize,
    blocks: BlockLayout,
    numbers: &'a [N],
    layout: Layout,
    slots: Shared,
    stride: usize,
    to: Shared,
}

impl<N: Kept> Attention<'_, N> {
    /// One unit's queries of one key head.
    fn unit(&self, unit: &Unit, key_head: usize, floats: &mut [f32]) {
        let Parts { queries, scores, mut chunk, mut sum } = self.layout.parts(floats);
        self.gather(unit, key_head, queries);
        if let Some(slot) = unit.slot {
            let mut slot = self.slot(slot + key_head);
            self.chunk(unit, key_head, unit.tokens.clone(), queries, scores, &mut slot);
            return;
        }
        sum.clear();
        for first in unit.tokens.clone().step_by(CHUNK_TOKENS) {
            let tokens = first..unit.tokens.end.min(first + CHUNK_TOKENS);
            self.chunk(unit, key_head, tokens, queries, scores, &mut chunk);
            self.add(unit, &mut sum, &chunk);
        }
        self.finish(unit, key_head, &sum);
    }

    /// The results of a split unit's chunks as one.
    fn join(&self, chunks: &[Unit], key_head: usize, floats: &mut [f32]) {
        let mut sum = self.layout.parts(floats).sum;
        sum.clear();
        for unit in chunks {
            let slot = unit.slot.expect("a split unit's chunks have slots");
            self.add(unit, &mut sum, &self.slot(slot + key_head));
        }
        self.finish(&chunks[0], key_head, &sum);
    }

    fn slot(&self, slot: usize) -> State<'_> {
        let floats = self.layout.state(SPLIT_QUERIES);
        // SAFETY: the plan has no more slots than the scratch was made for, and gives each to one unit and key head.
        let slot = unsafe { std::slice::from_raw_parts_mut(self.slots.at(slot * floats), floats) };
        State::of(SPLIT_QUERIES, slot)
    }

    /// The row and the column of a query.
    fn place(&self, unit: &Unit, query: usize, key_head: usize) -> (usize, usize) {
        let row = self.sequences[unit.sequence].rows.start + query / self.group;
        (row, (key_head * self.group + query % self.group) * self.blocks.head)
    }

    fn gather(&self, unit: &Unit, key_head: usize, queries: &mut [f32]) {
        let head = self.blocks.head;
        let scale = 1.0 / (head as f32).sqrt();
        for (query, place) in unit.queries.clone().zip(queries.chunks_exact_mut(head)) {
            let (row, column) = self.place(unit, query, key_head);
            let from = &self.queries.row(row)[column..][..head];
            place.iter_mut().zip(from).for_each(|(to, x)| *to = x * scale);
        }
    }

    fn finish(&self, unit: &Unit, key_head: usize, sum: &State<'_>) {
        let (head, width) = (self.blocks.head, self.layout.width);
        for (i, query) in unit.queries.clone().enumerate() {
            let (row, column) = self.place(unit, query, key_head);
            let share = 1.0 / sum.weight(i).sum;
            // SAFETY: the row and the head's columns are in `to`, and belong to this unit and key head.
            let to = unsafe { std::slice::from_raw_parts_mut(self.to.at(row * self.stride + column), head) };
            to.iter_mut().zip(&sum.values[i * width..]).for_each(|(to, x)| *to = x * share);
        }
    }

    fn add(&self, unit: &Unit, sum: &mut State<'_>, chunk: &State<'_>) {
        let width = self.layout.width;
        for query in 0..unit.queries.len() {
            let (own, other) = (sum.weight(query), chunk.weight(query));
            let to = &mut sum.values[query * width..][..width];
            let from = &chunk.values[query * width..][..width];
            // SAFETY: an `Isa`, from which routines come, is only made for a CPU that has its level.
            let weight = unsafe { (self.routines.join)(to, own, from, other) };
            sum.set(query, weight);
        }
    }

    /// The unit's queries against the tokens of one chunk.
    fn chunk(
        &self,
        unit: &Unit,
        key_head: usize,
        tokens: Range<usize>,
        queries: &[f32],
        scores: &mut [f32],
        to: &mut State<'_>,
    ) {
        self.score(unit, key_head, tokens.clone(), queries, scores);
        let sequence = &self.sequences[unit.sequence];
        for (i, query) in unit.queries.clone().enumerate() {
            let seen = sequence.seen(query, self.group).clamp(tokens.start, tokens.end) - tokens.start;
            let (seen, unseen) = scores[i * SCORES_STRIDE..][..tokens.len()].split_at_mut(seen);
            // SAFETY: an `Isa`, from which routines come, is only made for a CPU that has its level.
            to.set(i, unsafe { (self.routines.softmax_part)(seen) });
            unseen.fill(0.0);
        }
        self.weigh(unit, key_head, tokens, scores, to.values);
    }

    /// Products of the queries with the keys.
    fn score(&self, unit: &Unit, key_head: usize, tokens: Range<usize>, queries: &[f32], scores: &mut [f32]) {
        let BlockLayout { panel, head, .. } = self.blocks;
        let blocks = self.sequences[unit.sequence].blocks;
        for token in tokens.clone().step_by(panel) {
            let block = blocks[token / BLOCK_TOKENS] as usize;
            let keys =
                &self.numbers[self.blocks.key(block, key_head, token % BLOCK_TOKENS)..][..panel * head];
            for rows in tiles(unit.queries.len(), self.routines.tile_rows) {
                let tile = Tile {
                    input: queries[rows.start * head..rows.end * head].as_ptr(),
                    input_stride: head,
                    depth: head,
                    panel: keys.as_ptr(),
                    bias: ZEROS.as_ptr(),
                    bias_stride: 0,
                    output: scores[rows.start * SCORES_STRIDE..rows.end * SCORES_STRIDE]
                        [token - tokens.start..]
                        .as_mut_ptr(),
                    output_stride: SCORES_STRIDE,
                    columns: panel.min(tokens.end - token),
                };
                // SAFETY: the slices hold what a tile touches: rows of queries, a panel of keys, and rows of scores, into
                // which a chunk's columns fit. The `Isa` witnesses the level.
                unsafe { N::tile(self.routines)(rows.len(), &tile) };
            }
        }
    }

    /// The values weighed by the scores, block after block. Of the last block only what is there: what is behind it may be
    /// anything that another sequence left, and nothing times a NaN is NaN.
    fn weigh(&self, unit: &Unit, key_head: usize, tokens: Range<usize>, scores: &[f32], to: &mut [f32]) {
        let BlockLayout { panel, head, .. } = self.blocks;
        let width = self.layout.width;
        let blocks = self.sequences[unit.sequence].blocks;
        for token in tokens.clone().step_by(BLOCK_TOKENS) {
            let block = blocks[token / BLOCK_TOKENS] as usize;
            let depth = BLOCK_TOKENS.min(tokens.end - token);
            for column in (0..head).step_by(panel) {
                let values = &self.numbers[self.blocks.value(block, key_head, 0, column)..][..depth * panel];
                for rows in tiles(unit.queries.len(), self.routines.tile_rows) {
                    let output = to[rows.start * width..rows.end * width][column..].as_mut_ptr();
                    let begins = token == tokens.start;
                    let tile = Tile {
                        input: scores[rows.start * SCORES_STRIDE..rows.end * SCORES_STRIDE]
                            [token - tokens.start..]
                            .as_ptr(),
                        input_stride: SCORES_STRIDE,
                        depth,
                        panel: values.as_ptr(),
                        bias: if begins { ZEROS.as_ptr() } else { output },
                        bias_stride: if begins { 0 } else { width },
                        output,
                        output_stride: width,
                        columns: panel.min(head - column),
                    };
                    // SAFETY: the slices hold what a tile touches: rows of scores, a panel of values, and rows of results
                    // as wide as whole panels, which it reads before it writes. The `Isa` witnesses the level.
                    unsafe { N::tile(self.routines)(rows.len(), &tile) };
                }
            }
        }
    }
}

/// So many rows in tiles of nearly equal height.
fn tiles(rows: usize, height: usize) -> impl Iterator<Item = Range<usize>> {
    let tiles = rows.div_ceil(height);
    (0..tiles).map(move |tile| rows * tile / tiles..rows * (tile + 1) / tiles)
}

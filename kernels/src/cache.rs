//! Attention against keys and values that stay: those of a text so far, or of a sound. They are packed once, as they come,
//! in the order in which the tiles read them, so that a single query costs one pass over them.

use crate::buffer::Buffer;
use crate::compute::Shared;
use crate::isa::Routines;
use crate::tile::{PANEL_MAX, Tile};
use crate::{Compute, Isa, Matrix, OutOfMemory};
use std::ops::Range;

/// What stands in for a bias where there is none.
static ZEROS: [f32; PANEL_MAX] = [0.0; PANEL_MAX];
/// Tiles of queries that a thread takes at a time: it reads a head's keys and values once for each tile anyway.
const TILES_EACH: usize = 4;
/// Fewer rows than this are packed on the caller's thread.
const ROWS_ALONE: usize = 16;

/// Keys and values of the heads of one layer, with room for so many tokens.
pub struct KeyValues {
    isa: Isa,
    heads: usize,
    head: usize,
    tokens: usize,
    /// Of each head its keys as the columns of panels (the product with queries is the scores), then its values in panels
    /// of columns.
    buffer: Buffer,
}

impl std::fmt::Debug for KeyValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyValues({} heads of {}, {} tokens)", self.heads, self.head, self.tokens)
    }
}

/// Floats of each part of a head.
#[derive(Clone, Copy)]
struct Layout {
    panel: usize,
    head: usize,
    /// Tokens rounded up to panels.
    padded: usize,
}

impl Layout {
    fn new(isa: Isa, tokens: usize, head: usize) -> Self {
        let panel = isa.routines().panel;
        Self { panel, head, padded: tokens.next_multiple_of(PANEL_MAX) }
    }

    fn keys(self) -> usize {
        self.padded.saturating_mul(self.head)
    }

    fn values(self) -> usize {
        self.padded.saturating_mul(self.head.next_multiple_of(self.panel))
    }

    fn floats(self) -> usize {
        self.keys().saturating_add(self.values())
    }

    /// Where the first float of a token's key is; the next ones are `panel` floats further each.
    fn key(self, token: usize) -> usize {
        token / self.panel * self.panel * self.head + token % self.panel
    }

    /// Where a token's value is from `column` on, which begins a panel.
    fn value(self, token: usize, column: usize) -> usize {
        column * self.padded + token * self.panel
    }
}

impl KeyValues {
    /// Zeros.
    ///
    /// # Errors
    /// No memory.
    pub fn new(isa: Isa, tokens: usize, heads: usize, head: usize) -> Result<Self, OutOfMemory> {
        let floats = Layout::new(isa, tokens, head).floats().saturating_mul(heads);
        Ok(Self { isa, heads, head, tokens, buffer: Buffer::zeroed(floats)? })
    }

    /// Bytes that [`KeyValues::new`] asks for.
    pub fn bytes(isa: Isa, tokens: usize, heads: usize, head: usize) -> usize {
        let floats = Layout::new(isa, tokens, head).floats().saturating_mul(heads);
        floats.saturating_mul(size_of::<f32>())
    }

    /// Tokens that there is room for.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn layout(&self) -> Layout {
        Layout::new(self.isa, self.tokens, self.head)
    }
}

/// Working memory of [`Compute::attend`]: for each thread a tile's scores.
pub struct Scores {
    isa: Isa,
    tokens: usize,
    buffers: Vec<Buffer>,
}

impl std::fmt::Debug for Scores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scores({} x {} tokens)", self.buffers.len(), self.tokens)
    }
}

impl Scores {
    /// For at most `tokens` tokens, on `threads` threads.
    ///
    /// # Errors
    /// No memory.
    pub fn new(isa: Isa, threads: usize, tokens: usize) -> Result<Self, OutOfMemory> {
        let floats = Self::floats(isa, tokens);
        let buffers = (0..threads).map(|_| Buffer::zeroed(floats)).collect::<Result<_, _>>()?;
        Ok(Self { isa, tokens, buffers })
    }

    /// Bytes that [`Scores::new`] asks for.
    pub fn bytes(isa: Isa, threads: usize, tokens: usize) -> usize {
        Self::floats(isa, tokens).saturating_mul(size_of::<f32>()).saturating_mul(threads)
    }

    fn floats(isa: Isa, tokens: usize) -> usize {
        tokens.next_multiple_of(PANEL_MAX).saturating_mul(isa.routines().tile_rows)
    }
}

/// Which tokens queries attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The first so many.
    All(usize),
    /// The queries are those of the tokens from this one on, and each sees itself and what is before it.
    Before(usize),
}

impl Seen {
    /// How many tokens a query sees.
    pub fn tokens(self, query: usize) -> usize {
        match self {
            Self::All(tokens) => tokens,
            Self::Before(first) => first + query + 1,
        }
    }
}

impl Compute {
    /// Puts keys and values of some rows at the tokens from `at` on. A row has the heads' keys one after another, then
    /// their values.
    ///
    /// # Panics
    /// If the shapes disagree, or there is no room.
    pub fn append(&self, rows: &Matrix, count: usize, to: &mut KeyValues, at: usize) {
        let (heads, head, layout) = (to.heads, to.head, to.layout());
        assert_eq!(to.isa, self.isa, "made for this level");
        assert!(count <= rows.rows() && at + count <= to.tokens, "{count} rows at {at}");
        assert_eq!(rows.columns(), 2 * heads * head, "keys and values");
        let place = Shared(to.buffer.floats_mut().as_mut_ptr());
        let pack = |index: usize| {
            // SAFETY: each head's floats are its own, within the buffer by its layout.
            let floats =
                unsafe { std::slice::from_raw_parts_mut(place.at(index * layout.floats()), layout.floats()) };
            let (keys, values) = floats.split_at_mut(layout.keys());
            for row in 0..count {
                let (token, row) = (at + row, rows.row(row));
                let key = &row[index * head..][..head];
                for (place, float) in keys[layout.key(token)..].iter_mut().step_by(layout.panel).zip(key) {
                    *place = *float;
                }
                let value = &row[(heads + index) * head..][..head];
                for (panel, floats) in value.chunks(layout.panel).enumerate() {
                    let place = layout.value(token, panel * layout.panel);
                    values[place..][..floats.len()].copy_from_slice(floats);
                }
            }
        };
        if count < ROWS_ALONE {
            (0..heads).for_each(pack);
        } else {
            self.pool.run(heads, &|_, index| pack(index));
        }
    }

    /// Attention of the first `rows` rows of queries, which have the heads one after another. `output` gets the heads'
    /// results in the same order.
    ///
    /// # Panics
    /// If the shapes disagree, or more is seen than there is, or nothing.
    pub fn attend(
        &self,
        queries: &Matrix,
        rows: usize,
        memory: &KeyValues,
        seen: Seen,
        scores: &mut Scores,
        output: &mut Matrix,
    ) {
        let KeyValues { heads, head, .. } = *memory;
        assert!(memory.isa == self.isa && scores.isa == self.isa, "made for this level");
        assert!(scores.buffers.len() >= self.pool.threads(), "one buffer for each thread");
        assert!(rows <= queries.rows() && rows <= output.rows(), "{rows} rows");
        assert_eq!((queries.columns(), output.columns()), (heads * head, heads * head), "columns");
        if rows == 0 {
            return;
        }
        let most = seen.tokens(rows - 1);
        assert!(most <= memory.tokens && most <= scores.tokens, "{most} tokens");
        assert!(seen.tokens(0) > 0, "something is seen");
        let buffers: Vec<Shared> =
            scores.buffers.iter_mut().map(|b| Shared(b.floats_mut().as_mut_ptr())).collect();
        let (stride, to) = (output.stride(), Shared(output.as_mut_ptr()));
        let routines = self.isa.routines();
        let block = TILES_EACH * routines.tile_rows;
        let layout = memory.layout();
        self.pool.run(heads * rows.div_ceil(block), &|thread, item| {
            let (first, index) = (item / heads * block, item % heads);
            // SAFETY: each item has its own rows and columns of `output`, each thread its own buffer, which holds a tile's
            // rows of `scores.tokens` scores; the assertions above keep the rest inside `queries` and `memory`.
            unsafe {
                let keys = memory.buffer.floats().as_ptr().add(index * layout.floats());
                let head = Head {
                    routines,
                    layout,
                    seen,
                    queries: queries.as_ptr().add(index * head),
                    stride: queries.stride(),
                    keys,
                    values: keys.add(layout.keys()),
                    scores: buffers[thread].0,
                    output: to.at(index * head),
                    output_stride: stride,
                };
                head.attend(first..rows.min(first + block));
            }
        });
    }
}

/// One head.
struct Head {
    routines: &'static Routines,
    layout: Layout,
    seen: Seen,
    /// The head's columns of the first query.
    queries: *const f32,
    stride: usize,
    keys: *const f32,
    values: *const f32,
    scores: *mut f32,
    output: *mut f32,
    output_stride: usize,
}

impl Head {
    /// # Safety
    /// As in [`Compute::attend`].
    unsafe fn attend(&self, rows: Range<usize>) {
        let height = self.routines.tile_rows;
        for first in rows.clone().step_by(height) {
            let tile = first..rows.end.min(first + height);
            // SAFETY: the caller's promise.
            unsafe {
                self.scores(tile.clone());
                self.weigh(tile);
            }
        }
    }

    /// The most tokens that one of these queries sees.
    fn tokens(&self, rows: &Range<usize>) -> usize {
        self.seen.tokens(rows.end - 1)
    }

    fn scores_stride(&self, rows: &Range<usize>) -> usize {
        self.tokens(rows).next_multiple_of(PANEL_MAX)
    }

    /// Softmax of the scaled products of some queries with the keys that each sees; zeros for the others.
    unsafe fn scores(&self, rows: Range<usize>) {
        let Layout { panel, head, .. } = self.layout;
        let (tokens, stride) = (self.tokens(&rows), self.scores_stride(&rows));
        // SAFETY: a tile's rows of scores are there, each `stride` long.
        unsafe {
            for column in (0..tokens).step_by(panel) {
                let tile = Tile {
                    input: self.queries.add(rows.start * self.stride),
                    input_stride: self.stride,
                    depth: head,
                    panel: self.keys.add(column * head),
                    bias: ZEROS.as_ptr(),
                    bias_stride: 0,
                    output: self.scores.add(column),
                    output_stride: stride,
                    columns: panel.min(tokens - column),
                };
                (self.routines.tile)(rows.len(), &tile);
            }
            let scale = 1.0 / (head as f32).sqrt();
            for (place, row) in rows.enumerate() {
                let scores = std::slice::from_raw_parts_mut(self.scores.add(place * stride), tokens);
                let (seen, unseen) = scores.split_at_mut(self.seen.tokens(row));
                (self.routines.softmax)(seen, scale);
                unseen.fill(0.0);
            }
        }
    }

    /// The values weighed by the scores of some queries.
    unsafe fn weigh(&self, rows: Range<usize>) {
        let Layout { panel, head, .. } = self.layout;
        // SAFETY: the head's columns of these rows of the output are there.
        unsafe {
            for column in (0..head).step_by(panel) {
                let tile = Tile {
                    input: self.scores,
                    input_stride: self.scores_stride(&rows),
                    depth: self.tokens(&rows),
                    panel: self.values.add(self.layout.value(0, column)),
                    bias: ZEROS.as_ptr(),
                    bias_stride: 0,
                    output: self.output.add(rows.start * self.output_stride + column),
                    output_stride: self.output_stride,
                    columns: panel.min(head - column),
                };
                (self.routines.tile)(rows.len(), &tile);
            }
        }
    }
}

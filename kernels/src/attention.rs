//! Self-attention over a ragged batch: sequences one after another, each attending to itself only.

use crate::buffer::Buffer;
use crate::compute::Shared;
use crate::isa::Routines;
use crate::tile::{PANEL_MAX, Tile};
use crate::{Compute, Isa, Matrix, OutOfMemory};

/// What stands in for a bias where there is none.
static ZEROS: [f32; PANEL_MAX] = [0.0; PANEL_MAX];

/// Working memory of [`Compute::attention`]: for each thread the packed keys and values of one head, and a tile's scores.
pub struct AttentionScratch {
    isa: Isa,
    buffers: Vec<Buffer>,
    tokens: usize,
    head: usize,
}

impl std::fmt::Debug for AttentionScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AttentionScratch({} x {} tokens)", self.buffers.len(), self.tokens)
    }
}

/// Floats of each part of a thread's working memory.
struct Layout {
    keys: usize,
    values: usize,
    scores: usize,
}

impl Layout {
    fn new(isa: Isa, tokens: usize, head: usize) -> Self {
        let routines = isa.routines();
        let padded = tokens.next_multiple_of(PANEL_MAX);
        Self {
            keys: padded.saturating_mul(head),
            values: padded.saturating_mul(head.next_multiple_of(routines.panel)),
            scores: padded.saturating_mul(routines.tile_rows),
        }
    }

    fn floats(&self) -> usize {
        self.keys.saturating_add(self.values).saturating_add(self.scores)
    }
}

impl AttentionScratch {
    /// For sequences of at most `tokens` tokens and heads of `head` floats, on `threads` threads.
    ///
    /// # Errors
    /// No memory.
    pub fn new(isa: Isa, threads: usize, tokens: usize, head: usize) -> Result<Self, OutOfMemory> {
        let floats = Layout::new(isa, tokens, head).floats();
        let buffers = (0..threads).map(|_| Buffer::zeroed(floats)).collect::<Result<_, _>>()?;
        Ok(Self { isa, buffers, tokens, head })
    }

    /// Bytes that [`AttentionScratch::new`] asks for.
    pub fn bytes(isa: Isa, threads: usize, tokens: usize, head: usize) -> usize {
        Layout::new(isa, tokens, head).floats().saturating_mul(size_of::<f32>()).saturating_mul(threads)
    }
}

impl Compute {
    /// Attention of every head of every sequence. `qkv` has a token's queries, keys and values in a row, each the heads
    /// one after another; sequence i is the rows from `starts[i]` to `starts[i + 1]`. `output` gets the heads' results
    /// one after another.
    ///
    /// # Panics
    /// If the shapes disagree, `starts` doesn't rise, or a sequence is longer than the scratch was made for.
    pub fn attention(
        &self,
        qkv: &Matrix,
        starts: &[usize],
        scratch: &mut AttentionScratch,
        output: &mut Matrix,
    ) {
        let (width, head) = (output.columns(), scratch.head);
        assert!(
            qkv.columns() == 3 * width && head > 0 && width.is_multiple_of(head),
            "heads of {head} in {width}"
        );
        assert_eq!(scratch.isa, self.isa, "made for this level");
        assert!(scratch.buffers.len() >= self.pool.threads(), "one buffer for each thread");
        let rows = starts.last().copied().unwrap_or(0);
        assert!(rows <= qkv.rows() && rows <= output.rows(), "{rows} rows");
        let fits = |pair: &[usize]| pair[0] <= pair[1] && pair[1] - pair[0] <= scratch.tokens;
        assert!(starts.windows(2).all(fits), "sequences rise and fit");

        let heads = width / head;
        let routines = self.isa.routines();
        let layout = Layout::new(self.isa, scratch.tokens, head);
        let buffers: Vec<Shared> =
            scratch.buffers.iter_mut().map(|b| Shared(b.floats_mut().as_mut_ptr())).collect();
        let (stride, to) = (output.stride(), Shared(output.as_mut_ptr()));
        self.pool.run(starts.len().saturating_sub(1) * heads, &|thread, item| {
            let (sequence, index) = (item / heads, item % heads);
            let (first, end) = (starts[sequence], starts[sequence + 1]);
            // SAFETY: each item has its own rows and columns of `output`, each thread its own buffer, whose three parts
            // are as long as `layout` says; the assertions above keep the rest inside `qkv` and `output`.
            unsafe {
                let keys = buffers[thread].0;
                let values = keys.add(layout.keys);
                let head = Head {
                    routines,
                    queries: qkv.as_ptr().add(first * qkv.stride() + index * head),
                    stride: qkv.stride(),
                    width,
                    head,
                    tokens: end - first,
                    keys,
                    values,
                    scores: values.add(layout.values),
                    output: to.at(first * stride + index * head),
                    output_stride: stride,
                };
                head.attend();
            }
        });
    }
}

/// One head of one sequence.
struct Head {
    routines: &'static Routines,
    /// The head's columns of the first token's queries; keys and values are `width` and `2 * width` floats further.
    queries: *const f32,
    stride: usize,
    width: usize,
    head: usize,
    tokens: usize,
    keys: *mut f32,
    values: *mut f32,
    scores: *mut f32,
    output: *mut f32,
    output_stride: usize,
}

impl Head {
    /// # Safety
    /// As in [`Compute::attention`].
    unsafe fn attend(&self) {
        let height = self.routines.tile_rows;
        // SAFETY: the caller's promise.
        unsafe {
            self.pack_keys();
            self.pack_values();
            for first in (0..self.tokens).step_by(height) {
                let rows = height.min(self.tokens - first);
                self.scores(first, rows);
                self.weigh(first, rows);
            }
        }
    }

    /// Keys as the columns of panels: the product with queries is the scores.
    unsafe fn pack_keys(&self) {
        let panel = self.routines.panel;
        // SAFETY: tokens rounded up to panels times `head` floats are there.
        unsafe {
            for token in 0..self.tokens {
                let from = self.queries.add(token * self.stride + self.width);
                let to = self.keys.add(token / panel * panel * self.head + token % panel);
                for i in 0..self.head {
                    *to.add(i * panel) = *from.add(i);
                }
            }
        }
    }

    /// Values as they are, in panels of columns.
    unsafe fn pack_values(&self) {
        let panel = self.routines.panel;
        // SAFETY: `tokens` times the head rounded up to panels is there.
        unsafe {
            for token in 0..self.tokens {
                let from = self.queries.add(token * self.stride + 2 * self.width);
                for column in (0..self.head).step_by(panel) {
                    let to = self.values.add(column * self.tokens + token * panel);
                    std::ptr::copy_nonoverlapping(from.add(column), to, panel.min(self.head - column));
                }
            }
        }
    }

    fn scores_stride(&self) -> usize {
        self.tokens.next_multiple_of(PANEL_MAX)
    }

    /// Softmax of the scaled products of some queries with all keys.
    unsafe fn scores(&self, first: usize, rows: usize) {
        let panel = self.routines.panel;
        // SAFETY: a tile's rows of scores are there, each `scores_stride` long.
        unsafe {
            for column in (0..self.tokens).step_by(panel) {
                let tile = Tile {
                    input: self.queries.add(first * self.stride),
                    input_stride: self.stride,
                    depth: self.head,
                    panel: self.keys.add(column * self.head),
                    bias: ZEROS.as_ptr(),
                    bias_stride: 0,
                    output: self.scores.add(column),
                    output_stride: self.scores_stride(),
                    columns: panel.min(self.tokens - column),
                };
                (self.routines.tile)(rows, &tile);
            }
            let scale = 1.0 / (self.head as f32).sqrt();
            for row in 0..rows {
                let row = self.scores.add(row * self.scores_stride());
                (self.routines.softmax)(std::slice::from_raw_parts_mut(row, self.tokens), scale);
            }
        }
    }

    /// The values weighed by the scores of some queries.
    unsafe fn weigh(&self, first: usize, rows: usize) {
        let panel = self.routines.panel;
        // SAFETY: the head's columns of these rows of the output are there.
        unsafe {
            for column in (0..self.head).step_by(panel) {
                let tile = Tile {
                    input: self.scores,
                    input_stride: self.scores_stride(),
                    depth: self.tokens,
                    panel: self.values.add(column * self.tokens),
                    bias: ZEROS.as_ptr(),
                    bias_stride: 0,
                    output: self.output.add(first * self.output_stride + column),
                    output_stride: self.output_stride,
                    columns: panel.min(self.head - column),
                };
                (self.routines.tile)(rows, &tile);
            }
        }
    }
}

//! Attention against keys and values that stay: those of a text so far, or of a sound.

use super::attention::HEAD_MAX;
use crate::buffers::Matrix;
use crate::device::Gpu;
use crate::pipelines::{Kernel, Parameters};

/// Queries that a workgroup takes together.
const BLOCK_ROWS: usize = 4;

/// Which tokens queries attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The first so many.
    All(usize),
    /// The queries are those of the tokens from this one on, and each sees itself and what is before it.
    Before(usize),
}

impl Gpu {
    /// Attention of the first `rows` rows of queries, which have the heads of `head` floats one after another. A row of
    /// `memory` is a token's keys, then its values. `to` gets the heads' results in the same order.
    ///
    /// # Panics
    /// If the shapes disagree, a head is wider than 256, or more is seen than there is, or nothing.
    pub fn attend(
        &self,
        queries: &Matrix,
        rows: usize,
        memory: &Matrix,
        seen: Seen,
        head: usize,
        to: &mut Matrix,
    ) {
        let width = to.columns();
        assert!(queries.columns() == width && memory.columns() == 2 * width, "keys and values");
        assert!((1..=HEAD_MAX).contains(&head) && width.is_multiple_of(head), "heads of {head} in {width}");
        assert!(rows <= queries.rows() && rows <= to.rows(), "{rows} rows");
        // What the first query sees, and how many more each later one does.
        let (first, more) = match seen {
            Seen::All(tokens) => (tokens, 0),
            Seen::Before(token) => (token + 1, 1),
        };
        let most = first + rows.saturating_sub(1) * more;
        assert!((1..=memory.rows()).contains(&first) && most <= memory.rows(), "{most} tokens");
        let heads = width / head;
        let parameters = Parameters::new(&[rows, heads, head]).float(1.0 / (head as f32).sqrt());
        let count = |n: usize| u32::try_from(n).expect("rows are counted in 32 bits");
        let parameters = parameters.word(count(first)).word(count(more));
        let buffers = [queries.buffer.raw(), memory.buffer.raw(), to.buffer.raw()];
        self.dispatch(Kernel::Attend, &buffers, &parameters, (rows.div_ceil(BLOCK_ROWS) * heads) as u64);
    }
}

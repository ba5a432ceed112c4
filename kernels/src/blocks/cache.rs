//! The blocks of one layer.

use crate::buffer::Buffer;
use crate::compute::Shared;
use crate::isa::Routines;
use crate::tile::Tile;
use crate::{Compute, Isa, Matrix, Numbers, OutOfMemory};
use std::ops::Range;

/// Tokens of a block: whole panels at every level.
pub const BLOCK_TOKENS: usize = 32;
/// Fewer rows than this are packed on the caller's thread.
const ROWS_ALONE: usize = 16;
/// Floats that are converted at a time.
const CONVERTED: usize = 64;

/// Keys and values of one layer, in blocks.
///
/// A block has the key heads one after another, each its keys as the columns of panels (the product with queries is the
/// scores), then its values in panels of columns.
pub struct BlockCache {
    isa: Isa,
    numbers: Numbers,
    blocks: usize,
    key_heads: usize,
    head: usize,
    buffer: Buffer,
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { blocks, key_heads, head, numbers, .. } = self;
        write!(f, "BlockCache({blocks} blocks, {key_heads} heads of {head}, {numbers:?})")
    }
}

/// A number that keys and values are kept as.
pub(super) trait Kept: Copy + Default + Send + Sync {
    fn tile(routines: &Routines) -> unsafe fn(usize, &Tile<Self>);
    fn convert(routines: &Routines, from: &[f32], to: &mut [Self]);
    fn all(buffer: &Buffer) -> &[Self];
    fn all_mut(buffer: &mut Buffer) -> &mut [Self];
}

impl Kept for f32 {
    fn tile(routines: &Routines) -> unsafe fn(usize, &Tile) {
        routines.tile
    }

    fn convert(_: &Routines, from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    fn all(buffer: &Buffer) -> &[Self] {
        buffer.floats()
    }

    fn all_mut(buffer: &mut Buffer) -> &mut [Self] {
        buffer.floats_mut()
    }
}

impl Kept for u16 {
    fn tile(routines: &Routines) -> unsafe fn(usize, &Tile<u16>) {
        routines.half_tile
    }

    fn convert(routines: &Routines, from: &[f32], to: &mut [Self]) {
        // SAFETY: an `Isa`, from which routines come, is only made for a CPU that has its level.
        unsafe { (routines.narrow)(from, to) }
    }

    fn all(buffer: &Buffer) -> &[Self] {
        buffer.halves()
    }

    fn all_mut(buffer: &mut Buffer) -> &mut [Self] {
        buffer.halves_mut()
    }
}

/// Where things are in a block, in numbers.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) panel: usize,
    key_heads: usize,
    pub(super) head: usize,
}

impl Layout {
    fn new(isa: Isa, key_heads: usize, head: usize) -> Self {
        Self { panel: isa.routines().panel, key_heads, head }
    }

    fn keys(self) -> usize {
        self.head.saturating_mul(BLOCK_TOKENS)
    }

    fn of_head(self) -> usize {
        self.keys().saturating_add(self.head.next_multiple_of(self.panel).saturating_mul(BLOCK_TOKENS))
    }

    fn of_block(self) -> usize {
        self.of_head().saturating_mul(self.key_heads)
    }

    /// Where the first number of a token's key is; the next ones are `panel` numbers further each.
    pub(super) fn key(self, block: usize, key_head: usize, token: usize) -> usize {
        let place = token / self.panel * self.panel * self.head + token % self.panel;
        block * self.of_block() + key_head * self.of_head() + place
    }

    /// Where a token's value is from `column` on, which begins a panel.
    pub(super) fn value(self, block: usize, key_head: usize, token: usize, column: usize) -> usize {
        let place = self.keys() + column * BLOCK_TOKENS + token * self.panel;
        block * self.of_block() + key_head * self.of_head() + place
    }
}

impl BlockCache {
    /// Zeros: so many blocks for heads of `head` numbers.
    ///
    /// # Errors
    /// No memory.
    pub fn new(
        numbers: Numbers,
        isa: Isa,
        blocks: usize,
        key_heads: usize,
        head: usize,
    ) -> Result<Self, OutOfMemory> {
        let all = Layout::new(isa, key_heads, head).of_block().saturating_mul(blocks);
        let buffer = Buffer::zeroed(numbers.floats(all))?;
        Ok(Self { isa, numbers, blocks, key_heads, head, buffer })
    }

    /// Bytes that [`BlockCache::new`] asks for.
    pub fn bytes(numbers: Numbers, isa: Isa, blocks: usize, key_heads: usize, head: usize) -> usize {
        let all = Layout::new(isa, key_heads, head).of_block().saturating_mul(blocks);
        Buffer::bytes_of(numbers.floats(all))
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Overwrites a block with another.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        assert!(from < self.blocks && to < self.blocks, "block {from} to {to} of {}", self.blocks);
        match self.numbers {
            Numbers::Singles => self.copy_numbers::<f32>(from, to),
            Numbers::Halves => self.copy_numbers::<u16>(from, to),
        }
    }

    /// Overwrites a block with zeros.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn wipe_block(&mut self, block: u32) {
        assert!((block as usize) < self.blocks, "block {block} of {}", self.blocks);
        match self.numbers {
            Numbers::Singles => self.wipe_numbers::<f32>(block as usize),
            Numbers::Halves => self.wipe_numbers::<u16>(block as usize),
        }
    }

    fn wipe_numbers<N: Kept>(&mut self, at: usize) {
        let block = self.layout().of_block();
        N::all_mut(&mut self.buffer)[at * block..(at + 1) * block].fill(N::default());
    }

    fn copy_numbers<N: Kept>(&mut self, from: usize, to: usize) {
        let block = self.layout().of_block();
        N::all_mut(&mut self.buffer).copy_within(from * block..(from + 1) * block, to * block);
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    pub(super) fn numbers(&self) -> Numbers {
        self.numbers
    }

    pub(super) fn key_heads(&self) -> usize {
        self.key_heads
    }

    pub(super) fn layout(&self) -> Layout {
        Layout::new(self.isa, self.key_heads, self.head)
    }

    pub(super) fn all<N: Kept>(&self) -> &[N] {
        N::all(&self.buffer)
    }
}

impl Compute {
    /// Puts keys and values into their places, of row i at `places[i]`: its block times [`BLOCK_TOKENS`], plus the token
    /// in the block. These columns of a row have the keys of all key heads one after another, then their values.
    ///
    /// # Panics
    /// If the shapes disagree, or there is no such place.
    pub fn append_blocks(&self, rows: &Matrix, columns: Range<usize>, places: &[u32], to: &mut BlockCache) {
        assert_eq!(to.isa, self.isa, "made for this level");
        assert!(places.len() <= rows.rows(), "{} rows", places.len());
        assert!(columns.start <= columns.end && columns.end <= rows.columns(), "columns {columns:?}");
        assert_eq!(columns.len(), 2 * to.key_heads * to.head, "keys and values");
        let tokens = to.blocks * BLOCK_TOKENS;
        assert!(places.iter().all(|place| (*place as usize) < tokens), "places below {tokens}");
        match to.numbers {
            Numbers::Singles => self.append_numbers::<f32>(rows, columns.start, places, to),
            Numbers::Halves => self.append_numbers::<u16>(rows, columns.start, places, to),
        }
    }

    fn append_numbers<N: Kept>(&self, rows: &Matrix, column: usize, places: &[u32], to: &mut BlockCache) {
        let (key_heads, layout, routines) = (to.key_heads, to.layout(), self.isa.routines());
        let cache = Shared(N::all_mut(&mut to.buffer).as_mut_ptr());
        // By head, not by row: two rows may have the same place, two heads never do.
        let pack = |item: usize| {
            let key_head = item % key_heads;
            for (row, place) in places.iter().enumerate() {
                let (block, token) = (*place as usize / BLOCK_TOKENS, *place as usize % BLOCK_TOKENS);
                let from = &rows.row(row)[column + item * layout.head..][..layout.head];
                // SAFETY: the place is within the blocks, and each item's numbers are its own: the keys of a head, or its
                // values.
                unsafe {
                    if item < key_heads {
                        let place = cache.at(layout.key(block, key_head, token));
                        pack_key::<N>(routines, from, place, layout.panel);
                    } else {
                        let place = cache.at(layout.value(block, key_head, token, 0));
                        pack_value::<N>(routines, from, place, layout.panel);
                    }
                }
            }
        };
        if places.len() < ROWS_ALONE {
            (0..2 * key_heads).for_each(pack);
        } else {
            self.pool.run(2 * key_heads, &|_, item| pack(item));
        }
    }
}

/// # Safety
/// Every `panel`-th place from `place` on is there, one for each float.
unsafe fn pack_key<N: Kept>(routines: &Routines, from: &[f32], place: *mut N, panel: usize) {
    let mut converted = [N::default(); CONVERTED];
    for (chunk, floats) in from.chunks(CONVERTED).enumerate() {
        let numbers = &mut converted[..floats.len()];
        N::convert(routines, floats, numbers);
        for (i, number) in numbers.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *place.add((chunk * CONVERTED + i) * panel) = *number };
        }
    }
}

/// # Safety
/// From `place` on there is a token's value, in panels of a block.
unsafe fn pack_value<N: Kept>(routines: &Routines, from: &[f32], place: *mut N, panel: usize) {
    for (index, floats) in from.chunks(panel).enumerate() {
        // SAFETY: the caller's promise.
        let place =
            unsafe { std::slice::from_raw_parts_mut(place.add(index * panel * BLOCK_TOKENS), floats.len()) };
        N::convert(routines, floats, place);
    }
}

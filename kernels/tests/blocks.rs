//! Attention over blocks, at every level of this CPU against plain loops in f64.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Generator, close, computes, config};
use proptest::prelude::*;
use ringfence_kernels::{BLOCK_TOKENS, BlockCache, BlockScores, Compute, Matrix, Numbers, Sequence};

#[derive(Clone, Copy, Debug)]
struct Heads {
    key_heads: usize,
    group: usize,
    head: usize,
}

impl Heads {
    fn queries(self) -> usize {
        self.key_heads * self.group * self.head
    }

    fn keys(self) -> usize {
        self.key_heads * self.head
    }
}

/// A sequence: all its rows of queries, keys and values, and the blocks that it got, which are nobody else's.
struct Text {
    rows: Matrix,
    /// Rows that are there before the call.
    before: usize,
    blocks: Vec<u32>,
}

impl Text {
    fn place(&self, position: usize) -> u32 {
        self.blocks[position / BLOCK_TOKENS] * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32
    }

    /// What these kernels keep, exactly.
    fn new(numbers: &mut Generator, heads: Heads, lengths: (usize, usize), free: &mut Vec<u32>) -> Self {
        let count = lengths.0 + lengths.1;
        let mut rows = numbers.matrix(count, heads.queries() + 2 * heads.keys());
        for row in 0..count {
            let kept = &mut rows.row_mut(row)[heads.queries()..];
            kept.iter_mut().for_each(|x| *x = (*x * 64.0).round() / 64.0);
        }
        let blocks = (0..count.div_ceil(BLOCK_TOKENS)).map(|_| free.pop().unwrap()).collect();
        Self { rows, before: lengths.0, blocks }
    }

    fn exact(&self, heads: Heads, row: usize, column: usize) -> f64 {
        let Heads { group, head, .. } = heads;
        let key = heads.queries() + column / head / group * head;
        let value = key + heads.keys() + column % head;
        let query = &self.rows.row(row)[column / head * head..][..head];
        let score = |token: usize| {
            let keys = &self.rows.row(token)[key..][..head];
            let product: f64 = query.iter().zip(keys).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (product / (head as f64).sqrt()).exp()
        };
        let scores: Vec<f64> = (0..=row).map(score).collect();
        let total: f64 = scores.iter().sum();
        let weigh = |(token, score): (usize, &f64)| score / total * f64::from(self.rows.row(token)[value]);
        scores.iter().enumerate().map(weigh).sum()
    }
}

fn batch(texts: &[Text]) -> (Matrix, Vec<Sequence<'_>>) {
    let count: usize = texts.iter().map(|text| text.rows.rows() - text.before).sum();
    let mut all = Matrix::zeroed(count, texts[0].rows.columns()).unwrap();
    let mut sequences = Vec::new();
    let mut next = 0;
    for text in texts {
        let start = next;
        for row in text.before..text.rows.rows() {
            all.row_mut(next).copy_from_slice(text.rows.row(row));
            next += 1;
        }
        sequences.push(Sequence { rows: start..next, first: text.before, blocks: &text.blocks });
    }
    (all, sequences)
}

/// The batch's results; what was before is put there first.
fn attend(compute: &Compute, kept: Numbers, heads: Heads, texts: &[Text], blocks: usize) -> Matrix {
    let Heads { key_heads, group, head } = heads;
    let isa = compute.isa();
    let columns = heads.queries()..heads.queries() + 2 * heads.keys();
    let mut cache = BlockCache::new(kept, isa, blocks, key_heads, head).unwrap();
    // What a poisoned sequence left in every block reaches nobody.
    let mut poison = Matrix::zeroed(1, 2 * heads.keys()).unwrap();
    poison.row_mut(0).fill(f32::NAN);
    (0..(blocks * BLOCK_TOKENS) as u32).for_each(|place| {
        compute.append_blocks(&poison, 0..poison.columns(), &[place], &mut cache);
    });
    for text in texts {
        let places: Vec<u32> = (0..text.before).map(|position| text.place(position)).collect();
        compute.append_blocks(&text.rows, columns.clone(), &places, &mut cache);
    }
    let (rows, sequences) = batch(texts);
    let places = texts.iter().flat_map(|text| (text.before..text.rows.rows()).map(|p| text.place(p)));
    compute.append_blocks(&rows, columns, &places.collect::<Vec<_>>(), &mut cache);
    let tokens = texts.iter().map(|text| text.rows.rows()).max().unwrap();
    let mut scratch = BlockScores::new(isa, 2, rows.rows(), tokens, group, head).unwrap();
    let mut to = Matrix::zeroed(rows.rows(), heads.queries()).unwrap();
    compute.attend_blocks(&rows, &sequences, &cache, &mut scratch, &mut to);
    to
}

fn check(seed: u64, kept: Numbers, heads: Heads, lengths: &[(usize, usize)]) {
    let mut numbers = Generator(seed);
    let blocks: usize = lengths.iter().map(|(a, b)| (a + b).div_ceil(BLOCK_TOKENS)).sum();
    // Neighbours in a sequence are no neighbours in the cache.
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    free.sort_by_key(|block| block.wrapping_mul(2_654_435_761));
    let texts: Vec<Text> =
        lengths.iter().map(|lengths| Text::new(&mut numbers, heads, *lengths, &mut free)).collect();
    for compute in computes() {
        let to = attend(&compute, kept, heads, &texts, blocks);
        let mut next = 0;
        for text in &texts {
            let alone = attend(&compute, kept, heads, std::slice::from_ref(text), blocks);
            for row in text.before..text.rows.rows() {
                for column in 0..heads.queries() {
                    let (value, exact) = (to.row(next)[column], text.exact(heads, row, column));
                    close(value, exact, 3e-6, &format!("{:?} row {row} column {column}", compute.isa()));
                }
                assert_eq!(to.row(next), alone.row(row - text.before), "the same alone");
                next += 1;
            }
        }
    }
}

fn kept() -> impl Strategy<Value = Numbers> {
    prop_oneof![Just(Numbers::Singles), Just(Numbers::Halves)]
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn rows_attend_to_their_sequence_up_to_themselves(
        seed: u64, kept in kept(), key_heads in 1usize..4, group in 1usize..5, head in 1usize..70,
        lengths in prop::collection::vec((0usize..70, 0usize..12), 1..5),
    ) {
        check(seed, kept, Heads { key_heads, group, head }, &lengths);
    }
}

#[test]
fn a_long_sequence_is_split_and_nothing_changes() {
    let heads = Heads { key_heads: 3, group: 3, head: 16 };
    for kept in [Numbers::Singles, Numbers::Halves] {
        check(1, kept, heads, &[(600, 1)]);
        check(2, kept, heads, &[(30, 1), (255, 1), (700, 1), (256, 1), (0, 1), (1, 1)]);
        check(3, kept, heads, &[(500, 40), (0, 3), (700, 2)]);
    }
}

#[test]
fn a_block_is_copied() {
    let heads = Heads { key_heads: 2, group: 1, head: 8 };
    for compute in computes() {
        let mut numbers = Generator(5);
        let text = Text { before: 0, blocks: vec![2], rows: numbers.matrix(20, 16 + 32) };
        let mut cache = BlockCache::new(Numbers::Halves, compute.isa(), 4, 2, 8).unwrap();
        let places: Vec<u32> = (0..20).map(|position| text.place(position)).collect();
        compute.append_blocks(&text.rows, 16..48, &places, &mut cache);
        cache.copy_block(2, 1);
        let mut scratch = BlockScores::new(compute.isa(), 2, 20, 20, 1, 8).unwrap();
        let [original, copy] = [2, 1].map(|block| {
            let mut to = Matrix::zeroed(20, heads.queries()).unwrap();
            let sequence = Sequence { rows: 0..20, first: 0, blocks: &[block] };
            compute.attend_blocks(&text.rows, &[sequence], &cache, &mut scratch, &mut to);
            (0..20).map(|row| to.row(row).to_vec()).collect::<Vec<_>>()
        });
        assert_eq!(original, copy);
    }
}

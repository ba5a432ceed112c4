//! Tokens a second of a network of SmolLM2-135M's shape with made-up weights, all that a forward pass does but looking up
//! and sampling: `cargo run --release -p ringfence-kernels --example tokens [threads] [kind] [tokens so far]`.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

mod support;

use ringfence_kernels::{
    BLOCK_TOKENS, BlockCache, BlockKind, BlockScores, Compute, Isa, Matrix, Numbers, Pool, Quantised,
    Sequence, Turns,
};
use std::time::Instant;
use support::{Kind, Result, Weights};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const INNER: usize = 1536;
const HEADS: usize = 9;
const KEY_HEADS: usize = 3;
const HEAD: usize = 64;
const KEYS: usize = KEY_HEADS * HEAD;
const VOCABULARY: usize = 49_152;
const ROUNDS: usize = 9;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(Ok(2), |threads| threads.parse())?;
    let kind = match arguments.next().as_deref() {
        Some("f32") => Kind::Floats(Numbers::Singles),
        Some("f16") => Kind::Floats(Numbers::Halves),
        Some("q4_0") => Kind::Blocks(BlockKind::Q4_0),
        Some("q4_1") => Kind::Blocks(BlockKind::Q4_1),
        _ => Kind::Blocks(BlockKind::Q8_0),
    };
    let before = arguments.next().map_or(Ok(64), |tokens| tokens.parse())?;
    let compute = Compute::new(Isa::detect(), Pool::new(threads)?);
    println!("{:?}, {threads} threads, {before} tokens before", compute.isa());
    let network = Network::new(compute.isa(), kind)?;
    for (sequences, rows) in [(1, 1), (8, 1), (1, 128), (1, 512)] {
        let mut batch = Batch::new(&compute, sequences, rows, before)?;
        let mut times: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                batch.forward(&compute, &network);
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let (best, median) = (times[0], times[ROUNDS / 2]);
        let count = (sequences * rows) as f64;
        println!(
            "{sequences} sequences of {rows} rows: median {:.2} ms, {:.0} tokens/s; best {:.2} ms, {:.0} tokens/s",
            median * 1e3,
            count / median,
            best * 1e3,
            count / best
        );
    }
    Ok(())
}

struct Layer {
    qkv: Weights,
    output: Weights,
    gate_up: Weights,
    down: Weights,
}

struct Network {
    layers: Vec<Layer>,
    head: Weights,
    norm: Vec<f32>,
}

impl Network {
    fn new(isa: Isa, kind: Kind) -> Result<Self> {
        let weights = |inputs, outputs| Weights::new(isa, kind, inputs, outputs);
        let layer = || {
            Ok(Layer {
                qkv: weights(HIDDEN, HIDDEN + 2 * KEYS)?,
                output: weights(HIDDEN, HIDDEN)?,
                gate_up: weights(HIDDEN, 2 * INNER)?,
                down: weights(INNER, HIDDEN)?,
            })
        };
        Ok(Self {
            layers: (0..LAYERS).map(|_| layer()).collect::<Result<_>>()?,
            head: weights(HIDDEN, VOCABULARY)?,
            norm: vec![1.0; HIDDEN],
        })
    }
}

/// Sequences with as many rows each, and all that a pass writes to.
struct Batch {
    sequences: usize,
    rows: usize,
    before: usize,
    blocks: Vec<Vec<u32>>,
    places: Vec<u32>,
    turns: Turns,
    caches: Vec<BlockCache>,
    scores: BlockScores,
    quantised: Quantised,
    x: Matrix,
    normed: Matrix,
    qkv: Matrix,
    attended: Matrix,
    added: Matrix,
    gate_up: Matrix,
    inner: Matrix,
    last: Matrix,
    logits: Matrix,
}

impl Batch {
    fn new(compute: &Compute, sequences: usize, rows: usize, before: usize) -> Result<Self> {
        let (isa, threads) = (compute.isa(), compute.pool().threads());
        let all = sequences * rows;
        let each = (before + rows).div_ceil(BLOCK_TOKENS);
        let blocks: Vec<Vec<u32>> =
            (0..sequences).map(|s| (0..each).map(|block| (block * sequences + s) as u32).collect()).collect();
        let place = |row: usize| {
            let (blocks, position) = (&blocks[row / rows], before + row % rows);
            blocks[position / BLOCK_TOKENS] * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32
        };
        let places = (0..all).map(place).collect();
        let mut turns = Turns::new(all, HEAD)?;
        let frequencies: Vec<f64> =
            (0..HEAD / 2).map(|i| 1e5f64.powf(-2.0 * i as f64 / HEAD as f64)).collect();
        (0..all).for_each(|row| turns.set(row, before + row % rows, &frequencies));
        let cache = || BlockCache::new(Numbers::Halves, isa, each * sequences, KEY_HEADS, HEAD);
        let mut x = Matrix::zeroed(all, HIDDEN)?;
        (0..all).for_each(|row| x.row_mut(row).fill(0.1));
        Ok(Self {
            sequences,
            rows,
            before,
            places,
            blocks,
            turns,
            caches: (0..LAYERS).map(|_| Ok(cache()?)).collect::<Result<_>>()?,
            scores: BlockScores::new(isa, threads, all, before + rows, HEADS / KEY_HEADS, HEAD)?,
            quantised: Quantised::new(all, INNER)?,
            x,
            normed: Matrix::zeroed(all, HIDDEN)?,
            qkv: Matrix::zeroed(all, HIDDEN + 2 * KEYS)?,
            attended: Matrix::zeroed(all, HIDDEN)?,
            added: Matrix::zeroed(all, HIDDEN)?,
            gate_up: Matrix::zeroed(all, 2 * INNER)?,
            inner: Matrix::zeroed(all, INNER)?,
            last: Matrix::zeroed(sequences, HIDDEN)?,
            logits: Matrix::zeroed(sequences, VOCABULARY)?,
        })
    }

    fn forward(&mut self, compute: &Compute, network: &Network) {
        for (index, layer) in network.layers.iter().enumerate() {
            self.attention(compute, layer, index, &network.norm);
            self.feed_forward(compute, layer, &network.norm);
        }
        for sequence in 0..self.sequences {
            self.last.row_mut(sequence).copy_from_slice(self.x.row((sequence + 1) * self.rows - 1));
        }
        network.head.times(compute, &self.last, self.sequences, &mut self.quantised, &mut self.logits);
    }

    fn attention(&mut self, compute: &Compute, layer: &Layer, index: usize, norm: &[f32]) {
        let all = self.places.len();
        compute.rms_norm(&self.x, 0..all, norm, 1e-5, &mut self.normed);
        layer.qkv.times(compute, &self.normed, all, &mut self.quantised, &mut self.qkv);
        compute.rotate(&mut self.qkv, all, 0..HIDDEN + KEYS, HEAD, &self.turns);
        let keys = HIDDEN..HIDDEN + 2 * KEYS;
        compute.append_blocks(&self.qkv, keys, &self.places, &mut self.caches[index]);
        let sequence =
            |(i, blocks)| Sequence { rows: i * self.rows..(i + 1) * self.rows, first: self.before, blocks };
        let blocks = self.blocks.iter().map(Vec::as_slice);
        let sequences: Vec<Sequence<'_>> = blocks.enumerate().map(sequence).collect();
        let cache = &self.caches[index];
        compute.attend_blocks(&self.qkv, &sequences, cache, &mut self.scores, &mut self.attended);
        layer.output.times(compute, &self.attended, all, &mut self.quantised, &mut self.added);
        compute.add(&mut self.x, 0..all, &self.added);
    }

    fn feed_forward(&mut self, compute: &Compute, layer: &Layer, norm: &[f32]) {
        let all = self.places.len();
        compute.rms_norm(&self.x, 0..all, norm, 1e-5, &mut self.normed);
        layer.gate_up.times(compute, &self.normed, all, &mut self.quantised, &mut self.gate_up);
        compute.gate(&self.gate_up, all, &mut self.inner);
        layer.down.times(compute, &self.inner, all, &mut self.quantised, &mut self.added);
        compute.add(&mut self.x, 0..all, &self.added);
    }
}

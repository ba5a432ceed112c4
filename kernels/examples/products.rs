//! How fast the kernels of text generation are at the shapes of SmolLM2-135M, beside what the memory gives:
//! `cargo run --release -p ringfence-kernels --example products [threads] [kind]`.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

mod support;

use ringfence_kernels::{
    BLOCK_TOKENS, BlockCache, BlockKind, BlockScores, Compute, Isa, Matrix, Numbers, Pool, Quantised,
    Sequence,
};
use std::hint::black_box;
use std::time::Instant;
use support::{Kind, Result, Weights};

/// Inputs, outputs, and how many of them a token goes through.
const SHAPES: [(usize, usize, usize); 5] =
    [(576, 576, 60), (576, 192, 60), (576, 1536, 60), (1536, 576, 30), (576, 49_152, 1)];
const ROWS: [usize; 3] = [1, 8, 512];
/// More than caches hold: every product reads weights that were not read for long.
const COLD_BYTES: usize = 160 << 20;
const ROUNDS: usize = 7;
const LAYERS: usize = 30;

const KINDS: [Kind; 6] = [
    Kind::Floats(Numbers::Singles),
    Kind::Floats(Numbers::Halves),
    Kind::Blocks(BlockKind::Q8_0),
    Kind::Blocks(BlockKind::Q4_0),
    Kind::Blocks(BlockKind::Q4_1),
    Kind::Blocks(BlockKind::Q4K),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(Ok(2), |threads| threads.parse())?;
    let only = arguments.next();
    let compute = Compute::new(Isa::detect(), Pool::new(threads)?);
    println!("{:?}, {threads} threads", compute.isa());
    println!("memory is read at {:.1} GB/s", read_bandwidth(&compute)?);
    for kind in KINDS {
        if only.as_ref().is_none_or(|only| format!("{kind:?}").to_lowercase().contains(&only.to_lowercase()))
        {
            products(&compute, kind)?;
        }
    }
    if only.as_ref().is_none_or(|only| only == "attention") {
        for numbers in [Numbers::Singles, Numbers::Halves] {
            for (rows, tokens) in [(1, 512), (1, 4000), (128, 512), (128, 4000)] {
                attention(&compute, numbers, rows, tokens)?;
            }
        }
    }
    Ok(())
}

/// Seconds: the median of some rounds.
fn median(mut round: impl FnMut()) -> f64 {
    round();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn read_bandwidth(compute: &Compute) -> Result<f64> {
    const ROW: usize = 1 << 16;
    let rows = COLD_BYTES / ROW / 4;
    let mut memory = Matrix::zeroed(rows, ROW)?;
    (0..rows).for_each(|row| memory.row_mut(row).fill(1.0));
    let seconds = median(|| {
        compute.pool().run(rows, &|_, row| {
            let mut sums = [0u32; 32];
            for chunk in memory.row(row).as_chunks::<32>().0 {
                sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum ^= x.to_bits());
            }
            black_box(sums);
        });
    });
    Ok((rows * ROW * 4) as f64 / seconds / 1e9)
}

fn bytes(kind: Kind, weights: usize) -> usize {
    match kind {
        Kind::Floats(numbers) => weights * numbers.bytes(),
        Kind::Blocks(kind) => weights / kind.weights() * kind.bytes(),
    }
}

fn products(compute: &Compute, kind: Kind) -> Result<()> {
    println!("{kind:?}");
    let mut whole = [0.0; ROWS.len()];
    for (inputs, outputs, times) in SHAPES {
        if matches!(kind, Kind::Blocks(kind) if inputs % kind.weights() != 0) {
            continue;
        }
        let copies = (COLD_BYTES / bytes(kind, inputs * outputs)).clamp(1, 256);
        let weights = (0..copies)
            .map(|_| Weights::new(compute.isa(), kind, inputs, outputs))
            .collect::<Result<Vec<_>>>()?;
        print!("  {inputs:>5} x {outputs:<5}");
        for (rows, whole) in ROWS.into_iter().zip(&mut whole) {
            let seconds = product(compute, &weights, rows, inputs, outputs)?;
            let (read, multiplied) = (bytes(kind, inputs * outputs), 2 * rows * inputs * outputs);
            print!("   {rows:>3} rows {:>8.1} us", seconds * 1e6);
            if rows == 512 {
                print!(" {:>6.1} GFLOP/s", multiplied as f64 / seconds / 1e9);
            } else {
                print!(" {:>5.1} GB/s", read as f64 / seconds / 1e9);
            }
            // Of a prefill only the last token goes through the head.
            *whole += if rows == 512 && times == 1 { 0.0 } else { seconds * times as f64 };
        }
        println!();
    }
    print!("  products of all layers:");
    for (rows, seconds) in ROWS.into_iter().zip(whole) {
        print!("  {rows} rows {:.0} tokens/s", rows as f64 / seconds);
    }
    println!();
    Ok(())
}

/// Seconds of one product.
fn product(
    compute: &Compute,
    weights: &[Weights],
    rows: usize,
    inputs: usize,
    outputs: usize,
) -> Result<f64> {
    let mut input = Matrix::zeroed(rows, inputs)?;
    (0..rows).for_each(|row| input.row_mut(row).fill(0.25));
    let mut output = Matrix::zeroed(rows, outputs)?;
    let mut scratch = Quantised::new(rows, inputs)?;
    let weights = if rows == 512 { &weights[..weights.len().min(4)] } else { weights };
    let seconds = median(|| {
        for weights in weights {
            weights.times(compute, &input, rows, &mut scratch, &mut output);
        }
    });
    Ok(seconds / weights.len() as f64)
}

fn attention(compute: &Compute, numbers: Numbers, rows: usize, tokens: usize) -> Result<()> {
    const HEADS: [usize; 3] = [9, 3, 64];
    let [heads, key_heads, head] = HEADS;
    let (isa, threads) = (compute.isa(), compute.pool().threads());
    let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).rev().collect();
    let caches = (0..LAYERS)
        .map(|_| Ok(BlockCache::new(numbers, isa, blocks.len(), key_heads, head)?))
        .collect::<Result<Vec<_>>>()?;
    let mut scratch = BlockScores::new(isa, threads, rows, tokens, heads / key_heads, head)?;
    let (queries, mut to) = (Matrix::zeroed(rows, heads * head)?, Matrix::zeroed(rows, heads * head)?);
    let sequence = Sequence { rows: 0..rows, first: tokens - rows, blocks: &blocks };
    let seconds = median(|| {
        for cache in &caches {
            compute.attend_blocks(&queries, std::slice::from_ref(&sequence), cache, &mut scratch, &mut to);
        }
    });
    let read = LAYERS * tokens * 2 * key_heads * head * numbers.bytes();
    let multiplied = LAYERS * 4 * rows * heads * head * (tokens - rows / 2);
    print!("attention, {numbers:?}: {rows} rows to {tokens} tokens, all layers {:.2} ms", seconds * 1e3);
    println!(", {:.1} GB/s, {:.1} GFLOP/s", read as f64 / seconds / 1e9, multiplied as f64 / seconds / 1e9);
    Ok(())
}

//! Every kernel, with both ways to reduce and each to multiply, against plain loops in f64, over random shapes, empty and odd ones included.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use proptest::prelude::*;
use ringfence_gpu::{ATTENTION_WORDS_PER_ROW, Activation, Convolution, Gpu, Products, Seen, Stored};
use support::{Numbers, close, config, matrix, on_each, read};

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Gelu, Activation::Silu];

fn gelu(x: f64) -> f64 {
    // Simpson's rule over the normal density.
    let steps = 400;
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let width = x / f64::from(steps);
    let sum: f64 = (0..steps)
        .map(|i| {
            let from = f64::from(i) * width;
            (density(from) + 4.0 * density(from + width / 2.0) + density(from + width)) * width / 6.0
        })
        .sum();
    x * (0.5 + sum)
}

fn activate(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Gelu => gelu(x),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Weights as they are stored.
fn rounded(weights: &[f32], stored: Stored) -> Vec<f32> {
    match stored {
        Stored::F32 => weights.to_vec(),
        Stored::F16 => weights.iter().map(|weight| half::f16::from_f32(*weight).to_f32()).collect(),
    }
}

struct Linear<'a> {
    seed: u64,
    rows: usize,
    inputs: usize,
    outputs: &'a [usize],
    activation: Activation,
    stored: Stored,
}

/// Checks a product and says over how many buffers its weights were split.
fn check_linear(gpu: &Gpu, case: &Linear<'_>) -> usize {
    let Linear { rows, inputs, activation, stored, .. } = *case;
    let mut numbers = Numbers(case.seed);
    let input = numbers.vector(rows * inputs);
    let layers: Vec<(Vec<f32>, Vec<f32>)> =
        case.outputs.iter().map(|n| (numbers.vector(n * inputs), numbers.vector(*n))).collect();
    let borrowed: Vec<(&[f32], &[f32])> = layers.iter().map(|(w, b)| (&w[..], &b[..])).collect();
    let weights = gpu.linear_weights(inputs, &borrowed, stored).unwrap();
    let columns = weights.outputs();
    let beyond = numbers.vector((rows + 1) * columns);
    let mut to = matrix(gpu, rows + 1, columns, &beyond);
    gpu.linear(&matrix(gpu, rows, inputs, &input), rows, &weights, activation, &mut to);
    let products = match (stored, rows) {
        (Stored::F32, _) | (_, ..5) => Products::Singles,
        (Stored::F16, ..33) => gpu.products().min(Products::Halves),
        (Stored::F16, _) => gpu.products(),
    };
    let tolerance = match products {
        Products::Singles => 2e-6,
        Products::Cooperative => 1e-5,
        // Four products at a time are rounded to halves, by at most 13 / 2048 for numbers below 1: so much for four inputs,
        // and for more far less than so much each.
        Products::Halves => 8e-4,
    };
    let input = rounded(&input, if products == Products::Singles { Stored::F32 } else { Stored::F16 });
    let mut exact = Vec::new();
    for row in 0..rows {
        for (weight, bias) in &layers {
            let weight = rounded(weight, stored);
            exact.extend(bias.iter().enumerate().map(|(i, bias)| {
                let sum = dot(&input[row * inputs..][..inputs], &weight[i * inputs..][..inputs]);
                activate(sum + f64::from(*bias), activation)
            }));
        }
    }
    exact.extend(beyond[rows * columns..].iter().map(|x| f64::from(*x)));
    close(
        &read(gpu, &to),
        &exact,
        tolerance * (inputs as f64 + 4.0),
        &format!("{stored:?} {activation:?}, {products:?}"),
    );
    weights.parts()
}

fn starts_of(lengths: &[usize]) -> Vec<usize> {
    let sums = lengths.iter().scan(0, |at, length| {
        *at += length;
        Some(*at)
    });
    std::iter::once(0).chain(sums).collect()
}

fn check_attention(gpu: &Gpu, seed: u64, lengths: &[usize], heads: usize, head: usize) {
    let starts = starts_of(lengths);
    let (rows, width) = (starts[lengths.len()], heads * head);
    let qkv = Numbers(seed).vector(rows * 3 * width);
    let mut to = gpu.matrix(rows, width).unwrap();
    let mut words = gpu.words(ATTENTION_WORDS_PER_ROW * rows).unwrap();
    gpu.attention(&matrix(gpu, rows, 3 * width, &qkv), &starts, head, &mut words, &mut to);
    let part = |row: usize, part: usize, first: usize| &qkv[row * 3 * width + part * width + first..][..head];
    let mut exact = Vec::new();
    for span in starts.windows(2) {
        for row in span[0]..span[1] {
            for first in (0..width).step_by(head) {
                let score =
                    |key| (dot(part(row, 0, first), part(key, 1, first)) / (head as f64).sqrt()).exp();
                let total: f64 = (span[0]..span[1]).map(score).sum();
                exact.extend((0..head).map(|i| {
                    let weighed = |key| score(key) / total * f64::from(part(key, 2, first)[i]);
                    (span[0]..span[1]).map(weighed).sum::<f64>()
                }));
            }
        }
    }
    close(&read(gpu, &to), &exact, 3e-6, "attention");
}

fn check_attend(gpu: &Gpu, seed: u64, [before, rows]: [usize; 2], heads: usize, head: usize, causal: bool) {
    let (tokens, width) = (before + rows, heads * head);
    let mut numbers = Numbers(seed);
    let queries = numbers.vector(rows * width);
    let kept = numbers.vector(tokens * 2 * width);
    let mut to = gpu.matrix(rows, width).unwrap();
    // Keys and values come in two pieces.
    let mut memory = matrix(gpu, tokens + 1, 2 * width, &kept[..before * 2 * width]);
    gpu.put(&mut memory, before, &matrix(gpu, rows, 2 * width, &kept[before * 2 * width..]), rows);
    let seen = if causal { Seen::Before(before) } else { Seen::All(tokens) };
    gpu.attend(&matrix(gpu, rows, width, &queries), rows, &memory, seen, head, &mut to);
    let kept = |token: usize, first: usize| &kept[token * 2 * width + first..][..head];
    let mut exact = Vec::new();
    for row in 0..rows {
        let end = if causal { before + row + 1 } else { tokens };
        for first in (0..width).step_by(head) {
            let query = &queries[row * width + first..][..head];
            let score = |token| (dot(query, kept(token, first)) / (head as f64).sqrt()).exp();
            let total: f64 = (0..end).map(score).sum();
            exact.extend((0..head).map(|i| {
                let weighed = |token| score(token) / total * f64::from(kept(token, width + first)[i]);
                (0..end).map(weighed).sum::<f64>()
            }));
        }
    }
    close(&read(gpu, &to), &exact, 3e-6, "attend");
}

/// Normalises some rows, adds to them, and what a convolution over the rows multiplies with its weights.
fn check_parts(gpu: &Gpu, seed: u64, [before, rows]: [usize; 2], columns: usize, how: Convolution) {
    let mut numbers = Numbers(seed);
    let all = before + rows + 1;
    let (start, added) = (numbers.vector(all * columns), numbers.vector(rows * columns));
    let (weight, bias) = (numbers.vector(columns), numbers.vector(columns));
    let norm = gpu.norm_weights(&weight, Some(&bias), 1e-3).unwrap();
    let (mut x, mut to) = (matrix(gpu, all, columns, &start), gpu.matrix(rows, columns).unwrap());
    gpu.layer_norm(&x, before..before + rows, &norm, &mut to);
    let mut same = matrix(gpu, rows, columns, &start[before * columns..][..rows * columns]);
    gpu.add_layer_norm(&mut same, &gpu.matrix(rows, columns).unwrap(), rows, &norm);
    let same: Vec<f64> = read(gpu, &same).into_iter().map(f64::from).collect();
    close(&read(gpu, &to), &same, 1e-6, "layer norm");
    let mut unfolded = gpu.matrix(rows, 3 * columns).unwrap();
    gpu.unfold(&x, all - 1, how, before..before + rows, &mut unfolded);
    let step = |result: usize, tap: usize| {
        (result * how.stride + tap).checked_sub(how.padding).filter(|step| *step < all - 1)
    };
    let taps = (before..before + rows).flat_map(|result| (0..3).map(move |tap| step(result, tap)));
    let row = |step: Option<usize>| {
        let float = |i| step.map_or(0.0, |step: usize| f64::from(start[step * columns + i]));
        (0..columns).map(float).collect::<Vec<_>>()
    };
    close(&read(gpu, &unfolded), &taps.flat_map(row).collect::<Vec<_>>(), 0.0, "unfold");
    gpu.add_rows(&mut x, before..before + rows, &matrix(gpu, rows, columns, &added));
    let mut exact: Vec<f64> = start.iter().map(|x| f64::from(*x)).collect();
    exact[before * columns..].iter_mut().zip(&added).for_each(|(x, y)| *x += f64::from(*y));
    close(&read(gpu, &x), &exact, 1e-6, "sums");
}

fn check_norms(gpu: &Gpu, seed: u64, rows: usize, columns: usize) {
    let mut numbers = Numbers(seed);
    let (start, added) = (numbers.vector(rows * columns), numbers.vector(rows * columns));
    let (weight, bias) = (numbers.vector(columns), numbers.vector(columns));
    let mut x = matrix(gpu, rows, columns, &start);
    let norm = gpu.norm_weights(&weight, Some(&bias), 1e-3).unwrap();
    gpu.add_layer_norm(&mut x, &matrix(gpu, rows, columns, &added), rows, &norm);
    let mut rms = gpu.matrix(rows, columns).unwrap();
    let norm = gpu.norm_weights(&weight, None, 1e-3).unwrap();
    gpu.rms_norm(&matrix(gpu, rows, columns, &start), rows, &norm, &mut rms);
    let (mut layer_exact, mut rms_exact) = (Vec::new(), Vec::new());
    for (start, added) in start.chunks(columns).zip(added.chunks(columns)) {
        let sums: Vec<f64> = start.iter().zip(added).map(|(a, b)| f64::from(a + b)).collect();
        let mean = sums.iter().sum::<f64>() / columns as f64;
        let variance = sums.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
        let square = dot(start, start) / columns as f64;
        for i in 0..columns {
            let unit = (sums[i] - mean) / (variance + 1e-3).sqrt();
            layer_exact.push(unit * f64::from(weight[i]) + f64::from(bias[i]));
            rms_exact.push(f64::from(start[i]) / (square + 1e-3).sqrt() * f64::from(weight[i]));
        }
    }
    close(&read(gpu, &x), &layer_exact, 2e-5, "layer norm");
    close(&read(gpu, &rms), &rms_exact, 2e-5, "RMS norm");
}

fn check_rows(gpu: &Gpu, seed: u64, rows: usize, columns: usize) {
    let start = Numbers(seed).vector(rows * columns);
    let mut soft = matrix(gpu, rows, columns, &start);
    gpu.softmax(&mut soft, rows, 1.7);
    let mut unit = matrix(gpu, rows, columns, &start);
    gpu.normalize(&mut unit, rows);
    // Few different values, so that there are ties.
    let coarse: Vec<f32> = start.iter().map(|x| (x * 4.0).round()).collect();
    let mut places = gpu.words(rows).unwrap();
    gpu.argmax(&matrix(gpu, rows, columns, &coarse), rows, &mut places);
    let (mut soft_exact, mut unit_exact, mut largest) = (Vec::new(), Vec::new(), Vec::new());
    for (row, coarse) in start.chunks(columns).zip(coarse.chunks(columns)) {
        let powers: Vec<f64> = row.iter().map(|x| (1.7 * f64::from(*x)).exp()).collect();
        soft_exact.extend(powers.iter().map(|power| power / powers.iter().sum::<f64>()));
        let length = dot(row, row).sqrt().max(1e-12);
        unit_exact.extend(row.iter().map(|x| f64::from(*x) / length));
        let most = coarse.iter().copied().fold(f32::MIN, f32::max);
        largest.push(coarse.iter().position(|x| *x == most).unwrap() as u32);
    }
    close(&read(gpu, &soft), &soft_exact, 2e-6, "softmax");
    close(&read(gpu, &unit), &unit_exact, 2e-6, "normalize");
    let mut found = Vec::new();
    gpu.read_numbers(&places, rows, &mut found).unwrap();
    assert_eq!(found, largest, "argmax");
}

fn check_elements(gpu: &Gpu, seed: u64, rows: usize, columns: usize) {
    let mut numbers = Numbers(seed);
    let (start, added) = (numbers.vector(rows * columns), numbers.vector(rows * columns));
    let start: Vec<f32> = start.iter().map(|x| x * 6.0).collect();
    let mut x = matrix(gpu, rows, columns, &start);
    gpu.add(&mut x, &matrix(gpu, rows, columns, &added), rows);
    let exact: Vec<f64> = start.iter().zip(&added).map(|(a, b)| f64::from(a + b)).collect();
    close(&read(gpu, &x), &exact, 0.0, "add");
    for activation in ACTIVATIONS {
        let mut x = matrix(gpu, rows, columns, &start);
        gpu.activate(&mut x, rows, activation);
        let exact: Vec<f64> = start.iter().map(|x| activate(f64::from(*x), activation)).collect();
        close(&read(gpu, &x), &exact, 5e-6, &format!("{activation:?}"));
    }
}

fn check_rope(gpu: &Gpu, seed: u64, rows: usize, heads: usize, half: usize) {
    const POSITIONS: usize = 50;
    let mut numbers = Numbers(seed);
    let (before, head) = (3, 2 * half);
    let columns = before + heads * head + 1;
    let start = numbers.vector(rows * columns);
    let positions: Vec<u32> = (0..rows).map(|_| numbers.below(POSITIONS) as u32).collect();
    let turns = gpu.rope_turns(POSITIONS, head, 10_000.0).unwrap();
    let mut x = matrix(gpu, rows, columns, &start);
    let mut words = gpu.words(rows).unwrap();
    gpu.rope(&mut x, before..before + heads * head, &positions, &turns, &mut words);
    let mut exact: Vec<f64> = start.iter().map(|x| f64::from(*x)).collect();
    for (row, position) in exact.chunks_mut(columns).zip(&positions) {
        for head in row[before..before + heads * head].chunks_mut(head) {
            for i in 0..half {
                let angle = f64::from(*position) * 10_000f64.powf(-(i as f64) / half as f64);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
    }
    close(&read(gpu, &x), &exact, 1e-6, "rope");
}

/// Checks a table and says over how many buffers it was split.
fn check_lookup(gpu: &Gpu, seed: u64, rows: usize, columns: usize, count: usize) -> usize {
    let mut numbers = Numbers(seed);
    let floats = numbers.vector(rows * columns);
    let ids: Vec<u32> = (0..count).map(|_| numbers.below(rows) as u32).collect();
    let mut parts = 0;
    for stored in [Stored::F32, Stored::F16] {
        let bytes: Vec<u8> = match stored {
            Stored::F32 => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Stored::F16 => floats.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        };
        let table = gpu.table(columns, &bytes, stored).unwrap();
        let (mut words, mut to) = (gpu.words(count).unwrap(), gpu.matrix(count, columns).unwrap());
        gpu.lookup(&table, &ids, &mut words, &mut to);
        let floats = rounded(&floats, stored);
        let row = |id: &u32| floats[*id as usize * columns..][..columns].to_vec();
        let exact: Vec<f64> = ids.iter().flat_map(row).map(f64::from).collect();
        close(&read(gpu, &to), &exact, 0.0, &format!("{stored:?}"));
        parts = table.parts();
    }
    parts
}

fn check_pool(gpu: &Gpu, seed: u64, lengths: &[usize], columns: usize) {
    let starts = starts_of(lengths);
    let rows = starts[lengths.len()];
    let floats = Numbers(seed).vector(rows * columns);
    let x = matrix(gpu, rows, columns, &floats);
    let mut words = gpu.words(2 * lengths.len()).unwrap();
    let mut to = gpu.matrix(lengths.len(), columns).unwrap();
    let row = |row: usize| floats[row * columns..][..columns].iter().map(|x| f64::from(*x));
    gpu.pool_first(&x, &starts, &mut words, &mut to);
    let exact: Vec<f64> = starts[..lengths.len()].iter().flat_map(|start| row(*start)).collect();
    close(&read(gpu, &to), &exact, 0.0, "first");
    gpu.pool_mean(&x, &starts, &mut words, &mut to);
    let mean = |span: &[usize]| -> Vec<f64> {
        let column = |i| (span[0]..span[1]).map(|r| row(r).nth(i).unwrap()).sum::<f64>();
        (0..columns).map(|i| column(i) / (span[1] - span[0]) as f64).collect()
    };
    let exact: Vec<f64> = starts.windows(2).flat_map(mean).collect();
    close(&read(gpu, &to), &exact, 1e-6, "mean");
}

fn check_conv(gpu: &Gpu, seed: u64, steps: usize, shape: [usize; 3], how: Convolution) {
    let [channels, outputs, kernel] = shape;
    let mut numbers = Numbers(seed);
    let input = numbers.vector(steps * channels);
    let (weight, bias) = (numbers.vector(outputs * channels * kernel), numbers.vector(outputs));
    let weights = gpu.conv_weights(channels, kernel, &weight, &bias).unwrap();
    let made = weights.steps(steps, how);
    let mut to = gpu.matrix(made, outputs).unwrap();
    let input_matrix = matrix(gpu, steps, channels, &input);
    assert_eq!(gpu.conv1d(&input_matrix, steps, &weights, how, Activation::Gelu, &mut to), made);
    let mut exact = Vec::new();
    for step in 0..made {
        for output in 0..outputs {
            let mut sum = f64::from(bias[output]);
            for tap in 0..kernel {
                let Some(from) = (step * how.stride + tap).checked_sub(how.padding).filter(|s| *s < steps)
                else {
                    continue;
                };
                for channel in 0..channels {
                    let weight = weight[(output * channels + channel) * kernel + tap];
                    sum += f64::from(input[from * channels + channel]) * f64::from(weight);
                }
            }
            exact.push(gelu(sum));
        }
    }
    close(&read(gpu, &to), &exact, 2e-6 * (channels * kernel + 4) as f64, "conv1d");
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn linear_is_the_sum_of_products(
        seed: u64, rows in 0usize..70, inputs in 0usize..70, outputs in prop::collection::vec(0usize..50, 1..4),
        activation in 0usize..3, half: bool,
    ) {
        let stored = if half { Stored::F16 } else { Stored::F32 };
        let case = Linear { seed, rows, inputs, outputs: &outputs, activation: ACTIVATIONS[activation], stored };
        on_each(|gpu| { check_linear(gpu, &case); });
    }

    #[test]
    fn linear_over_few_rows(
        seed: u64, rows in 1usize..5, inputs in 1usize..300, outputs in 1usize..20, half: bool,
    ) {
        let stored = if half { Stored::F16 } else { Stored::F32 };
        let case = Linear { seed, rows, inputs, outputs: &[outputs], activation: Activation::Silu, stored };
        on_each(|gpu| { check_linear(gpu, &case); });
    }

    #[test]
    fn attention_stays_inside_each_sequence(
        seed: u64, lengths in prop::collection::vec(0usize..20, 0..5), heads in 1usize..4, head in 1usize..70,
    ) {
        on_each(|gpu| check_attention(gpu, seed, &lengths, heads, head));
    }

    #[test]
    fn attention_to_what_was_kept(
        seed: u64, before in 0usize..90, rows in 1usize..20, heads in 1usize..4, head in 1usize..70, causal: bool,
    ) {
        on_each(|gpu| check_attend(gpu, seed, [before, rows], heads, head, causal));
    }

    #[test]
    fn some_rows_are_worked_on_and_the_others_stay(
        seed: u64, before in 0usize..20, rows in 0usize..20, columns in 1usize..90, stride in 1usize..3, padding in 0usize..2,
    ) {
        on_each(|gpu| check_parts(gpu, seed, [before, rows], columns, Convolution { stride, padding }));
    }

    #[test]
    fn norms_scale_to_one(seed: u64, rows in 0usize..20, columns in 1usize..150) {
        on_each(|gpu| check_norms(gpu, seed, rows, columns));
    }

    #[test]
    fn softmax_length_and_largest_of_rows(seed: u64, rows in 0usize..20, columns in 1usize..150) {
        on_each(|gpu| check_rows(gpu, seed, rows, columns));
    }

    #[test]
    fn sums_and_activations_of_elements(seed: u64, rows in 0usize..20, columns in 0usize..50) {
        on_each(|gpu| check_elements(gpu, seed, rows, columns));
    }

    #[test]
    fn rope_turns_pairs(seed: u64, rows in 0usize..10, heads in 0usize..4, half in 1usize..20) {
        on_each(|gpu| check_rope(gpu, seed, rows, heads, half));
    }

    #[test]
    fn lookup_copies_rows(seed: u64, rows in 1usize..40, columns in 1usize..40, count in 0usize..30) {
        on_each(|gpu| { check_lookup(gpu, seed, rows, columns, count); });
    }

    #[test]
    fn pooling_makes_a_row_of_each_sequence(
        seed: u64, lengths in prop::collection::vec(1usize..9, 0..9), columns in 1usize..90,
    ) {
        on_each(|gpu| check_pool(gpu, seed, &lengths, columns));
    }

    #[test]
    fn convolution_slides_over_time(
        seed: u64, steps in 0usize..30, channels in 0usize..9, outputs in 1usize..9, kernel in 1usize..5,
        stride in 1usize..4, padding in 0usize..4,
    ) {
        let shape = [channels, outputs, kernel];
        on_each(|gpu| check_conv(gpu, seed, steps, shape, Convolution { stride, padding }));
    }
}

#[test]
fn linear_over_several_tiles() {
    for (rows, stored) in
        [(150, Stored::F32), (150, Stored::F16), (65, Stored::F16), (31, Stored::F32), (17, Stored::F16)]
    {
        let case =
            Linear { seed: 1, rows, inputs: 131, outputs: &[100, 33], activation: Activation::Gelu, stored };
        on_each(|gpu| {
            check_linear(gpu, &case);
        });
    }
}

#[test]
fn attention_over_several_chunks_of_keys_and_the_widest_heads() {
    on_each(|gpu| check_attention(gpu, 1, &[130, 1, 65], 2, 20));
    on_each(|gpu| check_attention(gpu, 2, &[5], 1, 256));
}

#[test]
fn huge_scores_saturate_instead_of_overflowing() {
    on_each(|gpu| {
        let qkv = matrix(gpu, 2, 3, &[1e15, 1e15, 1.0, 1e15, -1e15, 2.0]);
        let (mut words, mut to) = (gpu.words(6).unwrap(), gpu.matrix(2, 1).unwrap());
        gpu.attention(&qkv, &[0, 2], 1, &mut words, &mut to);
        assert_eq!(read(gpu, &to), [1.0, 1.0]);
        let mut scores = matrix(gpu, 1, 3, &[-1e38, 3e38, -3e38]);
        gpu.softmax(&mut scores, 1, 1.0);
        assert_eq!(read(gpu, &scores), [0.0, 1.0, 0.0]);
    });
}

#[test]
fn activations_far_out_are_lines() {
    on_each(|gpu| {
        let far = [-1e30, -1000.0, -90.0, 90.0, 1000.0, 1e30];
        for activation in [Activation::Gelu, Activation::Silu] {
            let mut x = matrix(gpu, 1, 6, &far);
            gpu.activate(&mut x, 1, activation);
            for (found, x) in read(gpu, &x).into_iter().zip(far) {
                let exact = x.max(0.0);
                assert!((found - exact).abs() <= 1e-5, "{activation:?} of {x} is {found}");
            }
        }
    });
}

#[test]
fn rows_of_zeros_stay_and_tiny_ones_keep_their_size() {
    on_each(|gpu| {
        let mut x = matrix(gpu, 3, 2, &[0.0, 0.0, 3e-30, 4e-30, 3e30, 4e30]);
        gpu.normalize(&mut x, 3);
        let found = read(gpu, &x);
        close(&found, &[0.0, 0.0, 3e-18, 4e-18, 0.6, 0.8], 1e-6, "lengths");
        assert!(found[2] > 0.0 && found[2] < 1e-17, "{}", found[2]);
    });
}

#[test]
fn weights_beyond_what_a_shader_reaches_are_split() {
    let mut adapter = support::adapter();
    adapter.binding_bytes_max = 4096;
    let gpu = Gpu::open(&adapter, support::LEASE).unwrap();
    for stored in [Stored::F32, Stored::F16] {
        for rows in [2, 9] {
            let case = Linear {
                seed: 5,
                rows,
                inputs: 101,
                outputs: &[30, 1, 64],
                activation: Activation::None,
                stored,
            };
            assert!(check_linear(&gpu, &case) > 4, "{stored:?}");
        }
    }
    assert!(check_lookup(&gpu, 6, 300, 33, 20) > 4);
    let error = gpu.linear_weights(2000, &[(&[0.0; 2000], &[0.0])], Stored::F32).unwrap_err();
    assert_eq!(error, ringfence_gpu::GpuError::TooLarge { bytes: 8000, limit: 4096 });
    let error = gpu.matrix(2, 513).unwrap_err();
    assert_eq!(error, ringfence_gpu::GpuError::TooLarge { bytes: 4104, limit: 4096 });
}

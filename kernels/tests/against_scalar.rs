//! Every kernel at every level of this CPU against plain loops in f64, over random shapes, empty and odd ones included.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Generator, close, computes, config};
use proptest::prelude::*;
use ringfence_kernels::{
    Activation, AttentionScratch, KeyValues, Matrix, Numbers, PackedLinear, Part, Scores, Seen, Window,
};

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

/// Weights that are kept as they are, and others that are kept as halves, which hold them exactly.
fn check_linear(seed: u64, rows: usize, inputs: usize, outputs: &[usize], activation: Activation) {
    check_packed(Numbers::Singles, seed, [rows, inputs], outputs, activation);
    check_packed(Numbers::Halves, seed, [rows, inputs], outputs, activation);
}

fn check_packed(
    kept: Numbers,
    seed: u64,
    [rows, inputs]: [usize; 2],
    outputs: &[usize],
    activation: Activation,
) {
    let mut numbers = Generator(seed);
    let input = numbers.matrix(rows, inputs);
    let weights = |numbers: Vec<f32>| match kept {
        Numbers::Singles => numbers,
        Numbers::Halves => numbers.into_iter().map(|x| (x * 64.0).round() / 64.0).collect(),
    };
    let parts: Vec<(Vec<f32>, Vec<f32>)> =
        outputs.iter().map(|n| (weights(numbers.vector(n * inputs)), numbers.vector(*n))).collect();
    let borrowed: Vec<Part<'_>> = parts.iter().map(|(weight, bias)| Part { weight, bias }).collect();
    let all: Vec<(&[f32], f32)> = parts
        .iter()
        .flat_map(|(w, b)| b.iter().enumerate().map(move |(i, b)| (&w[i * inputs..][..inputs], *b)))
        .collect();
    for compute in computes() {
        let packed = PackedLinear::pack_as(kept, compute.isa(), inputs, &borrowed).unwrap();
        let mut output = numbers.matrix(rows + 1, all.len());
        let untouched = output.row(rows).to_vec();
        compute.linear(&input, rows, &packed, activation, &mut output);
        for row in 0..rows {
            for (value, (weights, bias)) in output.row(row).iter().zip(&all) {
                let products =
                    input.row(row).iter().zip(*weights).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let sum = products.sum::<f64>() + f64::from(*bias);
                let exact = if activation == Activation::Gelu { gelu(sum) } else { sum };
                close(*value, exact, 2e-6 * (inputs as f64 + 4.0), &format!("{:?}", compute.isa()));
            }
        }
        assert_eq!(output.row(rows), untouched, "rows beyond the batch stay");
    }
}

fn check_attention(seed: u64, lengths: &[usize], heads: usize, head: usize) {
    let starts: Vec<usize> = std::iter::once(0)
        .chain(lengths.iter().scan(0, |at, n| {
            *at += n;
            Some(*at)
        }))
        .collect();
    let (rows, width) = (starts[lengths.len()], heads * head);
    let mut numbers = Generator(seed);
    let qkv = numbers.matrix(rows, 3 * width);
    for compute in computes() {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut scratch = AttentionScratch::new(compute.isa(), 2, longest + 3, head).unwrap();
        let mut output = numbers.matrix(rows, width);
        compute.attention(&qkv, &starts, &mut scratch, &mut output);
        for span in starts.windows(2) {
            for row in span[0]..span[1] {
                for column in 0..width {
                    let exact = attention_of(&qkv, span[0]..span[1], row, column, head);
                    close(output.row(row)[column], exact, 3e-6, &format!("{:?} row {row}", compute.isa()));
                }
            }
        }
    }
}

fn attention_of(qkv: &Matrix, span: std::ops::Range<usize>, row: usize, column: usize, head: usize) -> f64 {
    let width = qkv.columns() / 3;
    let first = column / head * head;
    let score = |key: usize| {
        let queries = &qkv.row(row)[first..][..head];
        let keys = &qkv.row(key)[width + first..][..head];
        let product: f64 = queries.iter().zip(keys).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (product / (head as f64).sqrt()).exp()
    };
    let total: f64 = span.clone().map(score).sum();
    span.map(|key| score(key) / total * f64::from(qkv.row(key)[2 * width + column])).sum()
}

/// Queries in pieces of these lengths, each after the former one's keys and values have been put behind each other; or all
/// of them against all keys.
fn check_cached(seed: u64, lengths: &[usize], heads: usize, head: usize, causal: bool) {
    let (rows, width) = (lengths.iter().sum::<usize>(), heads * head);
    let mut numbers = Generator(seed);
    let qkv = numbers.matrix(rows, 3 * width);
    let part = |from: usize, count: usize, columns: std::ops::Range<usize>| {
        let mut matrix = Matrix::zeroed(count, columns.len()).unwrap();
        (0..count).for_each(|row| matrix.row_mut(row).copy_from_slice(&qkv.row(from + row)[columns.clone()]));
        matrix
    };
    for compute in computes() {
        let mut memory = KeyValues::new(compute.isa(), rows + 2, heads, head).unwrap();
        let mut scores = Scores::new(compute.isa(), 2, rows + 1).unwrap();
        if !causal {
            compute.append(&part(0, rows, width..3 * width), rows, &mut memory, 0);
        }
        let mut first = 0;
        for count in lengths {
            if causal {
                compute.append(&part(first, *count, width..3 * width), *count, &mut memory, first);
            }
            let seen = if causal { Seen::Before(first) } else { Seen::All(rows) };
            let mut output = numbers.matrix(*count, width);
            compute.attend(&part(first, *count, 0..width), *count, &memory, seen, &mut scores, &mut output);
            for row in 0..*count {
                for column in 0..width {
                    let span = 0..seen.tokens(row);
                    let exact = attention_of(&qkv, span, first + row, column, head);
                    close(output.row(row)[column], exact, 3e-6, &format!("{:?} row {row}", compute.isa()));
                }
            }
            first += count;
        }
    }
}

fn check_unfold(
    seed: u64,
    steps: usize,
    columns: usize,
    taps: usize,
    window: Window,
    results: std::ops::Range<usize>,
) {
    let mut numbers = Generator(seed);
    let input = numbers.matrix(steps + 1, columns);
    for compute in computes() {
        let mut to = numbers.matrix(results.len(), taps * columns);
        compute.unfold(&input, steps, window, results.clone(), &mut to);
        for (row, result) in results.clone().enumerate() {
            for (at, found) in to.row(row).iter().enumerate() {
                let step = (result * window.stride + at / columns).checked_sub(window.padding);
                let step = step.filter(|step| *step < steps);
                assert_eq!(*found, step.map_or(0.0, |step| input.row(step)[at % columns]));
            }
        }
    }
}

/// What is added to some rows, put over others and normalised from there on.
fn check_rows(seed: u64, rows: usize, columns: usize, part: std::ops::Range<usize>) {
    let mut numbers = Generator(seed);
    let (start, other) = (numbers.matrix(rows, columns), numbers.matrix(part.len(), columns));
    let (weight, bias) = (numbers.vector(columns), numbers.vector(columns));
    for compute in computes() {
        let copy = || {
            let mut x = Matrix::zeroed(rows, columns).unwrap();
            compute.put(&mut x, 0..rows, &start);
            x
        };
        let (mut sum, mut put) = (copy(), copy());
        compute.add(&mut sum, part.clone(), &other);
        compute.put(&mut put, part.clone(), &other);
        let mut normed = numbers.matrix(part.len(), columns);
        compute.norm(&sum, part.clone(), &weight, &bias, 1e-3, &mut normed);
        let mut expected = Matrix::zeroed(part.len(), columns).unwrap();
        for row in 0..rows {
            let there = part.contains(&row).then(|| other.row(row - part.start));
            for column in 0..columns {
                let (from, other) = (start.row(row)[column], there.map(|row| row[column]));
                assert_eq!(sum.row(row)[column], from + other.unwrap_or(0.0));
                assert_eq!(put.row(row)[column], other.unwrap_or(from));
            }
            if part.contains(&row) {
                expected.row_mut(row - part.start).copy_from_slice(sum.row(row));
            }
        }
        let nothing = Matrix::zeroed(part.len(), columns).unwrap();
        compute.add_norm(&mut expected, &nothing, part.len(), &weight, &bias, 1e-3);
        (0..part.len()).for_each(|row| assert_eq!(normed.row(row), expected.row(row)));
    }
}

fn check_norm(seed: u64, rows: usize, columns: usize) {
    let mut numbers = Generator(seed);
    let (start, added) = (numbers.matrix(rows, columns), numbers.matrix(rows, columns));
    let (weight, bias) = (numbers.vector(columns), numbers.vector(columns));
    for compute in computes() {
        let mut x = Matrix::zeroed(rows, columns).unwrap();
        for row in 0..rows {
            x.row_mut(row).copy_from_slice(start.row(row));
        }
        compute.add_norm(&mut x, &added, rows, &weight, &bias, 1e-3);
        for row in 0..rows {
            let sums: Vec<f64> =
                start.row(row).iter().zip(added.row(row)).map(|(a, b)| f64::from(a + b)).collect();
            let mean = sums.iter().sum::<f64>() / columns as f64;
            let variance = sums.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
            for i in 0..columns {
                let unit = (sums[i] - mean) / (variance + 1e-3).sqrt();
                let exact = unit * f64::from(weight[i]) + f64::from(bias[i]);
                close(x.row(row)[i], exact, 2e-5, &format!("{:?}", compute.isa()));
            }
        }
    }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn linear_is_the_sum_of_products(
        seed: u64, rows in 0usize..40, inputs in 0usize..70, outputs in prop::collection::vec(0usize..50, 1..4),
    ) {
        check_linear(seed, rows, inputs, &outputs, Activation::None);
    }

    #[test]
    fn linear_with_gelu(seed: u64, rows in 0usize..14, inputs in 1usize..40, outputs in 1usize..40) {
        check_linear(seed, rows, inputs, &[outputs], Activation::Gelu);
    }

    #[test]
    fn attention_stays_inside_each_sequence(
        seed: u64, lengths in prop::collection::vec(0usize..40, 0..5), heads in 1usize..4, head in 1usize..70,
    ) {
        check_attention(seed, &lengths, heads, head);
    }

    #[test]
    fn attention_to_what_was_kept(
        seed: u64, lengths in prop::collection::vec(1usize..40, 1..5), heads in 1usize..4, head in 1usize..70, causal: bool,
    ) {
        check_cached(seed, &lengths, heads, head, causal);
    }

    #[test]
    fn unfolded_rows_are_those_of_the_window(
        seed: u64, steps in 0usize..40, columns in 1usize..20, taps in 1usize..5, stride in 1usize..4,
        padding in 0usize..3, first in 0usize..20, results in 0usize..30,
    ) {
        check_unfold(seed, steps, columns, taps, Window { stride, padding }, first..first + results);
    }

    #[test]
    fn some_rows_are_changed_and_the_others_stay(
        seed: u64, before in 0usize..30, part in 0usize..30, after in 0usize..3, columns in 1usize..100,
    ) {
        check_rows(seed, before + part + after, columns, before..before + part);
    }

    #[test]
    fn norm_is_mean_zero_and_variance_one(seed: u64, rows in 0usize..40, columns in 1usize..100) {
        check_norm(seed, rows, columns);
    }
}

#[test]
fn linear_over_more_rows_than_a_block() {
    check_linear(1, 300, 700, &[33], Activation::None);
}

#[test]
fn huge_scores_saturate_instead_of_overflowing() {
    for compute in computes() {
        let mut qkv = Matrix::zeroed(2, 3).unwrap();
        qkv.row_mut(0).copy_from_slice(&[1e15, 1e15, 1.0]);
        qkv.row_mut(1).copy_from_slice(&[1e15, -1e15, 2.0]);
        let mut scratch = AttentionScratch::new(compute.isa(), 2, 2, 1).unwrap();
        let mut output = Matrix::zeroed(2, 1).unwrap();
        compute.attention(&qkv, &[0, 2], &mut scratch, &mut output);
        assert_eq!((output.row(0)[0], output.row(1)[0]), (1.0, 1.0));
    }
}

//! What decoders have beside products, at every level of this CPU against plain loops in f64.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Generator, close, computes, config};
use proptest::prelude::*;
use ringfence_kernels::{Matrix, Turns};
use std::ops::Range;

fn check_rms_norm(seed: u64, before: usize, rows: usize, columns: usize) {
    let mut numbers = Generator(seed);
    let (x, weight) = (numbers.matrix(before + rows, columns), numbers.vector(columns));
    for compute in computes() {
        let mut to = numbers.matrix(rows + 1, columns);
        let untouched = to.row(rows).to_vec();
        compute.rms_norm(&x, before..before + rows, &weight, 1e-3, &mut to);
        for row in 0..rows {
            let from = x.row(before + row);
            let mean = from.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / columns as f64;
            for i in 0..columns {
                let exact = f64::from(from[i]) * f64::from(weight[i]) / (mean + 1e-3).sqrt();
                close(to.row(row)[i], exact, 2e-6, &format!("{:?}", compute.isa()));
            }
        }
        assert_eq!(to.row(rows), untouched, "rows beyond the batch stay");
    }
}

fn check_gate(seed: u64, rows: usize, inner: usize, size: f32) {
    let mut numbers = Generator(seed);
    let mut x = numbers.matrix(rows, 2 * inner);
    (0..rows).for_each(|row| x.row_mut(row).iter_mut().for_each(|x| *x *= size));
    for compute in computes() {
        let mut to = Matrix::zeroed(rows, inner).unwrap();
        compute.gate(&x, rows, &mut to);
        for row in 0..rows {
            for i in 0..inner {
                let (gate, up) = (f64::from(x.row(row)[i]), f64::from(x.row(row)[inner + i]));
                let exact = gate / (1.0 + (-gate).exp()) * up;
                close(to.row(row)[i], exact, 1e-6 * (1.0 + exact.abs()), &format!("silu({gate}) * {up}"));
            }
        }
    }
}

fn check_rotate(seed: u64, rows: usize, half: usize, heads: Range<usize>, first: usize) {
    let head = 2 * half;
    let mut numbers = Generator(seed);
    let start = numbers.matrix(rows, (heads.end + 1) * head);
    let frequencies: Vec<f64> = (0..half).map(|i| 10_000f64.powf(-(i as f64) / half as f64)).collect();
    let mut turns = Turns::new(rows, head).unwrap();
    (0..rows).for_each(|row| turns.set(row, first + row, &frequencies));
    let columns = heads.start * head..heads.end * head;
    for compute in computes() {
        let mut x = Matrix::zeroed(rows, start.columns()).unwrap();
        compute.put(&mut x, 0..rows, &start);
        compute.rotate(&mut x, rows, columns.clone(), head, &turns);
        for row in 0..rows {
            for (column, value) in x.row(row).iter().enumerate() {
                let from = |column: usize| f64::from(start.row(row)[column]);
                let angle = (first + row) as f64 * frequencies[column % half];
                let exact = match columns.contains(&column) {
                    false => from(column),
                    true if column % head < half => {
                        from(column) * angle.cos() - from(column + half) * angle.sin()
                    }
                    true => from(column) * angle.cos() + from(column - half) * angle.sin(),
                };
                close(*value, exact, 4e-7, &format!("{:?} row {row} column {column}", compute.isa()));
            }
        }
    }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn rms_norm_divides_by_the_root_of_the_mean_square(
        seed: u64, before in 0usize..20, rows in 0usize..40, columns in 1usize..100,
    ) {
        check_rms_norm(seed, before, rows, columns);
    }

    #[test]
    fn gates_are_silu(seed: u64, rows in 0usize..40, inner in 1usize..70, size in 0.1f32..200.0) {
        check_gate(seed, rows, inner, size);
    }

    #[test]
    fn heads_are_turned_by_their_position(
        seed: u64, rows in 0usize..40, half in 1usize..40, from in 0usize..3, heads in 0usize..4, first in 0usize..5000,
    ) {
        check_rotate(seed, rows, half, from..from + heads, first);
    }
}

//! Products with quantised weights, at every level of this CPU against plain loops in f64 over the dequantised weights.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Generator, computes, config};
use proptest::prelude::*;
use ringfence_kernels::{BlockKind, Matrix, QuantLinear, QuantPart, Quantised, widen_half};

/// Random blocks; their halves are small numbers.
fn blocks(numbers: &mut Generator, kind: BlockKind, count: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..count * kind.bytes()).map(|_| (numbers.next() * 128.0).floor() as i8 as u8).collect();
    let halves = if matches!(kind, BlockKind::Q8_0 | BlockKind::Q4_0) { 1 } else { 2 };
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        for half in block[..2 * halves].as_chunks_mut::<2>().0 {
            // From 2^-8 to 2^-5, of both signs.
            half[1] = half[1] & 0x87 | 0x1c;
        }
    }
    bytes
}

fn half(block: &[u8], at: usize) -> f64 {
    f64::from(widen_half(u16::from_le_bytes([block[at], block[at + 1]])))
}

/// Weight i of a block, by the definition of its kind.
fn weight(kind: BlockKind, block: &[u8], i: usize) -> f64 {
    let nibble = |bytes: &[u8]| f64::from(bytes[i % 16] >> (i / 16 * 4) & 15);
    match kind {
        BlockKind::Q8_0 => half(block, 0) * f64::from(block[2 + i] as i8),
        BlockKind::Q4_0 => half(block, 0) * (nibble(&block[2..]) - 8.0),
        BlockKind::Q4_1 => half(block, 0) * nibble(&block[4..]) + half(block, 2),
        BlockKind::Q4K => {
            let (group, packed) = (i / 32, &block[4..16]);
            let (scale, minimum) = match group {
                0..4 => (packed[group] & 63, packed[group + 4] & 63),
                _ => (
                    packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                    packed[group + 4] >> 4 | packed[group] >> 6 << 4,
                ),
            };
            let quant = block[16 + i / 64 * 32 + i % 32] >> (group % 2 * 4) & 15;
            half(block, 0) * f64::from(scale) * f64::from(quant) - half(block, 2) * f64::from(minimum)
        }
    }
}

/// What the input is rounded to.
fn rounded(input: &[f32]) -> Vec<f64> {
    let groups = input.chunks_exact(32).flat_map(|group| {
        let max = group.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let quant = move |x: &f32| if max > 0.0 { (x * (127.0 / max)).round_ties_even() } else { 0.0 };
        group.iter().map(move |x| f64::from(quant(x)) * f64::from(max / 127.0))
    });
    groups.collect()
}

fn check(seed: u64, rows: usize, inputs: usize, parts: &[(BlockKind, usize)], with_bias: bool) {
    let mut numbers = Generator(seed);
    let input = numbers.matrix(rows, inputs);
    let bytes: Vec<Vec<u8>> = parts
        .iter()
        .map(|(kind, outputs)| blocks(&mut numbers, *kind, outputs * inputs / kind.weights()))
        .collect();
    let biases: Vec<Vec<f32>> = parts.iter().map(|(_, outputs)| numbers.vector(*outputs)).collect();
    let borrowed: Vec<QuantPart<'_>> = parts
        .iter()
        .zip(bytes.iter().zip(&biases))
        .map(|((kind, rows), (blocks, bias))| QuantPart {
            kind: *kind,
            rows: *rows,
            blocks,
            bias: with_bias.then_some(bias),
        })
        .collect();
    let weights: Vec<Vec<f64>> = borrowed.iter().flat_map(|part| rows_of(part, inputs)).collect();
    let bias: Vec<f32> = biases.concat();
    for compute in computes() {
        let packed = QuantLinear::pack(compute.isa(), inputs, &borrowed).unwrap();
        let mut scratch = Quantised::new(rows, inputs).unwrap();
        let mut output = numbers.matrix(rows + 1, weights.len());
        let untouched = output.row(rows).to_vec();
        compute.quant_linear(&input, rows, &packed, &mut scratch, &mut output);
        for row in 0..rows {
            let near = rounded(input.row(row));
            for (i, weights) in weights.iter().enumerate() {
                let bias = if with_bias { f64::from(bias[i]) } else { 0.0 };
                let found = f64::from(output.row(row)[i]) - bias;
                let norm = norm(weights) * norm(&near);
                let what = format!("{:?} row {row} output {i}", compute.isa());
                let exact = product(weights, near.iter().copied());
                assert!((found - exact).abs() <= 1e-5 * norm + 1e-6, "{what}: {found} instead of {exact}");
                let exact = product(weights, input.row(row).iter().map(|x| f64::from(*x)));
                assert!((found - exact).abs() <= 1e-2 * norm + 1e-6, "{what}: {found} far from {exact}");
            }
        }
        assert_eq!(output.row(rows), untouched, "rows beyond the batch stay");
        check_alone(&compute, &input, rows, &packed, &mut scratch, &output);
    }
}

/// A row's result doesn't depend on the other rows.
fn check_alone(
    compute: &ringfence_kernels::Compute,
    input: &Matrix,
    rows: usize,
    packed: &QuantLinear,
    scratch: &mut Quantised,
    output: &Matrix,
) {
    for row in 0..rows {
        let mut one = Matrix::zeroed(1, input.columns()).unwrap();
        one.row_mut(0).copy_from_slice(input.row(row));
        let mut alone = Matrix::zeroed(1, packed.outputs()).unwrap();
        compute.quant_linear(&one, 1, packed, scratch, &mut alone);
        assert_eq!(alone.row(0), output.row(row), "{:?} row {row}", compute.isa());
    }
}

fn rows_of(part: &QuantPart<'_>, inputs: usize) -> Vec<Vec<f64>> {
    let in_row = inputs / part.kind.weights() * part.kind.bytes();
    let row = |row: usize| {
        let blocks = part.blocks[row * in_row..][..in_row].chunks_exact(part.kind.bytes());
        blocks.flat_map(|block| (0..part.kind.weights()).map(|i| weight(part.kind, block, i))).collect()
    };
    (0..part.rows).map(row).collect()
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn product(weights: &[f64], input: impl Iterator<Item = f64>) -> f64 {
    weights.iter().zip(input).map(|(w, x)| w * x).sum()
}

fn small() -> impl Strategy<Value = BlockKind> {
    prop_oneof![Just(BlockKind::Q8_0), Just(BlockKind::Q4_0), Just(BlockKind::Q4_1)]
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn products_are_those_of_the_dequantised_weights(
        seed: u64, rows in 0usize..20, blocks in 1usize..8, bias: bool,
        parts in prop::collection::vec((small(), 0usize..50), 1..4),
    ) {
        check(seed, rows, 32 * blocks, &parts, bias);
    }

    #[test]
    fn super_blocks_beside_small_ones(
        seed: u64, rows in 0usize..9, blocks in 1usize..4, bias: bool, kind in small(),
        outputs in 0usize..50, others in 0usize..40,
    ) {
        check(seed, rows, 256 * blocks, &[(BlockKind::Q4K, outputs), (kind, others)], bias);
    }

    #[test]
    fn memory_is_known_before(
        blocks in 1usize..20, parts in prop::collection::vec((small(), 0usize..300), 1..4),
    ) {
        for compute in computes() {
            let exact: usize = parts.iter().map(|(kind, rows)| rows * blocks * kind.bytes()).sum();
            let bytes = QuantLinear::bytes(compute.isa(), 32 * blocks, &parts);
            let padding = parts.len() * (31 * blocks * 34 + 64 + 31 * 4);
            let bias: usize = parts.iter().map(|(_, rows)| rows * 4).sum();
            prop_assert!(exact <= bytes && bytes <= exact + bias + padding + 64);
        }
    }
}

#[test]
fn many_rows_of_many_inputs() {
    check(3, 130, 2560, &[(BlockKind::Q8_0, 33)], true);
    check(4, 130, 2560, &[(BlockKind::Q4K, 33)], false);
}

#[test]
fn the_largest_bytes_do_not_overflow() {
    for kind in [BlockKind::Q8_0, BlockKind::Q4_0, BlockKind::Q4_1] {
        for byte in [0x80u8, 0x7f, 0xff, 0x81] {
            let mut block = vec![byte; kind.bytes()];
            block[..2].copy_from_slice(&0x3c00u16.to_le_bytes());
            if kind == BlockKind::Q4_1 {
                block[2..4].copy_from_slice(&0x3c00u16.to_le_bytes());
            }
            let part = QuantPart { kind, rows: 1, blocks: &block, bias: None };
            for (compute, sign) in computes().flat_map(|c| [(c, 1.0)]).chain(computes().map(|c| (c, -1.0))) {
                let packed = QuantLinear::pack(compute.isa(), 32, &[part]).unwrap();
                let mut input = Matrix::zeroed(1, 32).unwrap();
                input.row_mut(0).fill(127.0 * sign);
                let mut output = Matrix::zeroed(1, 1).unwrap();
                compute.quant_linear(&input, 1, &packed, &mut Quantised::new(1, 32).unwrap(), &mut output);
                let exact: f64 = (0..32).map(|i| weight(kind, &block, i) * 127.0 * f64::from(sign)).sum();
                assert_eq!(f64::from(output.row(0)[0]), exact, "{kind:?} {:?}", compute.isa());
            }
        }
    }
}

#[test]
fn a_poisoned_input_poisons_its_row_and_no_other() {
    for compute in computes() {
        for poison in [f32::NAN, f32::INFINITY] {
            let mut numbers = Generator(9);
            let blocks = blocks(&mut numbers, BlockKind::Q4_1, 2 * 3);
            let part = QuantPart { kind: BlockKind::Q4_1, rows: 3, blocks: &blocks, bias: None };
            let packed = QuantLinear::pack(compute.isa(), 64, &[part]).unwrap();
            let mut input = numbers.matrix(2, 64);
            input.row_mut(0)[40] = poison;
            let mut output = Matrix::zeroed(2, 3).unwrap();
            compute.quant_linear(&input, 2, &packed, &mut Quantised::new(2, 64).unwrap(), &mut output);
            assert!(output.row(0).iter().all(|x| x.is_nan()), "{:?}", output.row(0));
            assert!(output.row(1).iter().all(|x| x.is_finite()));
        }
    }
}

//! 4 rows by 8 columns in plain Rust.

use super::super::activations::{Group, scalar::quantise};
use super::{GROUPS, QuantRoutines, QuantTile};
use crate::half::widen;
use crate::tile::by_rows;

const PANEL: usize = 8;
/// Weights of an output that are next to each other.
const STEP: usize = 4;

pub(crate) static ROUTINES: QuantRoutines =
    QuantRoutines { panel: PANEL, lanes: PANEL, rows: 4, flipped: 0, quantise, q8_0, q4_0, q4_1, q4_k };

type Sums<const R: usize> = [[f32; PANEL]; R];

/// Defines the tiles over one kind of block, given how one block, or one super-block, is added to the sums: its rows'
/// groups, its bytes.
macro_rules! tiles {
    ($tile:ident, $tile_of:ident, $bytes:literal, $groups:expr, $add:ident) => {
        /// # Safety
        /// `t` describes memory that is there, unaliased where it is written; see [`QuantTile`].
        unsafe fn $tile(rows: usize, t: &QuantTile) {
            // SAFETY: passed on.
            unsafe { by_rows!($tile_of, rows, t, [1 2 3 4]) }
        }

        unsafe fn $tile_of<const R: usize>(t: &QuantTile) {
            // SAFETY: every access is one that `QuantTile` names.
            unsafe {
                let mut sums = [*t.bias.cast::<[f32; PANEL]>(); R];
                for block in 0..t.depth / $groups {
                    let bytes = std::slice::from_raw_parts(t.panel.add(block * $bytes * PANEL), $bytes * PANEL);
                    let input: [&[Group]; R] = std::array::from_fn(|r| {
                        std::slice::from_raw_parts(t.input.add(r * t.depth + block * $groups), $groups)
                    });
                    $add(&mut sums, input, bytes);
                }
                for (r, sum) in sums.iter().enumerate() {
                    let output = t.output.add(r * t.output_stride);
                    std::ptr::copy_nonoverlapping(sum.as_ptr(), output, t.columns);
                }
            }
        }
    };
}
tiles!(q8_0, q8_0_of, 34, 1, add_q8_0);
tiles!(q4_0, q4_0_of, 18, 1, add_q4_0);
tiles!(q4_1, q4_1_of, 20, 1, add_q4_1);
tiles!(q4_k, q4_k_of, 148, GROUPS, add_q4_k);

fn add_q8_0<const R: usize>(sums: &mut Sums<R>, input: [&[Group]; R], bytes: &[u8]) {
    let (scales, quants) = bytes.split_at(2 * PANEL);
    for (sum, input) in sums.iter_mut().zip(input) {
        for (lane, sum) in sum.iter_mut().enumerate() {
            let weight = |i: usize| quants[i / STEP * STEP * PANEL + lane * STEP + i % STEP] as i8;
            let product = |(i, quant): (usize, &i8)| i32::from(*quant) * i32::from(weight(i));
            let product: i32 = input[0].quants.iter().enumerate().map(product).sum();
            *sum += product as f32 * (half(scales, lane) * input[0].scale);
        }
    }
}

fn add_q4_0<const R: usize>(sums: &mut Sums<R>, input: [&[Group]; R], bytes: &[u8]) {
    let (scales, quants) = bytes.split_at(2 * PANEL);
    let scales = std::array::from_fn(|lane| half(scales, lane));
    add_nibbles(sums, input.map(|groups| &groups[0]), scales, scales.map(|scale| -8.0 * scale), quants);
}

fn add_q4_1<const R: usize>(sums: &mut Sums<R>, input: [&[Group]; R], bytes: &[u8]) {
    let scales = std::array::from_fn(|lane| half(bytes, lane));
    let minimums = std::array::from_fn(|lane| half(bytes, PANEL + lane));
    add_nibbles(sums, input.map(|groups| &groups[0]), scales, minimums, &bytes[4 * PANEL..]);
}

fn add_q4_k<const R: usize>(sums: &mut Sums<R>, input: [&[Group]; R], bytes: &[u8]) {
    let (halves, groups) = bytes.split_at(4 * PANEL);
    for (group, bytes) in groups.chunks_exact(18 * PANEL).enumerate() {
        let scales = std::array::from_fn(|lane| half(halves, lane) * f32::from(bytes[lane]));
        let minimums =
            std::array::from_fn(|lane| -half(halves, PANEL + lane) * f32::from(bytes[PANEL + lane]));
        add_nibbles(sums, input.map(|groups| &groups[group]), scales, minimums, &bytes[2 * PANEL..]);
    }
}

fn add_nibbles<const R: usize>(
    sums: &mut Sums<R>,
    input: [&Group; R],
    scales: [f32; PANEL],
    minimums: [f32; PANEL],
    quants: &[u8],
) {
    for (sum, input) in sums.iter_mut().zip(input) {
        for (lane, sum) in sum.iter_mut().enumerate() {
            let (low, high) = input.quants.split_at(input.quants.len() / 2);
            let mut product = 0;
            for (i, (low, high)) in low.iter().zip(high).enumerate() {
                let pair = quants[i / STEP * STEP * PANEL + lane * STEP + i % STEP];
                product += i32::from(*low) * i32::from(pair & 15) + i32::from(*high) * i32::from(pair >> 4);
            }
            *sum += product as f32 * (scales[lane] * input.scale);
            *sum += minimums[lane] * input.sum;
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    widen(u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]))
}

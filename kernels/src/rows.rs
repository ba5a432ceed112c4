//! Element-wise work on rows: exp, erf, GELU, softmax, normalisation, rotation. One body, compiled for each level, in a form
//! that the compiler turns into vector instructions: branch-free elements, and sums over [`LANES`] independent lanes.

/// Sums and maxima run in this many lanes, so that they vectorise without reordering.
const LANES: usize = 16;

/// The scale, shift and epsilon of a layer normalisation.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) epsilon: f32,
}

/// What a softmax over a part of a row is to be weighed with when parts are joined.
#[derive(Clone, Copy)]
pub(crate) struct Weight {
    /// The largest score.
    pub(crate) max: f32,
    /// Sum of exp(score - max).
    pub(crate) sum: f32,
}

impl Weight {
    /// That of no scores.
    pub(crate) const NOTHING: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// a * b + c; fused where the CPU can, which is never slower there and far slower elsewhere.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The polynomial with these coefficients, lowest power first.
#[inline(always)]
fn polynomial<const FUSED: bool>(coefficients: &[f32], x: f32) -> f32 {
    let mut sum = coefficients[coefficients.len() - 1];
    for &coefficient in coefficients[..coefficients.len() - 1].iter().rev() {
        sum = multiply_add::<FUSED>(sum, x, coefficient);
    }
    sum
}

/// Largest relative error 3e-7 on [-87, 88]; below it the result is that at -87 (1.6e-38), above that at 88.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer without an instruction that SSE2 lacks.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Minimax on [-ln 2 / 2, ln 2 / 2], relative.
    const SERIES: [f32; 7] =
        [1.0, 1.0, 0.499_999_9, 0.166_664_2, 0.041_668_225, 0.008_374_816, 0.001_383_684_6];
    let x = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let rest = multiply_add::<FUSED>(whole, -LN2_LOW, multiply_add::<FUSED>(whole, -LN2_HIGH, x));
    // The low bits of `shifted` are the integer; moved into the exponent they multiply by 2^integer.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    polynomial::<FUSED>(&SERIES, rest) * power
}

/// Largest absolute error 5e-7: x times a polynomial in x * x that is minimax on [0, 3.8], beyond which erf is 1 to f32.
#[inline(always)]
fn erf<const FUSED: bool>(x: f32) -> f32 {
    const END: f32 = 3.8;
    const SERIES: [f32; 14] = [
        0.372_107_68,
        -0.185_640_51,
        0.137_731_43,
        -0.111_207_56,
        0.090_973_11,
        -0.072_317_51,
        0.054_147_88,
        -0.039_694_253,
        0.029_478_591,
        -0.016_949_274,
        0.005_586_294,
        -0.004_507_736_3,
        0.005_742_545_7,
        -0.002_292_886_6,
    ];
    let x = x.clamp(-END, END);
    // The square moved to [-1, 1], where the powers stay small and the sum loses nothing.
    let u = multiply_add::<FUSED>(x * x, 2.0 / (END * END), -1.0);
    (x * polynomial::<FUSED>(&SERIES, u)).clamp(-1.0, 1.0)
}

/// x times the standard normal distribution at x: GELU without the tanh approximation.
#[inline(always)]
fn gelu_rows<const FUSED: bool>(row: &mut [f32]) {
    for x in row {
        *x = 0.5 * *x * (1.0 + erf::<FUSED>(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// row[i] = exp(scale * (row[i] - max)) / sum of those, for scale > 0. An empty row stays empty.
#[inline(always)]
fn softmax_row<const FUSED: bool>(row: &mut [f32], scale: f32) {
    let max = reduce(row, f32::NEG_INFINITY, |a, b| if a > b { a } else { b });
    for x in &mut *row {
        *x = exp::<FUSED>((*x - max) * scale);
    }
    let share = 1.0 / reduce(row, 0.0, |a, b| a + b);
    for x in row {
        *x *= share;
    }
}

/// row[i] = exp(row[i] - max).
#[inline(always)]
fn softmax_part_row<const FUSED: bool>(row: &mut [f32]) -> Weight {
    let max = reduce(row, f32::NEG_INFINITY, |a, b| if a > b { a } else { b });
    for x in &mut *row {
        *x = exp::<FUSED>(*x - max);
    }
    Weight { max, sum: reduce(row, 0.0, |a, b| a + b) }
}

/// to = `to` and `from`, both brought to the larger of their maxima. Returns the weight of both.
#[inline(always)]
fn join_rows<const FUSED: bool>(to: &mut [f32], own: Weight, from: &[f32], other: Weight) -> Weight {
    let max = own.max.max(other.max);
    let scales = [exp::<FUSED>(own.max - max), exp::<FUSED>(other.max - max)];
    for (x, y) in to.iter_mut().zip(from) {
        *x = multiply_add::<FUSED>(*y, scales[1], *x * scales[0]);
    }
    Weight { max, sum: multiply_add::<FUSED>(other.sum, scales[1], own.sum * scales[0]) }
}

/// row = norm(row + added), the variance over all of the row's elements.
#[inline(always)]
fn add_norm_row<const FUSED: bool>(row: &mut [f32], added: &[f32], norm: Norm<'_>) {
    let count = row.len();
    let (added, weight, bias) = (&added[..count], &norm.weight[..count], &norm.bias[..count]);
    for (x, y) in row.iter_mut().zip(added) {
        *x += y;
    }
    norm_row::<FUSED>(row, Norm { weight, bias, epsilon: norm.epsilon });
}

/// row = norm(row)
#[inline(always)]
fn norm_row<const FUSED: bool>(row: &mut [f32], norm: Norm<'_>) {
    let count = row.len();
    let (weight, bias) = (&norm.weight[..count], &norm.bias[..count]);
    let mean = reduce(row, 0.0, |a, b| a + b) / count as f32;
    for x in &mut *row {
        *x -= mean;
    }
    let variance = sum_of_squares::<FUSED>(row) / count as f32;
    let scale = 1.0 / (variance + norm.epsilon).sqrt();
    for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
        *x = multiply_add::<FUSED>(*x * scale, *w, *b);
    }
}

/// to = row * weight / the root of the row's mean square.
#[inline(always)]
fn rms_norm_row<const FUSED: bool>(row: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
    let mean = sum_of_squares::<FUSED>(row) / row.len() as f32;
    let scale = 1.0 / (mean + epsilon).sqrt();
    for ((to, x), w) in to.iter_mut().zip(row).zip(weight) {
        *to = x * scale * w;
    }
}

/// to = silu(first half of the row) * second half.
#[inline(always)]
fn gate_row<const FUSED: bool>(row: &[f32], to: &mut [f32]) {
    let (gates, others) = row.split_at(to.len());
    for ((to, gate), other) in to.iter_mut().zip(gates).zip(others) {
        *to = gate / (1.0 + exp::<FUSED>(-gate)) * other;
    }
}

/// Turns each pair of a head's first and second half by its angle. `turns` has the cosines of a head's pairs, then the
/// sines.
#[inline(always)]
fn rotate_heads<const FUSED: bool>(heads: &mut [f32], turns: &[f32]) {
    let half = turns.len() / 2;
    let (cosines, sines) = turns.split_at(half);
    for head in heads.chunks_exact_mut(turns.len()) {
        let (first, second) = head.split_at_mut(half);
        for (((x, y), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            let (a, b) = (*x, *y);
            *x = multiply_add::<FUSED>(a, *cosine, -b * sine);
            *y = multiply_add::<FUSED>(b, *cosine, a * sine);
        }
    }
}

#[inline(always)]
fn reduce(row: &[f32], start: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = join(*lane, *x);
        }
    }
    let sum = lanes.into_iter().fold(start, &join);
    rest.iter().fold(sum, |a, b| join(a, *b))
}

#[inline(always)]
fn sum_of_squares<const FUSED: bool>(row: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = multiply_add::<FUSED>(*x, *x, *lane);
        }
    }
    lanes.into_iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

/// One module for each level: the bodies above under its target features.
macro_rules! level {
    ($name:ident, $fused:literal $(, $features:literal)?) => {
        pub(crate) mod $name {
            use super::{Norm, Weight};

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn gelu(row: &mut [f32]) {
                super::gelu_rows::<$fused>(row);
            }

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn softmax(row: &mut [f32], scale: f32) {
                super::softmax_row::<$fused>(row, scale);
            }

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn add_norm(row: &mut [f32], added: &[f32], norm: Norm<'_>) {
                super::add_norm_row::<$fused>(row, added, norm);
            }

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn norm(row: &mut [f32], norm: Norm<'_>) {
                super::norm_row::<$fused>(row, norm);
            }

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn rms_norm(row: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
                super::rms_norm_row::<$fused>(row, weight, epsilon, to);
            }

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn gate(row: &[f32], to: &mut [f32]) {
                super::gate_row::<$fused>(row, to);
            }

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn rotate(heads: &mut [f32], turns: &[f32]) {
                super::rotate_heads::<$fused>(heads, turns);
            }

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn softmax_part(row: &mut [f32]) -> Weight {
                super::softmax_part_row::<$fused>(row)
            }

            /// # Safety
            /// The CPU has this level's features.
            $(#[target_feature(enable = $features)])?
            pub(crate) unsafe fn join(to: &mut [f32], own: Weight, from: &[f32], other: Weight) -> Weight {
                super::join_rows::<$fused>(to, own, from, other)
            }
        }
    };
}
level!(scalar, false);
level!(avx2, true, "avx2,fma");
level!(avx512, true, "avx512f,avx2,fma");

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Taylor series near 0 and by the continued fraction of erfc beyond, in f64.
    fn erf_f64(x: f64) -> f64 {
        if x.abs() > 2.5 {
            let fraction = (1..80).rev().fold(0.0, |tail, k| f64::from(k) / 2.0 / (x.abs() + tail));
            let erfc = (-x * x).exp() / (x.abs() + fraction) / std::f64::consts::PI.sqrt();
            return x.signum() * (1.0 - erfc);
        }
        let mut term = x;
        let mut sum = x;
        for k in 1..80 {
            term *= -x * x / f64::from(k);
            sum += term / f64::from(2 * k + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn sweep(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (0..=400_000).map(move |i| from + (to - from) * i as f32 / 400_000.0)
    }

    #[test]
    fn exp_is_within_its_stated_error() {
        for x in sweep(-87.0, 88.0) {
            let exact = f64::from(x).exp();
            for value in [exp::<true>(x), exp::<false>(x)] {
                assert!((f64::from(value) - exact).abs() <= 3e-7 * exact, "exp({x}) = {value}");
            }
        }
        assert!(exp::<true>(f32::NEG_INFINITY) < 2e-38);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_its_stated_error() {
        for x in sweep(-6.0, 6.0) {
            for value in [erf::<true>(x), erf::<false>(x)] {
                assert!((f64::from(value) - erf_f64(f64::from(x))).abs() <= 5e-7, "erf({x}) = {value}");
            }
        }
        assert!(erf::<true>(f32::NAN).is_nan());
    }
}

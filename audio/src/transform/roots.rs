//! Roots of a polynomial, all at once: O. Aberth, "Iteration methods for finding all zeros of a polynomial simultaneously"
//! (1973).

use std::ops::{Add, Div, Mul, Sub};

/// Steps after which it is given up.
const STEPS_MAX: usize = 80;
/// They move by no more, all together, when they are found.
const STILL: f64 = 1e-10;

/// A complex number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

impl Complex {
    const ZERO: Self = Self { re: 0.0, im: 0.0 };
    const ONE: Self = Self { re: 1.0, im: 0.0 };

    pub(super) fn abs(self) -> f64 {
        self.re.hypot(self.im)
    }

    pub(super) fn angle(self) -> f64 {
        self.im.atan2(self.re)
    }
}

impl Add for Complex {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Sub for Complex {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }
}

impl Mul for Complex {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }
}

impl Div for Complex {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let square = other.re * other.re + other.im * other.im;
        Self {
            re: (self.re * other.re + self.im * other.im) / square,
            im: (self.im * other.re - self.re * other.im) / square,
        }
    }
}

/// The roots of `z^n + c[0] z^(n-1) + ... + c[n-1]`; `None` where they are not found.
pub(super) fn roots<const N: usize>(coefficients: &[f64; N]) -> Option<[Complex; N]> {
    // Inside the unit circle, where those of a stable filter lie, and not symmetric.
    let mut roots: [Complex; N] = std::array::from_fn(|at| {
        let (sine, cosine) = (std::f64::consts::TAU * at as f64 / N as f64 + 0.4).sin_cos();
        Complex { re: 0.9 * cosine, im: 0.9 * sine }
    });
    for _ in 0..STEPS_MAX {
        let mut moved = 0.0_f64;
        for at in 0..N {
            let (value, slope) = evaluate(coefficients, roots[at]);
            if value == Complex::ZERO {
                continue;
            }
            let newton = value / slope;
            let others = (0..N).filter(|other| *other != at);
            let pushed =
                others.fold(Complex::ZERO, |sum, other| sum + Complex::ONE / (roots[at] - roots[other]));
            let step = newton / (Complex::ONE - newton * pushed);
            roots[at] = roots[at] - step;
            // A sum, since the larger of a number and none is the number.
            moved += step.abs();
        }
        // Also where it has become no number.
        if !moved.is_finite() {
            return None;
        }
        if moved < STILL {
            return Some(roots);
        }
    }
    None
}

/// The polynomial and its derivative, by Horner's scheme.
fn evaluate<const N: usize>(coefficients: &[f64; N], z: Complex) -> (Complex, Complex) {
    let (mut value, mut slope) = (Complex::ONE, Complex::ZERO);
    for coefficient in coefficients {
        slope = slope * z + value;
        value = value * z + Complex { re: *coefficient, im: 0.0 };
    }
    (value, slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_roots_are_found() {
        // (z - 0.5)(z + 0.25)(z^2 - 1.2 z + 0.72), whose last two are 0.6 +- 0.6i.
        let found = roots(&[-1.45, 0.895, -0.03, -0.09]).unwrap();
        for wanted in [(0.5, 0.0), (-0.25, 0.0), (0.6, 0.6), (0.6, -0.6)] {
            let near = |root: &Complex| (root.re - wanted.0).hypot(root.im - wanted.1) < 1e-9;
            assert!(found.iter().any(near), "{wanted:?} in {found:?}");
        }
    }

    #[test]
    fn what_has_no_numbers_has_no_roots() {
        assert_eq!(roots(&[f64::NAN, 1.0, 1.0]), None);
        assert_eq!(roots(&[f64::INFINITY, 1.0, 1.0]), None);
    }
}

//! What the tests of kernels share: random inputs, a [`Compute`] for every level of this CPU, tolerances.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "helpers of several test programs")]

use proptest::prelude::ProptestConfig;
use ringfence_kernels::{Compute, Isa, Matrix, Pool};

/// A small generator, so that a failing case is its seed and shape.
pub struct Generator(pub u64);

impl Generator {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }

    pub fn matrix(&mut self, rows: usize, columns: usize) -> Matrix {
        let mut matrix = Matrix::zeroed(rows, columns).unwrap();
        for row in 0..rows {
            matrix.row_mut(row).copy_from_slice(&self.vector(columns));
        }
        matrix
    }
}

pub fn computes() -> impl Iterator<Item = Compute> {
    Isa::available().into_iter().map(|isa| Compute::new(isa, Pool::new(2).unwrap()))
}

pub fn close(value: f32, exact: f64, tolerance: f64, what: &str) {
    assert!((f64::from(value) - exact).abs() <= tolerance, "{what}: {value} instead of {exact}");
}

/// This many cases, unless PROPTEST_CASES says how many.
pub fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases, ..default } }
}

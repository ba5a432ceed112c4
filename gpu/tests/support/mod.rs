//! What the tests share: the device, and numbers from a seed.
#![allow(dead_code, clippy::unwrap_used, reason = "helpers of tests; each test program uses its part")]

use proptest::prelude::ProptestConfig;
use ringfence_gpu::{Adapter, Adapters, Gpu, Matrix, Products, Shaders};

/// Enough for every test.
pub(crate) const LEASE: u64 = 256 << 20;

/// The adapter to test on: software where there is one, so that results are the same on every machine.
///
/// # Panics
/// If there is none. Nothing is skipped for the lack of a device.
pub(crate) fn adapter() -> Adapter {
    let adapters =
        Adapters::list().unwrap_or_else(|error| panic!("{error}; `scripts/system-packages` installs one"));
    adapters.all().last().expect("never empty").clone()
}

/// The device, warmed up, with both ways to reduce and each to multiply, where the adapter has them.
pub(crate) fn gpus() -> Vec<Gpu> {
    let adapter = adapter();
    let ways = [
        (true, false, Products::Singles),
        (adapter.subgroups, true, Products::Singles),
        (adapter.f16, true, Products::Halves),
        (adapter.matrices.is_some(), true, Products::Cooperative),
    ];
    let open = |(_, subgroups, products)| {
        let gpu = Gpu::open_with(&adapter, LEASE, Shaders { subgroups, products }).unwrap();
        gpu.warm_up().unwrap();
        assert_eq!(gpu.products(), products, "{:?}", gpu.passed_over());
        gpu
    };
    ways.into_iter().filter(|(there, ..)| *there).map(open).collect()
}

thread_local! {
    static GPUS: Vec<Gpu> = gpus();
}

/// Runs a check on each of the devices, which are opened once for each thread.
pub(crate) fn on_each(check: impl Fn(&Gpu)) {
    GPUS.with(|gpus| gpus.iter().for_each(check));
}

/// A small generator, so that a failing case is its seed and shape.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((f64::from(self.next()) + 1.0) / 2.0 * bound as f64) as usize % bound
    }

    pub(crate) fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// A matrix with these floats.
pub(crate) fn matrix(gpu: &Gpu, rows: usize, columns: usize, floats: &[f32]) -> Matrix {
    let matrix = gpu.matrix(rows, columns).unwrap();
    gpu.upload(&matrix, floats);
    matrix
}

pub(crate) fn read(gpu: &Gpu, from: &Matrix) -> Vec<f32> {
    let mut floats = Vec::new();
    gpu.read(from, from.rows(), &mut floats).unwrap();
    floats
}

pub(crate) fn close(found: &[f32], exact: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    for (index, (found, exact)) in found.iter().zip(exact).enumerate() {
        let off = (f64::from(*found) - exact).abs();
        assert!(off <= tolerance, "{what}: {found} instead of {exact} at {index}");
    }
}

/// This many cases, unless PROPTEST_CASES says how many.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases, ..default } }
}

//! How products with weights in halves are made, and how a device is asked whether it makes them right.
//!
//! Weights in f32 are always multiplied in f32, and so is a product of few rows, whose time is that of reading the weights.

use crate::Stored;
use crate::adapter::{Adapter, AdapterKind};
use crate::device::Gpu;
use crate::error::GpuError;
use crate::kernels::linear::Activation;
use crate::pipelines::Kernel;

/// How products with weights in halves are made, slowest first. Sums are f32 in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Products {
    /// In f32.
    Singles,
    /// In f16, which rounds the input to it (beyond 65504 to infinity) and four products each, then in f32.
    Halves,
    /// With more than 32 rows as matrices that a subgroup multiplies by one instruction, the input rounded to f16; with
    /// fewer rows as [`Products::Halves`].
    Cooperative,
}

impl Products {
    pub(crate) const BEST_FIRST: [Self; 3] = [Self::Cooperative, Self::Halves, Self::Singles];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Singles => "f32",
            Self::Halves => "f16",
            Self::Cooperative => "cooperative matrices",
        }
    }

    /// The kernels for tiles of few rows and of many.
    pub(crate) fn tiles(self) -> (Kernel, Kernel) {
        match self {
            Self::Singles => (Kernel::ShortF16, Kernel::TallF16),
            Self::Halves => (Kernel::ShortHalves, Kernel::TallHalves),
            Self::Cooperative => (Kernel::ShortHalves, Kernel::Cooperative),
        }
    }
}

/// A way to multiply that the adapter reports and that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Which.
    pub products: Products,
    /// The driver's word, or that results were wrong.
    pub reason: String,
}

/// Square matrices of halves that a subgroup multiplies and sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrices {
    /// Rows and columns: 8 or 16.
    pub edge: u32,
    /// Lanes of the workgroup that makes a tile of such matrices.
    pub(crate) lanes: u32,
}

/// A tile's rows and outputs; a subgroup makes two by two matrices of it.
const TILE: u32 = 64;
/// Shared memory of the kernel, in bytes: two times 64 lines of 40 halves, and the tile.
const SHARED_BYTES: u32 = 2 * 64 * 40 * 2 + 64 * 64 * 4;

impl Matrices {
    /// The largest that the kernel can use, if there is one.
    pub(crate) fn among(
        shapes: &[wgpu::CooperativeMatrixProperties],
        features: &wgpu::Features,
        limits: &wgpu::Limits,
        subgroup_size_max: u32,
    ) -> Option<Self> {
        let wanted = wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        if !features.contains(wanted) || limits.max_compute_workgroup_storage_size < SHARED_BYTES {
            return None;
        }
        let [halves, singles] = [wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32];
        let fits = |edge: u32| {
            shapes.iter().any(|shape| {
                [shape.m_size, shape.n_size, shape.k_size] == [edge; 3]
                    && (shape.ab_type, shape.cr_type) == (halves, singles)
            })
        };
        let edge = [16, 8].into_iter().find(|edge| fits(*edge))?;
        let lanes = (TILE / (2 * edge)).pow(2).checked_mul(subgroup_size_max)?;
        let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
        (1..=most).contains(&lanes).then_some(Self { edge, lanes })
    }
}

/// Which shaders a device is opened with. What the adapter doesn't have is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shaders {
    /// Reductions by a subgroup's instructions, not over shared memory alone.
    pub subgroups: bool,
    /// The best way to multiply that the warm-up tries.
    pub products: Products,
}

impl Shaders {
    /// The fastest that the adapter reports.
    pub fn best(adapter: &Adapter) -> Self {
        let products = match adapter.kind {
            // Emulated there: each half is converted, and a product of matrices is loops.
            AdapterKind::Cpu => Products::Singles,
            _ => Products::Cooperative,
        };
        Self { subgroups: true, products }.on(adapter)
    }

    /// What of it the adapter has.
    pub(crate) fn on(self, adapter: &Adapter) -> Self {
        let most = match (adapter.f16, adapter.matrices) {
            (true, Some(_)) => Products::Cooperative,
            (true, None) => Products::Halves,
            (false, _) => Products::Singles,
        };
        Self { subgroups: self.subgroups && adapter.subgroups, products: self.products.min(most) }
    }
}

impl Gpu {
    /// Whether products of whole numbers, which no rounding touches, are right: with more tiles than one, and less than
    /// whole, and each kernel for them.
    pub(crate) fn multiplies_right(&self) -> Result<bool, GpuError> {
        const ROWS: usize = 70;
        const INPUTS: usize = 42;
        const OUTPUTS: usize = 66;
        let small = |i: usize| ((i * 7 + i / 5) % 9) as f32 - 4.0;
        let input: Vec<f32> = (0..ROWS * INPUTS).map(small).collect();
        let weights: Vec<f32> = (0..OUTPUTS * INPUTS).map(|i| small(i + 3)).collect();
        let bias: Vec<f32> = (0..OUTPUTS).map(small).collect();
        let stored = self.linear_weights(INPUTS, &[(&weights, &bias)], Stored::F16)?;
        let (from, mut to) = (self.matrix(ROWS, INPUTS)?, self.matrix(ROWS, OUTPUTS)?);
        self.upload(&from, &input);
        // All rows, a part of them, and so few that another kernel runs.
        for rows in [ROWS, 30, 2] {
            self.clear(&mut to, ROWS);
            self.linear(&from, rows, &stored, Activation::None, &mut to);
            let mut found = Vec::new();
            self.read(&to, ROWS, &mut found)?;
            let exact = input.chunks_exact(INPUTS).enumerate().flat_map(|(row, input)| {
                weights.chunks_exact(INPUTS).zip(&bias).map(move |(weights, bias)| {
                    let sum: f32 = input.iter().zip(weights).map(|(x, w)| x * w).sum();
                    if row < rows { sum + bias } else { 0.0 }
                })
            });
            if !exact.eq(found) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

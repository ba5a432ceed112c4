//! Products with weights: to = activation(input * weights^T + bias).

use crate::Stored;
use crate::buffers::Matrix;
use crate::device::Gpu;
use crate::error::GpuError;
use crate::gate::Buffer;
use crate::pipelines::{Kernel, Parameters};
use half::f16;

/// Up to so many rows the kernel for few rows runs: each output is a workgroup's sum.
const GEMV_ROWS_MAX: usize = 4;
/// Up to so many rows a workgroup of the kernel for more rows makes a tile of [`SHORT_ROWS`], which leaves more of the
/// device busy; above, one of [`TALL_ROWS`], which reads less.
const SHORT_ROWS_MAX: usize = 32;
const SHORT_ROWS: usize = 16;
const TALL_ROWS: usize = 64;
/// Outputs of a tile.
const TILE_OUTPUTS: usize = 64;
/// Bytes of halves that are packed at a time.
const PACKED_BYTES: usize = 256 * 1024;

/// What happens to each element after a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// x times the standard normal distribution at x.
    Gelu,
    /// x times the logistic function at x.
    Silu,
}

impl Activation {
    /// Its number in the shaders.
    pub(crate) fn word(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Gelu => 1,
            Self::Silu => 2,
        }
    }
}

/// Weights `outputs x inputs` and a bias for each output, split over buffers where a shader can't reach all of them.
#[derive(Debug)]
pub struct LinearWeights {
    inputs: usize,
    outputs: usize,
    stored: Stored,
    bias: Buffer,
    parts: Vec<Part>,
}

/// Weights of some outputs.
#[derive(Debug)]
struct Part {
    first: usize,
    outputs: usize,
    buffer: Buffer,
}

impl LinearWeights {
    /// Width of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Buffers that the weights are split over.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Bytes that [`Gpu::linear_weights`] asks for, less what the gate rounds.
    pub fn bytes(inputs: usize, outputs: usize, stored: Stored) -> u64 {
        let row = 4 * stride(inputs, stored) as u64 + 4;
        row.saturating_mul(outputs as u64)
    }
}

/// Words of a row of weights.
fn stride(inputs: usize, stored: Stored) -> usize {
    match stored {
        Stored::F32 => inputs,
        Stored::F16 => inputs.div_ceil(2),
    }
}

impl Gpu {
    /// Takes the weights (`outputs x inputs`, row-major) and biases of layers that read the same input, their outputs one
    /// after another. Halves are rounded to nearest; beyond 65504 they are infinite, and so is what is computed from them.
    ///
    /// # Errors
    /// No memory, or a row is more than a shader can reach.
    ///
    /// # Panics
    /// If a layer's weights aren't as many as its biases times `inputs`.
    pub fn linear_weights(
        &self,
        inputs: usize,
        layers: &[(&[f32], &[f32])],
        stored: Stored,
    ) -> Result<LinearWeights, GpuError> {
        let outputs = layers.iter().map(|(_, bias)| bias.len()).sum();
        let row = self.bindable(4 * stride(inputs, stored) as u64)?.max(4);
        let most = usize::try_from(self.bindable_max() / row).expect("rows of one buffer");
        let mut parts = Vec::new();
        for first in (0..outputs).step_by(most) {
            let outputs = most.min(outputs - first);
            parts.push(Part { first, outputs, buffer: self.buffer(row * outputs as u64)? });
        }
        let bias = self.buffer(self.bindable(4 * outputs as u64)?)?;
        let weights = LinearWeights { inputs, outputs, stored, bias, parts };
        let mut first = 0;
        for (weight, bias) in layers {
            assert_eq!(weight.len(), bias.len() * inputs, "weights are outputs x inputs");
            self.upload_floats(&weights.bias, 4 * first as u64, bias);
            self.place(&weights, first, weight);
            first += bias.len();
        }
        Ok(weights)
    }

    /// Copies rows of weights to the parts that they fall into.
    fn place(&self, weights: &LinearWeights, first: usize, rows: &[f32]) {
        let LinearWeights { inputs, stored, .. } = *weights;
        if inputs == 0 {
            return;
        }
        let end = first + rows.len() / inputs;
        for part in &weights.parts {
            let (from, to) = (first.max(part.first), end.min(part.first + part.outputs));
            if from >= to {
                continue;
            }
            let rows = &rows[(from - first) * inputs..(to - first) * inputs];
            let offset = (4 * stride(inputs, stored) * (from - part.first)) as u64;
            match stored {
                Stored::F32 => self.upload_floats(&part.buffer, offset, rows),
                Stored::F16 => self.upload_halves(&part.buffer, offset, rows, inputs),
            }
        }
    }

    /// Copies rows as halves, each padded to whole words.
    fn upload_halves(&self, to: &Buffer, mut offset: u64, rows: &[f32], inputs: usize) {
        let at_a_time = (PACKED_BYTES / (4 * stride(inputs, Stored::F16))).max(1);
        let mut bytes = Vec::new();
        for rows in rows.chunks(at_a_time * inputs) {
            bytes.clear();
            for row in rows.chunks_exact(inputs) {
                bytes.extend(row.iter().flat_map(|weight| f16::from_f32(*weight).to_le_bytes()));
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            self.upload_bytes(to, offset, &bytes);
            offset += bytes.len() as u64;
        }
    }

    /// For the first `rows` rows: to = activation(input * weights^T + bias).
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn linear(
        &self,
        input: &Matrix,
        rows: usize,
        weights: &LinearWeights,
        activation: Activation,
        to: &mut Matrix,
    ) {
        assert!(rows <= input.rows() && rows <= to.rows(), "{rows} rows");
        assert_eq!((input.columns(), to.columns()), (weights.inputs, weights.outputs), "columns");
        let (short, tall) = self.products().tiles();
        let (f32_kernel, f16_kernel, tile_rows, tile_outputs) = if rows <= GEMV_ROWS_MAX {
            (Kernel::GemvF32, Kernel::GemvF16, 1, 1)
        } else if rows <= SHORT_ROWS_MAX {
            (Kernel::ShortF32, short, SHORT_ROWS, TILE_OUTPUTS)
        } else {
            (Kernel::TallF32, tall, TALL_ROWS, TILE_OUTPUTS)
        };
        let kernel = match weights.stored {
            Stored::F32 => f32_kernel,
            Stored::F16 => f16_kernel,
        };
        for part in &weights.parts {
            let LinearWeights { inputs, outputs, stored, .. } = *weights;
            let stride = stride(inputs, stored);
            let parameters = Parameters::new(&[rows, inputs, part.outputs, part.first, outputs, stride]);
            let groups = rows.div_ceil(tile_rows) * part.outputs.div_ceil(tile_outputs);
            let buffers = [input.buffer.raw(), part.buffer.raw(), weights.bias.raw(), to.buffer.raw()];
            self.dispatch(kernel, &buffers, &parameters.word(activation.word()), groups as u64);
        }
    }
}

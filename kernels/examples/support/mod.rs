//! Weights of any kind, all of them the same number: what products cost does not depend on it.

use ringfence_kernels::{
    Activation, BlockKind, Compute, Isa, Matrix, Numbers, PackedLinear, Part, QuantLinear, QuantPart,
    Quantised,
};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Floats(Numbers),
    Blocks(BlockKind),
}

pub(crate) enum Weights {
    Floats(PackedLinear),
    Blocks(QuantLinear),
}

impl Weights {
    pub(crate) fn new(isa: Isa, kind: Kind, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(match kind {
            Kind::Floats(numbers) => {
                let (weight, bias) = (vec![0.01; inputs * outputs], vec![0.0; outputs]);
                let part = Part { weight: &weight, bias: &bias };
                Self::Floats(PackedLinear::pack_as(numbers, isa, inputs, &[part])?)
            }
            Kind::Blocks(kind) => {
                let blocks = vec![0x11; outputs * inputs / kind.weights() * kind.bytes()];
                let part = QuantPart { kind, rows: outputs, blocks: &blocks, bias: None };
                Self::Blocks(QuantLinear::pack(isa, inputs, &[part])?)
            }
        })
    }

    pub(crate) fn times(
        &self,
        compute: &Compute,
        x: &Matrix,
        rows: usize,
        scratch: &mut Quantised,
        to: &mut Matrix,
    ) {
        match self {
            Self::Floats(weights) => compute.linear(x, rows, weights, Activation::None, to),
            Self::Blocks(weights) => compute.quant_linear(x, rows, weights, scratch, to),
        }
    }
}

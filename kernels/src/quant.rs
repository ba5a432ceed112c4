//! Products with weights that stay in blocks of few bits, as model files have them: dequantised they would be read from
//! memory two to eight times as long. The inputs are quantised to bytes on the way, and products are sums of integers.

pub(crate) mod activations;
mod kind;
mod linear;
mod product;
pub(crate) mod tile;

pub use activations::Quantised;
pub use kind::BlockKind;
pub use linear::{QuantLinear, QuantPart};

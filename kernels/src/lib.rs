//! CPU kernels for transformer models: matrix products with weights packed once or left in quantised blocks, attention over
//! ragged batches and over blocks of kept keys and values, normalisation, rotation and activations, on a small pool of
//! threads that spin between the steps of one forward pass.
//!
//! Every kernel exists for AVX-512F, for AVX2 with FMA and in plain Rust, and products of bytes also for AVX-VNNI and
//! AVX-512 VNNI; [`Isa`] says which one runs.
#![allow(unsafe_code, reason = "vector instructions and the pool's shared job; each use under SAFETY")]

mod attention;
mod blocks;
mod buffer;
mod cache;
mod compute;
mod half;
mod isa;
mod linear;
mod pool;
mod quant;
mod rotary;
mod rows;
mod tile;

pub use attention::AttentionScratch;
pub use blocks::{BLOCK_TOKENS, BlockCache, BlockScores, Sequence};
pub use buffer::{Matrix, OutOfMemory};
pub use cache::{KeyValues, Scores, Seen};
pub use compute::{Compute, Window};
pub use half::widen as widen_half;
pub use isa::{Isa, Level};
pub use linear::{Activation, Numbers, PackedLinear, Part};
pub use pool::{Pool, THREADS_MAX};
pub use quant::{BlockKind, QuantLinear, QuantPart, Quantised};
pub use rotary::Turns;

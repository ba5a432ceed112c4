//! Attention over keys and values in blocks of [`BLOCK_TOKENS`] tokens, which sequences list in their own order: blocks
//! can be shared, freed and handed out one by one (Kwon et al. 2023, <https://arxiv.org/abs/2309.06180>).

mod attend;
mod cache;
mod plan;
mod scores;

pub use cache::{BLOCK_TOKENS, BlockCache};
pub use plan::Sequence;
pub use scores::BlockScores;

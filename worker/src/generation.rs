//! Text generation: from a chat to a prompt, from a prompt to logits, and from logits to text.
//!
//! ```text
//! serve       jobs beside each other: read, tokenised, computed and written in the same steps
//! batch       which tokens of which sequences a step takes; blocks.rs knows whose blocks are whose
//! pace        how many tokens a step may have
//! language    prompts to tokens
//! writing     one answer: its tokens to text, until it is over
//! sampling    which token comes next, out of a network's logits
//! bitmask     the tokens that may come next
//! detokenise  tokens to text, whole characters only, cut at stop strings
//! template    a chat to the text of a prompt, its contents told apart from the template's own text
//! special     where that text means special tokens
//! grammar     output held to a JSON schema
//! ```

pub mod batch;
pub mod bitmask;
pub mod blocks;
pub mod detokenise;
pub mod grammar;
pub mod language;
mod pace;
pub mod sampling;
mod serve;
pub mod special;
pub mod template;
mod writing;

pub(crate) use serve::serve_generation;

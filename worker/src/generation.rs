//! Text generation: from logits to tokens and text, and from a chat to a prompt.
//!
//! ```text
//! sampling    which token comes next, out of a network's logits
//! bitmask     the tokens that may come next
//! detokenise  tokens to text, whole characters only, cut at stop strings
//! template    a chat to the text of a prompt, its contents told apart from the template's own text
//! special     where that text means special tokens
//! grammar     output held to a JSON schema
//! ```

pub mod bitmask;
pub mod detokenise;
pub mod grammar;
pub mod sampling;
pub mod special;
pub mod template;

//! A vocabulary as the tree of bytes that grammars walk, made once for a model.

use crate::generation::detokenise::TokenBytes;
use crate::package::chat::EndTokens;
use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::panic_utils;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Once};

/// What a token takes while the tree is made, in bytes. SmolLM2's 49,152 take 24.8 MB at the peak, by the counting
/// allocator: 504 each, of which 443 stay. The rest is headroom for longer tokens.
const WORKING_BYTES: u64 = 640;

/// A vocabulary that grammars can walk.
pub struct TokenTrie {
    factory: ParserFactory,
    vocabulary: usize,
}

impl std::fmt::Debug for TokenTrie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenTrie").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

impl TokenTrie {
    /// Of a vocabulary, whose answers these tokens end. `None` if no token ends them, for then nothing could say that a
    /// JSON value is whole; or if the library gives up.
    pub fn new(bytes: &TokenBytes, ends: &EndTokens) -> Option<Self> {
        keep_panic_hook();
        let vocabulary = bytes.vocabulary();
        let count = u32::try_from(vocabulary).ok()?;
        let info = TokRxInfo::new(count, *ends.ids().first()?);
        let words: Vec<Vec<u8>> = (0..count).map(|id| word(bytes, id)).collect();
        catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&info, &words);
            drop(words);
            let trie = if ends.ids().len() > 1 { trie.with_eos_tokens(ends.ids()) } else { trie };
            let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = SlicedBiasComputer::json_slices();
            ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices).ok()
        }))
        .ok()?
        .map(|mut factory| {
            factory.quiet();
            Self { factory, vocabulary }
        })
    }

    /// What has to be free to make the tree of so many tokens, in bytes: the library's own allocations can't be refused one
    /// by one.
    pub fn bytes_needed(vocabulary: usize) -> u64 {
        vocabulary as u64 * WORKING_BYTES
    }

    /// How many tokens there are.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    pub(super) fn factory(&self) -> &ParserFactory {
        &self.factory
    }
}

/// A token's bytes. Special tokens have names that begin with a byte that no text has, as the library wants it, so that
/// no string of a schema allows one.
fn word(bytes: &TokenBytes, id: u32) -> Vec<u8> {
    if bytes.is_special(id) {
        let marker = [TokTrie::SPECIAL_TOKEN_MARKER];
        return [marker.as_slice(), format!("<{id}>").as_bytes()].concat();
    }
    bytes.get(id).to_vec()
}

/// The library puts a hook of its own before ours, once, which writes down the stack of each panic that it catches. To
/// name its functions it would open the program's file, which nothing may in a sandbox. So it does that once now, and
/// ours is put back.
fn keep_panic_hook() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let ours = take_hook();
        let nothing: Result<(), _> = panic_utils::catch_unwind(|| Ok(()));
        set_hook(ours);
        nothing.expect("nothing was done");
    });
}

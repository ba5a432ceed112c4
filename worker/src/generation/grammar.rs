//! Output held to a JSON schema: which tokens may come next, by llguidance, which works a mask out of the schema and the
//! vocabulary's tree for each token instead of compiling all states before.
//!
//! What the library does not know in a schema is refused, not ignored.
//! Schemas are a client's: everything that the library can bound is bounded here, and a panic of it is an error.

mod tokens;

pub use tokens::TokenTrie;

use super::bitmask::Bitmask;
use llguidance::api::{GrammarInit, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::{Logger, TokenParser};
use ringfence_protocol::SCHEMA_BYTES_MAX;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The longest reason why a schema is refused, in bytes.
pub const REASON_BYTES_MAX: usize = 256;

/// The library's bounds. Its own defaults let one client take a second and hundreds of megabytes.
fn limits() -> ParserLimits {
    ParserLimits {
        // Alternatives that are open at one place.
        max_items_in_row: 1000,
        // About 50,000 a millisecond.
        initial_lexer_fuel: 500_000,
        // About 14,000 a millisecond, for each token.
        step_lexer_fuel: 200_000,
        // About 20,000 a millisecond, for each token.
        step_max_items: 50_000,
        // One or two kilobytes each.
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Why there is no grammar, or no mask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The schema has more than [`SCHEMA_BYTES_MAX`].
    #[error("the schema has {0} bytes, at most {SCHEMA_BYTES_MAX} are taken")]
    TooLarge(usize),
    /// The schema is no JSON.
    #[error("the schema is no JSON")]
    NoJson,
    /// The schema is malformed, has what is not known, or is too large for the bounds.
    #[error("the schema is refused: {0}")]
    Refused(String),
    /// The grammar took too many steps at this place, or the library gave up; the answer can't go on.
    #[error("the schema takes too many steps here")]
    Failed,
    /// A token came that the mask had not.
    #[error("a token came that the schema does not allow")]
    NotAllowed,
}

/// A schema, and how far an answer has come in it.
pub struct Grammar {
    parser: TokenParser,
    mask: Bitmask,
    /// What comes next has been worked out.
    is_current: bool,
    is_done: bool,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("is_done", &self.is_done).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Of a schema.
    ///
    /// # Errors
    /// [`GrammarError`]; the reason has words of the schema.
    pub fn json_schema(schema: &str, tokens: &TokenTrie) -> Result<Self, GrammarError> {
        if schema.len() > SCHEMA_BYTES_MAX {
            return Err(GrammarError::TooLarge(schema.len()));
        }
        let schema: Value = serde_json::from_str(schema).map_err(|_| GrammarError::NoJson)?;
        let parser = catch_unwind(AssertUnwindSafe(|| {
            tokens.factory().create_parser_from_init_ext(
                GrammarInit::Serialized(TopLevelGrammar::from_json_schema(schema)),
                Logger::new(0, 0),
                llguidance::toktrie::InferenceCapabilities::default(),
                limits(),
            )
        }));
        let mut parser = match parser {
            Ok(Ok(parser)) => parser,
            Ok(Err(error)) => return Err(GrammarError::Refused(reason(&error.to_string()))),
            Err(_) => return Err(GrammarError::Failed),
        };
        parser.start_without_prompt();
        Ok(Self { parser, mask: Bitmask::none(tokens.vocabulary()), is_current: false, is_done: false })
    }

    /// The tokens that may come next; an end token only where the JSON is whole. Where the grammar is done, none.
    ///
    /// # Errors
    /// [`GrammarError::Failed`]
    pub fn mask(&mut self) -> Result<&Bitmask, GrammarError> {
        if !self.is_current {
            self.mask = match self.is_done {
                true => Bitmask::default(),
                false => self.computed()?,
            };
            self.is_current = true;
        }
        Ok(&self.mask)
    }

    fn computed(&mut self) -> Result<Bitmask, GrammarError> {
        let mask = catch_unwind(AssertUnwindSafe(|| self.parser.compute_mask()));
        let mask = mask.ok().and_then(Result::ok).ok_or(GrammarError::Failed)?;
        Ok(Bitmask::from(Vec::from(mask)))
    }

    /// Goes on by a token.
    ///
    /// # Errors
    /// [`GrammarError::NotAllowed`] or [`GrammarError::Failed`]; the grammar is of no use then.
    pub fn take(&mut self, id: u32) -> Result<(), GrammarError> {
        if !self.mask()?.allows(id) {
            return Err(GrammarError::NotAllowed);
        }
        let parser = &mut self.parser;
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            parser.consume_token(id)?;
            parser.check_stop()
        }));
        match stopped {
            Ok(Ok(stopped)) => self.is_done = stopped,
            Ok(Err(_)) | Err(_) => return Err(GrammarError::Failed),
        }
        self.is_current = false;
        Ok(())
    }

    /// Nothing can follow: an end token came, or the JSON is whole and can't go on.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// The JSON is whole as it is.
    pub fn is_whole(&mut self) -> bool {
        match self.parser.stop_reason() {
            StopReason::NotStopped => self.parser.is_accepting(),
            StopReason::NoExtension | StopReason::EndOfSentence => true,
            _ => false,
        }
    }
}

/// The first line of the library's words.
fn reason(words: &str) -> String {
    let line = words.lines().next().unwrap_or_default();
    let mut end = line.len().min(REASON_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].to_owned()
}

#[cfg(test)]
mod tests;

//! Texts and token arrays to the token ids of one sequence, special tokens included, within the model's length.
//!
//! A token array is what the client's tokeniser made of a text. If it begins and ends with the special tokens it is run
//! as it is; otherwise they are put around it, as they would be around the text.

use crate::memory::{Memory, load_error};
use crate::package::{Files, malformed, tokenizer};
use ringfence_protocol::{Item, JobError, LoadError};
use std::ops::Range;
use tokenizers::{Encoding, Tokenizer};

/// Long texts are tokenised in windows that end at white space, so that the tokeniser's working memory, some hundred
/// bytes for each byte of text, stays small.
const WINDOW_BYTES: usize = 16 * 1024;
/// A stretch without white space is cut after this many bytes. No word that long has a token of its own.
const STRETCH_BYTES_MAX: usize = 64 * 1024;
/// The tokens of a text that is too long are counted up to here, so that refusing it takes bounded time.
const COUNTED_BYTES_MAX: usize = 1024 * 1024;

/// A passage is sought in this many bytes for each token that it may have. English has four or five; where a text has more,
/// its passages are shorter.
const BYTES_FOR_TOKEN: usize = 8;

/// The tokeniser library's tables take about twelve times the bytes of their file; reading it takes as much again.
const TABLES_FACTOR: u64 = 32;

/// The tokens of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Ids, special tokens included; never empty.
    pub ids: Vec<u32>,
    /// Whether some were cut.
    pub truncated: bool,
}

/// What a text goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A passage.
    Passage {
        /// Where it is.
        bytes: Range<usize>,
        /// Its tokens.
        tokens: Tokens,
    },
    /// Characters that the tokeniser drops.
    Nothing {
        /// Where they end.
        behind: usize,
    },
    /// Nothing but white space.
    End,
}

/// A model's tokeniser and length.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    before: Vec<u32>,
    after: Vec<u32>,
    max_tokens: usize,
    vocabulary: u32,
}

impl Text {
    /// Reads a package's tokeniser for a model of this vocabulary and length.
    ///
    /// # Errors
    /// The tokeniser can't be used, has no room in memory, or leaves none between its special tokens.
    pub fn read(
        files: &Files,
        vocabulary: usize,
        max_tokens: usize,
        memory: &dyn Memory,
    ) -> Result<Self, LoadError> {
        check_tables(files, memory)?;
        let tokenizer = tokenizer::read(files, vocabulary)?;
        let (before, after) = special_tokens(&tokenizer)?;
        if before.len() + after.len() >= max_tokens {
            return Err(malformed(tokenizer::FILE, "the special tokens leave no room for a text"));
        }
        let vocabulary = u32::try_from(vocabulary).expect("the configuration bounds it");
        Ok(Self { tokenizer, before, after, max_tokens, vocabulary })
    }

    /// The longest sequence in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Token ids are below this.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// The tokens of an item, which is the `index`-th of its job.
    ///
    /// # Errors
    /// The item is empty, too long without leave to truncate, or not of this vocabulary.
    pub fn tokens(&self, index: u32, item: &Item, truncate: bool) -> Result<Tokens, JobError> {
        let content = match item {
            Item::Text(text) if text.is_empty() => return Err(JobError::InputEmpty { item: index }),
            Item::Tokens(ids) if ids.is_empty() => return Err(JobError::InputEmpty { item: index }),
            Item::Text(text) => self.content(text, truncate).ok_or(JobError::Tokenizer { item: index })?,
            Item::Tokens(ids) => self.given(index, ids)?.to_vec(),
        };
        let special = self.before.len() + self.after.len();
        let tokens = content.len() + special;
        let truncated = tokens > self.max_tokens;
        if truncated && !truncate {
            let count = |n| u32::try_from(n).unwrap_or(u32::MAX);
            let (tokens, max_tokens) = (count(tokens), count(self.max_tokens));
            return Err(JobError::InputTooLong { item: index, tokens, max_tokens });
        }
        let kept = &content[..content.len().min(self.max_tokens - special)];
        Ok(Tokens { ids: [&self.before, kept, &self.after].concat(), truncated })
    }

    /// What comes next in a text from the byte `at` on. A passage has at most `tokens_max` tokens without the special ones,
    /// and ends at the end of a paragraph, a line or a sentence where there is one in its second half, and within a word only
    /// where that is longer than a passage.
    ///
    /// # Errors
    /// The tokeniser fails.
    pub fn passage(&self, text: &str, at: usize, tokens_max: usize) -> Result<Next, JobError> {
        let tokens_max = tokens_max.clamp(1, self.max_tokens - self.before.len() - self.after.len());
        let at = text.len() - text[at..].trim_start().len();
        if at == text.len() {
            return Ok(Next::End);
        }
        let window = window(&text[at..], tokens_max * BYTES_FOR_TOKEN);
        let encoding = tokenizer::encode_with_offsets(&self.tokenizer, window);
        let encoding = encoding.ok_or(JobError::Tokenizer { item: 0 })?;
        let whole = window.len() == text.len() - at && encoding.len() <= tokens_max;
        let tokens = if whole { encoding.len() } else { cut(window, &encoding, tokens_max) };
        if tokens == 0 {
            return Ok(Next::Nothing { behind: at + window.len() });
        }
        let end = encoding.get_offsets()[tokens - 1].1;
        let ids = [&self.before, &encoding.get_ids()[..tokens], &self.after].concat();
        Ok(Next::Passage { bytes: at..at + end, tokens: Tokens { ids, truncated: false } })
    }

    /// A token array without the special tokens around it.
    fn given<'a>(&self, item: u32, ids: &'a [u32]) -> Result<&'a [u32], JobError> {
        if let Some(token) = ids.iter().find(|id| **id >= self.vocabulary) {
            return Err(JobError::TokenUnknown { item, token: *token, vocabulary: self.vocabulary });
        }
        let inner = ids.strip_prefix(&self.before[..]).and_then(|ids| ids.strip_suffix(&self.after[..]));
        Ok(inner.unwrap_or(ids))
    }

    /// A text's own tokens; `None` if the tokeniser fails. With `truncate` at least as many as the model takes.
    fn content(&self, text: &str, truncate: bool) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let read = text.len() - rest.len();
            if ids.len() > self.max_tokens && (truncate || read > COUNTED_BYTES_MAX) {
                break;
            }
            let (window, after) = rest.split_at(window_end(rest));
            let encoding = tokenizer::encode(&self.tokenizer, window, false)?;
            ids.extend_from_slice(encoding.get_ids());
            rest = after;
        }
        Some(ids)
    }
}

/// Where the first window of a text ends: behind the last white space of a window, or of a stretch, or in the stretch.
fn window_end(text: &str) -> usize {
    if text.len() <= WINDOW_BYTES {
        return text.len();
    }
    let behind = |bytes: &[u8]| bytes.iter().rposition(u8::is_ascii_whitespace).map(|at| at + 1);
    let stretch = text.floor_char_boundary(STRETCH_BYTES_MAX);
    let bytes = text.as_bytes();
    behind(&bytes[..WINDOW_BYTES]).or_else(|| behind(&bytes[..stretch])).unwrap_or(stretch)
}

/// The beginning of a text, about as long as `bytes`, up to white space where there is some.
fn window(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let end = text.floor_char_boundary(bytes.max(4));
    let space = text.as_bytes()[..end].iter().rposition(u8::is_ascii_whitespace);
    &text[..space.map_or(end, |at| at + 1)]
}

/// How many of a window's tokens a passage takes: up to the last end of a paragraph in its second half, else of a line, of a
/// sentence, of a word.
fn cut(window: &str, encoding: &Encoding, tokens_max: usize) -> usize {
    let (offsets, words) = (encoding.get_offsets(), encoding.get_word_ids());
    let most = offsets.len().min(tokens_max);
    // What stands between the last token of a passage and the first that is not in it.
    let ends = |tokens: usize| {
        let next = offsets.get(tokens).map_or(window.len(), |next| next.0);
        let between = &window[offsets[tokens - 1].1..next];
        match between.bytes().filter(|byte| *byte == b'\n').count() {
            0 if between.is_empty() => 0,
            0 if window[..offsets[tokens - 1].1].ends_with(['.', '!', '?']) => 2,
            0 => 1,
            1 => 3,
            _ => 4,
        }
    };
    let at_word = |tokens: &usize| words.get(*tokens).is_none_or(|next| *next != words[*tokens - 1]);
    let second_half = (most / 2 + 1..=most).filter(at_word);
    // Of equally good ones the last.
    let best = second_half.max_by_key(|tokens| (ends(*tokens), *tokens));
    best.or_else(|| (1..=most / 2).rev().find(at_word)).unwrap_or(most)
}

/// What the tokeniser puts before and after a text.
/// Whether there is memory to read a package's tokeniser: the library's own allocations can't be refused one by one.
pub(crate) fn check_tables(files: &Files, memory: &dyn Memory) -> Result<(), LoadError> {
    let bytes = files.require(tokenizer::FILE, tokenizer::BYTES_MAX)?.len() as u64;
    memory.check(bytes * TABLES_FACTOR).map_err(load_error)
}

pub(crate) fn special_tokens(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>), LoadError> {
    let refused = || malformed(tokenizer::FILE, "it doesn't tokenise `a` between special tokens of type 0");
    let encoding = tokenizer::encode(tokenizer, "a", true).ok_or_else(refused)?;
    let special = encoding.get_special_tokens_mask();
    let first = special.iter().position(|mask| *mask == 0).ok_or_else(refused)?;
    let last = special.iter().rposition(|mask| *mask == 0).ok_or_else(refused)?;
    if encoding.get_type_ids().iter().any(|id| *id != 0) {
        return Err(refused());
    }
    let ids = encoding.get_ids();
    Ok((ids[..first].to_vec(), ids[last + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_behind_white_space_or_within_their_bounds() {
        let words = "word ".repeat(10_000);
        assert_eq!(&words[window_end(&words) - 1..window_end(&words)], " ");
        assert!(window_end(&words) <= WINDOW_BYTES);
        let late = format!("{} b {}", "a".repeat(20_000), "c".repeat(90_000));
        assert_eq!(window_end(&late), 20_003);
        let stretch = "é".repeat(100_000);
        assert_eq!(window_end(&stretch), STRETCH_BYTES_MAX);
        assert_eq!(window_end(&"€".repeat(100_000)), STRETCH_BYTES_MAX - 1);
        assert_eq!(window_end("short"), 5);
    }
}

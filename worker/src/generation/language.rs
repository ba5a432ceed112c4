//! What a generator's tokens mean: prompts to tokens, and what ends an answer.

use super::detokenise::TokenBytes;
use super::grammar::{Grammar, TokenTrie};
use super::special::{Piece, Specials};
use super::template::{Message, Part, render_bytes_max};
use crate::memory::{Memory, job_error, load_error};
use crate::package::chat::{Chat, EndTokens};
use crate::package::{Files, tokenizer};
use crate::text::{check_tables, special_tokens};
use ringfence_protocol::{ChatContent, ChatMessage, JobError, LoadError, Prompt, TEMPLATE_REASON_BYTES_MAX};
use std::cell::OnceCell;
use std::collections::VecDeque;
use tokenizers::Tokenizer;

/// Text that is tokenised at a time, in bytes.
const WINDOW_BYTES: usize = 8 * 1024;
/// A stretch that can't be cut between words is cut after so many bytes.
const STRETCH_BYTES_MAX: usize = 64 * 1024;
/// What the library may take for one schema; its own allocations can't be refused one by one.
const GRAMMAR_BYTES: u64 = 8 * 1024 * 1024;
/// Why an answer of some packages can't follow a schema.
const NO_END: &str = "the model has no token that ends an answer";
/// Tokens of a prompt that is too long are counted so far, in bytes, for the refusal.
const COUNTED_BYTES_MAX: usize = 256 * 1024;

/// A package's tokeniser and the words that belong to it.
pub struct Language {
    tokenizer: Tokenizer,
    /// What stands before a text that is no chat.
    before: Vec<u32>,
    /// The bytes of each token.
    pub bytes: TokenBytes,
    chat: Chat,
    specials: Specials,
    /// For answers that follow a schema; made when the first is asked for.
    trie: OnceCell<Option<TokenTrie>>,
    /// What ends an answer.
    pub ends: EndTokens,
    vocabulary: u32,
    max_tokens: usize,
}

/// A prompt that becomes tokens, piece by piece.
#[derive(Debug, Default)]
pub struct Prompting {
    pieces: VecDeque<Piece>,
    /// How far the first of them is tokenised.
    at: usize,
    ids: Vec<u32>,
    /// Bytes that were tokenised.
    read: usize,
}

impl Language {
    /// Reads a package's tokeniser, chat template and end tokens for a model of this vocabulary.
    ///
    /// # Errors
    /// One of them can't be used, or has no room in memory.
    pub fn read(
        files: &Files,
        vocabulary: usize,
        max_tokens: usize,
        memory: &dyn Memory,
    ) -> Result<Self, LoadError> {
        check_tables(files, memory)?;
        let mut tokenizer = tokenizer::read_bpe(files, vocabulary)?;
        let (before, _) = special_tokens(&tokenizer)?;
        // In a text of a prompt nothing is a special token: those of a template are found before.
        tokenizer.set_encode_special_tokens(true);
        memory.check(TokenBytes::bytes_needed(&tokenizer, vocabulary)).map_err(load_error)?;
        Ok(Self {
            before,
            bytes: TokenBytes::new(&tokenizer, vocabulary),
            chat: Chat::read(files)?,
            specials: Specials::of(&tokenizer),
            trie: OnceCell::new(),
            ends: EndTokens::read(files, &tokenizer, vocabulary)?,
            tokenizer,
            vocabulary: u32::try_from(vocabulary).expect("the configuration bounds it"),
            max_tokens,
        })
    }

    /// Token ids are below this.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// What an answer that follows a JSON schema may go on with.
    ///
    /// # Errors
    /// The schema can't be followed, or not by this package's tokens, or there is no memory for that.
    pub fn grammar(&self, schema: &str, memory: &dyn Memory) -> Result<Grammar, JobError> {
        if self.trie.get().is_none() {
            memory.check(TokenTrie::bytes_needed(self.vocabulary as usize)).map_err(job_error)?;
        }
        let trie = self.trie.get_or_init(|| TokenTrie::new(&self.bytes, &self.ends));
        let trie = trie.as_ref().ok_or_else(|| schema_refused(NO_END))?;
        memory.check(GRAMMAR_BYTES).map_err(job_error)?;
        Grammar::json_schema(schema, trie).map_err(|error| schema_refused(&error.to_string()))
    }

    /// Takes a prompt to pieces; `file` stands where the messages have it.
    ///
    /// # Errors
    /// It is empty, or the package has no template that can be used for it, or there is no memory for that, or a token is
    /// unknown.
    pub fn prompting(
        &self,
        prompt: Prompt,
        file: Option<&str>,
        memory: &dyn Memory,
    ) -> Result<Prompting, JobError> {
        match prompt {
            Prompt::Text(text) if text.is_empty() && self.before.is_empty() => {
                Err(JobError::InputEmpty { item: 0 })
            }
            Prompt::Text(text) => {
                // All of it is one client's, who may write special tokens as a template does.
                let pieces = self.specials.pieces(&[Part { text, is_content: false }]).into();
                Ok(Prompting { pieces, ids: self.before.clone(), ..Prompting::default() })
            }
            Prompt::Tokens(ids) if ids.is_empty() => Err(JobError::InputEmpty { item: 0 }),
            Prompt::Tokens(ids) => match ids.iter().find(|id| **id >= self.vocabulary) {
                Some(token) => {
                    Err(JobError::TokenUnknown { item: 0, token: *token, vocabulary: self.vocabulary })
                }
                None => Ok(Prompting { ids, ..Prompting::default() }),
            },
            Prompt::Chat(messages) => self.chat(&messages, file, memory),
        }
    }

    fn chat(
        &self,
        messages: &[ChatMessage],
        file: Option<&str>,
        memory: &dyn Memory,
    ) -> Result<Prompting, JobError> {
        let Some(template) = &self.chat.template else {
            let reason = "the package has no chat template; it writes on from a text: POST /v1/completions";
            return Err(JobError::Template { reason: reason.to_owned() });
        };
        let contents: Vec<String> = messages.iter().map(|message| content(message, file)).collect();
        let written: Vec<Message<'_>> = messages
            .iter()
            .zip(&contents)
            .map(|(message, content)| Message { role: &message.role, content })
            .collect();
        memory.check(render_bytes_max(&written)).map_err(job_error)?;
        let parts = template.render_parts(&written, &self.chat.tokens).map_err(|error| {
            let reason = error.to_string();
            let end = reason.floor_char_boundary(TEMPLATE_REASON_BYTES_MAX);
            JobError::Template { reason: reason[..end].to_owned() }
        })?;
        Ok(Prompting { pieces: self.specials.pieces(&parts).into(), ..Prompting::default() })
    }
}

/// Why an answer can't follow its schema.
pub(super) fn schema_refused(reason: &str) -> JobError {
    let end = reason.floor_char_boundary(TEMPLATE_REASON_BYTES_MAX);
    JobError::Schema { reason: reason[..end].to_owned() }
}

fn content(message: &ChatMessage, file: Option<&str>) -> String {
    let piece = |piece: &ChatContent| match piece {
        ChatContent::Text(text) => text.clone(),
        ChatContent::File => file.unwrap_or_default().to_owned(),
    };
    message.content.iter().map(piece).collect()
}

impl Prompting {
    /// Tokenises about so many bytes more; whether all is done.
    ///
    /// # Errors
    /// The tokeniser fails, or there are more tokens than the model takes.
    pub fn advance(&mut self, language: &Language, bytes: usize) -> Result<bool, JobError> {
        let mut taken = 0;
        while let Some(piece) = self.pieces.front() {
            let rest = match piece {
                Piece::Special(id) => {
                    self.ids.push(*id);
                    ""
                }
                Piece::Text(text) => &text[self.at..],
            };
            if rest.is_empty() {
                self.pieces.pop_front();
                self.at = 0;
                continue;
            }
            if taken >= bytes {
                return Ok(false);
            }
            let window = &rest[..window_end(rest)];
            let encoding = tokenizer::encode(&language.tokenizer, window, false);
            self.ids.extend_from_slice(encoding.ok_or(JobError::Tokenizer { item: 0 })?.get_ids());
            self.at += window.len();
            taken += window.len();
            self.read += window.len();
            if self.ids.len() > language.max_tokens && self.read > COUNTED_BYTES_MAX {
                break;
            }
        }
        if self.ids.is_empty() { Err(JobError::InputEmpty { item: 0 }) } else { Ok(true) }
    }

    /// The tokens, once all is done.
    pub fn into_tokens(self) -> Vec<u32> {
        self.ids
    }
}

/// Where the first window of a text ends: before a single space between two words, where no tokeniser that is known has a
/// token across; where there is none, behind a stretch.
fn window_end(text: &str) -> usize {
    if text.len() <= WINDOW_BYTES {
        return text.len();
    }
    let bytes = text.as_bytes();
    let is_word = |byte: u8| !byte.is_ascii_whitespace();
    let is_between = |at: usize| bytes[at] == b' ' && is_word(bytes[at - 1]) && is_word(bytes[at + 1]);
    let within = |end: usize| (1..end.min(bytes.len() - 1)).rev().find(|at| is_between(*at));
    let stretch = text.floor_char_boundary(STRETCH_BYTES_MAX);
    within(WINDOW_BYTES).or_else(|| within(stretch)).unwrap_or(stretch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_before_a_single_space_or_behind_a_stretch() {
        assert_eq!(window_end("short one"), 9);
        let words = "word ".repeat(10_000);
        let end = window_end(&words);
        assert!(end < WINDOW_BYTES && words[end..].starts_with(" word"), "{end}");
        let blank = format!("{}{}", "a".repeat(9_000), " ".repeat(100_000));
        assert_eq!(window_end(&blank), STRETCH_BYTES_MAX);
        assert_eq!(window_end(&"€".repeat(100_000)), STRETCH_BYTES_MAX - 1);
    }
}

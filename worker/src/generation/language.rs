//! What a generator's tokens mean: prompts to tokens, and what ends an answer.

use super::detokenise::TokenBytes;
use super::template::{ChatTemplate, Message, Part, SpecialTokens};
use crate::memory::{Memory, load_error};
use crate::package::chat::{self, EndTokens};
use crate::package::{Files, tokenizer};
use crate::text::{TABLES_FACTOR, special_tokens};
use ringfence_protocol::{ChatContent, ChatMessage, JobError, LoadError, Prompt, TEMPLATE_REASON_BYTES_MAX};
use std::collections::VecDeque;
use tokenizers::Tokenizer;

/// Text that is tokenised at a time, in bytes.
const WINDOW_BYTES: usize = 8 * 1024;
/// A stretch that can't be cut between words is cut after so many bytes.
const STRETCH_BYTES_MAX: usize = 64 * 1024;
/// Tokens of a prompt that is too long are counted so far, in bytes, for the refusal.
const COUNTED_BYTES_MAX: usize = 1024 * 1024;

/// A package's tokeniser and the words that belong to it.
pub struct Language {
    tokenizer: Tokenizer,
    /// What stands before a text that is no chat.
    before: Vec<u32>,
    /// The bytes of each token.
    pub bytes: TokenBytes,
    template: Option<ChatTemplate>,
    special: SpecialTokens,
    /// What ends an answer.
    pub ends: EndTokens,
    vocabulary: u32,
    max_tokens: usize,
}

/// A prompt that becomes tokens, piece by piece.
#[derive(Debug, Default)]
pub struct Prompting {
    pieces: VecDeque<Piece>,
    ids: Vec<u32>,
    read: usize,
}

#[derive(Debug)]
struct Piece {
    text: String,
    /// How far it is tokenised.
    at: usize,
    /// Whether what looks like a special token in it is text.
    is_content: bool,
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
        // The library's own allocations can't be refused one by one.
        let bytes = files.require(tokenizer::FILE, tokenizer::BYTES_MAX)?.len() as u64;
        memory.check(bytes * TABLES_FACTOR).map_err(load_error)?;
        let tokenizer = tokenizer::read_bpe(files, vocabulary)?;
        let (before, _) = special_tokens(&tokenizer)?;
        let bytes = TokenBytes::new(&tokenizer, vocabulary)?;
        let (template, special) = chat::read(files)?;
        let ends = EndTokens::read(files, &tokenizer, vocabulary)?;
        let vocabulary = u32::try_from(vocabulary).expect("the configuration bounds it");
        Ok(Self { tokenizer, before, bytes, template, special, ends, vocabulary, max_tokens })
    }

    /// Token ids are below this.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// The library's own tokeniser.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Takes a prompt to pieces; `file` stands where the messages have it.
    ///
    /// # Errors
    /// It is empty, or the package has no template that can be used for it, or a token is unknown.
    pub fn prompting(&self, prompt: Prompt, file: Option<&str>) -> Result<Prompting, JobError> {
        match prompt {
            Prompt::Text(text) if text.is_empty() && self.before.is_empty() => {
                Err(JobError::InputEmpty { item: 0 })
            }
            Prompt::Text(text) => {
                let pieces = [Piece { text, at: 0, is_content: true }].into();
                Ok(Prompting { pieces, ids: self.before.clone(), read: 0 })
            }
            Prompt::Tokens(ids) if ids.is_empty() => Err(JobError::InputEmpty { item: 0 }),
            Prompt::Tokens(ids) => match ids.iter().find(|id| **id >= self.vocabulary) {
                Some(token) => {
                    Err(JobError::TokenUnknown { item: 0, token: *token, vocabulary: self.vocabulary })
                }
                None => Ok(Prompting { ids, ..Prompting::default() }),
            },
            Prompt::Chat(messages) => self.chat(&messages, file),
        }
    }

    fn chat(&self, messages: &[ChatMessage], file: Option<&str>) -> Result<Prompting, JobError> {
        let Some(template) = &self.template else {
            let reason = "the package has no chat template; it writes on from a text: POST /v1/completions";
            return Err(JobError::Template { reason: reason.to_owned() });
        };
        let contents: Vec<String> = messages.iter().map(|message| content(message, file)).collect();
        let written: Vec<Message<'_>> = messages
            .iter()
            .zip(&contents)
            .map(|(message, content)| Message { role: &message.role, content })
            .collect();
        let parts = template.render_parts(&written, &self.special).map_err(|error| {
            let reason = error.to_string();
            let end = reason.floor_char_boundary(TEMPLATE_REASON_BYTES_MAX);
            JobError::Template { reason: reason[..end].to_owned() }
        })?;
        Ok(Prompting { pieces: self.pieces(parts), ..Prompting::default() })
    }

    /// Words across the border of a message are tokenised as the model has learned them, unless somebody's text spells a
    /// special token: then each text is tokenised by itself, where it means nothing.
    fn pieces(&self, parts: Vec<Part>) -> VecDeque<Piece> {
        let spells_special = |text: &str| self.bytes.special().iter().any(|token| text.contains(token));
        if parts.iter().any(|part| part.is_content && spells_special(&part.text)) {
            let piece = |part: Part| Piece { text: part.text, at: 0, is_content: part.is_content };
            return parts.into_iter().map(piece).collect();
        }
        let text = parts.into_iter().map(|part| part.text).collect();
        [Piece { text, at: 0, is_content: false }].into()
    }
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
    pub fn advance(&mut self, language: &mut Language, bytes: usize) -> Result<bool, JobError> {
        let mut taken = 0;
        while let Some(piece) = self.pieces.front_mut() {
            let rest = &piece.text[piece.at..];
            if rest.is_empty() {
                self.pieces.pop_front();
                continue;
            }
            if taken >= bytes {
                return Ok(false);
            }
            let window = &rest[..window_end(rest)];
            language.tokenizer.set_encode_special_tokens(piece.is_content);
            let encoding = tokenizer::encode(&language.tokenizer, window, false);
            self.ids.extend_from_slice(encoding.ok_or(JobError::Tokenizer { item: 0 })?.get_ids());
            piece.at += window.len();
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

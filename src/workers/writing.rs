//! What may come of a prompt, and in which order.

use super::slots::Illegal;
use ringfence_protocol::{FinishReason, TextPiece, TokenLogprob};

/// Bytes that a job's text may have, with what is told of its tokens.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An answer to a prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    /// Of these, those that were known from earlier jobs.
    pub(crate) cached_tokens: u32,
    /// Tokens of the answer.
    pub(crate) tokens: u32,
    /// The answer; empty where it was told in pieces.
    pub(crate) text: String,
    /// How likely its tokens were, where that was asked for and not told in pieces.
    pub(crate) logprobs: Vec<TokenLogprob>,
    /// Why it is over.
    pub(crate) finish: FinishReason,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            prompt_tokens: 0,
            cached_tokens: 0,
            tokens: 0,
            text: String::new(),
            logprobs: Vec::new(),
            finish: FinishReason::Stop,
        }
    }
}

/// What has come of an answer.
#[derive(Debug)]
pub(super) struct Writing {
    is_kept: bool,
    answer: Answer,
    /// Whether the worker has read the prompt.
    is_prompted: bool,
    sequence: u32,
    finish: Option<FinishReason>,
    bytes: usize,
}

impl Writing {
    /// Nothing yet.
    pub(super) fn new(is_kept: bool) -> Self {
        let answer = Answer::default();
        Self { is_kept, answer, is_prompted: false, sequence: 0, finish: None, bytes: 0 }
    }

    /// The worker has read the prompt.
    pub(super) fn prompted(&mut self, tokens: u32, cached: u32, max_tokens: u32) -> Result<(), Illegal> {
        if std::mem::replace(&mut self.is_prompted, true) {
            return Err(Illegal::State);
        }
        if tokens == 0 || tokens > max_tokens || cached >= tokens {
            return Err(Illegal::Count);
        }
        (self.answer.prompt_tokens, self.answer.cached_tokens) = (tokens, cached);
        Ok(())
    }

    /// More of the answer.
    pub(super) fn text(
        &mut self,
        sequence: u32,
        piece: &TextPiece,
        max_tokens: u32,
        vocabulary: u32,
    ) -> Result<(), Illegal> {
        if !piece.is_legal(vocabulary) {
            return Err(Illegal::Range);
        }
        if !self.is_prompted || self.finish.is_some() {
            return Err(Illegal::State);
        }
        if sequence != self.sequence {
            return Err(Illegal::ChunkOrder);
        }
        self.sequence += 1;
        self.answer.tokens = self.answer.tokens.saturating_add(piece.tokens);
        if self.answer.prompt_tokens.saturating_add(self.answer.tokens) > max_tokens {
            return Err(Illegal::Count);
        }
        let likely = piece.logprobs.iter().flat_map(|one| one.top.iter().chain([&one.token]));
        self.bytes +=
            piece.text.len() + likely.map(|token| size_of_val(token) + token.bytes.len()).sum::<usize>();
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(Illegal::OutputLength);
        }
        if self.is_kept {
            self.answer.text.push_str(&piece.text);
            self.answer.logprobs.extend_from_slice(&piece.logprobs);
        }
        Ok(())
    }

    /// It is over.
    pub(super) fn finished(&mut self, reason: FinishReason) -> Result<(), Illegal> {
        if !self.is_prompted || self.finish.replace(reason).is_some() {
            return Err(Illegal::State);
        }
        Ok(())
    }

    /// It, once it is over.
    pub(super) fn done(self) -> Result<Answer, Illegal> {
        let finish = self.finish.ok_or(Illegal::State)?;
        Ok(Answer { finish, ..self.answer })
    }
}

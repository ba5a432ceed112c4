//! One answer, token by token, until it is over.

use super::detokenise::{Detokeniser, Stops, TokenBytes};
use super::grammar::{Grammar, GrammarError};
use super::language::{Language, schema_refused};
use super::sampling::{BiasOfUnknownToken, SampleError, Sampled, Sampler, Sampling};
use crate::memory::{Memory, job_error};
use ringfence_protocol::{
    FinishReason, GenerateOptions, JobError, LikelyToken, TEXT_TOKENS_MAX, TOKEN_BYTES_MAX, TextPiece,
    TokenLogprob,
};

/// Tokens of a piece where chances are told, of which each takes some kilobytes.
const TOLD_TOKENS_MAX: usize = 8;

/// An answer that is being written.
pub(super) struct Writing {
    sampler: Sampler,
    detokeniser: Detokeniser,
    stops: Stops,
    grammar: Option<Grammar>,
    ignore_end: bool,
    tells_logprobs: bool,
    /// Tokens that it may have.
    limit: u32,
    tokens: u32,
    /// Since the last piece.
    piece: TextPiece,
    is_told: bool,
}

/// What a token brought.
pub(super) struct Written {
    pub(super) token: u32,
    /// If there is something to tell.
    pub(super) piece: Option<TextPiece>,
    /// Whether it was the last.
    pub(super) finish: Option<FinishReason>,
}

impl Writing {
    /// Of a prompt, where all tokens together may be so many.
    pub(super) fn new(
        language: &Language,
        prompt: &[u32],
        mut options: GenerateOptions,
        tokens_max: usize,
        memory: &dyn Memory,
    ) -> Result<Self, JobError> {
        let (stops, schema) = (std::mem::take(&mut options.stops), options.schema.take());
        let (ignore_end, tells_logprobs) = (options.ignore_end, options.logprobs.is_some());
        let room = u32::try_from(tokens_max.saturating_sub(prompt.len())).unwrap_or(u32::MAX);
        let limit = options.max_tokens.unwrap_or(u32::MAX).min(room);
        let vocabulary = language.vocabulary();
        let sampling = Sampling::new(options);
        let bytes = Sampler::bytes_max(&sampling, vocabulary as usize, tokens_max);
        memory.check(bytes).map_err(job_error)?;
        let unknown = |BiasOfUnknownToken(token)| JobError::TokenUnknown { item: 0, token, vocabulary };
        let mut sampler = Sampler::new(sampling, vocabulary as usize).map_err(unknown)?;
        sampler.prompt(prompt);
        Ok(Self {
            sampler,
            detokeniser: Detokeniser::default(),
            stops: Stops::new(stops),
            grammar: schema.map(|schema| language.grammar(&schema, memory)).transpose()?,
            ignore_end,
            tells_logprobs,
            limit,
            tokens: 0,
            piece: TextPiece::default(),
            is_told: false,
        })
    }

    /// Whether the server is to hear now that the prompt was taken: once.
    pub(super) fn tell_prompt(&mut self) -> bool {
        !std::mem::replace(&mut self.is_told, true)
    }

    /// Tokens of the answer so far.
    pub(super) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Chooses the next token out of its logits, and takes it down.
    pub(super) fn write(&mut self, language: &Language, logits: &mut [f32]) -> Result<Written, JobError> {
        let allowed = self.grammar.as_mut().map(Grammar::mask).transpose().map_err(of_grammar)?;
        let sampled = self.sampler.sample(logits, allowed).map_err(|error| match error {
            SampleError::NotFinite => JobError::NotFinite { item: 0 },
            SampleError::NothingAllowed => schema_refused("no token of the model goes on as it wants"),
        })?;
        let token = sampled.id;
        if language.ends.contains(token) && !self.ignore_end {
            return Ok(self.finish(token, FinishReason::Stop));
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.take(token).map_err(of_grammar)?;
        }
        self.tokens += 1;
        self.piece.tokens += 1;
        if self.tells_logprobs {
            self.piece.logprobs.push(likely(&sampled, &language.bytes));
        }
        let mut text = String::new();
        self.detokeniser.push(language.bytes.get(token), &mut text);
        if self.stops.push(&text, &mut self.piece.text) {
            let piece = Some(std::mem::take(&mut self.piece));
            return Ok(Written { token, piece, finish: Some(FinishReason::Stop) });
        }
        if self.grammar.as_ref().is_some_and(Grammar::is_done) {
            return Ok(self.finish(token, FinishReason::Stop));
        }
        if self.tokens >= self.limit {
            return Ok(self.finish(token, FinishReason::Length));
        }
        Ok(Written { token, piece: self.due(), finish: None })
    }

    /// What is to be told now.
    fn due(&mut self) -> Option<TextPiece> {
        let most = if self.tells_logprobs { TOLD_TOKENS_MAX } else { TEXT_TOKENS_MAX };
        let is_due = !self.piece.text.is_empty() || self.piece.tokens as usize >= most;
        is_due.then(|| std::mem::take(&mut self.piece))
    }

    /// Gives what was held back.
    fn finish(&mut self, token: u32, reason: FinishReason) -> Written {
        let mut text = String::new();
        self.detokeniser.finish(&mut text);
        let finish = match self.stops.push(&text, &mut self.piece.text) {
            true => FinishReason::Stop,
            false => {
                self.stops.finish(&mut self.piece.text);
                reason
            }
        };
        let piece = std::mem::take(&mut self.piece);
        let is_empty = piece.text.is_empty() && piece.tokens == 0;
        Written { token, piece: (!is_empty).then_some(piece), finish: Some(finish) }
    }
}

fn of_grammar(error: GrammarError) -> JobError {
    schema_refused(&error.to_string())
}

fn likely(sampled: &Sampled, bytes: &TokenBytes) -> TokenLogprob {
    let token = |id: u32, logprob: f32| {
        let own = bytes.get(id);
        // Rounding may take the only likely token a hair above certainty.
        LikelyToken { id, bytes: own[..own.len().min(TOKEN_BYTES_MAX)].to_vec(), logprob: logprob.min(0.0) }
    };
    TokenLogprob {
        token: token(sampled.id, sampled.logprob),
        top: sampled.top.iter().map(|(id, logprob)| token(*id, *logprob)).collect(),
    }
}

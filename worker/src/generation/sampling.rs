//! Which token comes next: penalties, bias, mask, temperature, top-k, top-p, min-p, in this order, then one random number.
//!
//! The same logits, parameters and seed give the same tokens whatever else is in the batch: each sequence has its own
//! random numbers and takes one for each token that is drawn (none at temperature 0), and ties go to the lower id.

mod choice;
mod logprobs;
mod options;
mod penalties;

pub use options::Sampling;

use super::bitmask::Bitmask;
use crate::random::Random;
use choice::{Choice, likeliest};
use logprobs::Logprobs;
use penalties::Penalties;

/// A token that was chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// Which.
    pub id: u32,
    /// Its natural log probability; 0 where none were asked for.
    ///
    /// Log probabilities are the model's own: a softmax of its logits before penalties, bias, mask and temperature, as
    /// vLLM gives them by default. OpenAI does not say. They can be compared between requests with other parameters; a
    /// token that was chosen only because of a mask or a bias shows how unlikely it was.
    pub logprob: f32,
    /// As many of the likeliest tokens as were asked for, with theirs, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// Why no token can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit is no number, or infinitely large: the network or its weights are broken.
    #[error("a logit is not finite")]
    NotFinite,
    /// No token that is allowed has a probability.
    #[error("no token is allowed")]
    NothingAllowed,
}

/// A token with a bias is beyond the vocabulary: which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`logit_bias` has the token {0}, which the model doesn't know")]
pub struct BiasOfUnknownToken(pub u32);

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    vocabulary: usize,
    penalties: Penalties,
    random: Random,
    choice: Choice,
    /// The logits as they came, where log probabilities are wanted.
    raw: Vec<f32>,
}

impl Sampler {
    /// For a model of this many tokens.
    ///
    /// # Errors
    /// A token with a bias is beyond the vocabulary.
    pub fn new(sampling: Sampling, vocabulary: usize) -> Result<Self, BiasOfUnknownToken> {
        let beyond = |(id, _): &&(u32, f32)| *id as usize >= vocabulary;
        if let Some((id, _)) = sampling.logit_bias().iter().find(beyond) {
            return Err(BiasOfUnknownToken(*id));
        }
        let penalties = Penalties::new(&sampling);
        let random = Random::new(sampling.seed());
        Ok(Self { sampling, vocabulary, penalties, random, choice: Choice::default(), raw: Vec::new() })
    }

    /// The most bytes that it keeps between tokens, for a sequence of so many of them.
    pub fn bytes_max(sampling: &Sampling, vocabulary: usize, tokens: usize) -> u64 {
        let raw = if sampling.logprobs().is_some() { vocabulary * size_of::<f32>() } else { 0 };
        let seen = Penalties::bytes_max(sampling, vocabulary.min(tokens));
        (raw + seen + Choice::bytes_max(sampling, vocabulary)) as u64
    }

    /// Counts the prompt's tokens for the repetition penalty; presence and frequency penalties are of the answer alone.
    pub fn prompt(&mut self, ids: &[u32]) {
        self.penalties.prompt(ids);
    }

    /// Chooses a token and counts it. The logits are scratch afterwards.
    ///
    /// # Errors
    /// [`SampleError`]; nothing is counted then and no random number taken.
    ///
    /// # Panics
    /// There are not as many logits as tokens in the vocabulary.
    pub fn sample(&mut self, logits: &mut [f32], allowed: Option<&Bitmask>) -> Result<Sampled, SampleError> {
        assert_eq!(logits.len(), self.vocabulary, "a logit for each token");
        if self.sampling.logprobs().is_some() {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        self.penalties.apply(&self.sampling, logits);
        for (id, bias) in self.sampling.logit_bias() {
            logits[*id as usize] += bias;
        }
        let best = likeliest(logits, allowed)?;
        let id = if self.sampling.is_greedy() {
            best
        } else {
            self.choice.draw(&self.sampling, logits, allowed, best, &mut self.random)
        };
        self.penalties.answer(id);
        Ok(self.sampled(id))
    }

    fn sampled(&self, id: u32) -> Sampled {
        let Some(count) = self.sampling.logprobs() else {
            return Sampled { id, ..Sampled::default() };
        };
        let logprobs = Logprobs::of(&self.raw);
        Sampled { id, logprob: logprobs.of_token(id), top: logprobs.top(count) }
    }
}

#[cfg(test)]
mod tests;

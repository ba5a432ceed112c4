//! What tokens that were there already cost.

use super::Sampling;
use std::collections::BTreeMap;

/// Tokens that were there, and how often each is in the answer; 0 if only in the prompt. Nothing where no penalty needs
/// it.
///
/// Sorted, so that logits are changed from front to back, and no random state is needed as a hash table's.
#[derive(Clone, Debug)]
pub(super) struct Penalties {
    of_prompt: bool,
    of_answer: bool,
    seen: BTreeMap<u32, u32>,
}

/// What a token takes in a B-tree whose nodes of eleven are half full.
const SEEN_BYTES: usize = 2 * (size_of::<u32>() + size_of::<u32>()) + 4;

impl Penalties {
    pub(super) fn new(sampling: &Sampling) -> Self {
        let of_prompt = sampling.repetition_penalty() != 1.0;
        let of_answer = sampling.presence_penalty() != 0.0 || sampling.frequency_penalty() != 0.0;
        Self { of_prompt, of_answer: of_prompt || of_answer, seen: BTreeMap::new() }
    }

    /// The most bytes that so many different tokens take.
    pub(super) fn bytes_max(sampling: &Sampling, tokens: usize) -> usize {
        if Self::new(sampling).of_answer { tokens * SEEN_BYTES } else { 0 }
    }

    pub(super) fn prompt(&mut self, ids: &[u32]) {
        if self.of_prompt {
            for id in ids {
                self.seen.entry(*id).or_default();
            }
        }
    }

    pub(super) fn answer(&mut self, id: u32) {
        if self.of_answer {
            *self.seen.entry(id).or_default() += 1;
        }
    }

    pub(super) fn apply(&self, sampling: &Sampling, logits: &mut [f32]) {
        let repetition = sampling.repetition_penalty();
        for (id, count) in &self.seen {
            // A prompt's token may be beyond the vocabulary only where the caller let it.
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            if *logit > 0.0 {
                *logit /= repetition;
            } else {
                *logit *= repetition;
            }
            if *count > 0 {
                *logit -= sampling.presence_penalty() + sampling.frequency_penalty() * *count as f32;
            }
        }
    }
}

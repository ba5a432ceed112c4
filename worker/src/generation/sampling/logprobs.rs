//! Log probabilities of a network's logits.

use std::cmp::Ordering;

/// Logits with the logarithm of the sum of their exponentials.
pub(super) struct Logprobs<'a> {
    logits: &'a [f32],
    log_sum: f64,
}

impl<'a> Logprobs<'a> {
    /// Of logits of which none is infinitely large and at least one is finite.
    pub(super) fn of(logits: &'a [f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
        Self { logits, log_sum: f64::from(max) + sum.ln() }
    }

    pub(super) fn of_token(&self, id: u32) -> f32 {
        (f64::from(self.logits[id as usize]) - self.log_sum) as f32
    }

    /// So many of the likeliest, in descending order, the lower id first.
    pub(super) fn top(&self, count: usize) -> Vec<(u32, f32)> {
        let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
        for (id, logit) in (0..).zip(self.logits) {
            let full = top.len() == count;
            if count == 0 || full && top.last().is_some_and(|(_, last)| logit <= last) {
                continue;
            }
            let place = top.partition_point(|(_, other)| other.partial_cmp(logit) != Some(Ordering::Less));
            top.insert(place, (id, *logit));
            top.truncate(count);
        }
        top.iter().map(|(id, _)| (*id, self.of_token(*id))).collect()
    }
}

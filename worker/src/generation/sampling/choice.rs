//! One token out of logits: the likeliest, or one by its probability.

use super::{SampleError, Sampling};
use crate::generation::bitmask::{Bitmask, WORD_TOKENS};
use crate::random::Random;
use std::cmp::Ordering;

/// Among this many tokens the last one of `top_p` is found by putting them in order.
const SORTED_MAX: usize = 64;

/// The likeliest token that is allowed, the lower id of two. One pass: the largest of each 32 logits is found without a
/// branch, and only where it is larger than all before it is looked for.
pub(super) fn likeliest(logits: &[f32], allowed: Option<&Bitmask>) -> Result<u32, SampleError> {
    let mut best = (f32::NEG_INFINITY, None);
    let mut broken = false;
    for (place, some) in logits.chunks(WORD_TOKENS).enumerate() {
        let mut largest = f32::NEG_INFINITY;
        for logit in some {
            largest = largest.max(*logit);
            broken |= logit.is_nan() || *logit == f32::INFINITY;
        }
        let word = allowed.map_or(u32::MAX, |allowed| allowed.word(place));
        if largest > best.0 && word != 0 {
            best = (0..).zip(some).fold(best, |best, (bit, logit)| {
                let better = *logit > best.0 && word & (1 << bit) != 0;
                if better { (*logit, Some(place * WORD_TOKENS + bit)) } else { best }
            });
        }
    }
    match best.1 {
        _ if broken => Err(SampleError::NotFinite),
        Some(id) => Ok(u32::try_from(id).expect("a vocabulary has fewer tokens than 2^32")),
        None => Err(SampleError::NothingAllowed),
    }
}

/// A token that may be drawn, with its logit or its weight: its probability in units of the likeliest token's.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    weight: f32,
}

/// Draws tokens by their probability. It keeps its buffer.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    candidates: Vec<Candidate>,
}

impl Choice {
    /// The most bytes that it keeps. Growing doubles a vector.
    pub(super) fn bytes_max(sampling: &Sampling, vocabulary: usize) -> usize {
        let count = match (sampling.top_k(vocabulary), sampling.top_p()) {
            _ if sampling.is_greedy() => 0,
            (Some(count), _) => 2 * vocabulary.min(2 * count),
            (None, Some(_)) => 2 * vocabulary,
            (None, None) => 0,
        };
        count * size_of::<Candidate>()
    }

    /// One of the tokens that are allowed, of which `best` is the likeliest. The logits become weights.
    pub(super) fn draw(
        &mut self,
        sampling: &Sampling,
        logits: &mut [f32],
        allowed: Option<&Bitmask>,
        best: u32,
        random: &mut Random,
    ) -> u32 {
        let weights = Weights { max: logits[best as usize], temperature: sampling.temperature() };
        if let Some(count) = sampling.top_k(logits.len()) {
            self.collect_likeliest(logits, allowed, count);
            return self.draw_from_likeliest(sampling, weights, random);
        }
        let total = weigh(logits, allowed, weights);
        let likely = |weight: f32| weight >= sampling.min_p();
        let Some(mass) = sampling.top_p() else {
            return draw_from_all(logits, |_, weight| likely(weight), best, random);
        };
        self.collect_heavy(logits, mass, total);
        let last = last_of_mass(&mut self.candidates, mass * total);
        let kept = |id, weight| order(&Candidate { id, weight }, &last) != Ordering::Greater;
        draw_from_all(logits, |id, weight| likely(weight) && kept(id, weight), best, random)
    }

    fn draw_from_likeliest(&mut self, sampling: &Sampling, weights: Weights, random: &mut Random) -> u32 {
        for candidate in &mut self.candidates {
            candidate.weight = weights.of(candidate.weight);
        }
        if let Some(mass) = sampling.top_p() {
            let total = sum(&self.candidates);
            cut_to_mass(&mut self.candidates, mass * total);
        }
        let kept = self.candidates.partition_point(|candidate| candidate.weight >= sampling.min_p());
        draw_from(&self.candidates[..kept], random)
    }

    /// The likeliest `count` tokens in order. Whenever the buffer has twice as many, the worse half goes.
    fn collect_likeliest(&mut self, logits: &[f32], allowed: Option<&Bitmask>, count: usize) {
        let candidates = &mut self.candidates;
        candidates.clear();
        let mut least = f32::NEG_INFINITY;
        for (id, logit) in (0..).zip(logits) {
            // Of equals the ones that came first stay, which have lower ids.
            if *logit > least && allowed.is_none_or(|allowed| allowed.allows(id)) {
                candidates.push(Candidate { id, weight: *logit });
                if candidates.len() == 2 * count {
                    keep_likeliest(candidates, count);
                    least = candidates[count - 1].weight;
                }
            }
        }
        if candidates.len() > count {
            keep_likeliest(candidates, count);
        }
        candidates.sort_unstable_by(order);
    }

    /// The tokens among which those are whose weights sum up to `mass` of the total.
    ///
    /// Tokens below `(1 - mass) * total / vocabulary` have less than `1 - mass` together, so the others reach it without
    /// them.
    fn collect_heavy(&mut self, weights: &[f32], mass: f64, total: f64) {
        let negligible = ((1.0 - mass) * total / weights.len() as f64) as f32;
        // Rounding must leave the likeliest, whose weight is 1.
        let negligible = negligible.min(1.0);
        self.candidates.clear();
        let heavy = (0..).zip(weights).filter(|(_, weight)| **weight > 0.0 && **weight >= negligible);
        self.candidates.extend(heavy.map(|(id, weight)| Candidate { id, weight: *weight }));
    }
}

/// The one with which candidates, the likeliest first, reach a sum of weights; the last one if they don't. There is one
/// at least. The half in which it is is halved again, so that they are never put in order as a whole.
fn last_of_mass(candidates: &mut [Candidate], mass: f64) -> Candidate {
    let mut rest = candidates;
    let mut reached = 0.0;
    while rest.len() > SORTED_MAX {
        let half = rest.len() / 2;
        rest.select_nth_unstable_by(half, order);
        let (likely, unlikely) = rest.split_at_mut(half);
        let more = sum(likely);
        if reached + more >= mass {
            rest = likely;
        } else {
            reached += more;
            rest = unlikely;
        }
    }
    rest.sort_unstable_by(order);
    let enough = rest.iter().find(|candidate| {
        reached += f64::from(candidate.weight);
        reached >= mass
    });
    *enough.unwrap_or(&rest[rest.len() - 1])
}

/// The more likely first, of equals the lower id.
fn order(left: &Candidate, right: &Candidate) -> Ordering {
    right.weight.partial_cmp(&left.weight).unwrap_or(Ordering::Equal).then(left.id.cmp(&right.id))
}

/// The likeliest so many, the least likely of them last.
fn keep_likeliest(candidates: &mut Vec<Candidate>, count: usize) {
    candidates.select_nth_unstable_by(count - 1, order);
    candidates.truncate(count);
}

fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Cuts candidates in order behind the one with which they reach a sum of weights; one stays at least.
fn cut_to_mass(candidates: &mut Vec<Candidate>, mass: f64) {
    let mut reached = 0.0;
    let enough = candidates.iter().position(|candidate| {
        reached += f64::from(candidate.weight);
        reached >= mass
    });
    candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
}

#[derive(Clone, Copy)]
struct Weights {
    max: f32,
    temperature: f32,
}

impl Weights {
    fn of(self, logit: f32) -> f32 {
        ((logit - self.max) / self.temperature).exp()
    }
}

/// Turns logits into weights, 0 where a token is not allowed, and gives their sum.
fn weigh(logits: &mut [f32], allowed: Option<&Bitmask>, weights: Weights) -> f64 {
    let mut total = 0.0;
    for (place, some) in logits.chunks_mut(WORD_TOKENS).enumerate() {
        let word = allowed.map_or(u32::MAX, |allowed| allowed.word(place));
        for (bit, logit) in some.iter_mut().enumerate() {
            *logit = if word & (1 << bit) != 0 { weights.of(*logit) } else { 0.0 };
        }
        total += f64::from(some.iter().sum::<f32>());
    }
    total
}

/// One of all tokens that are kept, by their weights in the order of ids.
fn draw_from_all(weights: &[f32], keeps: impl Fn(u32, f32) -> bool, best: u32, random: &mut Random) -> u32 {
    let kept = |(id, weight): (u32, &f32)| if keeps(id, *weight) { f64::from(*weight) } else { 0.0 };
    let mut rest = random.unit() * (0..).zip(weights).map(kept).sum::<f64>();
    for (id, weight) in (0..).zip(weights) {
        rest -= kept((id, weight));
        if rest < 0.0 {
            return id;
        }
    }
    // Rounding left a little.
    best
}

/// One of these, of which there is one at least.
fn draw_from(candidates: &[Candidate], random: &mut Random) -> u32 {
    let mut rest = random.unit() * sum(candidates);
    for candidate in candidates {
        rest -= f64::from(candidate.weight);
        if rest < 0.0 {
            return candidate.id;
        }
    }
    // Rounding left a little.
    candidates[0].id
}

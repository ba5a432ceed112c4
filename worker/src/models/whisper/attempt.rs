//! One attempt at the text of a window, token by token, at one temperature.

use super::rules;
use super::vocabulary::Vocabulary;
use crate::random::Random;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use std::io::Write;

/// What was said so far.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    temperature: f32,
    said: Vec<u32>,
    log_probability: f64,
}

/// The text of a window.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heard {
    /// Timestamps included, without an end.
    pub(super) tokens: Vec<u32>,
    pub(super) temperature: f32,
    /// Of a token, its end included.
    pub(super) log_probability: f64,
    /// Bytes of the text for each byte of it compressed: high where it repeats itself.
    pub(super) compression_ratio: f64,
}

/// The model computed what is no number, or the tokeniser failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    NotFinite,
    Tokenizer,
}

impl Attempt {
    pub(super) fn new(temperature: f32) -> Self {
        Self { temperature, said: Vec::new(), log_probability: 0.0 }
    }

    /// How many tokens were said.
    pub(super) fn tokens(&self) -> usize {
        self.said.len()
    }

    /// Chooses the next token by the model's logits, which it changes; `None` is the end.
    pub(super) fn choose(
        &mut self,
        logits: &mut [f32],
        vocabulary: &Vocabulary,
        timestamps: bool,
        random: &mut Random,
    ) -> Result<Option<u32>, Fault> {
        rules::apply(logits, &self.said, vocabulary, timestamps);
        let chosen =
            if self.temperature > 0.0 { sample(logits, self.temperature, random) } else { likeliest(logits) };
        let probability = f64::from(logits[chosen]) - rules::log_sum(logits);
        if !probability.is_finite() {
            return Err(Fault::NotFinite);
        }
        self.log_probability += probability;
        let chosen = u32::try_from(chosen).expect("the configuration bounds it");
        if chosen == vocabulary.end() {
            return Ok(None);
        }
        self.said.push(chosen);
        Ok(Some(chosen))
    }

    pub(super) fn finish(self, vocabulary: &Vocabulary) -> Result<Heard, Fault> {
        let text = vocabulary.text(&self.said).ok_or(Fault::Tokenizer)?;
        Ok(Heard {
            temperature: self.temperature,
            log_probability: self.log_probability / (self.said.len() + 1) as f64,
            compression_ratio: compression_ratio(text.trim()),
            tokens: self.said,
        })
    }
}

fn likeliest(logits: &[f32]) -> usize {
    let most = rules::largest(logits);
    // Where none is a number, any will do: its probability is none either.
    logits.iter().position(|logit| *logit == most).unwrap_or(0)
}

/// One of them by its probability at this temperature, which is positive.
fn sample(logits: &[f32], temperature: f32, random: &mut Random) -> usize {
    let best = likeliest(logits);
    let weight = |logit: &f32| f64::from((logit - logits[best]) / temperature).exp();
    let total: f64 = logits.iter().map(weight).sum();
    let mut rest = random.unit() * total;
    for (id, logit) in logits.iter().enumerate() {
        rest -= weight(logit);
        if rest < 0.0 {
            return id;
        }
    }
    // Rounding left a little, or a logit is no number, which is found by its probability.
    best
}

fn compression_ratio(text: &str) -> f64 {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    let compressed = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    let compressed = compressed.expect("a vector takes everything");
    text.len() as f64 / compressed.len() as f64
}

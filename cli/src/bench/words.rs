//! Requests with a wanted number of tokens.

use hyper::body::Bytes;
use serde_json::json;

/// Words that are one token each in the vocabularies of BERT's family and of most others.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not",
    "he", "this", "are", "or", "his", "from", "at", "which", "but", "have", "had", "they", "you", "were",
    "their", "one", "all", "we", "can", "her", "has", "there", "been", "if", "more", "when", "will", "who",
    "no", "time", "people", "year", "way", "day", "man", "world", "life", "hand", "part", "place", "work",
    "case", "point", "company", "number", "group", "problem", "fact",
];

/// The tokens that the model puts around a text: `[CLS]` and `[SEP]`.
pub const SPECIAL_TOKENS: u32 = 2;

/// Different bodies of one run: enough that no cache answers, few enough to make before the run.
const BODIES: u32 = 64;

/// The bodies of embedding requests with `batch` texts of `tokens` tokens each, special tokens included. They differ,
/// and are the same in every run.
pub fn bodies(model: &str, batch: u32, tokens: u32) -> Vec<Bytes> {
    let body = |number: u32| {
        let texts: Vec<String> = (0..batch).map(|item| text(tokens, number * batch + item)).collect();
        let body = json!({"model": model, "input": texts, "encoding_format": "base64"});
        Bytes::from(body.to_string())
    };
    (0..BODIES).map(body).collect()
}

/// A text of `tokens` tokens, special tokens included; `seed` chooses the words.
fn text(tokens: u32, seed: u32) -> String {
    plain(tokens.saturating_sub(SPECIAL_TOKENS), seed)
}

/// A text of so many words; `seed` chooses them.
pub fn plain(words: u32, seed: u32) -> String {
    // Numerical Recipes' generator; its high bits are random enough to choose words.
    let mut state = seed;
    let mut word = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        WORDS[(state >> 26) as usize]
    };
    let words: Vec<&str> = (0..words).map(|_| word()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_text_has_as_many_words_as_tokens_without_the_special_ones() {
        for tokens in [3, 16, 64, 256] {
            assert_eq!(text(tokens, 1).split(' ').count(), tokens as usize - 2);
        }
    }

    #[test]
    fn every_text_of_a_run_differs_and_every_run_is_the_same() {
        let bodies = bodies("minilm", 8, 64);
        let texts: Vec<String> = bodies
            .iter()
            .flat_map(|body| {
                serde_json::from_slice::<serde_json::Value>(body).unwrap()["input"]
                    .as_array()
                    .unwrap()
                    .clone()
            })
            .map(|text| text.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(texts.len(), 64 * 8);
        assert_eq!(texts.iter().collect::<HashSet<_>>().len(), texts.len());
        assert_eq!(super::bodies("minilm", 8, 64), bodies);
    }
}

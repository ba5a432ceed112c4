//! `tokenizer.json` of byte-level BPE (GPT-2, Llama 3, Qwen2, SmolLM2): checked to have known components only before the
//! tokeniser library sees it.
//!
//! Regular expressions are a closed list of exact texts. The library builds any expression without a step limit of ours,
//! and where the engine's own limit (a million steps back) is reached it silently leaves the rest of the text unsplit; so
//! no expression of a stranger's choosing may run. Those below go back only over a run of white space, once for each
//! character: measured, 990,000 spaces before words are split rightly in 0.15 s, 1,010,000 are past the limit. Texts
//! are encoded in windows of far fewer.

use super::template::Template;
use super::{ADDED_TOKENS_MAX, AddedToken, BYTES_MAX, FILE, library, small_enough};
use crate::package::{Files, json, malformed};
use ringfence_protocol::LoadError;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{HashMap, HashSet};
use tokenizers::Tokenizer;

/// The most tokens of a vocabulary, and the most merges.
pub(crate) const VOCABULARY_MAX: usize = 1 << 21;
/// The longest token in bytes.
pub(crate) const TOKEN_BYTES_MAX: usize = 4096;
/// The most components in a sequence.
const COMPONENTS_MAX: usize = 4;

/// GPT-2's words.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's words: up to three digits together.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's words: digits alone.
pub(crate) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(rename = "normalizer")]
    _normalizer: Option<Normalizer>,
    pre_tokenizer: PreTokenizer,
    post_processor: Option<PostProcessor>,
    #[serde(rename = "decoder")]
    _decoder: Decoder,
    model: Model,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    #[serde(rename = "NFC")]
    Nfc {},
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Decoder {
    ByteLevel {},
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    ByteLevel {},
    Digits {},
    Split { pattern: Pattern },
    Sequence { pretokenizers: Vec<PreTokenizer> },
}

#[derive(Deserialize)]
enum Pattern {
    Regex(String),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    ByteLevel {},
    TemplateProcessing(Template),
    Sequence { processors: Vec<PostProcessor> },
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    _type: ModelType,
    vocab: HashMap<String, u32>,
    merges: Merges,
    unk_token: Option<String>,
    dropout: Option<IgnoredAny>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
enum ModelType {
    #[serde(rename = "BPE")]
    Bpe,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merges {
    Pairs(Vec<(String, String)>),
    Texts(Vec<String>),
}

impl Merges {
    fn len(&self) -> usize {
        match self {
            Merges::Pairs(pairs) => pairs.len(),
            Merges::Texts(texts) => texts.len(),
        }
    }

    /// Each side, and what they become, is a token; neither side is empty.
    fn are_of(&self, vocabulary: &HashMap<String, u32>) -> bool {
        let known = |left: &str, right: &str| {
            let joined = [left, right].concat();
            let sides = !left.is_empty() && !right.is_empty();
            sides && [left, right, joined.as_str()].iter().all(|token| vocabulary.contains_key(*token))
        };
        match self {
            Merges::Pairs(pairs) => pairs.iter().all(|(left, right)| known(left, right)),
            Merges::Texts(texts) => {
                texts.iter().all(|text| text.split_once(' ').is_some_and(|(left, right)| known(left, right)))
            }
        }
    }
}

/// Reads the byte-level BPE tokeniser of a package whose model knows `vocabulary` tokens. Its own truncation and padding
/// are off.
///
/// # Errors
/// The file is missing or malformed, has components that aren't known, or token ids that the model doesn't know.
pub fn read_bpe(files: &Files, vocabulary: usize) -> Result<Tokenizer, LoadError> {
    parse(files.require(FILE, BYTES_MAX)?, vocabulary)
}

/// Reads such a file's bytes.
///
/// # Errors
/// As [`read_bpe`].
pub fn parse(bytes: &[u8], vocabulary: usize) -> Result<Tokenizer, LoadError> {
    small_enough(bytes)?;
    let outline: Outline = json::parse(FILE, bytes)?;
    outline.check(vocabulary)?;
    let added = outline.added_tokens;
    library(bytes, &added)
}

impl Outline {
    fn check(&self, vocabulary: usize) -> Result<(), LoadError> {
        let refuse = |reason: &str| Err(malformed(FILE, reason));
        if !is_known(&self.pre_tokenizer, true) {
            return refuse("a component or a regular expression of its pre-tokeniser is not known");
        }
        let mut special = Vec::new();
        if let Some(processor) = &self.post_processor {
            check_processor(processor, true, &mut special).map_err(|reason| malformed(FILE, reason))?;
        }
        if self.added_tokens.len() > ADDED_TOKENS_MAX {
            return refuse("too many added tokens");
        }
        let contents: HashSet<&str> = self.added_tokens.iter().map(|token| token.content.as_str()).collect();
        if contents.len() != self.added_tokens.len() || contents.contains("") {
            return refuse("an added token is empty or there twice");
        }
        self.model.check()?;
        self.check_ids(&special, vocabulary)
    }

    fn check_ids(&self, special: &[u32], vocabulary: usize) -> Result<(), LoadError> {
        let unique: HashSet<&u32> = self.model.vocab.values().collect();
        if unique.len() != self.model.vocab.len() {
            return Err(malformed(FILE, "two tokens have one id"));
        }
        let added = self.added_tokens.iter().map(|token| token.id);
        let mut ids = self.model.vocab.values().copied().chain(added).chain(special.iter().copied());
        if ids.any(|id| usize::try_from(id).map_or(true, |id| id >= vocabulary)) {
            return Err(malformed(FILE, "a token's id is outside the vocabulary of `config.json`"));
        }
        Ok(())
    }
}

impl Model {
    fn check(&self) -> Result<(), LoadError> {
        let refuse = |reason: &str| Err(malformed(FILE, reason));
        if self.vocab.len() > VOCABULARY_MAX || self.merges.len() > VOCABULARY_MAX {
            return refuse("the vocabulary is too large");
        }
        // Whisper's multilingual vocabulary ends with an empty token, which no text becomes.
        if self.vocab.keys().any(|token| token.len() > TOKEN_BYTES_MAX) {
            return refuse("a token is too long");
        }
        let plain = |part: &Option<String>| part.as_deref().unwrap_or_default().is_empty();
        if !plain(&self.continuing_subword_prefix) || !plain(&self.end_of_word_suffix) {
            return refuse("pieces with prefixes or suffixes are not byte-level");
        }
        if self.dropout.is_some() || self.byte_fallback {
            return refuse("`dropout` and `byte_fallback` are not known");
        }
        if self.unk_token.as_ref().is_some_and(|token| !self.vocab.contains_key(token)) {
            return refuse("the vocabulary lacks the unknown token");
        }
        if !self.merges.are_of(&self.vocab) {
            return refuse("a merge is not of tokens of the vocabulary");
        }
        Ok(())
    }
}

fn is_known(tokenizer: &PreTokenizer, outermost: bool) -> bool {
    match tokenizer {
        PreTokenizer::ByteLevel {} | PreTokenizer::Digits {} => true,
        PreTokenizer::Split { pattern: Pattern::Regex(text) } => {
            [GPT2, LLAMA3, QWEN2].contains(&text.as_str())
        }
        PreTokenizer::Sequence { pretokenizers } => {
            outermost
                && pretokenizers.len() <= COMPONENTS_MAX
                && pretokenizers.iter().all(|inner| is_known(inner, false))
        }
    }
}

/// Collects the ids of the special tokens that it puts around a text.
fn check_processor(
    processor: &PostProcessor,
    outermost: bool,
    special: &mut Vec<u32>,
) -> Result<(), &'static str> {
    match processor {
        PostProcessor::ByteLevel {} => Ok(()),
        PostProcessor::TemplateProcessing(template) => {
            special.extend(template.ids());
            template.check()
        }
        PostProcessor::Sequence { processors } => {
            if !outermost || processors.len() > COMPONENTS_MAX {
                return Err("its post-processor has too many components");
            }
            processors.iter().try_for_each(|inner| check_processor(inner, false, special))
        }
    }
}

//! `tokenizer.json`: checked to be a BERT WordPiece tokeniser before the tokeniser library sees it, so that no regular
//! expression and no other component of a stranger's choosing ever runs.

mod bpe;
mod template;

pub(crate) use bpe::{LLAMA3, QWEN2, TOKEN_BYTES_MAX, VOCABULARY_MAX};
pub use bpe::{parse as parse_bpe, read_bpe};

use super::{Files, json, malformed};
use ringfence_protocol::LoadError;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use template::Template;
use tokenizers::{Encoding, Tokenizer};

/// Its name.
pub const FILE: &str = "tokenizer.json";
/// Its largest size.
pub const BYTES_MAX: usize = 32 * 1024 * 1024;
/// The most tokens that are matched before words are split; Whisper has 1609, most of them times.
const ADDED_TOKENS_MAX: usize = 2048;
/// The longest word that is split into pieces; splitting takes its square.
const WORD_CHARACTERS_MAX: usize = 512;

/// What is read of the file before the library reads all of it.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(rename = "normalizer")]
    _normalizer: Option<Normalizer>,
    #[serde(rename = "pre_tokenizer")]
    _pre_tokenizer: PreTokenizer,
    post_processor: Option<PostProcessor>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    BertNormalizer {},
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    BertPreTokenizer {},
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    TemplateProcessing(Template),
    BertProcessing { sep: (String, u32), cls: (String, u32) },
}

#[derive(Deserialize)]
struct Model {
    // Old files leave the type out; the other fields are WordPiece's own.
    #[serde(default, rename = "type")]
    _type: ModelType,
    unk_token: String,
    #[serde(rename = "continuing_subword_prefix")]
    _continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
enum ModelType {
    #[default]
    WordPiece,
}

/// Reads the tokeniser of a package whose model knows `vocabulary` tokens. Its own truncation and padding are off.
///
/// # Errors
/// The file is missing or malformed, isn't a BERT tokeniser, or has token ids that the model doesn't know.
pub fn read(files: &Files, vocabulary: usize) -> Result<Tokenizer, LoadError> {
    parse(files.require(FILE, BYTES_MAX)?, vocabulary)
}

/// Reads such a file's bytes.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8], vocabulary: usize) -> Result<Tokenizer, LoadError> {
    small_enough(bytes)?;
    let outline: Outline = json::parse(FILE, bytes)?;
    check(&outline, vocabulary)?;
    let added = outline.added_tokens;
    library(bytes, &added)
}

fn small_enough(bytes: &[u8]) -> Result<(), LoadError> {
    if bytes.len() > BYTES_MAX {
        return Err(malformed(FILE, format!("it has {} bytes, at most {BYTES_MAX} are taken", bytes.len())));
    }
    Ok(())
}

/// What the library makes of a checked file: without truncation and padding, and able to encode.
fn library(bytes: &[u8], added: &[AddedToken]) -> Result<Tokenizer, LoadError> {
    let parsed = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(bytes)));
    let Ok(Ok(mut tokenizer)) = parsed else {
        return Err(malformed(FILE, "the tokeniser library refuses it"));
    };
    // The library numbers added tokens itself where the vocabulary lacks them.
    if added.iter().any(|token| tokenizer.token_to_id(&token.content) != Some(token.id)) {
        return Err(malformed(FILE, "an added token's id is not the one that it gets"));
    }
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|_| malformed(FILE, "its truncation can't be switched off"))?;
    // It finds some faults only while it encodes, by a panic.
    match encode(&tokenizer, "a", true) {
        Some(_) => Ok(tokenizer),
        None => Err(malformed(FILE, "the tokeniser library can't encode with it")),
    }
}

/// The tokens of a text, special tokens around them if `special`; `None` if the library fails or panics. Offsets are not
/// computed.
pub fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Option<Encoding> {
    catch_unwind(AssertUnwindSafe(|| tokenizer.encode_fast(text, special))).ok()?.ok()
}

/// The same without special tokens, and with the bytes of the text that each token is of.
pub(crate) fn encode_with_offsets(tokenizer: &Tokenizer, text: &str) -> Option<Encoding> {
    catch_unwind(AssertUnwindSafe(|| tokenizer.encode(text, false))).ok()?.ok()
}

/// The text of tokens, special ones included; `None` if the library fails or panics.
pub(crate) fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| tokenizer.decode(ids, false))).ok()?.ok()
}

fn check(outline: &Outline, vocabulary: usize) -> Result<(), LoadError> {
    let refuse = |reason: &str| Err(malformed(FILE, reason));
    let Outline { added_tokens, post_processor, model, .. } = outline;
    if model.merges.is_some() {
        return refuse("only WordPiece tokenisers are known");
    }
    if model.max_input_chars_per_word > WORD_CHARACTERS_MAX {
        return refuse("`max_input_chars_per_word` is too large");
    }
    if !model.vocab.contains_key(&model.unk_token) {
        return refuse("the vocabulary lacks the unknown token");
    }
    if added_tokens.len() > ADDED_TOKENS_MAX {
        return refuse("too many added tokens");
    }
    // Long texts are cut at white space, which must not change what is found.
    if added_tokens
        .iter()
        .any(|token| token.content.is_empty() || token.content.contains(char::is_whitespace))
    {
        return refuse("an added token is empty or contains white space");
    }
    let unique: HashSet<&u32> = model.vocab.values().collect();
    if unique.len() != model.vocab.len() {
        return refuse("two tokens have one id");
    }
    let special: Vec<u32> = match post_processor {
        None => Vec::new(),
        Some(PostProcessor::TemplateProcessing(template)) => {
            template.check().map_err(|reason| malformed(FILE, reason))?;
            template.ids().collect()
        }
        Some(PostProcessor::BertProcessing { sep, cls }) => vec![sep.1, cls.1],
    };
    let added = added_tokens.iter().map(|token| &token.id);
    let mut ids = model.vocab.values().chain(added).chain(&special);
    if ids.any(|id| usize::try_from(*id).map_or(true, |id| id >= vocabulary)) {
        return refuse("a token's id is outside the vocabulary of `config.json`");
    }
    Ok(())
}

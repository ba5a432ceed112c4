//! The tokeniser inside a GGUF file as `tokenizer.json` and `tokenizer_config.json`. Byte-level BPE only, and only with
//! pre-tokenisers that can be said exactly.

use super::reader::{Metadata, wrong};
use super::{lacking, printable, unsupported};
use crate::convert::{Work, denied, output, refused};
use crate::memory::Memory;
use crate::package::tokenizer::{self, LLAMA3, QWEN2, TOKEN_BYTES_MAX, VOCABULARY_MAX};
use ringfence_protocol::ConvertError;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::HashSet;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
/// What a token or a merge takes while it is turned into JSON and read back by the library, in bytes. SmolLM2's 49,152
/// tokens and 48,900 merges take 46.2 MB at the peak, by the counting allocator: 471 each. The rest is headroom for
/// longer tokens.
const WORKING_BYTES: u64 = 640;

/// Both files.
pub(super) struct TokenizerFiles {
    tokenizer: Vec<u8>,
    config: Vec<u8>,
}

impl TokenizerFiles {
    /// Writes both.
    pub(super) fn write(&self, work: &mut Work<'_>) -> Result<(), ConvertError> {
        output::write(work.output, tokenizer::FILE, &self.tokenizer)?;
        output::write(work.output, "tokenizer_config.json", &self.config)
    }
}

/// llama.cpp's pre-tokenisers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pre {
    Gpt2,
    Smollm,
    Llama3,
    Qwen2,
}

impl Pre {
    fn read(metadata: &Metadata<'_>) -> Result<Self, ConvertError> {
        let key = "tokenizer.ggml.pre";
        match metadata.text(key)?.ok_or_else(|| lacking(key))? {
            "gpt-2" => Ok(Self::Gpt2),
            "smollm" => Ok(Self::Smollm),
            "llama-bpe" => Ok(Self::Llama3),
            "qwen2" => Ok(Self::Qwen2),
            other => Err(unsupported(&format!("the pre-tokeniser {}", printable(other)))),
        }
    }

    fn json(self) -> Value {
        let bytes = |words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words});
        let sequence =
            |first: Value, words| json!({"type": "Sequence", "pretokenizers": [first, bytes(words)]});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        match self {
            Self::Gpt2 => bytes(true),
            Self::Smollm => sequence(json!({"type": "Digits", "individual_digits": true}), true),
            Self::Llama3 => sequence(split(LLAMA3), false),
            Self::Qwen2 => sequence(split(QWEN2), false),
        }
    }
}

/// What a token is to llama.cpp.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Special,
    UserDefined,
}

impl Kind {
    fn of(number: u64) -> Result<Self, ConvertError> {
        match number {
            1 | 5 => Ok(Self::Plain),
            2 | 3 => Ok(Self::Special),
            4 => Ok(Self::UserDefined),
            6 => Err(unsupported("a vocabulary with bytes as tokens")),
            _ => Err(wrong(TOKEN_TYPES)),
        }
    }
}

/// Makes both files, for a network that knows `vocabulary` tokens; the strict parser has read the first one.
pub(super) fn read(
    metadata: &Metadata<'_>,
    vocabulary: usize,
    memory: &dyn Memory,
) -> Result<TokenizerFiles, ConvertError> {
    let key = "tokenizer.ggml.model";
    match metadata.text(key)?.ok_or_else(|| lacking(key))? {
        "gpt2" => {}
        other => return Err(unsupported(&format!("the tokeniser {}", printable(other)))),
    }
    if metadata.flag("tokenizer.ggml.add_space_prefix")? == Some(true) {
        return Err(unsupported("a space before each text"));
    }
    if metadata.flag("tokenizer.ggml.add_eos_token")? == Some(true) {
        return Err(unsupported("an end token after each text"));
    }
    let count = metadata.length(TOKENS).max(metadata.length(MERGES));
    if count > VOCABULARY_MAX {
        return Err(wrong(TOKENS));
    }
    memory.check(2 * count as u64 * WORKING_BYTES).map_err(denied)?;
    let vocabulary_read = Vocabulary::read(metadata)?;
    let tokenizer = vocabulary_read.tokenizer()?;
    tokenizer::parse_bpe(&tokenizer, vocabulary).map_err(refused)?;
    let config = vocabulary_read.config(metadata)?;
    Ok(TokenizerFiles { tokenizer, config: config.to_string().into_bytes() })
}

struct Vocabulary<'a> {
    pre: Pre,
    tokens: Vec<&'a str>,
    kinds: Vec<Kind>,
    merges: Vec<(&'a str, &'a str)>,
    /// The token that begins every text, by its place, if one does.
    begin: Option<usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata<'a>) -> Result<Self, ConvertError> {
        let pre = Pre::read(metadata)?;
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| lacking(TOKENS))?;
        let mut seen = HashSet::with_capacity(tokens.len());
        for token in &tokens {
            if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !seen.insert(*token) {
                return Err(super::super::malformed(
                    super::FILE,
                    "a token is empty, too long or there twice",
                ));
            }
        }
        let kinds = metadata.naturals(TOKEN_TYPES)?.ok_or_else(|| lacking(TOKEN_TYPES))?;
        if kinds.len() != tokens.len() {
            return Err(wrong(TOKEN_TYPES));
        }
        let kinds = kinds.into_iter().map(Kind::of).collect::<Result<_, _>>()?;
        let merges = metadata.texts(MERGES)?.ok_or_else(|| lacking(MERGES))?;
        // A merge may begin with a space only where a token does; byte-level tokens have none.
        let halves = merges.iter().map(|merge| merge.split_once(' ').ok_or_else(|| wrong(MERGES)));
        let merges = halves.collect::<Result<_, _>>()?;
        // So llama.cpp has it where the file says nothing.
        let begins = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(pre == Pre::Llama3);
        let begin = if begins { Some(place(metadata, "bos", tokens.len())?) } else { None };
        let begin = match begin {
            Some(None) => return Err(lacking("tokenizer.ggml.bos_token_id")),
            Some(Some(place)) => Some(place),
            None => None,
        };
        Ok(Self { pre, tokens, kinds, merges, begin })
    }

    fn tokenizer(&self) -> Result<Vec<u8>, ConvertError> {
        let file = File {
            version: "1.0",
            truncation: None,
            padding: None,
            added_tokens: self.added(),
            normalizer: if self.pre == Pre::Qwen2 { json!({"type": "NFC"}) } else { Value::Null },
            pre_tokenizer: self.pre.json(),
            post_processor: self.post_processor(),
            decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            model: Model {
                kind: "BPE",
                dropout: None,
                unk_token: None,
                continuing_subword_prefix: None,
                end_of_word_suffix: None,
                fuse_unk: false,
                byte_fallback: false,
                ignore_merges: self.pre == Pre::Llama3,
                vocab: Ids(&self.tokens),
                merges: &self.merges,
            },
        };
        serde_json::to_vec(&file).map_err(|_| wrong(TOKENS))
    }

    fn added(&self) -> Vec<Value> {
        let kinds = self.kinds.iter().enumerate().filter(|(_, kind)| **kind != Kind::Plain);
        let added = |(id, kind): (usize, &Kind)| {
            json!({
                "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == Kind::Special,
            })
        };
        kinds.map(added).collect()
    }

    fn post_processor(&self) -> Value {
        let Some(id) = self.begin else {
            return json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
        };
        let token = self.tokens[id];
        let begin = |part: u32| json!({"SpecialToken": {"id": token, "type_id": part}});
        let text = |name: &str, part: u32| json!({"Sequence": {"id": name, "type_id": part}});
        json!({
            "type": "TemplateProcessing",
            "single": [begin(0), text("A", 0)],
            "pair": [begin(0), text("A", 0), begin(1), text("B", 1)],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
        })
    }

    fn config(&self, metadata: &Metadata<'_>) -> Result<Value, ConvertError> {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.begin.is_some(),
            "add_eos_token": false,
            "clean_up_tokenization_spaces": false,
        });
        for (name, key) in
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
        {
            if let Some(place) = place(metadata, key, self.tokens.len())? {
                config[name] = self.tokens[place].into();
            }
        }
        if let Some(template) = metadata.text("tokenizer.chat_template")? {
            config["chat_template"] = template.into();
        }
        Ok(config)
    }
}

/// A token that the metadata gives a role.
fn place(metadata: &Metadata<'_>, role: &str, tokens: usize) -> Result<Option<usize>, ConvertError> {
    let key = format!("tokenizer.ggml.{role}_token_id");
    let id = metadata.natural(&key)?;
    let place = |id: u64| usize::try_from(id).ok().filter(|id| *id < tokens).ok_or_else(|| wrong(&key));
    id.map(place).transpose()
}

#[derive(Serialize)]
struct File<'a> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

#[derive(Serialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: Option<()>,
    unk_token: Option<()>,
    continuing_subword_prefix: Option<()>,
    end_of_word_suffix: Option<()>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Ids<'a>,
    merges: &'a [(&'a str, &'a str)],
}

/// Tokens as an object of ids, in their order.
struct Ids<'a>(&'a [&'a str]);

impl Serialize for Ids<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().enumerate().map(|(id, token)| (token, id)))
    }
}

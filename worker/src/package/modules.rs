//! `modules.json` and what it names: how token vectors become a sentence's vector.

use super::{Files, json, malformed};
use ringfence_protocol::LoadError;
use serde::Deserialize;

/// The list of modules.
pub const FILE: &str = "modules.json";
/// The pooling module's configuration.
pub const POOLING_FILE: &str = "1_Pooling/config.json";
/// Where a length bound may stand.
pub const LENGTH_FILE: &str = "sentence_bert_config.json";
const BYTES_MAX: usize = 64 * 1024;

/// How a sentence's token vectors become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one's.
    Cls,
}

/// What comes after the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How token vectors become one.
    pub pooling: Pooling,
    /// Whether that one is scaled to length 1.
    pub normalize: bool,
    /// A bound on a sentence's tokens, if the package states one.
    pub max_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Length {
    max_seq_length: Option<usize>,
}

impl Head {
    /// Reads the files of a package for a network of this width.
    ///
    /// # Errors
    /// A file is missing or malformed, or asks for something other than mean or CLS pooling and normalisation.
    pub fn read(files: &Files, hidden: usize) -> Result<Self, LoadError> {
        let modules: Vec<Module> = json::parse(FILE, files.require(FILE, BYTES_MAX)?)?;
        let kinds = modules.iter().map(kind).collect::<Result<Vec<_>, _>>()?;
        let normalize = match kinds[..] {
            [Kind::Transformer, Kind::Pooling] => false,
            [Kind::Transformer, Kind::Pooling, Kind::Normalize] => true,
            _ => {
                return Err(malformed(
                    FILE,
                    "the modules must be Transformer, Pooling and perhaps Normalize",
                ));
            }
        };
        if !modules[0].path.is_empty() || modules[1].path != "1_Pooling" {
            return Err(malformed(FILE, "the modules' paths must be empty and `1_Pooling`"));
        }
        Ok(Self { pooling: pooling(files, hidden)?, normalize, max_tokens: max_tokens(files)? })
    }
}

enum Kind {
    Transformer,
    Pooling,
    Normalize,
}

/// The module's class. Its path inside the library differs from version to version.
fn kind(module: &Module) -> Result<Kind, LoadError> {
    let mut parts = module.kind.split('.');
    if parts.next() != Some("sentence_transformers") {
        return Err(malformed(FILE, "a module isn't one of sentence_transformers"));
    }
    match parts.next_back() {
        Some("Transformer") => Ok(Kind::Transformer),
        Some("Pooling") => Ok(Kind::Pooling),
        Some("Normalize") => Ok(Kind::Normalize),
        _ => Err(malformed(FILE, "only Transformer, Pooling and Normalize modules are known")),
    }
}

/// Both forms of the file: a switch for each mode, and the mode's name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPooling {
    #[serde(alias = "embedding_dimension")]
    word_embedding_dimension: usize,
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    #[serde(default, rename = "include_prompt")]
    _include_prompt: bool,
}

fn pooling(files: &Files, hidden: usize) -> Result<Pooling, LoadError> {
    let raw: RawPooling = json::parse(POOLING_FILE, files.require(POOLING_FILE, BYTES_MAX)?)?;
    if raw.word_embedding_dimension != hidden {
        return Err(malformed(POOLING_FILE, "the dimension isn't that of `config.json`"));
    }
    let others = raw.pooling_mode_max_tokens
        || raw.pooling_mode_mean_sqrt_len_tokens
        || raw.pooling_mode_weightedmean_tokens
        || raw.pooling_mode_lasttoken;
    match (raw.pooling_mode.as_deref(), raw.pooling_mode_mean_tokens, raw.pooling_mode_cls_token, others) {
        (None, true, false, false) | (Some("mean"), false, false, false) => Ok(Pooling::Mean),
        (None, false, true, false) | (Some("cls"), false, false, false) => Ok(Pooling::Cls),
        _ => Err(malformed(POOLING_FILE, "pooling must be either mean or CLS")),
    }
}

fn max_tokens(files: &Files) -> Result<Option<usize>, LoadError> {
    let Some(bytes) = files.find(LENGTH_FILE, BYTES_MAX)? else {
        return Ok(None);
    };
    let length: Length = json::parse(LENGTH_FILE, bytes)?;
    Ok(length.max_seq_length)
}

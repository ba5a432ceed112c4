//! Folders in the Hugging Face layout. `config.json` says which network it is; every file is kept unchanged once the
//! strict parsers have read it.

use super::whisper::Expected;
use super::{Work, denied, malformed, refused};
use crate::memory::Memory;
use crate::models::PackageWeights;
use crate::package::config::{self, BertConfig};
use crate::package::llama::LlamaConfig;
use crate::package::modules::{self, Head};
use crate::package::safetensors::{self, Dtype, Entry, Tensors};
use crate::package::{Files, tokenizer};
use ringfence_protocol::{ConvertError, Facts, ModelArchitecture};
use std::collections::BTreeMap;

const CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// What is taken for each byte of `tokenizer.json` while it is read, in bytes. By the counting allocator, SmolLM2's (BPE
/// with merges, 1.6 MB) takes 26.1 at the peak, MiniLM's (WordPiece, 0.5 MB) 14.9; the rest is headroom for shorter
/// tokens.
const TOKENIZER_WORKING_FACTOR: u64 = 40;

/// Files that go along where they are there; everything else in the folder is left out.
const COMPANIONS: &[&str] = &[
    modules::FILE,
    modules::POOLING_FILE,
    modules::LENGTH_FILE,
    "2_Normalize/config.json",
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    safetensors::INDEX,
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// What only runs code of a stranger's choosing to be read.
const PICKLES: &[&str] = &["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth"];

/// Makes a package of a folder.
///
/// # Errors
/// [`ConvertError`]: a file is missing or malformed, or it is a network that is not imported.
pub fn convert(work: &mut Work<'_>) -> Result<Facts, ConvertError> {
    let files = work.files;
    weights_are_readable(files)?;
    let model = model_type(files)?;
    let bytes = files.require(tokenizer::FILE, tokenizer::BYTES_MAX).map_err(refused)?.len() as u64;
    work.memory.check(bytes * TOKENIZER_WORKING_FACTOR).map_err(denied)?;
    let facts = match model.as_str() {
        "bert" => bert(files, work.memory),
        "llama" | "mistral" | "qwen2" => llama(files),
        "whisper" => whisper(files),
        other => Err(unsupported(config::FILE, format!("the model type {}", super::gguf::printable(other)))),
    }?;
    let companions = COMPANIONS.iter().copied().filter(|name| files.get(name).is_some());
    let kept =
        [config::FILE, tokenizer::FILE].into_iter().chain(safetensors::shards(files)).chain(companions);
    for name in kept {
        work.output.keep(name, name)?;
    }
    Ok(facts)
}

fn unsupported(file: &str, what: impl Into<String>) -> ConvertError {
    ConvertError::Unsupported { file: file.to_owned(), what: what.into() }
}

fn weights_are_readable(files: &Files) -> Result<(), ConvertError> {
    if safetensors::shards(files).next().is_some() || files.get(safetensors::INDEX).is_some() {
        return Ok(());
    }
    match PICKLES.iter().find(|name| files.get(name).is_some()) {
        Some(pickle) => Err(unsupported(
            pickle,
            "a pickle (it runs code to be read); convert it to safetensors first, which",
        )),
        None => Err(ConvertError::Missing { file: safetensors::FILE.to_owned() }),
    }
}

#[derive(serde::Deserialize)]
struct ModelType {
    model_type: String,
}

fn model_type(files: &Files) -> Result<String, ConvertError> {
    let bytes = files.require(config::FILE, CONFIG_BYTES_MAX).map_err(refused)?;
    let parsed = serde_json::from_slice::<ModelType>(bytes);
    parsed.map(|config| config.model_type).map_err(|_| malformed(config::FILE, "it states no `model_type`"))
}

fn bert(files: &Files, memory: &dyn Memory) -> Result<Facts, ConvertError> {
    let config = BertConfig::read(files).map_err(refused)?;
    let head = Head::read(files, config.hidden).map_err(refused)?;
    tokenizer::read(files, config.vocabulary).map_err(refused)?;
    PackageWeights::read(files, memory).map_err(refused)?;
    let tensors = Tensors::read(files).map_err(refused)?;
    let prefixed = tensors.entries().keys().any(|name| name.starts_with("bert."));
    let prefix = if prefixed { "bert." } else { "" };
    for (name, shape) in config.tensors() {
        require(tensors.entries(), &format!("{prefix}{name}"), &shape)?;
    }
    let max_tokens = config.positions.min(head.max_tokens.unwrap_or(usize::MAX));
    facts(ModelArchitecture::Bert, max_tokens)
}

fn llama(files: &Files) -> Result<Facts, ConvertError> {
    let config = LlamaConfig::read(files).map_err(refused)?;
    tokenizer::read_bpe(files, config.vocabulary).map_err(refused)?;
    let tensors = Tensors::read(files).map_err(refused)?;
    for (name, shape) in config.tensors() {
        require(tensors.entries(), &name, &shape)?;
    }
    facts(ModelArchitecture::Llama, config.positions)
}

fn whisper(files: &Files) -> Result<Facts, ConvertError> {
    let expected = Expected::parse(files.require(config::FILE, CONFIG_BYTES_MAX).map_err(refused)?)?;
    tokenizer::read_bpe(files, expected.vocabulary).map_err(refused)?;
    let tensors = Tensors::read(files).map_err(refused)?;
    for (name, shape) in &expected.tensors {
        require(tensors.entries(), name, shape)?;
    }
    facts(ModelArchitecture::Whisper, expected.text_positions)
}

fn facts(architecture: ModelArchitecture, max_tokens: usize) -> Result<Facts, ConvertError> {
    let max_tokens =
        u32::try_from(max_tokens).map_err(|_| malformed(config::FILE, "its sequences are too long"))?;
    Ok(Facts { architecture, max_tokens, licence: None })
}

/// A tensor that must be there, of this shape, in floats of any width.
fn require(entries: &BTreeMap<String, Entry>, name: &str, shape: &[usize]) -> Result<(), ConvertError> {
    let wrong = |reason: String| Err(ConvertError::Tensor { tensor: name.to_owned(), reason });
    let Some(entry) = entries.get(name) else {
        return wrong("it is missing".to_owned());
    };
    if entry.shape != shape {
        return wrong(format!("its shape is {:?}, `config.json` says {shape:?}", entry.shape));
    }
    match entry.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Ok(()),
        Dtype::Bool | Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 | Dtype::U32 | Dtype::I32 => {
            wrong("its type is no float of 16 or 32 bits".to_owned())
        }
        Dtype::U64 | Dtype::I64 | Dtype::F64 => wrong("its type is no float of 16 or 32 bits".to_owned()),
    }
}

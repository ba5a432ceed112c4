//! Whisper in the forms that it is published in, to one package: Hugging Face's layout and names, every tensor in the
//! type that it has in the source.

mod ctranslate2;
mod ggml;
mod huggingface;
mod names;
mod pickle;
mod pt;
mod reader;
mod tokenizer;

use super::safetensors::Tensor;
use super::{Work, malformed, output, refused, safetensors};
use crate::package::safetensors::{Dtype, Entry};
use crate::package::{FileBytes, config, tokenizer as package_tokenizer};
pub(super) use huggingface::Expected;
use names::{Naming, Planned, plan};
use ringfence_protocol::{ConvertError, Facts, ModelArchitecture};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tokenizer::Vocabulary;

/// The largest file of weights in bytes; the largest model has 3.1 GB as F16.
const WEIGHTS_BYTES_MAX: usize = 8 << 30;
/// The largest dimension of a tensor. Three of them don't overflow a product.
const SIZE_MAX: usize = 1 << 17;
/// The most layers on each side; the largest model has 32.
const LAYERS_MAX: usize = 64;
/// The most tensors of a source: 24 for each layer, and some scalars.
const TENSORS_MAX: usize = 4096;
const GENERATION_FILE: &str = "generation_config.json";

/// The tensors of a source, and where each is in its file.
type Entries = BTreeMap<String, Entry>;

/// Sizes of a network. Those of the two sides are of one name in OpenAI's code.
#[derive(Debug)]
struct Sizes {
    /// Bands of the spectrogram.
    mels: usize,
    /// Positions of the encoder.
    audio_positions: usize,
    /// Width of the encoder.
    state: usize,
    audio_heads: usize,
    audio_layers: usize,
    /// The longest text in tokens.
    text_positions: usize,
    /// Width of the decoder; it must be the encoder's.
    text_state: usize,
    text_heads: usize,
    text_layers: usize,
    /// All tokens, special ones included.
    vocabulary: usize,
}

impl Sizes {
    /// Width of the layers inside a block, which the form doesn't say: always four times the model's.
    fn inner(&self) -> usize {
        self.state * 4
    }

    fn check(&self, file: &str) -> Result<(), ConvertError> {
        let layers = 1..=LAYERS_MAX;
        let divides = |heads: usize| heads > 0 && self.state.is_multiple_of(heads);
        let plain = [self.mels, self.audio_positions, self.state, self.text_positions];
        if plain.contains(&0) || !layers.contains(&self.audio_layers) || !layers.contains(&self.text_layers) {
            return Err(malformed(
                file,
                format!("a size is zero, or there are more than {LAYERS_MAX} layers"),
            ));
        }
        if self.state != self.text_state || !divides(self.audio_heads) || !divides(self.text_heads) {
            return Err(malformed(file, "its heads or widths don't fit each other"));
        }
        Ok(())
    }
}

/// A package of `model.pt`, as OpenAI publishes Whisper, with `vocabulary.tiktoken` or `tokenizer.json`.
///
/// # Errors
/// A file is missing, malformed, too large, or not Whisper.
pub fn convert_pt(work: &mut Work<'_>) -> Result<Facts, ConvertError> {
    let bytes = weights(work, pt::FILE)?;
    let pt::Checkpoint { sizes, entries, turned } = pt::read(&bytes, work.memory)?;
    sizes.check(pt::FILE)?;
    let vocabulary = vocabulary(work, &sizes)?;
    let source = Source { bytes: &bytes, entries, turned, naming: Naming::OpenAi };
    write(work, &sizes, &vocabulary, &source)
}

/// A package of `model.bin` in ggml's form. The vocabulary inside is used where no file has one.
///
/// # Errors
/// As for [`convert_pt`], or weights are quantised.
pub fn convert_ggml(work: &mut Work<'_>) -> Result<Facts, ConvertError> {
    let bytes = weights(work, ggml::FILE)?;
    let ggml::Ggml { sizes, tokens, entries } = ggml::read(&bytes)?;
    sizes.check(ggml::FILE)?;
    let vocabulary = match Vocabulary::find(work.files, work.memory, sizes.vocabulary)? {
        Some(vocabulary) => vocabulary,
        None => Vocabulary::new(ggml::FILE, tokens, sizes.vocabulary, work.memory)?,
    };
    let source = Source { bytes: &bytes, entries, turned: BTreeSet::new(), naming: Naming::OpenAi };
    write(work, &sizes, &vocabulary, &source)
}

/// A package of `model.bin` in CTranslate2's form, with `tokenizer.json` or `vocabulary.tiktoken`.
///
/// # Errors
/// As for [`convert_pt`], or weights are quantised.
pub fn convert_ctranslate2(work: &mut Work<'_>) -> Result<Facts, ConvertError> {
    let bytes = weights(work, ctranslate2::FILE)?;
    let ctranslate2::Ctranslate2 { sizes, entries } = ctranslate2::read(&bytes)?;
    sizes.check(ctranslate2::FILE)?;
    let vocabulary = vocabulary(work, &sizes)?;
    let source = Source { bytes: &bytes, entries, turned: BTreeSet::new(), naming: Naming::Ctranslate2 };
    write(work, &sizes, &vocabulary, &source)
}

fn weights(work: &Work<'_>, file: &str) -> Result<FileBytes, ConvertError> {
    work.files.require(file, WEIGHTS_BYTES_MAX).cloned().map_err(refused)
}

fn vocabulary(work: &Work<'_>, sizes: &Sizes) -> Result<Vocabulary, ConvertError> {
    let found = Vocabulary::find(work.files, work.memory, sizes.vocabulary)?;
    found.ok_or_else(|| ConvertError::Missing { file: tokenizer::RANKS_FILE.to_owned() })
}

fn unsupported(file: &str, what: impl Into<String>) -> ConvertError {
    ConvertError::Unsupported { file: file.to_owned(), what: what.into() }
}

fn tensor_error(tensor: &str, reason: impl Into<String>) -> ConvertError {
    ConvertError::Tensor { tensor: tensor.to_owned(), reason: reason.into() }
}

/// Where the weights are.
struct Source<'a> {
    bytes: &'a [u8],
    entries: Entries,
    /// Those of two dimensions that stand column by column.
    turned: BTreeSet<String>,
    naming: Naming,
}

fn write(
    work: &mut Work<'_>,
    sizes: &Sizes,
    vocabulary: &Vocabulary,
    source: &Source<'_>,
) -> Result<Facts, ConvertError> {
    let plan = plan(sizes, source.naming);
    let (tensors, places) = take(&plan, source)?;
    let tokenizer = vocabulary.json()?;
    write_json(work, config::FILE, &config(sizes, vocabulary))?;
    write_json(work, GENERATION_FILE, &generation(sizes, vocabulary))?;
    write_json(work, package_tokenizer::FILE, &tokenizer)?;
    safetensors::write(work.output, &tensors, |place, put| match places[place] {
        Numbers::Rows(bytes) => put(bytes),
        Numbers::Columns(bytes) => put_turned(&tensors[place], bytes, put),
    })?;
    let max_tokens = u32::try_from(sizes.text_positions).expect("sizes are bounded");
    Ok(Facts { architecture: ModelArchitecture::Whisper, max_tokens, licence: None })
}

/// The bytes of a tensor in its source, by how they stand there.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    Rows(&'a [u8]),
    Columns(&'a [u8]),
}

/// Puts row by row what stands column by column.
fn put_turned(
    tensor: &Tensor,
    columns: &[u8],
    put: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let (width, rows) = (tensor.dtype.bytes(), tensor.shape[0]);
    let mut row = Vec::with_capacity(columns.len() / rows);
    for first in 0..rows {
        row.clear();
        let column = columns.chunks_exact(rows * width);
        row.extend(column.flat_map(|column| &column[first * width..][..width]));
        put(&row)?;
    }
    Ok(())
}

fn write_json(work: &mut Work<'_>, name: &str, value: &Value) -> Result<(), ConvertError> {
    output::write(work.output, name, value.to_string().as_bytes())
}

/// The package's tensors and the bytes of each. Nothing may be left in the source.
fn take<'a>(plan: &[Planned], source: &Source<'a>) -> Result<(Vec<Tensor>, Vec<Numbers<'a>>), ConvertError> {
    let used: BTreeSet<&str> = plan.iter().map(|planned| planned.source.as_str()).collect();
    let taken: Vec<_> = plan.iter().map(|planned| take_one(planned, source)).collect::<Result<_, _>>()?;
    match source.entries.keys().find(|name| !used.contains(name.as_str())) {
        Some(name) => Err(tensor_error(name, "Whisper has no such tensor")),
        None => Ok(taken.into_iter().unzip()),
    }
}

fn take_one<'a>(planned: &Planned, source: &Source<'a>) -> Result<(Tensor, Numbers<'a>), ConvertError> {
    let Planned { name, shape, source: from, part: (part, parts) } = planned;
    let entry = source.entries.get(from).ok_or_else(|| tensor_error(from, "it is missing"))?;
    let expected = planned.source_shape();
    if entry.shape != expected {
        return Err(tensor_error(from, format!("its shape is {:?}, it must be {expected:?}", entry.shape)));
    }
    if !matches!(entry.dtype, Dtype::F32 | Dtype::F16) {
        return Err(tensor_error(from, "its type is neither F32 nor F16"));
    }
    let whole = &source.bytes[entry.bytes.clone()];
    let length = whole.len() / parts;
    let tensor = Tensor { name: name.clone(), dtype: entry.dtype, shape: shape.clone() };
    let bytes = &whole[part * length..][..length];
    let turned = source.turned.contains(from);
    // Forms that join tensors turn none, so a turned one is whole.
    Ok((tensor, if turned { Numbers::Columns(bytes) } else { Numbers::Rows(bytes) }))
}

fn config(sizes: &Sizes, vocabulary: &Vocabulary) -> Value {
    let specials = vocabulary.specials();
    json!({
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "is_encoder_decoder": true,
        "scale_embedding": false,
        "tie_word_embeddings": true,
        "vocab_size": sizes.vocabulary,
        "num_mel_bins": sizes.mels,
        "d_model": sizes.state,
        "encoder_layers": sizes.audio_layers,
        "encoder_attention_heads": sizes.audio_heads,
        "encoder_ffn_dim": sizes.inner(),
        "decoder_layers": sizes.text_layers,
        "decoder_attention_heads": sizes.text_heads,
        "decoder_ffn_dim": sizes.inner(),
        "num_hidden_layers": sizes.audio_layers,
        "max_source_positions": sizes.audio_positions,
        "max_target_positions": sizes.text_positions,
        "max_length": sizes.text_positions,
        "bos_token_id": specials.end,
        "eos_token_id": specials.end,
        "pad_token_id": specials.end,
        "decoder_start_token_id": specials.start,
        "begin_suppress_tokens": vocabulary.suppressed_first(),
        "suppress_tokens": vocabulary.suppressed(),
    })
}

fn generation(sizes: &Sizes, vocabulary: &Vocabulary) -> Value {
    let specials = vocabulary.specials();
    let mut generation = json!({
        "is_multilingual": vocabulary.is_multilingual(),
        "bos_token_id": specials.end,
        "eos_token_id": specials.end,
        "pad_token_id": specials.end,
        "decoder_start_token_id": specials.start,
        "no_timestamps_token_id": specials.no_timestamps,
        "max_initial_timestamp_index": INITIAL_TIMESTAMP_MAX,
        "max_length": sizes.text_positions,
        "begin_suppress_tokens": vocabulary.suppressed_first(),
        "suppress_tokens": vocabulary.suppressed(),
    });
    if vocabulary.is_multilingual() {
        generation["lang_to_id"] = vocabulary.languages().collect();
        generation["task_to_id"] =
            json!({"transcribe": specials.transcribe, "translate": specials.translate});
    }
    generation
}

/// Speech begins within the first second: at most the 50th timestamp.
const INITIAL_TIMESTAMP_MAX: usize = 50;

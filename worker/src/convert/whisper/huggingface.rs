//! Whisper in the Hugging Face layout, which is the package's own: everything is checked and nothing written anew.

use super::names::{Naming, plan};
use super::{SIZE_MAX, Sizes, unsupported};
use crate::convert::{malformed, refused};
use crate::package::{config, json};
use ringfence_protocol::ConvertError;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModelType {
    Whisper,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Activation {
    Gelu,
}

/// Keys that change what is computed. Others (dropout, tokens of the beginning, versions) don't.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "model_type")]
    _model_type: ModelType,
    #[serde(rename = "activation_function")]
    _activation: Activation,
    #[serde(default)]
    scale_embedding: bool,
    tie_word_embeddings: Option<bool>,
    vocab_size: usize,
    num_mel_bins: usize,
    d_model: usize,
    encoder_layers: usize,
    encoder_attention_heads: usize,
    encoder_ffn_dim: usize,
    decoder_layers: usize,
    decoder_attention_heads: usize,
    decoder_ffn_dim: usize,
    max_source_positions: usize,
    max_target_positions: usize,
}

/// What a `config.json` asks for.
#[derive(Debug)]
pub(in crate::convert) struct Expected {
    /// Tokens with an embedding.
    pub(in crate::convert) vocabulary: usize,
    /// The longest text in tokens.
    pub(in crate::convert) text_positions: usize,
    /// Every tensor that the network needs, by name, with its shape.
    pub(in crate::convert) tensors: Vec<(String, Vec<usize>)>,
}

impl Expected {
    /// Reads such a file's bytes.
    pub(in crate::convert) fn parse(bytes: &[u8]) -> Result<Self, ConvertError> {
        let sizes = sizes(&json::parse(config::FILE, bytes).map_err(refused)?)?;
        let tensors = plan(&sizes, Naming::OpenAi).into_iter().map(|planned| (planned.name, planned.shape));
        let tensors = tensors.collect();
        Ok(Self { vocabulary: sizes.vocabulary, text_positions: sizes.text_positions, tensors })
    }
}

fn sizes(raw: &Raw) -> Result<Sizes, ConvertError> {
    let sizes = Sizes {
        mels: raw.num_mel_bins,
        audio_positions: raw.max_source_positions,
        state: raw.d_model,
        audio_heads: raw.encoder_attention_heads,
        audio_layers: raw.encoder_layers,
        text_positions: raw.max_target_positions,
        text_state: raw.d_model,
        text_heads: raw.decoder_attention_heads,
        text_layers: raw.decoder_layers,
        vocabulary: raw.vocab_size,
    };
    let Sizes { mels, audio_positions, state, text_positions, vocabulary, .. } = sizes;
    if [mels, audio_positions, state, text_positions, vocabulary].iter().any(|size| *size > SIZE_MAX) {
        return Err(malformed(config::FILE, format!("a size is more than {SIZE_MAX}")));
    }
    sizes.check(config::FILE)?;
    if raw.scale_embedding || raw.tie_word_embeddings == Some(false) {
        return Err(unsupported(config::FILE, "scaled embeddings, or an output of its own weights"));
    }
    if [raw.encoder_ffn_dim, raw.decoder_ffn_dim] != [sizes.inner(); 2] {
        return Err(unsupported(config::FILE, "an inner layer that is not four times as wide as the others"));
    }
    Ok(sizes)
}

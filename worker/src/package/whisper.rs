//! `config.json` and `generation_config.json` of a Whisper: the shape of the network, bounded before anything is allocated
//! by it, and the tokens that it never says.

use super::{Files, config, json, malformed};
use ringfence_protocol::LoadError;
use serde::Deserialize;

/// What a package may say beside its configuration.
pub const GENERATION_FILE: &str = "generation_config.json";
const BYTES_MAX: usize = 1024 * 1024;

const MELS_MAX: usize = 256;
const STATE_MAX: usize = 8192;
const LAYERS_MAX: usize = 64;
const AUDIO_POSITIONS_MAX: usize = 1500;
const TEXT_POSITIONS_MAX: usize = 4096;
const VOCABULARY_MAX: usize = 1 << 17;
/// Models with fewer tokens know English only, as openai/whisper has it.
const MULTILINGUAL_MIN: usize = 51_865;

/// The shape of a Whisper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhisperConfig {
    /// Bands of the spectrogram.
    pub mels: usize,
    /// Floats of a position or token between layers, on both sides.
    pub state: usize,
    /// Positions of the encoder, each of two frames: a window.
    pub audio_positions: usize,
    /// Attention heads of the encoder; they divide `state`.
    pub audio_heads: usize,
    /// Layers of the encoder.
    pub audio_layers: usize,
    /// The longest text of a window in tokens, what it goes on from included.
    pub text_positions: usize,
    /// Attention heads of the decoder; they divide `state`.
    pub text_heads: usize,
    /// Layers of the decoder.
    pub text_layers: usize,
    /// Tokens with an embedding.
    pub vocabulary: usize,
    /// Whether it knows more than English.
    pub multilingual: bool,
    /// Tokens that are never said.
    pub suppressed: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModelType {
    Whisper,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ActivationFunction {
    Gelu,
}

/// Keys that change what is computed. Others (dropout, versions) don't.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "model_type")]
    _model_type: ModelType,
    #[serde(rename = "activation_function")]
    _activation_function: ActivationFunction,
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
    suppress_tokens: Option<Vec<u32>>,
}

#[derive(Default, Deserialize)]
struct Generation {
    is_multilingual: Option<bool>,
    suppress_tokens: Option<Vec<u32>>,
}

impl WhisperConfig {
    /// Reads the files of a package.
    ///
    /// # Errors
    /// One is missing or malformed, describes another architecture, or is out of bounds.
    pub fn read(files: &Files) -> Result<Self, LoadError> {
        let raw: Raw = json::parse(config::FILE, files.require(config::FILE, BYTES_MAX)?)?;
        let generation = match files.find(GENERATION_FILE, BYTES_MAX)? {
            Some(bytes) => json::parse(GENERATION_FILE, bytes)?,
            None => Generation::default(),
        };
        raw.check()?;
        let shape = raw.shape(generation)?;
        shape.coherent()?;
        Ok(shape)
    }

    /// Frames of a window.
    pub fn frames(&self) -> usize {
        2 * self.audio_positions
    }

    /// Floats inside the feed-forward part: always four times the model's width.
    pub fn inner(&self) -> usize {
        4 * self.state
    }

    fn coherent(&self) -> Result<(), LoadError> {
        let divides = |heads: usize| self.state.is_multiple_of(heads);
        if !divides(self.audio_heads) || !divides(self.text_heads) {
            return Err(malformed(config::FILE, "the heads don't divide `d_model`"));
        }
        if self.suppressed.iter().any(|id| *id as usize >= self.vocabulary) {
            return Err(malformed(config::FILE, "a suppressed token is outside the vocabulary"));
        }
        Ok(())
    }
}

impl Raw {
    fn check(&self) -> Result<(), LoadError> {
        let refuse = |reason: &str| Err(malformed(config::FILE, reason));
        if self.scale_embedding || self.tie_word_embeddings == Some(false) {
            return refuse("scaled embeddings, or an output of its own weights, are not known");
        }
        // The product can't overflow: `d_model` is bounded first.
        let inner = 4 * bounded("d_model", self.d_model, STATE_MAX)?;
        if [self.encoder_ffn_dim, self.decoder_ffn_dim] != [inner; 2] {
            return refuse("the inner layers must be four times as wide as `d_model`");
        }
        Ok(())
    }

    fn shape(self, generation: Generation) -> Result<WhisperConfig, LoadError> {
        let vocabulary = bounded("vocab_size", self.vocab_size, VOCABULARY_MAX)?;
        Ok(WhisperConfig {
            mels: bounded("num_mel_bins", self.num_mel_bins, MELS_MAX)?,
            state: bounded("d_model", self.d_model, STATE_MAX)?,
            audio_positions: bounded("max_source_positions", self.max_source_positions, AUDIO_POSITIONS_MAX)?,
            audio_heads: bounded("encoder_attention_heads", self.encoder_attention_heads, STATE_MAX)?,
            audio_layers: bounded("encoder_layers", self.encoder_layers, LAYERS_MAX)?,
            text_positions: bounded("max_target_positions", self.max_target_positions, TEXT_POSITIONS_MAX)?,
            text_heads: bounded("decoder_attention_heads", self.decoder_attention_heads, STATE_MAX)?,
            text_layers: bounded("decoder_layers", self.decoder_layers, LAYERS_MAX)?,
            vocabulary,
            multilingual: generation.is_multilingual.unwrap_or(vocabulary >= MULTILINGUAL_MIN),
            suppressed: generation.suppress_tokens.or(self.suppress_tokens).unwrap_or_default(),
        })
    }
}

fn bounded(key: &str, value: usize, max: usize) -> Result<usize, LoadError> {
    let reason = || malformed(config::FILE, format!("`{key}` is {value}, it must be from 1 to {max}"));
    if (1..=max).contains(&value) { Ok(value) } else { Err(reason()) }
}

//! `config.json` of a BERT: the shape of the network, bounded before anything is allocated by it.

use super::{Files, json, malformed};
use ringfence_protocol::LoadError;
use serde::Deserialize;

/// Its name.
pub const FILE: &str = "config.json";
const BYTES_MAX: usize = 1024 * 1024;

const HIDDEN_MAX: usize = 8192;
const INTERMEDIATE_MAX: usize = 65_536;
const LAYERS_MAX: usize = 128;
const HEADS_MAX: usize = 256;
const POSITIONS_MAX: usize = 65_536;
const TYPES_MAX: usize = 64;
const VOCABULARY_MAX: usize = 1 << 21;

/// The shape of a BERT.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Floats of a token between layers.
    pub hidden: usize,
    /// Floats of a token inside the feed-forward part.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; they divide `hidden`.
    pub heads: usize,
    /// Positions with an embedding: the longest sequence.
    pub positions: usize,
    /// Token types with an embedding.
    pub types: usize,
    /// Tokens with an embedding.
    pub vocabulary: usize,
    /// Added to the variance in layer normalisation.
    pub epsilon: f32,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModelType {
    Bert,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum HiddenAct {
    Gelu,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PositionEmbedding {
    #[default]
    Absolute,
}

/// Keys that change what is computed. Others (dropout, labels, versions) don't.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "model_type")]
    _model_type: ModelType,
    #[serde(rename = "hidden_act")]
    _hidden_act: HiddenAct,
    #[serde(default, rename = "position_embedding_type")]
    _position_embedding_type: PositionEmbedding,
    #[serde(default)]
    is_decoder: bool,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    vocab_size: usize,
    layer_norm_eps: f64,
}

impl BertConfig {
    /// Reads the file of a package.
    ///
    /// # Errors
    /// It is missing or malformed, describes another architecture, or is out of bounds.
    pub fn read(files: &Files) -> Result<Self, LoadError> {
        Self::parse(files.require(FILE, BYTES_MAX)?)
    }

    /// Reads such a file's bytes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self, LoadError> {
        let raw: Raw = json::parse(FILE, bytes)?;
        let bounded = |key: &str, value: usize, max: usize| {
            let reason = || malformed(FILE, format!("`{key}` is {value}, it must be from 1 to {max}"));
            if (1..=max).contains(&value) { Ok(value) } else { Err(reason()) }
        };
        let config = Self {
            hidden: bounded("hidden_size", raw.hidden_size, HIDDEN_MAX)?,
            intermediate: bounded("intermediate_size", raw.intermediate_size, INTERMEDIATE_MAX)?,
            layers: bounded("num_hidden_layers", raw.num_hidden_layers, LAYERS_MAX)?,
            heads: bounded("num_attention_heads", raw.num_attention_heads, HEADS_MAX)?,
            positions: bounded("max_position_embeddings", raw.max_position_embeddings, POSITIONS_MAX)?,
            types: bounded("type_vocab_size", raw.type_vocab_size, TYPES_MAX)?,
            vocabulary: bounded("vocab_size", raw.vocab_size, VOCABULARY_MAX)?,
            epsilon: raw.layer_norm_eps as f32,
        };
        config.coherent(raw.is_decoder, raw.layer_norm_eps)
    }

    fn coherent(self, is_decoder: bool, epsilon: f64) -> Result<Self, LoadError> {
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(malformed(FILE, "`num_attention_heads` doesn't divide `hidden_size`"));
        }
        if is_decoder {
            return Err(malformed(FILE, "a decoder can't embed sentences"));
        }
        if !(0.0..1.0).contains(&epsilon) {
            return Err(malformed(FILE, "`layer_norm_eps` must be at least 0 and below 1"));
        }
        Ok(self)
    }

    /// Every tensor that the network needs, by name without any prefix, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Self { hidden, .. } = *self;
        let table = |name: &str, rows| (format!("embeddings.{name}_embeddings.weight"), vec![rows, hidden]);
        let mut tensors = vec![
            table("word", self.vocabulary),
            table("position", self.positions),
            table("token_type", self.types),
        ];
        tensors.extend(norm("embeddings.LayerNorm", hidden));
        for layer in 0..self.layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            for part in ["self.query", "self.key", "self.value", "output.dense"] {
                tensors.extend(linear(&name(&format!("attention.{part}")), hidden, hidden));
            }
            tensors.extend(norm(&name("attention.output.LayerNorm"), hidden));
            tensors.extend(linear(&name("intermediate.dense"), hidden, self.intermediate));
            tensors.extend(linear(&name("output.dense"), self.intermediate, hidden));
            tensors.extend(norm(&name("output.LayerNorm"), hidden));
        }
        tensors
    }

    /// Floats of an attention head.
    pub fn head(&self) -> usize {
        self.hidden / self.heads
    }
}

fn linear(name: &str, inputs: usize, outputs: usize) -> [(String, Vec<usize>); 2] {
    [(format!("{name}.weight"), vec![outputs, inputs]), (format!("{name}.bias"), vec![outputs])]
}

fn norm(name: &str, hidden: usize) -> [(String, Vec<usize>); 2] {
    ["weight", "bias"].map(|part| (format!("{name}.{part}"), vec![hidden]))
}

//! `config.json` of a Llama, or of a Mistral or a Qwen2, which differ from it in little: the shape of the network, bounded before anything is allocated by it, and the tensors that it
//! needs.

use super::{Files, config::FILE, json, malformed};
use ringfence_protocol::LoadError;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

const BYTES_MAX: usize = 1024 * 1024;
const HIDDEN_MAX: usize = 32_768;
const INTERMEDIATE_MAX: usize = 262_144;
/// Twelve tensors of each layer and three more stay below what a file of weights may have.
const LAYERS_MAX: usize = 512;
const HEADS_MAX: usize = 512;
const HEAD_MAX: usize = 1024;
const POSITIONS_MAX: usize = 1 << 20;
const VOCABULARY_MAX: usize = 1 << 21;
/// What configurations mean that leave it out; so it was in the first Llama.
const ROPE_THETA: f64 = 10_000.0;
const ROPE_THETA_MAX: f64 = 1e12;

/// The shape of a Llama.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Floats of a token between layers.
    pub hidden: usize,
    /// Floats of a token inside the feed-forward part.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; they divide `heads`.
    pub key_heads: usize,
    /// Floats of a head; even.
    pub head: usize,
    /// The longest sequence.
    pub positions: usize,
    /// Tokens with an embedding.
    pub vocabulary: usize,
    /// Added to the mean square in normalisation.
    pub epsilon: f32,
    /// Base of the rotation's frequencies.
    pub rope_theta: f32,
    /// How the frequencies were stretched for long sequences, if they were.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Embeddings are the output's weights too.
    pub tied: bool,
    /// Queries, keys and values have biases, as in Qwen2.
    pub biases: bool,
}

/// Llama 3.1's stretching of low frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Llama3Scaling {
    /// Low frequencies are divided by it.
    pub factor: f32,
    /// Below this many turns within the original length, a frequency is low.
    pub low_freq_factor: f32,
    /// Above this many, it stays.
    pub high_freq_factor: f32,
    /// The original length in tokens.
    pub original_max_position_embeddings: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModelType {
    Llama,
    /// A Llama whose tokens may see no more than a window of those before them.
    Mistral,
    /// A Llama with biases; some see a window in a part of their layers.
    Qwen2,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum HiddenAct {
    Silu,
}

#[derive(Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
enum Scaling {
    Default {},
    Llama3(Llama3Scaling),
}

/// Keys that change what is computed. Others (dropout, versions, the initialiser) don't.
#[derive(Deserialize)]
struct Raw {
    model_type: ModelType,
    #[serde(rename = "hidden_act")]
    _hidden_act: HiddenAct,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<IgnoredAny>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    quantization_config: Option<IgnoredAny>,
}

impl LlamaConfig {
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
        raw.check()?;
        let hidden = bounded("hidden_size", raw.hidden_size, HIDDEN_MAX)?;
        let heads = bounded("num_attention_heads", raw.num_attention_heads, HEADS_MAX)?;
        let key_heads = raw.num_key_value_heads.unwrap_or(heads);
        let positions = bounded("max_position_embeddings", raw.max_position_embeddings, POSITIONS_MAX)?;
        let window = match raw.window() {
            Some(window) => bounded("sliding_window", window, POSITIONS_MAX)?,
            None => positions,
        };
        let config = Self {
            hidden,
            intermediate: bounded("intermediate_size", raw.intermediate_size, INTERMEDIATE_MAX)?,
            layers: bounded("num_hidden_layers", raw.num_hidden_layers, LAYERS_MAX)?,
            heads,
            key_heads: bounded("num_key_value_heads", key_heads, heads)?,
            head: bounded("head_dim", raw.head_dim.unwrap_or(hidden / heads), HEAD_MAX)?,
            // As long as a sequence fits in the window, the window changes nothing.
            positions: positions.min(window),
            vocabulary: bounded("vocab_size", raw.vocab_size, VOCABULARY_MAX)?,
            epsilon: raw.rms_norm_eps as f32,
            rope_theta: raw.rope_theta.unwrap_or(ROPE_THETA) as f32,
            rope_scaling: scaling(raw.rope_scaling)?,
            tied: raw.tie_word_embeddings,
            biases: matches!(raw.model_type, ModelType::Qwen2),
        };
        config.coherent(raw.head_dim.is_some())
    }

    fn coherent(self, head_is_given: bool) -> Result<Self, LoadError> {
        if !self.heads.is_multiple_of(self.key_heads) {
            return Err(malformed(FILE, "`num_key_value_heads` doesn't divide `num_attention_heads`"));
        }
        if !head_is_given && !self.hidden.is_multiple_of(self.heads) {
            return Err(malformed(FILE, "`num_attention_heads` doesn't divide `hidden_size`"));
        }
        if !self.head.is_multiple_of(2) {
            return Err(malformed(FILE, "a head has an odd number of floats"));
        }
        Ok(self)
    }

    /// Every tensor that the network needs, by name, with its shape. Files have no others, except the inverse
    /// frequencies that old ones carry.
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut tensors = BTreeMap::new();
        let table = vec![self.vocabulary, self.hidden];
        tensors.insert("model.embed_tokens.weight".to_owned(), table.clone());
        tensors.insert("model.norm.weight".to_owned(), vec![self.hidden]);
        if !self.tied {
            tensors.insert("lm_head.weight".to_owned(), table);
        }
        for layer in 0..self.layers {
            let named = |(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape);
            tensors.extend(self.layer().into_iter().map(named));
            let named = |(part, outputs)| (format!("model.layers.{layer}.{part}.bias"), vec![outputs]);
            tensors.extend(self.biased().into_iter().map(named));
        }
        tensors
    }

    /// The products with a bias, and their outputs.
    fn biased(&self) -> Vec<(&'static str, usize)> {
        let (queries, keys) = (self.heads * self.head, self.key_heads * self.head);
        let biased = [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        if self.biases { biased.to_vec() } else { Vec::new() }
    }

    fn layer(&self) -> [(&'static str, Vec<usize>); 9] {
        let Self { hidden, intermediate, .. } = *self;
        let (queries, keys) = (self.heads * self.head, self.key_heads * self.head);
        [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("mlp.gate_proj", vec![intermediate, hidden]),
            ("mlp.up_proj", vec![intermediate, hidden]),
            ("mlp.down_proj", vec![hidden, intermediate]),
        ]
    }
}

impl Raw {
    /// Of how many tokens a token sees no more, where that is so in any layer. A Qwen2 says whether it is, and names one
    /// all the same.
    fn window(&self) -> Option<usize> {
        let is_used = match self.model_type {
            ModelType::Llama | ModelType::Mistral => true,
            ModelType::Qwen2 => self.use_sliding_window.unwrap_or(false),
        };
        self.sliding_window.filter(|_| is_used)
    }

    fn check(&self) -> Result<(), LoadError> {
        let refuse = |reason: &str| Err(malformed(FILE, reason));
        if self.attention_bias || self.mlp_bias {
            return refuse("a Llama with biases is not known, except as Qwen2 has them");
        }
        if self.rope_parameters.is_some() {
            return refuse("`rope_parameters` is not known; `rope_theta` and `rope_scaling` are");
        }
        if self.quantization_config.is_some() {
            return refuse("`quantization_config` is not known");
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return refuse("`rms_norm_eps` must be above 0 and below 1");
        }
        if !(1.0..=ROPE_THETA_MAX).contains(&self.rope_theta.unwrap_or(ROPE_THETA)) {
            return refuse("`rope_theta` is out of bounds");
        }
        Ok(())
    }
}

fn scaling(raw: Option<Scaling>) -> Result<Option<Llama3Scaling>, LoadError> {
    let scaling = match raw {
        None | Some(Scaling::Default {}) => return Ok(None),
        Some(Scaling::Llama3(scaling)) => scaling,
    };
    let Llama3Scaling { factor, low_freq_factor: low, high_freq_factor: high, .. } = scaling;
    let original =
        bounded("original_max_position_embeddings", scaling.original_max_position_embeddings, POSITIONS_MAX);
    original?;
    let legal = (1.0..=1e4).contains(&factor) && low > 0.0 && high > low && high <= 1e4;
    if legal { Ok(Some(scaling)) } else { Err(malformed(FILE, "`rope_scaling` is out of bounds")) }
}

fn bounded(key: &str, value: usize, max: usize) -> Result<usize, LoadError> {
    let reason = || malformed(FILE, format!("`{key}` is {value}, it must be from 1 to {max}"));
    if (1..=max).contains(&value) { Ok(value) } else { Err(reason()) }
}

#[cfg(test)]
mod tests {
    use super::LlamaConfig;
    use serde_json::{Value, json};

    fn parsed(model: &str, changes: Value) -> Result<LlamaConfig, String> {
        let mut config = json!({
            "model_type": model, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 4096, "vocab_size": 100, "rms_norm_eps": 1e-5,
        });
        let Value::Object(changes) = changes else { unreachable!("the tests give objects") };
        config.as_object_mut().expect("it is one").extend(changes);
        LlamaConfig::parse(config.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_sequence_is_no_longer_than_the_window_that_a_token_sees() {
        let positions = |model, changes| parsed(model, changes).expect("it is legal").positions;
        assert_eq!(positions("mistral", json!({"sliding_window": null})), 4096);
        assert_eq!(positions("mistral", json!({"sliding_window": 1024})), 1024);
        assert_eq!(positions("mistral", json!({"sliding_window": 9000})), 4096);
        assert_eq!(positions("qwen2", json!({"sliding_window": 1024, "use_sliding_window": false})), 4096);
        assert_eq!(positions("qwen2", json!({"sliding_window": 1024, "max_window_layers": 1})), 4096);
        assert_eq!(positions("qwen2", json!({"sliding_window": 1024, "use_sliding_window": true})), 1024);
        assert!(
            parsed("mistral", json!({"sliding_window": 0})).expect_err("none").contains("sliding_window")
        );
    }

    #[test]
    fn only_a_qwen2_has_biases() {
        let biases =
            |config: &LlamaConfig| config.tensors().keys().filter(|name| name.ends_with(".bias")).count();
        for (model, count) in [("llama", 0), ("mistral", 0), ("qwen2", 2 * 3)] {
            assert_eq!(biases(&parsed(model, json!({})).expect("it is legal")), count, "{model}");
        }
        assert!(parsed("llama", json!({"attention_bias": true})).is_err());
        assert!(parsed("gemma", json!({})).is_err());
    }
}

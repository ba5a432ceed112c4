//! GGUF of the Llama family (Qwen2 too), as a folder in the Hugging Face layout: names and the order of rows are those of
//! that layout, Q4_1 and Q8_0 stay in their blocks, other blocks become halves.
//!
//! Halves, since a weight of four to six bits is off by far more than a half's rounding; floats would take twice as much.

mod reader;
mod tokenizer;

use super::blocks::{BLOCK_WEIGHTS_MAX, Type};
use super::safetensors::{Tensor, write};
use super::{Work, denied, output, refused};
use crate::package::config;
use crate::package::llama::LlamaConfig;
use crate::package::safetensors::Dtype;
use half::f16;
use reader::{Gguf, Metadata, wrong};
use ringfence_protocol::{BlockType, ConvertError, Facts, ModelArchitecture};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the source is called.
pub const FILE: &str = "model.gguf";
const ARCHITECTURE: &str = "general.architecture";
/// The longest statement of a licence in bytes.
const LICENCE_BYTES_MAX: usize = 256;

/// Keys of a network that are read, or change nothing, behind its name.
const KNOWN: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
];

/// Networks of the family. Mistrals are Llamas to llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Llama,
    Qwen2,
}

impl Network {
    fn read(metadata: &Metadata<'_>) -> Result<Self, ConvertError> {
        match metadata.text(ARCHITECTURE)? {
            Some("llama") => Ok(Self::Llama),
            Some("qwen2") => Ok(Self::Qwen2),
            Some(other) => Err(unsupported(&format!("the architecture {}", printable(other)))),
            None => Err(lacking(ARCHITECTURE)),
        }
    }

    /// The name in keys and in `config.json`.
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
        }
    }

    /// Its key of this name.
    fn key(self, key: &str) -> String {
        format!("{}.{key}", self.name())
    }
}

/// Makes a package of a GGUF file.
///
/// # Errors
/// [`ConvertError`]: it is malformed, of another family, or has what the Hugging Face layout can't say.
pub fn convert(work: &mut Work<'_>) -> Result<Facts, ConvertError> {
    let file = work.files.require(FILE, usize::MAX).map_err(refused)?.clone();
    let gguf = Gguf::read(&file)?;
    let network = Network::read(&gguf.metadata)?;
    known(&gguf.metadata, network)?;
    let config = config(&gguf, network)?;
    let text = config.to_string();
    let llama = LlamaConfig::parse(text.as_bytes()).map_err(refused)?;
    let plan = plan(&gguf, network, &llama)?;
    let tokenizer = tokenizer::read(&gguf.metadata, llama.vocabulary, work.memory)?;
    output::write(work.output, config::FILE, text.as_bytes())?;
    tokenizer.write(work)?;
    write_tensors(work, &file, &plan)?;
    let max_tokens = u32::try_from(llama.positions).map_err(|_| wrong(&network.key("context_length")))?;
    let licence = gguf.metadata.text("general.license")?;
    let licence = licence.filter(|text| text.len() <= LICENCE_BYTES_MAX).map(str::to_owned);
    Ok(Facts { architecture: ModelArchitecture::Llama, max_tokens, licence })
}

/// A file that is well-formed and of a kind that is not converted.
fn unsupported(what: &str) -> ConvertError {
    ConvertError::Unsupported { file: FILE.to_owned(), what: what.to_owned() }
}

fn known(metadata: &Metadata<'_>, network: Network) -> Result<(), ConvertError> {
    let prefix = network.key("");
    let strange = |key: &&str| key.strip_prefix(&prefix).is_some_and(|key| !KNOWN.contains(&key));
    match metadata.keys().find(strange) {
        Some(key) => Err(unsupported(&format!("`{key}`"))),
        None => Ok(()),
    }
}

/// A stranger's word in a message: short and of plain characters.
pub(super) fn printable(word: &str) -> String {
    word.chars().take(64).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

fn lacking(key: &str) -> ConvertError {
    super::malformed(FILE, format!("`{key}` is missing"))
}

/// `config.json`; its bounds are checked by whoever reads it.
fn config(gguf: &Gguf<'_>, network: Network) -> Result<Value, ConvertError> {
    let metadata = &gguf.metadata;
    let optional = |key: &str| metadata.natural(&network.key(key));
    let natural = |key: &str| optional(key)?.ok_or_else(|| lacking(&network.key(key)));
    let heads = natural("attention.head_count")?;
    let embeddings = gguf.tensors.get("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
    let vocabulary = embeddings.shape[0] as u64;
    if optional("vocab_size")?.is_some_and(|stated| stated != vocabulary) {
        return Err(wrong(&network.key("vocab_size")));
    }
    let epsilon = network.key("attention.layer_norm_rms_epsilon");
    let mut config = json!({
        "architectures": [network.class()],
        "model_type": network.name(),
        "hidden_act": "silu",
        "hidden_size": natural("embedding_length")?,
        "intermediate_size": natural("feed_forward_length")?,
        "num_hidden_layers": natural("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": optional("attention.head_count_kv")?.unwrap_or(heads),
        "max_position_embeddings": natural("context_length")?,
        "vocab_size": vocabulary,
        "rms_norm_eps": metadata.float(&epsilon)?.ok_or_else(|| lacking(&epsilon))?,
        "rope_theta": metadata.float(&network.key("rope.freq_base"))?.unwrap_or(ROPE_THETA),
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": !gguf.tensors.contains_key("output.weight"),
        "torch_dtype": "float16",
    });
    config["head_dim"] = head(network, heads, natural("embedding_length")?, &optional)?.into();
    for key in ["bos", "eos"] {
        let id = metadata.natural(&format!("tokenizer.ggml.{key}_token_id"))?;
        config[format!("{key}_token_id")] = id.into();
    }
    Ok(config)
}

/// What GGUF means where it leaves the base of the rotation out.
const ROPE_THETA: f64 = 10_000.0;

/// Floats of a head; everything that states it must agree.
fn head(
    network: Network,
    heads: u64,
    hidden: u64,
    optional: &impl Fn(&str) -> Result<Option<u64>, ConvertError>,
) -> Result<u64, ConvertError> {
    let implied = hidden.checked_div(heads).ok_or_else(|| wrong(&network.key("attention.head_count")))?;
    let head = optional("attention.key_length")?.unwrap_or(implied);
    for key in ["attention.value_length", "rope.dimension_count"] {
        if optional(key)?.unwrap_or(head) != head {
            return Err(unsupported(&format!("a `{}` other than that of keys", network.key(key))));
        }
    }
    Ok(head)
}

fn missing(tensor: &str) -> ConvertError {
    ConvertError::Tensor { tensor: tensor.to_owned(), reason: "it is missing".to_owned() }
}

/// A tensor of the package and where its rows come from.
struct Planned {
    name: String,
    source: reader::Tensor,
    /// Heads among whose rows the file has pairs of the rotation side by side; 0 where it doesn't.
    paired_heads: usize,
}

/// Every tensor that the network needs has a source, and every source is needed.
fn plan(gguf: &Gguf<'_>, network: Network, llama: &LlamaConfig) -> Result<Vec<Planned>, ConvertError> {
    let mut sources: BTreeMap<&str, &reader::Tensor> =
        gguf.tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut plan = Vec::new();
    for (name, shape) in llama.tensors() {
        let theirs = gguf_name(&name);
        let source = sources.remove(theirs.as_str()).ok_or_else(|| missing(&theirs))?;
        if source.shape != shape {
            let reason = format!("its shape is {:?}, the metadata says {shape:?}", source.shape);
            return Err(ConvertError::Tensor { tensor: theirs, reason });
        }
        let paired_heads = match (network, theirs.split('.').nth(2)) {
            (Network::Llama, Some("attn_q")) => llama.heads,
            (Network::Llama, Some("attn_k")) => llama.key_heads,
            (Network::Llama | Network::Qwen2, _) => 0,
        };
        plan.push(Planned { name, source: source.clone(), paired_heads });
    }
    match sources.keys().next() {
        Some(name) => Err(unsupported(&format!("the tensor `{name}`"))),
        None => Ok(plan),
    }
}

/// What GGUF calls a tensor of the Hugging Face layout.
fn gguf_name(name: &str) -> String {
    let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        let outer = match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            _ => "output.weight",
        };
        return outer.to_owned();
    };
    let (part, kind) = part.rsplit_once('.').unwrap_or((part, "weight"));
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => other,
    };
    format!("blk.{layer}.{part}.{kind}")
}

/// How a tensor is stored in the package.
enum Stay {
    /// Its elements as they are.
    Elements(Dtype),
    /// Its blocks as they are.
    Blocks(BlockType),
    /// Its blocks become halves.
    Halves,
}

impl Planned {
    fn stay(&self) -> Stay {
        let table = self.source.shape.len() == 2;
        match self.source.kind {
            Type::F32 => Stay::Elements(Dtype::F32),
            Type::F16 => Stay::Elements(Dtype::F16),
            Type::Bf16 => Stay::Elements(Dtype::Bf16),
            Type::Q4_1 if table => Stay::Blocks(BlockType::Q4_1),
            Type::Q8_0 if table => Stay::Blocks(BlockType::Q8_0),
            Type::Q4_0 | Type::Q4_1 | Type::Q5_0 | Type::Q5_1 | Type::Q8_0 => Stay::Halves,
            Type::Q2K | Type::Q3K | Type::Q4K | Type::Q5K | Type::Q6K => Stay::Halves,
        }
    }

    fn tensor(&self) -> Tensor {
        let shape = self.source.shape.clone();
        let (dtype, shape) = match self.stay() {
            Stay::Elements(dtype) => (dtype, shape),
            Stay::Blocks(_) => (Dtype::U8, vec![shape[0], self.row_bytes()]),
            Stay::Halves => (Dtype::F16, shape),
        };
        Tensor { name: self.name.clone(), dtype, shape }
    }

    fn rows(&self) -> usize {
        self.source.shape[..self.source.shape.len() - 1].iter().product()
    }

    fn row_bytes(&self) -> usize {
        self.source.bytes.len() / self.rows()
    }

    /// Where the file has the row that stands at `row` in the package. llama.cpp rotates neighbours, the Hugging Face
    /// layout the two halves of a head: row `half * head / 2 + pair` of a head there is row `pair * 2 + half` here.
    fn source_row(&self, row: usize) -> usize {
        if self.paired_heads == 0 {
            return row;
        }
        let head = self.rows() / self.paired_heads;
        let (start, within) = (row / head * head, row % head);
        start + within % (head / 2) * 2 + within / (head / 2)
    }
}

fn write_tensors(work: &mut Work<'_>, file: &[u8], plan: &[Planned]) -> Result<(), ConvertError> {
    for planned in plan {
        if let Stay::Blocks(block) = planned.stay() {
            let shape: Vec<u64> = planned.source.shape.iter().map(|size| *size as u64).collect();
            work.output.block(&planned.name, block, &shape)?;
        }
    }
    let longest = plan.iter().map(|planned| planned.source.shape.last().copied().unwrap_or(0)).max();
    work.memory.check(2 * longest.unwrap_or(0) as u64).map_err(denied)?;
    let tensors: Vec<Tensor> = plan.iter().map(Planned::tensor).collect();
    let mut halves = Vec::new();
    write(work.output, &tensors, |place, put| {
        let planned = &plan[place];
        let bytes = &file[planned.source.bytes.clone()];
        for row in 0..planned.rows() {
            let row = &bytes[planned.source_row(row) * planned.row_bytes()..][..planned.row_bytes()];
            match planned.stay() {
                Stay::Elements(_) | Stay::Blocks(_) => put(row)?,
                Stay::Halves => {
                    to_halves(planned, row, &mut halves)?;
                    put(&halves)?;
                }
            }
        }
        Ok(())
    })
}

/// A row of blocks as halves.
fn to_halves(planned: &Planned, row: &[u8], halves: &mut Vec<u8>) -> Result<(), ConvertError> {
    halves.clear();
    let kind = planned.source.kind;
    let mut weights = [0.0; BLOCK_WEIGHTS_MAX];
    let weights = &mut weights[..kind.block_weights()];
    for block in row.chunks_exact(kind.block_bytes()) {
        kind.dequantise(block, weights);
        for weight in &*weights {
            let half = f16::from_f32(*weight);
            if !half.is_finite() {
                let reason = "a weight is infinite, or too large for a half".to_owned();
                return Err(ConvertError::Tensor { tensor: planned.name.clone(), reason });
            }
            halves.extend_from_slice(&half.to_le_bytes());
        }
    }
    Ok(())
}

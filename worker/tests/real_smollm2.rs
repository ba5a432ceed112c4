//! SmolLM2's real GGUF file: every weight against llama.cpp's own dequantisation, and tokens against byte-level BPE that
//! shares nothing with the tokeniser library (`tests/data/make_smollm2_digests.py`). Logits of candle's Llama over the
//! package against those of candle's own path from the file; our own logits against transformers', and perplexity against
//! llama.cpp's (`tests/data/make_smollm2_logits.py`).
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use candle_core::quantized::gguf_file::{self, Content};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use candle_transformers::models::quantized_llama::ModelWeights;
use ringfence_kernels::{Compute, Isa, Pool};
use ringfence_protocol::{BlockType, LoadError, ModelArchitecture, SourceForm};
use ringfence_worker::convert::blocks::Type;
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::device::{CACHE_BLOCK_TOKENS, Cpu, Stored, TableSource};
use ringfence_worker::memory::Lease;
use ringfence_worker::models::llama::{Llama as OurLlama, Run};
use ringfence_worker::models::{PackageWeights, Weights};
use ringfence_worker::package::llama::LlamaConfig as OurConfig;
use ringfence_worker::package::safetensors::{Dtype, Tensors};
use ringfence_worker::package::tokenizer::parse_bpe;
use ringfence_worker::package::{FileBytes, Files};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;

fn gguf() -> Vec<u8> {
    let file = std::env::var("RINGFENCE_SMOLLM2")
        .expect("RINGFENCE_SMOLLM2 must name SmolLM2-135M-Instruct.Q4_1.gguf; `make test` fetches it");
    std::fs::read(file).unwrap()
}

fn import() -> InMemory {
    let bytes = Arc::new(gguf()) as FileBytes;
    let files: Files = [("model.gguf".to_owned(), bytes)].into_iter().collect();
    let mut output = InMemory::new(&files);
    let mut work = Work { files: &files, output: &mut output, memory: &Lease };
    let facts = convert(SourceForm::Gguf, &mut work).unwrap();
    assert_eq!((facts.architecture, facts.max_tokens), (ModelArchitecture::Llama, 8192));
    assert_eq!(facts.licence.as_deref(), Some("apache-2.0"));
    output
}

fn expected() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2.expected.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A weight as the package has it.
struct Weight<'a> {
    kind: Type,
    /// Before it was quantised.
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl Weight<'_> {
    fn floats(&self) -> Vec<f32> {
        let mut floats = vec![0.0; self.shape.iter().product()];
        let places = floats.chunks_exact_mut(self.kind.block_weights());
        let blocks = self.bytes.chunks_exact(self.kind.block_bytes());
        blocks.zip(places).for_each(|(block, place)| self.kind.dequantise(block, place));
        floats
    }
}

/// Calls `see` for each weight of the package.
fn each_weight(output: &mut InMemory, mut see: impl FnMut(&str, &Weight<'_>)) {
    let bytes = Arc::new(output.files.remove("model.safetensors").unwrap()) as FileBytes;
    let files: Files = [("model.safetensors".to_owned(), bytes.clone())].into_iter().collect();
    for (name, entry) in Tensors::read(&files).unwrap().entries() {
        let block = output.blocks.get(name);
        let kind = match (entry.dtype, block.map(|(block, _)| *block)) {
            (Dtype::F32, None) => Type::F32,
            (Dtype::U8, Some(BlockType::Q4_1)) => Type::Q4_1,
            (Dtype::U8, Some(BlockType::Q8_0)) => Type::Q8_0,
            other => panic!("{name} is {other:?}"),
        };
        let before = |(_, shape): &(BlockType, Vec<u64>)| shape.iter().map(|size| *size as usize).collect();
        let shape = block.map_or_else(|| entry.shape.clone(), before);
        see(name, &Weight { kind, shape, bytes: &bytes[entry.bytes.clone()] });
    }
}

fn digest(floats: &[f32]) -> String {
    let mut hash = Sha256::new();
    floats.iter().for_each(|weight| hash.update(weight.to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_weight_is_what_llama_cpp_makes_of_it() {
    let expected = expected();
    let digests = expected["tensors"].as_object().unwrap();
    let mut seen = 0;
    each_weight(&mut import(), |name, weight| {
        assert_eq!(digest(&weight.floats()), digests[name].as_str().unwrap(), "{name}");
        seen += 1;
    });
    assert_eq!((seen, digests.len()), (272, 272));
}

/// What gives the logits after the last token, by candle's Llama over the package: our weights, in the order of rows of
/// the Hugging Face layout, and our `config.json`.
fn package_logits(output: &mut InMemory) -> impl Fn(&[u32]) -> Vec<f32> {
    let config: LlamaConfig = serde_json::from_slice(&output.files["config.json"]).unwrap();
    let config = config.into_config(false);
    let mut tensors = HashMap::new();
    each_weight(output, |name, weight| {
        let tensor = Tensor::from_vec(weight.floats(), weight.shape.as_slice(), &Device::Cpu).unwrap();
        tensors.insert(name.to_owned(), tensor);
    });
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let model = Llama::load(weights, &config).unwrap();
    move |tokens| {
        let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        let tokens = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        model.forward(&tokens, 0, &mut cache).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// The same by candle's own reader of GGUF, its own dequantisation, and its Llama for GGUF, which takes the file's order
/// of rows and rotates neighbours. It runs on F32 tensors under the file's names and metadata, because candle's products
/// with blocks quantise activations as well.
fn gguf_logits(tokens: &[u32]) -> Vec<f32> {
    let mut file = Cursor::new(gguf());
    let content = Content::read(&mut file).unwrap();
    let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
    let floats = |name: &String| {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        QTensor::quantize(&tensor, GgmlDType::F32).unwrap()
    };
    let tensors: Vec<QTensor> = names.iter().map(floats).collect();
    let metadata: Vec<_> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let named: Vec<_> = names.iter().map(String::as_str).zip(&tensors).collect();
    let mut wide = Cursor::new(Vec::new());
    gguf_file::write(&mut wide, &metadata, &named).unwrap();
    drop(tensors);
    wide.set_position(0);
    let content = Content::read(&mut wide).unwrap();
    let mut model = ModelWeights::from_gguf(content, &mut wide, &Device::Cpu).unwrap();
    let tokens = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.forward(&tokens, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Our own network over the package as it is, its weights in their blocks.
fn in_blocks(output: &InMemory, cache_blocks: usize) -> OurLlama<Cpu> {
    let file = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), Arc::new(bytes.clone()) as FileBytes);
    let files: Files = output.files.iter().map(file).collect();
    let config = OurConfig::read(&files).unwrap();
    let blocks = output.blocks.iter().map(|(name, of)| (name.clone(), of.clone())).collect();
    let weights = PackageWeights::read_with_blocks(&files, blocks, &Lease).unwrap();
    OurLlama::new(cpu(), &config, &weights, cache_blocks, &Lease).unwrap()
}

fn cpu() -> Cpu {
    Cpu::new(Compute::new(Isa::detect(), Pool::new(2).unwrap()))
}

/// What gives the logits after the last token, by [`in_blocks`].
fn blocks_logits(output: &InMemory) -> impl Fn(&[u32]) -> Vec<f32> + use<> {
    let model = RefCell::new(in_blocks(output, 4));
    move |ids| {
        let mut logits = Vec::new();
        let mut model = model.borrow_mut();
        model.reserve(ids.len(), 1, &Lease).unwrap();
        model.step(&[Run { ids, first: 0, blocks: &[2], answers: true }], &mut logits).unwrap();
        logits
    }
}

/// How far our logits may be, whose inputs of products are rounded to bytes.
const BLOCKS_ERROR_MAX: f32 = 2.0;

/// How far logits may be from those of the other path; 2.2e-5 was measured.
const LOGIT_ERROR_MAX: f32 = 0.05;

#[test]
fn logits_are_those_of_an_independent_reader_of_the_same_file() {
    let mut output = import();
    let tokenizer = parse_bpe(&output.files["tokenizer.json"], 49_152).unwrap();
    let tokens = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    let prompt = tokens("Gravity is a force that pulls things together. The capital of France is");
    assert!((12..=16).contains(&prompt.len()), "{}", prompt.len());
    let blocks_logits = blocks_logits(&output);
    let package = package_logits(&mut output);
    let (candle_s, theirs) = (package(&prompt), gguf_logits(&prompt));
    assert_eq!((candle_s.len(), theirs.len()), (49_152, 49_152));
    assert!(candle_s.iter().chain(&theirs).all(|logit| logit.is_finite()));
    let error = |found: &[f32], expected: &[f32]| {
        found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let readers = error(&candle_s, &theirs);
    assert!(readers <= LOGIT_ERROR_MAX, "{readers}");
    let france = tokens("The capital of France is");
    for (ours, expected) in [(blocks_logits(&prompt), &candle_s), (blocks_logits(&france), &package(&france))]
    {
        let off = error(&ours, expected);
        println!("by blocks: {off}");
        assert!(off <= BLOCKS_ERROR_MAX, "{off}");
    }
    for next in [package(&france), blocks_logits(&france)] {
        let best = (0..next.len()).max_by(|a, b| next[*a].total_cmp(&next[*b])).unwrap();
        assert_eq!(tokenizer.decode(&[best as u32], false).unwrap(), " Paris");
    }
}

#[test]
fn texts_become_the_tokens_that_the_published_algorithm_makes() {
    let output = import();
    let tokenizer = parse_bpe(&output.files["tokenizer.json"], 49_152).unwrap();
    let expected = expected();
    let texts = expected["texts"].as_array().unwrap();
    assert!(texts.len() >= 50, "{}", texts.len());
    for case in texts {
        let text = case[0].as_str().unwrap();
        let ids: Vec<u64> = case[1].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let found = tokenizer.encode(text, true).unwrap();
        let found: Vec<u64> = found.get_ids().iter().map(|id| u64::from(*id)).collect();
        assert_eq!(found, ids, "{text:?}");
    }
}

/// The package's weights as floats.
struct Floats(HashMap<String, Vec<f32>>);

impl Weights for Floats {
    fn floats(&self, name: &str, _: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(self.0[name].clone())
    }

    fn stored(&self, _: &str) -> Option<Stored> {
        Some(Stored::F32)
    }

    fn table(&self, name: &str, shape: [usize; 2]) -> Result<TableSource, LoadError> {
        self.floats(name, &shape).map(TableSource::Floats)
    }
}

/// What `tests/data/make_smollm2_logits.py` has stored.
fn stored(name: &str) -> Vec<u8> {
    std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

#[test]
fn logits_in_floats_are_those_of_transformers() {
    let mut output = import();
    let tokenizer = parse_bpe(&output.files["tokenizer.json"], 49_152).unwrap();
    let config = OurConfig::parse(&output.files["config.json"]).unwrap();
    let mut floats = HashMap::new();
    each_weight(&mut output, |name, weight| drop(floats.insert(name.to_owned(), weight.floats())));
    let mut model = OurLlama::new(cpu(), &config, &Floats(floats), 16, &Lease).unwrap();
    model.reserve(512, 1, &Lease).unwrap();
    let expected: Value = serde_json::from_slice(&stored("smollm2.logits.json")).unwrap();
    let prompts = expected["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 20);
    let (mut logits, mut worst) = (Vec::new(), 0.0_f64);
    let blocks: Vec<u32> = (0..16).collect();
    for prompt in prompts {
        let text = prompt["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        let theirs: Vec<u32> = serde_json::from_value(prompt["tokens"].clone()).unwrap();
        assert_eq!(ids, theirs, "{text:?}");
        model.step(&[Run { ids: &ids, first: 0, blocks: &blocks, answers: true }], &mut logits).unwrap();
        let pairs: Vec<(usize, f64)> = serde_json::from_value(prompt["logits"].clone()).unwrap();
        assert!(pairs.len() > 100, "{}", pairs.len());
        for (id, expected) in pairs {
            let off = (f64::from(logits[id]) - expected).abs();
            assert!(off <= 1e-3, "{text:?}: token {id} has {}, not {expected}", logits[id]);
            worst = worst.max(off);
        }
    }
    println!("off by {worst:e} at most");
}

/// Tokens of the text whose perplexity was measured.
const TEXT_TOKENS: usize = 1024;
/// Tokens of a step, each of which is answered.
const STEP_TOKENS: usize = 64;

#[test]
fn perplexity_in_blocks_is_that_of_llama_cpp_on_the_same_file() {
    let output = import();
    let tokenizer = parse_bpe(&output.files["tokenizer.json"], 49_152).unwrap();
    let text = String::from_utf8(stored("perplexity.txt")).unwrap();
    let ids = tokenizer.encode(text.as_str(), false).unwrap().get_ids()[..TEXT_TOKENS].to_vec();
    let count = TEXT_TOKENS.div_ceil(CACHE_BLOCK_TOKENS);
    let mut model = in_blocks(&output, count);
    model.reserve(STEP_TOKENS, STEP_TOKENS, &Lease).unwrap();
    let blocks: Vec<u32> = (0..count as u32).collect();
    let (mut logits, mut loss) = (Vec::new(), 0.0);
    for first in (0..TEXT_TOKENS).step_by(STEP_TOKENS) {
        // A run for each, so that each is answered; a token sees those before it in the same step.
        let run = |at| Run { ids: &ids[at..=at], first: at, blocks: &blocks, answers: true };
        let runs: Vec<Run<'_>> = (first..first + STEP_TOKENS).map(run).collect();
        model.step(&runs, &mut logits).unwrap();
        for (row, next) in logits.chunks_exact(49_152).zip(&ids[first + 1..]) {
            let most = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
            loss += sum.ln() - f64::from(row[*next as usize] - most);
        }
    }
    let found = (loss / (TEXT_TOKENS - 1) as f64).exp();
    let expected: Value = serde_json::from_slice(&stored("smollm2.logits.json")).unwrap();
    let expected = expected["perplexity"]["q4_1"].as_f64().unwrap();
    println!("perplexity {found:.3}, llama.cpp's {expected:.3}");
    assert!((found / expected - 1.0).abs() < 0.01, "{found} against {expected}");
}

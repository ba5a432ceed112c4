//! A small Llama, Mistral and Qwen2 with random weights against candle's: prompts at once and in pieces, several sequences in a step, blocks in
//! any order, halves and quantised blocks.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use candle_core::{DType, Device, Tensor};
use candle_nn::Activation;
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{self, Cache, LlamaEosToks};
use candle_transformers::models::{mistral, qwen2};
use ringfence_protocol::LoadError;
use ringfence_worker::convert::blocks::Type;
use ringfence_worker::device::{BlockKind, CACHE_BLOCK_TOKENS, Cpu, Stored, TableSource};
use ringfence_worker::memory::Lease;
use ringfence_worker::models::Generator;
use ringfence_worker::models::llama::{Llama, Run};
use ringfence_worker::models::{Blocks, Weights};
use ringfence_worker::package::FileBytes;
use ringfence_worker::package::llama::LlamaConfig;
use std::collections::HashMap;
use std::sync::Arc;

fn config() -> LlamaConfig {
    LlamaConfig {
        hidden: 96,
        intermediate: 160,
        layers: 2,
        heads: 6,
        key_heads: 2,
        head: 16,
        positions: 256,
        vocabulary: 120,
        epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        biases: false,
    }
}

/// Heads of another width than the rows have for each, and an output of its own, as in Mistral's Nemo.
fn mistral() -> LlamaConfig {
    LlamaConfig { head: 32, rope_theta: 1e6, tied: false, ..config() }
}

fn qwen2() -> LlamaConfig {
    LlamaConfig { rope_theta: 1e6, biases: true, ..config() }
}

/// How its products are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Singles,
    Halves,
    Blocks(BlockKind),
}

/// What gives the logits after a sequence.
type Oracle = Box<dyn Fn(&[u32]) -> Vec<f32>>;

/// Random tensors by name, the same for the oracle.
struct Random {
    floats: HashMap<String, Vec<f32>>,
    kept: Kept,
    bytes: HashMap<String, FileBytes>,
}

impl Random {
    fn new(config: &LlamaConfig, kept: Kept) -> Self {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        let (mut floats, mut bytes) = (HashMap::new(), HashMap::new());
        for (name, shape) in config.tensors() {
            let count: usize = shape.iter().product();
            let norm = name.ends_with("norm.weight");
            let table = shape.len() == 2;
            let mut values: Vec<f32> =
                (0..count).map(|_| if norm { 1.0 + next() / 4.0 } else { next() / 5.0 }).collect();
            match kept {
                Kept::Halves if table => {
                    values.iter_mut().for_each(|value| *value = half::f16::from_f32(*value).to_f32());
                }
                Kept::Blocks(kind) if table => {
                    let blocks = quantise(&values, kind);
                    Type::of_block(kind).dequantise_all(&blocks, &mut values);
                    bytes.insert(name.clone(), Arc::new(blocks) as FileBytes);
                }
                _ => {}
            }
            floats.insert(name, values);
        }
        Self { floats, kept, bytes }
    }

    fn tensors(&self, config: &LlamaConfig) -> VarBuilder<'static> {
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let values = self.floats[&name].clone();
            (name, Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap())
        };
        let tensors = config.tensors().into_iter().map(tensor).collect();
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
    }

    fn oracle(&self, config: &LlamaConfig) -> Oracle {
        let theirs = llama::Config {
            hidden_size: config.hidden,
            intermediate_size: config.intermediate,
            vocab_size: config.vocabulary,
            num_hidden_layers: config.layers,
            num_attention_heads: config.heads,
            num_key_value_heads: config.key_heads,
            use_flash_attn: false,
            rms_norm_eps: f64::from(config.epsilon),
            rope_theta: config.rope_theta,
            bos_token_id: None,
            eos_token_id: None::<LlamaEosToks>,
            rope_scaling: None,
            max_position_embeddings: config.positions,
            tie_word_embeddings: config.tied,
        };
        let model = llama::Llama::load(self.tensors(config), &theirs).unwrap();
        Box::new(move |ids| {
            let mut cache = Cache::new(false, DType::F32, &theirs, &Device::Cpu).unwrap();
            flat(&model.forward(&batch(ids), 0, &mut cache).unwrap())
        })
    }

    fn oracle_of_mistral(&self, config: &LlamaConfig) -> Oracle {
        let theirs = mistral::Config {
            vocab_size: config.vocabulary,
            hidden_size: config.hidden,
            intermediate_size: config.intermediate,
            num_hidden_layers: config.layers,
            num_attention_heads: config.heads,
            head_dim: Some(config.head),
            num_key_value_heads: config.key_heads,
            hidden_act: Activation::Silu,
            max_position_embeddings: config.positions,
            rms_norm_eps: f64::from(config.epsilon),
            rope_theta: f64::from(config.rope_theta),
            sliding_window: Some(config.positions),
            use_flash_attn: false,
        };
        let model = mistral::Model::new(&theirs, self.tensors(config)).unwrap();
        Box::new(move |ids| flat(&model.clone().forward(&batch(ids), 0).unwrap()))
    }

    fn oracle_of_qwen2(&self, config: &LlamaConfig) -> Oracle {
        let theirs = qwen2::Config {
            vocab_size: config.vocabulary,
            hidden_size: config.hidden,
            intermediate_size: config.intermediate,
            num_hidden_layers: config.layers,
            num_attention_heads: config.heads,
            num_key_value_heads: config.key_heads,
            max_position_embeddings: config.positions,
            sliding_window: config.positions,
            max_window_layers: config.layers,
            tie_word_embeddings: config.tied,
            rope_theta: f64::from(config.rope_theta),
            rms_norm_eps: f64::from(config.epsilon),
            use_sliding_window: false,
            hidden_act: Activation::Silu,
        };
        let model = qwen2::ModelForCausalLM::new(&theirs, self.tensors(config)).unwrap();
        Box::new(move |ids| flat(&model.clone().forward(&batch(ids), 0).unwrap()))
    }
}

fn batch(ids: &[u32]) -> Tensor {
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

fn flat(logits: &Tensor) -> Vec<f32> {
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

/// Blocks of 32 whose scale holds the largest of them.
fn quantise(values: &[f32], kind: BlockKind) -> Vec<u8> {
    let of = |values: &[f32]| -> Vec<u8> {
        let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
        match kind {
            BlockKind::Q8_0 => {
                let scale = values.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
                let bytes = values.iter().map(|value| (value / scale).round() as i8 as u8);
                half(scale).into_iter().chain(bytes).collect()
            }
            BlockKind::Q4_1 => {
                let least = values.iter().copied().fold(f32::MAX, f32::min);
                let scale = (values.iter().copied().fold(f32::MIN, f32::max) - least) / 15.0;
                let nibble = |value: f32| ((value - least) / scale).round().clamp(0.0, 15.0) as u8;
                let bytes = (0..16).map(|i| nibble(values[i]) | nibble(values[i + 16]) << 4);
                half(scale).into_iter().chain(half(least)).chain(bytes).collect()
            }
            BlockKind::Q4_0 | BlockKind::Q4K => unreachable!("not tried here"),
        }
    };
    values.chunks_exact(32).flat_map(of).collect()
}

impl Weights for Random {
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let floats = self.floats[name].clone();
        assert_eq!(floats.len(), shape.iter().product::<usize>());
        Ok(floats)
    }

    fn stored(&self, _: &str) -> Option<Stored> {
        match self.kept {
            Kept::Singles => Some(Stored::F32),
            Kept::Halves => Some(Stored::F16),
            Kept::Blocks(_) => None,
        }
    }

    fn blocks(&self, name: &str, _: [usize; 2]) -> Result<Option<Blocks>, LoadError> {
        let Kept::Blocks(kind) = self.kept else { return Ok(None) };
        let blocks = |file: &FileBytes| Blocks { kind, bytes: 0..file.len(), file: file.clone() };
        Ok(self.bytes.get(name).map(blocks))
    }

    fn table(&self, name: &str, shape: [usize; 2]) -> Result<TableSource, LoadError> {
        self.floats(name, &shape).map(TableSource::Floats)
    }
}

fn ids(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|at| (at * 37 + seed * 11 + at * at) % 120).collect()
}

/// The largest difference, in parts of the largest logit.
fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().map(|logit| logit.abs()).fold(0.0, f32::max);
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

#[track_caller]
fn follows_candle(kept: Kept, tolerance: f32) {
    let config = config();
    let weights = Random::new(&config, kept);
    follows(&config, &weights, &*weights.oracle(&config), tolerance);
}

#[track_caller]
fn follows(config: &LlamaConfig, weights: &Random, oracle: &dyn Fn(&[u32]) -> Vec<f32>, tolerance: f32) {
    let kept = weights.kept;
    let mut model = Llama::new(Cpu::new(support::compute()), config, weights, 12, &Lease).unwrap();
    model.reserve(100, 3, &Lease).unwrap();
    let (a, b, c) = (ids(70, 1), ids(33, 2), ids(5, 3));
    let blocks: [&[u32]; 3] = [&[7, 2, 11], &[0, 5], &[9]];
    let mut logits = Vec::new();
    let run = |ids, first, blocks, answers| Run { ids, first, blocks, answers };
    // A prompt in pieces, beside another one, beside one that goes on token by token.
    let steps: [&[Run<'_>]; 3] = [
        &[run(&a[..40], 0, blocks[0], false), run(&c[..3], 0, blocks[2], true)],
        &[
            run(&c[3..4], 3, blocks[2], true),
            run(&b, 0, blocks[1], true),
            run(&a[40..69], 40, blocks[0], true),
        ],
        &[run(&a[69..], 69, blocks[0], true), run(&c[4..], 4, blocks[2], true)],
    ];
    let expected: [&[&[u32]]; 3] = [&[&c[..3]], &[&c[..4], &b, &a[..69]], &[&a, &c]];
    for (step, sequences) in steps.into_iter().zip(expected) {
        model.step(step, &mut logits).unwrap();
        let expected: Vec<f32> = sequences.iter().flat_map(|ids| oracle(ids)).collect();
        let worst = worst(&logits, &expected);
        println!("{kept:?}: {worst:e}");
        assert!(worst < tolerance, "{kept:?}: {worst}");
    }
    // What sequences have left behind changes nothing for the next.
    model.forget();
    model.step(&[run(&b, 0, &[2, 7], true)], &mut logits).unwrap();
    assert!(worst(&logits, &oracle(&b)) < tolerance);
}

#[test]
fn logits_are_candle_s_for_any_mix_of_sequences() {
    follows_candle(Kept::Singles, 2e-5);
    follows_candle(Kept::Halves, 1e-3);
}

#[test]
fn so_are_those_of_a_mistral_and_of_a_qwen2_with_its_biases() {
    for (kept, tolerance) in [
        (Kept::Singles, 2e-5),
        (Kept::Halves, 1e-3),
        (Kept::Blocks(BlockKind::Q8_0), 0.05),
        (Kept::Blocks(BlockKind::Q4_1), 0.05),
    ] {
        let config = mistral();
        let weights = Random::new(&config, kept);
        follows(&config, &weights, &*weights.oracle_of_mistral(&config), tolerance);
        let config = qwen2();
        let weights = Random::new(&config, kept);
        follows(&config, &weights, &*weights.oracle_of_qwen2(&config), tolerance);
        // The biases are no small matter: without them it is another network.
        let without = LlamaConfig { biases: false, ..qwen2() };
        let oracle = weights.oracle(&without);
        let mut model = Llama::new(Cpu::new(support::compute()), &config, &weights, 12, &Lease).unwrap();
        model.reserve(8, 1, &Lease).unwrap();
        let mut logits = Vec::new();
        let ids = ids(8, 1);
        model.step(&[Run { ids: &ids, first: 0, blocks: &[3], answers: true }], &mut logits).unwrap();
        assert!(worst(&logits, &oracle(&ids)) > 0.1);
    }
}

#[test]
fn weights_in_blocks_give_what_their_floats_give_but_for_the_rounding_of_inputs() {
    follows_candle(Kept::Blocks(BlockKind::Q8_0), 0.05);
    follows_candle(Kept::Blocks(BlockKind::Q4_1), 0.05);
}

#[test]
fn blocks_of_keys_and_values_are_allocated_once() {
    let config = config();
    let weights = Random::new(&config, Kept::Singles);
    let model = Llama::new(Cpu::new(support::compute()), &config, &weights, 4, &Lease).unwrap();
    assert_eq!((model.blocks(), CACHE_BLOCK_TOKENS), (4, 32));
}

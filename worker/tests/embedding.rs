//! The numbers: against PyTorch's, stored, and against candle-transformers', computed here.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert;
use ringfence_protocol::Item;
use ringfence_sandbox::CountingAllocator;
use ringfence_worker::memory::{Lease, Memory};
use ringfence_worker::models::Batch;
use serde_json::Value;
use support::{Package, cosine, data, embed, floats, tokens};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn expected() -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(data("tiny-bert.expected.json")).unwrap()).unwrap()
}

fn check_vector(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 3e-6 * expected.iter().fold(1.0f32, |m, x| m.max(x.abs())), "{what}: off by {worst}");
}

/// Runs every text of the expected numbers with these modules and compares one of their vectors.
fn check_package(package: &Package, vector: &str) {
    let mut loaded = package.load().unwrap();
    for case in expected() {
        let text = case["text"].as_str().unwrap();
        let found = loaded.text.tokens(0, &Item::Text(text.to_owned()), true).unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!((&found.ids, found.truncated), (&ids, case["truncated"].as_bool().unwrap()), "{text}");
        check_vector(&embed(&mut loaded, &[ids])[0], &floats(&case[vector]), text);
    }
}

#[test]
fn mean_pooling_and_normalisation_are_pytorchs() {
    check_package(&Package::tiny(), "embedding");
}

#[test]
fn weights_in_shards_give_the_same_vectors() {
    let mut package = Package::tiny().into_shards();
    check_package(&package, "embedding");
    package.0.remove("model.safetensors.index.json");
    check_package(&package, "embedding");
}

#[test]
fn without_the_normalize_module_vectors_keep_their_length() {
    let mut package = Package::tiny();
    let modules = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
                      {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;
    package.0.insert("modules.json".to_owned(), modules.into());
    check_package(&package, "mean");
    let cls = r#"{"word_embedding_dimension": 32, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
    package.0.insert("1_Pooling/config.json".to_owned(), cls.into());
    check_package(&package, "cls");
}

#[test]
fn every_level_of_instructions_gives_the_same_vectors() {
    let package = Package::tiny();
    let texts = ["one word", "many words that one can write", "a"];
    let mut first: Option<Vec<Vec<f32>>> = None;
    for isa in ringfence_kernels::Isa::available() {
        let compute = ringfence_kernels::Compute::new(isa, ringfence_kernels::Pool::new(3).unwrap());
        let architecture = ringfence_protocol::Architecture::Bert;
        let loaded =
            ringfence_worker::models::load(&package.files(), architecture, compute, 512, &Lease).unwrap();
        let mut loaded = loaded.embedder().unwrap();
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokens(&loaded, text)).collect();
        let vectors = embed(&mut loaded, &ids);
        let first = first.get_or_insert_with(|| vectors.clone());
        vectors.iter().zip(first).for_each(|(a, b)| check_vector(a, b, &format!("{isa:?}")));
    }
}

#[test]
fn a_vector_does_not_depend_on_its_neighbours_in_the_batch() {
    let mut loaded = Package::tiny().load().unwrap();
    let sequences: Vec<Vec<u32>> =
        ["a", "hello world", "what people call a long day of work"].map(|text| tokens(&loaded, text)).into();
    let together = embed(&mut loaded, &sequences);
    let reversed: Vec<Vec<u32>> = sequences.iter().rev().cloned().collect();
    let backwards = embed(&mut loaded, &reversed);
    for (index, ids) in sequences.iter().enumerate() {
        let alone = embed(&mut loaded, std::slice::from_ref(ids));
        check_vector(&together[index], &alone[0], "in a batch");
        check_vector(&backwards[sequences.len() - 1 - index], &alone[0], "in another order");
    }
}

#[test]
fn half_weights_are_widened() {
    let mut package = Package::tiny();
    let original = embed_hello(&package);
    package.0.insert("model.safetensors".to_owned(), as_halves(&package.0["model.safetensors"]));
    assert!(cosine(&embed_hello(&package), &original) > 0.9999);
}

fn embed_hello(package: &Package) -> Vec<f32> {
    let mut loaded = package.load().unwrap();
    let ids = tokens(&loaded, "hello out there");
    embed(&mut loaded, &[ids]).remove(0)
}

fn as_halves(file: &[u8]) -> Vec<u8> {
    let tensors = candle_core::safetensors::load_buffer(file, &Device::Cpu).unwrap();
    let halves: Vec<(String, Tensor)> =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::F16).unwrap())).collect();
    safetensors::serialize(halves.iter().map(|(name, tensor)| (name, tensor)), None).unwrap()
}

#[test]
fn vectors_are_those_of_candle_transformers() {
    let package = Package::tiny();
    let config: bert::Config = serde_json::from_slice(&package.0["config.json"]).unwrap();
    let weights = package.0["model.safetensors"].clone();
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
    let oracle = bert::BertModel::load(weights, &config).unwrap();
    let mut loaded = package.load().unwrap();
    for length in [1, 2, 5, 12, 13, 31, 32, 33, 64] {
        let ids: Vec<u32> = (0..length).map(|i| (i * 7 + length) % 240).collect();
        let found = embed(&mut loaded, std::slice::from_ref(&ids));
        let input = Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let states = oracle.forward(&input, &input.zeros_like().unwrap(), None).unwrap();
        let mean = states.mean(1).unwrap();
        let unit = mean.broadcast_div(&mean.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap();
        check_vector(&found[0], &unit.to_vec2::<f32>().unwrap()[0], &format!("{length} tokens"));
    }
}

#[test]
fn a_step_that_is_stopped_between_layers_leaves_nothing_for_the_next() {
    let mut loaded = Package::tiny().load().unwrap();
    let whole = embed(&mut loaded, &[vec![7; 40], vec![9; 3]]);
    let mut batch = Batch::default();
    batch.push(&[8; 64]);
    loaded.model.reserve(64, &Lease).unwrap();
    let mut layers = 0;
    let count = &mut || {
        layers += 1;
        true
    };
    assert!(loaded.model.embed_while(&batch, count).unwrap().is_some());
    assert!(layers > 1, "there is a middle");
    for stop_at in 0..layers {
        let mut asked = 0;
        let stop = &mut || {
            asked += 1;
            asked <= stop_at
        };
        assert!(loaded.model.embed_while(&batch, stop).unwrap().is_none());
        assert_eq!(asked, stop_at + 1);
        assert_eq!(embed(&mut loaded, &[vec![7; 40], vec![9; 3]]), whole);
    }
}

#[test]
fn a_step_takes_no_more_than_bytes_per_token_says() {
    let mut loaded = Package::tiny().load().unwrap();
    for tokens in [1usize, 3, 64, 1000] {
        let mut batch = Batch::default();
        (0..tokens.div_ceil(64)).for_each(|i| batch.push(&vec![7; (tokens - i * 64).min(64)]));
        let bound = loaded.model.bytes_per_token() * tokens as u64;
        let before = Lease.used();
        loaded.model.reserve(tokens, &Lease).unwrap();
        loaded.model.embed(&batch).unwrap();
        let taken = Lease.used().saturating_sub(before);
        assert!(taken <= bound, "{tokens} tokens took {taken} bytes, the bound is {bound}");
    }
}

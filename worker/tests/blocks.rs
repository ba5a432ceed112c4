//! Blocks of every type of ggml's that is read, against llama.cpp's own dequantisation (`tests/data/make_blocks.py`).
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ringfence_worker::convert::blocks::Type;
use serde_json::Value;
use std::collections::BTreeSet;

fn kind(name: &str) -> Type {
    match name {
        "Q4_0" => Type::Q4_0,
        "Q4_1" => Type::Q4_1,
        "Q5_0" => Type::Q5_0,
        "Q5_1" => Type::Q5_1,
        "Q8_0" => Type::Q8_0,
        "Q2_K" => Type::Q2K,
        "Q3_K" => Type::Q3K,
        "Q4_K" => Type::Q4K,
        "Q5_K" => Type::Q5K,
        "Q6_K" => Type::Q6K,
        other => panic!("{other}"),
    }
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes().chunks_exact(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn dequantise(kind: Type, blocks: &[u8]) -> Vec<f32> {
    let mut weights = vec![0.0; blocks.len() / kind.block_bytes() * kind.block_weights()];
    let places = weights.chunks_exact_mut(kind.block_weights());
    blocks
        .chunks_exact(kind.block_bytes())
        .zip(places)
        .for_each(|(block, place)| kind.dequantise(block, place));
    weights
}

fn expected() -> Vec<Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/blocks.expected.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn random_blocks_have_the_bits_that_llama_cpp_makes_of_them() {
    for case in expected() {
        let name = case["type"].as_str().unwrap();
        let weights = dequantise(kind(name), &bytes(&case["blocks"]));
        let weights: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let theirs = bytes(&case["weights"]);
        assert_eq!((weights.len(), theirs.len()), (4096, 4096), "{name}");
        for (place, (ours, theirs)) in weights.chunks(4).zip(theirs.chunks(4)).enumerate() {
            assert_eq!(ours, theirs, "{name}, weight {place}");
        }
    }
}

/// A type that is added must come with blocks of llama.cpp's.
#[test]
fn no_type_in_blocks_is_left_out() {
    let read: BTreeSet<String> = (0..256)
        .filter_map(Type::of)
        .filter(|kind| kind.block_weights() > 1)
        .map(|kind| format!("{kind:?}"))
        .collect();
    let compared =
        expected().iter().map(|case| format!("{:?}", kind(case["type"].as_str().unwrap()))).collect();
    assert_eq!(read, compared);
}

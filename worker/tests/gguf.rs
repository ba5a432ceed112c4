//! A tiny GGUF file, whole and damaged.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::prelude::*;
use ringfence_protocol::{ConvertError, Facts, SourceForm};
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::memory::Lease;
use ringfence_worker::package::{FileBytes, Files};
use std::collections::BTreeMap;
use std::sync::Arc;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Metadata: key, number of its type, bytes.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, key);
    out.extend(kind.to_le_bytes());
    out.extend(value);
    out
}

fn word(key: &str, value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    text(&mut bytes, value);
    entry(key, 8, &bytes)
}

fn list(key: &str, kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    let head = [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes()].concat();
    entry(key, 9, &[head, elements.concat()].concat())
}

fn texts(key: &str, values: &[&str]) -> Vec<u8> {
    let element = |value: &&str| {
        let mut out = Vec::new();
        text(&mut out, value);
        out
    };
    list(key, 8, &values.iter().map(element).collect::<Vec<_>>())
}

fn metadata() -> Vec<Vec<u8>> {
    let number = |key: &str, value: u32| entry(&format!("llama.{key}"), 4, &value.to_le_bytes());
    vec![
        word("general.architecture", "llama"),
        number("block_count", 1),
        number("context_length", 16),
        number("embedding_length", 32),
        number("feed_forward_length", 32),
        number("attention.head_count", 2),
        number("attention.head_count_kv", 1),
        entry("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes()),
        word("tokenizer.ggml.model", "gpt2"),
        word("tokenizer.ggml.pre", "smollm"),
        texts("tokenizer.ggml.tokens", &["<|end|>", "a", "b", "ab"]),
        list("tokenizer.ggml.token_type", 5, &[3_i32, 1, 1, 1].map(|kind| kind.to_le_bytes().to_vec())),
        texts("tokenizer.ggml.merges", &["a b"]),
    ]
}

/// A tensor: name, sizes as the file has them, number of its type, bytes.
type Listed = (String, Vec<u64>, u32, usize);

fn tensors() -> Vec<Listed> {
    let layer =
        |part: &str, rows: u64| (format!("blk.0.{part}.weight"), vec![32, rows], 3, rows as usize * 20);
    let norm = |name: &str| (format!("{name}.weight"), vec![32], 0, 128);
    vec![
        ("token_embd.weight".to_owned(), vec![32, 4], 8, 4 * 34),
        norm("blk.0.attn_norm"),
        layer("attn_q", 32),
        layer("attn_k", 16),
        layer("attn_v", 16),
        layer("attn_output", 32),
        norm("blk.0.ffn_norm"),
        layer("ffn_gate", 32),
        layer("ffn_up", 32),
        layer("ffn_down", 32),
        norm("output_norm"),
    ]
}

fn file(metadata: &[Vec<u8>], tensors: &[Listed]) -> Vec<u8> {
    let mut out = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    out.extend(metadata.concat());
    let mut data = Vec::<u8>::new();
    for (name, sizes, kind, length) in tensors {
        text(&mut out, name);
        out.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.resize((data.len() + length).next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    [out, data].concat()
}

fn import(bytes: Vec<u8>) -> Result<Facts, ConvertError> {
    import_files(bytes).map(|(facts, _)| facts)
}

fn import_files(bytes: Vec<u8>) -> Result<(Facts, BTreeMap<String, Vec<u8>>), ConvertError> {
    let bytes = Arc::new(bytes) as FileBytes;
    let files: Files = [("model.gguf".to_owned(), bytes)].into_iter().collect();
    let mut output = InMemory::new(&files);
    let facts = convert(SourceForm::Gguf, &mut Work { files: &files, output: &mut output, memory: &Lease })?;
    Ok((facts, output.files))
}

#[test]
fn the_whole_file_is_taken_and_no_part_of_it_is() {
    let whole = file(&metadata(), &tensors());
    assert_eq!(import(whole.clone()).unwrap().max_tokens, 16);
    for length in 0..whole.len() - 32 {
        import(whole[..length].to_vec()).unwrap_err();
    }
}

/// As a Qwen2: its name in keys, and biases.
fn qwen2() -> (Vec<Vec<u8>>, Vec<Listed>) {
    let renamed = |entry: Vec<u8>| {
        let at = entry.windows(6).position(|word| word == b"llama.");
        let mut entry = entry;
        if let Some(at) = at {
            entry[at..at + 6].copy_from_slice(b"qwen2.");
        }
        entry
    };
    let mut metadata: Vec<Vec<u8>> = metadata().into_iter().map(renamed).collect();
    metadata[0] = word("general.architecture", "qwen2");
    let bias = |part: &str, rows: u64| (format!("blk.0.{part}.bias"), vec![rows], 0, rows as usize * 4);
    let biases = [bias("attn_q", 32), bias("attn_k", 16), bias("attn_v", 16)];
    (metadata, tensors().into_iter().chain(biases).collect())
}

#[test]
fn a_qwen2_keeps_its_biases_and_the_order_of_its_rows() {
    let (metadata, tensors) = qwen2();
    let numbered = |architecture: &str, metadata: &[Vec<u8>], tensors: &[Listed]| {
        let mut bytes = file(metadata, tensors);
        // Every row of queries begins with its number.
        let at: usize = tensors
            .iter()
            .take_while(|tensor| !tensor.0.ends_with("attn_q.weight"))
            .map(|tensor| tensor.3.next_multiple_of(32))
            .sum();
        let data: usize = tensors.iter().map(|tensor| tensor.3.next_multiple_of(32)).sum();
        let start = bytes.len() - data + at;
        (0..32).for_each(|row| bytes[start + row * 20] = row as u8);
        let (_, files) = import_files(bytes).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
        assert_eq!(config["model_type"], architecture);
        let weights = safetensors::SafeTensors::deserialize(&files["model.safetensors"]).unwrap();
        let queries = weights.tensor("model.layers.0.self_attn.q_proj.weight").unwrap().data().to_vec();
        let biases = weights.names().iter().filter(|name| name.ends_with(".bias")).count();
        (queries.chunks(20).map(|row| row[0]).collect::<Vec<u8>>(), biases)
    };
    let (order, biases) = numbered("qwen2", &metadata, &tensors);
    assert_eq!((order, biases), ((0..32).collect(), 3));
    let (order, biases) = numbered("llama", &self::metadata(), &self::tensors());
    assert_eq!((&order[..4], order[8], biases), (&[0, 2, 4, 6][..], 1, 0));
    // A Qwen2 without one of them, and a Llama with them.
    import(file(&metadata, &tensors[..tensors.len() - 1])).unwrap_err();
    import(file(&self::metadata(), &tensors)).unwrap_err();
}

#[test]
fn known_attacks_are_refused() {
    let refused = |metadata: Vec<Vec<u8>>, tensors: Vec<_>| import(file(&metadata, &tensors)).unwrap_err();
    let with = |entry: Vec<u8>| [metadata(), vec![entry]].concat();
    let alignment = |value: u32| with(entry("general.alignment", 4, &value.to_le_bytes()));
    assert!(matches!(refused(alignment(0), tensors()), ConvertError::Malformed { .. }));
    assert!(matches!(refused(alignment(24), tensors()), ConvertError::Malformed { .. }));
    let doubled = with(word("general.architecture", "llama"));
    assert!(matches!(refused(doubled, tensors()), ConvertError::Twice { .. }));
    let nested = with(list("deep", 9, &[vec![9, 0, 0, 0]]));
    assert!(matches!(refused(nested, tensors()), ConvertError::Unsupported { .. }));
    let huge = with(entry("huge", 9, &[&8_u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()));
    assert!(matches!(refused(huge, tensors()), ConvertError::Malformed { .. }));
    let mut overflow = tensors();
    overflow[0].1 = vec![1 << 40, 1 << 40];
    assert!(matches!(refused(metadata(), overflow), ConvertError::Tensor { .. }));
    let mut twice = tensors();
    twice[4].0 = twice[3].0.clone();
    assert!(matches!(refused(metadata(), twice), ConvertError::Twice { .. }));
    let mut overlap = tensors();
    overlap[1].3 = 0;
    assert!(matches!(refused(metadata(), overlap), ConvertError::Malformed { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever is changed is taken or refused, never a panic; what is taken says what the tensors say.
    #[test]
    fn damaged_files_do_not_panic(changes in prop::collection::vec((any::<u16>(), any::<u8>()), 1..4)) {
        let mut bytes = file(&metadata(), &tensors());
        for (place, value) in changes {
            let place = usize::from(place) % bytes.len();
            bytes[place] = value;
        }
        if let Ok(facts) = import(bytes) {
            prop_assert!((1..=1 << 20).contains(&facts.max_tokens));
        }
    }
}

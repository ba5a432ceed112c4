//! SmolLM2's real GGUF file: every weight against llama.cpp's own dequantisation, and tokens against byte-level BPE that
//! shares nothing with the tokeniser library (`tests/data/make_smollm2_digests.py`).
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ringfence_protocol::{BlockType, ModelArchitecture, SourceForm};
use ringfence_worker::convert::blocks::Type;
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::memory::Lease;
use ringfence_worker::package::safetensors::{Dtype, Tensors};
use ringfence_worker::package::tokenizer::parse_bpe;
use ringfence_worker::package::{FileBytes, Files};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::Arc;

fn import() -> InMemory {
    let file = std::env::var("RINGFENCE_SMOLLM2")
        .expect("RINGFENCE_SMOLLM2 must name SmolLM2-135M-Instruct.Q4_1.gguf; `make test` fetches it");
    let bytes = Arc::new(std::fs::read(file).unwrap()) as FileBytes;
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

fn digest(bytes: &[u8], kind: Type) -> String {
    let mut hash = Sha256::new();
    let mut weights = vec![0.0_f32; kind.block_weights()];
    for block in bytes.chunks_exact(kind.block_bytes()) {
        kind.dequantise(block, &mut weights);
        weights.iter().for_each(|weight| hash.update(weight.to_le_bytes()));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_weight_is_what_llama_cpp_makes_of_it() {
    let mut output = import();
    let bytes = Arc::new(output.files.remove("model.safetensors").unwrap()) as FileBytes;
    let files: Files = [("model.safetensors".to_owned(), bytes.clone())].into_iter().collect();
    let tensors = Tensors::read(&files).unwrap();
    let expected = expected();
    let digests = expected["tensors"].as_object().unwrap();
    assert_eq!((tensors.entries().len(), digests.len()), (272, 272));
    for (name, entry) in tensors.entries() {
        let kind = match (entry.dtype, output.blocks.get(name).map(|(block, _)| *block)) {
            (Dtype::F32, None) => Type::F32,
            (Dtype::U8, Some(BlockType::Q4_1)) => Type::Q4_1,
            (Dtype::U8, Some(BlockType::Q8_0)) => Type::Q8_0,
            other => panic!("{name} is {other:?}"),
        };
        assert_eq!(digest(&bytes[entry.bytes.clone()], kind), digests[name].as_str().unwrap(), "{name}");
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

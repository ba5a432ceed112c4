//! Packages that must be refused, each by a typed error that names the file, and the parser against the reference one.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use proptest::prelude::*;
use ringfence_protocol::LoadError;
use ringfence_worker::package::Files;
use ringfence_worker::package::safetensors::{HEADER_BYTES_MAX, SHARDS_MAX, Tensors};
use std::sync::Arc;
use support::{Package, SHARDS};

const WEIGHTS: &str = "model.safetensors";

fn weights(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

fn parse(file: Vec<u8>) -> Result<Tensors, LoadError> {
    let bytes: ringfence_worker::package::FileBytes = Arc::new(file);
    Tensors::read(&Files::from_iter([(WEIGHTS.to_owned(), bytes)]))
}

#[track_caller]
fn refused(what: &str, result: Result<impl Sized, LoadError>, file: &str, reason: &str) {
    match result.err() {
        Some(LoadError::Malformed { file: found, reason: said }) => {
            assert!(found == file && said.contains(reason), "{what}: `{found}`: {said}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn shards_that_do_not_fit_each_other_or_their_index() {
    let package = Package::tiny().into_shards();
    let load = |change: &dyn Fn(&mut Package)| {
        let mut changed = package.clone();
        change(&mut changed);
        Tensors::read(&changed.files())
    };
    assert_eq!(
        load(&|_| {}).unwrap().entries().len(),
        Tensors::read(&Package::tiny().files()).unwrap().entries().len()
    );
    let twice = load(&|package| {
        let shard = package.0[SHARDS[0]].clone();
        package.0.remove(INDEX);
        package.0.insert("other.safetensors".to_owned(), shard);
    });
    refused("a tensor in two shards", twice, "other.safetensors", "is in another file as well");
    let swapped = load(&|package| package.replace(INDEX, SHARDS[0], SHARDS[1]));
    refused("a tensor listed for another shard", swapped, INDEX, "doesn't list the tensors");
    let unlisted = load(&|package| {
        package.0.insert(
            "other.safetensors".to_owned(),
            weights(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1),
        );
    });
    refused("a shard that is not listed", unlisted, INDEX, "`other.safetensors`");
    let outside = load(&|package| package.replace(INDEX, SHARDS[0], "../model.safetensors"));
    refused("a file elsewhere", outside, INDEX, "illegal file");
    let missing = load(&|package| {
        package.0.remove(SHARDS[1]);
    });
    assert_eq!(missing.err(), Some(LoadError::Missing { file: SHARDS[1].to_owned() }));
    let broken = load(&|package| package.0.get_mut(SHARDS[1]).unwrap().push(0));
    refused("a byte too many", broken, SHARDS[1], "don't end where the file ends");
    let many = load(&|package| {
        package.0.remove(INDEX);
        let empty = |n| (format!("s{n:03}.safetensors"), weights("{}", 0));
        package.0.extend((0..SHARDS_MAX).map(empty));
    });
    refused("too many shards", many, "s126.safetensors", "at most 128 files");
}

#[test]
fn headers_that_the_format_does_not_allow() {
    let one = |fields: &str| format!(r#"{{"a":{{{fields}}}}}"#);
    let good = r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#;
    let key = "a key is doubled, missing or of another type";
    let parses = |header: &str, data| parse(weights(header, data));
    assert!(parses(&one(good), 8).is_ok());
    assert!(parses(&format!("{}   ", one(good)), 8).is_ok(), "padding");
    for (what, header, data, reason) in [
        ("white space first", format!(" {}", one(good)), 8, "start with"),
        ("a doubled tensor", format!(r#"{{"a":{{{good}}},"a":{{{good}}}}}"#), 8, key),
        ("a doubled field", one(&format!(r#"{good},"shape":[2]"#)), 8, key),
        ("an unknown field", one(&format!(r#"{good},"x":1"#)), 8, key),
        ("doubled metadata", format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},"a":{{{good}}}}}"#), 8, key),
        ("doubled metadata key", format!(r#"{{"__metadata__":{{"x":"1","x":"2"}},"a":{{{good}}}}}"#), 8, key),
        ("metadata that is no text", format!(r#"{{"__metadata__":{{"x":1}},"a":{{{good}}}}}"#), 8, key),
        ("a NUL in a name", format!(r#"{{"a\u0000":{{{good}}}}}"#), 8, key),
        ("a name with ..", format!(r#"{{"../a":{{{good}}}}}"#), 8, key),
        ("an empty name", format!(r#"{{"":{{{good}}}}}"#), 8, key),
        ("an unknown type", one(r#""dtype":"F99","shape":[2],"data_offsets":[0,8]"#), 8, key),
        ("a negative size", one(r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#), 8, key),
        ("a fractional size", one(r#""dtype":"F32","shape":[2.0],"data_offsets":[0,8]"#), 8, key),
        ("three offsets", one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8,9]"#), 8, "header"),
        ("nine dimensions", one(r#""dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]"#), 8, key),
        ("a shape beside its offsets", one(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#), 8, "don't agree"),
        ("a type beside its offsets", one(r#""dtype":"F16","shape":[2],"data_offsets":[0,8]"#), 8, "don't agree"),
        ("an end before its begin", one(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), 8, "before it begins"),
        (
            "a product that overflows",
            one(r#""dtype":"F32","shape":[4194305,4194305,211106198978564],"data_offsets":[0,8]"#),
            8,
            "don't agree",
        ),
        (
            "an overflow that wraps to the right length",
            one(r#""dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]"#),
            8,
            "don't agree",
        ),
        ("a hole at the start", one(r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#), 8, "hole"),
        (
            "a hole between",
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}"#.to_owned(),
            5,
            "hole",
        ),
        (
            "an overlap",
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#.to_owned(),
            3,
            "overlap",
        ),
        ("bytes behind the last tensor", one(good), 9, "where the file ends"),
        ("fewer bytes than tensors", one(good), 7, "where the file ends"),
        ("not an object", "[]".to_owned(), 0, "start with"),
        ("cut JSON", one(good)[..30].to_owned(), 8, "too early"),
        ("two values", format!("{}{{}}", one(good)), 8, "no JSON"),
    ] {
        refused(what, parses(&header, data), WEIGHTS, reason);
    }
}

#[test]
fn lengths_that_lie() {
    refused("no length", parse(vec![1, 0, 0]), WEIGHTS, "header's length");
    refused("beyond the end", parse(100u64.to_le_bytes().to_vec()), WEIGHTS, "ends in the header");
    refused(
        "beyond the bound",
        parse((HEADER_BYTES_MAX as u64 + 1).to_le_bytes().to_vec()),
        WEIGHTS,
        "at most",
    );
    refused("beyond everything", parse(u64::MAX.to_le_bytes().to_vec()), WEIGHTS, "at most");
}

#[test]
fn a_million_empty_tensors_are_refused_by_their_number() {
    let entries: Vec<String> =
        (0..20_000).map(|i| format!(r#""{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    refused("20,000", parse(weights(&format!("{{{}}}", entries.join(",")), 0)), WEIGHTS, "a key is");
}

#[test]
fn changed_files_are_refused_by_name() {
    let nested = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    for (file, from, to, reason) in [
        ("config.json", r#""num_attention_heads": 4"#, r#""num_attention_heads": 5"#, "doesn't divide"),
        ("config.json", r#""num_attention_heads": 4"#, r#""num_attention_heads": 0"#, "from 1 to"),
        ("config.json", r#""hidden_size": 32"#, r#""hidden_size": 4294967296"#, "from 1 to"),
        ("config.json", r#""hidden_size": 32"#, r#""hidden_size": -1"#, "another type"),
        ("config.json", r#""hidden_size": 32"#, r#""hidden_size": 32, "hidden_size": 32"#, "doubled"),
        ("config.json", r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 100000"#, "from 1 to"),
        ("config.json", r#""hidden_act": "gelu""#, r#""hidden_act": "relu""#, "another type"),
        ("config.json", r#""model_type": "bert""#, r#""model_type": "gpt2""#, "another type"),
        ("config.json", r#""is_decoder": false"#, r#""is_decoder": true"#, "decoder"),
        ("config.json", r#""layer_norm_eps": 1e-12"#, r#""layer_norm_eps": -1.0"#, "layer_norm_eps"),
        ("config.json", r#""is_decoder": false"#, &format!(r#""is_decoder": {nested}"#), "no JSON"),
        ("modules.json", "models.Normalize", "models.Dense", "only Transformer"),
        ("modules.json", "sentence_transformers.models.Pooling", "evil.Pooling", "sentence_transformers"),
        ("modules.json", r#""path": "1_Pooling""#, r#""path": "../1_Pooling""#, "paths"),
        (
            "1_Pooling/config.json",
            r#""pooling_mode_max_tokens": false"#,
            r#""pooling_mode_max_tokens": true"#,
            "mean or CLS",
        ),
        (
            "1_Pooling/config.json",
            r#""pooling_mode_mean_tokens": true"#,
            r#""pooling_mode_mean_tokens": false"#,
            "mean or CLS",
        ),
        (
            "1_Pooling/config.json",
            r#""word_embedding_dimension": 32"#,
            r#""word_embedding_dimension": 33"#,
            "dimension",
        ),
        ("tokenizer.json", r#""type":"WordPiece""#, r#""type":"BPE""#, "another type"),
        ("tokenizer.json", r#""type":"BertPreTokenizer""#, r#""type":"Split""#, "another type"),
        (
            "tokenizer.json",
            r#""max_input_chars_per_word":100"#,
            r#""max_input_chars_per_word":100000"#,
            "too large",
        ),
        ("tokenizer.json", r#""unk_token":"[UNK]""#, r#""unk_token":"[GONE]""#, "unknown token"),
        ("tokenizer.json", r#""content":"[MASK]""#, r#""content":"two words""#, "white space"),
        ("tokenizer.json", r#""ids":["#, r#""ids":[999"#, "vocabulary"),
    ] {
        let mut package = Package::tiny();
        compact_tokenizer(&mut package);
        package.replace(file, from, to);
        refused(to, package.load(), file, reason);
    }
}

/// The library writes the file with spaces; the table above is easier to read without.
fn compact_tokenizer(package: &mut Package) {
    let value: serde_json::Value = serde_json::from_slice(&package.0["tokenizer.json"]).unwrap();
    package.0.insert("tokenizer.json".to_owned(), serde_json::to_vec(&value).unwrap());
}

#[test]
fn a_smaller_vocabulary_than_the_tokenisers_is_refused() {
    let mut package = Package::tiny();
    package.replace("config.json", r#""vocab_size": 246"#, r#""vocab_size": 245"#);
    refused("245", package.load(), "tokenizer.json", "vocabulary");
}

#[test]
fn a_larger_vocabulary_than_the_weights_is_refused() {
    let mut package = Package::tiny();
    package.replace("config.json", r#""vocab_size": 246"#, r#""vocab_size": 247"#);
    let error = package.load().err().unwrap();
    assert!(matches!(&error, LoadError::Tensor { reason, .. } if reason.contains("[246, 32]")), "{error}");
}

#[test]
fn missing_files_are_named() {
    for name in Package::tiny().0.keys() {
        let mut package = Package::tiny();
        package.0.remove(name);
        assert_eq!(package.load().err(), Some(LoadError::Missing { file: name.clone() }));
    }
}

#[test]
fn tensors_of_the_wrong_type_or_name_are_named() {
    for (from, to, reason) in [
        (r#""dtype":"F32","shape":[32],"#, r#""dtype":"I32","shape":[32],"#, "neither F32 nor F16"),
        ("encoder.layer.1.output.dense.bias", "encoder.layer.1.output.dense.bios", "missing"),
    ] {
        let mut package = Package::tiny();
        let file = &package.0[WEIGHTS];
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header = String::from_utf8(file[8..8 + length].to_vec()).unwrap();
        assert!(header.contains(from), "{header}");
        let changed = [&file[..8], header.replacen(from, to, 1).as_bytes(), &file[8 + length..]].concat();
        package.0.insert(WEIGHTS.to_owned(), changed);
        let error = package.load().err().unwrap();
        assert!(matches!(&error, LoadError::Tensor { reason: said, .. } if said.contains(reason)), "{error}");
    }
}

#[test]
fn a_stated_length_bounds_the_models() {
    let mut package = Package::tiny();
    package.0.insert("sentence_bert_config.json".to_owned(), br#"{"max_seq_length": 16}"#.to_vec());
    assert_eq!(package.load().unwrap().text.max_tokens(), 16);
    package.0.insert("sentence_bert_config.json".to_owned(), br#"{"max_seq_length": 2}"#.to_vec());
    refused("2", package.load(), "tokenizer.json", "no room");
}

#[test]
fn what_does_not_fit_the_lease_is_refused_before_it_is_allocated() {
    let lease = support::FixedLease::of(10_000);
    let architecture = ringfence_protocol::Architecture::Bert;
    let files = Package::tiny().files();
    let error = ringfence_worker::models::load(&files, architecture, support::compute(), 512, &lease).err();
    assert!(matches!(error, Some(LoadError::OutOfMemory { limit: 10_000, .. })), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// One changed byte of the header never makes a tensor whose bytes the reference parser sees elsewhere.
    #[test]
    fn what_is_accepted_reads_as_in_the_reference_parser(at in 0usize..3000, byte: u8) {
        let mut file = Package::tiny().0.remove(WEIGHTS).unwrap();
        file[at] = byte;
        if let Ok(tensors) = parse(file.clone()) {
            let reference = safetensors::SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(reference.len(), tensors.entries().len());
            for (name, entry) in tensors.entries() {
                let view = reference.tensor(name).unwrap();
                prop_assert_eq!(view.shape(), &entry.shape[..]);
                prop_assert_eq!(view.data(), &file[entry.bytes.clone()]);
            }
        }
    }

    /// Any bytes at all, and any changed byte of any file: an error or a model, never a panic.
    #[test]
    fn no_byte_makes_it_panic(file in 0usize..5, at: prop::sample::Index, byte: u8) {
        let mut package = Package::tiny();
        let bytes = package.0.values_mut().nth(file).unwrap();
        let at = at.index(bytes.len().min(8000));
        bytes[at] = byte;
        let _ = package.load();
    }
}

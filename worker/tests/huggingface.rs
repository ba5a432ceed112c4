//! Folders in the Hugging Face layout: taken unchanged, or refused with what is wrong.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_protocol::{ConvertError, Facts, ModelArchitecture, SourceForm};
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::memory::Lease;
use support::{Package, SHARDS};

fn import(package: &Package) -> Result<(Facts, InMemory), ConvertError> {
    let files = package.files();
    let mut output = InMemory::new(&files);
    let mut work = Work { files: &files, output: &mut output, memory: &Lease };
    convert(SourceForm::HuggingFace, &mut work).map(|facts| (facts, output))
}

#[test]
fn a_bert_is_kept_unchanged_and_what_is_not_known_is_left_out() {
    let mut package = Package::tiny();
    package.0.insert("train.py".to_owned(), b"print()".to_vec());
    let (facts, output) = import(&package).unwrap();
    assert_eq!(facts.architecture, ModelArchitecture::Bert);
    package.0.remove("train.py");
    assert_eq!(output.files, package.0);
}

#[test]
fn shards_are_kept_unchanged_with_their_index() {
    let package = Package::tiny().into_shards();
    let (facts, output) = import(&package).unwrap();
    assert_eq!(facts.architecture, ModelArchitecture::Bert);
    assert_eq!(output.files, package.0);
}

#[test]
fn a_shard_that_is_not_there_is_named() {
    for shard in SHARDS {
        let mut package = Package::tiny().into_shards();
        package.0.remove(shard);
        assert_eq!(import(&package).unwrap_err(), ConvertError::Missing { file: shard.to_owned() });
    }
}

#[test]
fn other_networks_and_pickles_are_named() {
    let what = |package: &Package| match import(package).unwrap_err() {
        ConvertError::Unsupported { file, .. } => file,
        other => panic!("{other}"),
    };
    let mut other = Package::tiny();
    other.0.insert("config.json".to_owned(), br#"{"model_type": "t5"}"#.to_vec());
    assert_eq!(what(&other), "config.json");
    let mut bare = Package::tiny();
    bare.0.remove("model.safetensors");
    assert_eq!(import(&bare).unwrap_err(), ConvertError::Missing { file: "model.safetensors".to_owned() });
    bare.0.insert("pytorch_model.bin".to_owned(), Vec::new());
    assert_eq!(what(&bare), "pytorch_model.bin");
}

#[test]
fn tensors_of_another_shape_are_refused() {
    let mut package = Package::tiny();
    let mut config: serde_json::Value = serde_json::from_slice(&package.0["config.json"]).unwrap();
    config["max_position_embeddings"] = 7.into();
    package.0.insert("config.json".to_owned(), config.to_string().into_bytes());
    assert!(matches!(import(&package).unwrap_err(), ConvertError::Tensor { .. }));
}

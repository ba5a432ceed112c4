//! Every model of the catalog from its pinned archives through the sandboxed converter; what runs in this version answers.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use serde_json::{Value, json};
use support::{Home, Server};

const MODELS: [(&str, &str); 7] = [
    ("minilm", "bert"),
    ("minilm-f16", "bert"),
    ("silero-vad", "silero-vad"),
    ("smollm2-135m", "llama"),
    ("whisper-base", "whisper"),
    ("whisper-tiny", "whisper"),
    ("whisper-tiny.en", "whisper"),
];

#[test]
fn the_catalog_is_imported_signed_and_what_is_known_runs() {
    let folder = std::env::var("RINGFENCE_MINILM").expect("set by `make test`: the folder of MiniLM's files");
    let cache = std::path::Path::new(&folder).with_file_name("archives");
    let home = Home::new();
    let names = MODELS.map(|(name, _)| name);
    home.cli_ok(&[&["model", "add", "--cache", cache.to_str().unwrap()], &names[..]].concat());
    let listed: Value = serde_json::from_str(&home.cli_ok(&["model", "list", "--json"])).unwrap();
    for (model, (name, architecture)) in listed["models"].as_array().unwrap().iter().zip(MODELS) {
        assert_eq!((&model["name"], &model["verified"]), (&json!(name), &json!(true)), "{model}");
        let manifest = &model["manifest"];
        assert_eq!(manifest["architecture"], architecture, "{name}");
        assert!(!manifest["archives"].as_array().unwrap().is_empty(), "{name}");
        assert_eq!(manifest["unverified_source"], Value::Null, "{name}");
    }
    let blocks = &listed["models"][3]["manifest"]["blocks"];
    let count = |block: &str| blocks[block].as_object().unwrap().len();
    assert_eq!((count("q4_1"), count("q8_0")), (210, 1));
    answers(&home.start());
}

/// Half precision gives the same vectors; the model that writes goes on from a text.
fn answers(server: &Server) {
    let [full, half] = ["minilm", "minilm-f16"].map(|model| {
        let answer = server.api().embed(&json!({ "model": model, "input": "A cat sits on the mat." })).ok();
        let vector = answer["data"][0]["embedding"].as_array().unwrap().clone();
        vector.iter().map(|number| number.as_f64().unwrap()).collect::<Vec<f64>>()
    });
    let cosine: f64 = full.iter().zip(&half).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.9999, "{cosine}");
    let asked = json!({"model": "smollm2-135m", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0});
    let answer = server.api().post("/v1/completions", &asked).ok();
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with(" Paris"), "{answer}");
}

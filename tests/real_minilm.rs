//! MiniLM's real weights through the whole server: import from the catalog, numbers, and leases that are too small.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use serde_json::{Value, json};
use support::{Home, Server};

/// A home with MiniLM from the catalog; `make test` has put the archive into the cache.
fn home() -> Home {
    let folder = std::env::var("RINGFENCE_MINILM").expect("set by `make test`: the folder of MiniLM's files");
    let cache = std::path::Path::new(&folder).with_file_name("archives");
    let home = Home::new();
    home.cli_ok(&["model", "add", "minilm", "--cache", cache.to_str().unwrap()]);
    home
}

fn embed(server: &Server, input: &Value) -> support::Answer {
    server.api().embed(&json!({ "model": "minilm", "input": input, "truncate": true }))
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn fifty_sentences_equal_sentence_transformers() {
    let home = home();
    let server = home.start();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/minilm.expected.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 50);
    let texts: Vec<&Value> = cases.iter().map(|case| &case["text"]).collect();
    let answer = embed(&server, &json!(texts)).ok();
    for (index, case) in cases.iter().enumerate() {
        let cosine = cosine(&numbers(&answer["data"][index]["embedding"]), &numbers(&case["embedding"]));
        assert!(cosine >= 0.9999, "{index}: {cosine}");
    }
}

#[test]
fn a_lease_that_does_not_hold_the_weights_is_a_typed_failure_of_the_load() {
    let home = home();
    home.quotas("[models.minilm]\nlease_mib = 20\n");
    let server = home.start();
    let answer = embed(&server, &json!("a"));
    assert_eq!((answer.status, answer.code().as_str()), (503, "load_failed"));
    let models = server.admin().get("/models").ok();
    assert!(models["models"][0]["reason"].as_str().unwrap().contains("out of memory"), "{models}");
    assert_eq!(server.tcp().get("/health").status, 200, "nothing is loaded, and nothing fails");
}

#[test]
fn a_job_over_the_lease_is_refused_and_the_next_one_runs() {
    let home = home();
    home.quotas("[models.minilm]\nlease_mib = 128\nstep_tokens = 65536\n");
    let server = home.start();
    assert_eq!(embed(&server, &json!("a")).status, 200);
    let long = vec!["word ".repeat(250); 200];
    let answer = embed(&server, &json!(long));
    assert_eq!((answer.status, answer.code().as_str()), (413, "job_too_large"));
    assert_eq!(embed(&server, &json!("a")).status, 200);
}

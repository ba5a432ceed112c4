//! MiniLM's real weights through the whole server: import from the catalog, numbers, and leases that are too small.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use serde_json::{Value, json};
use support::{Home, Server};

/// A home with MiniLM from the catalog; `make test` has put the archive into the cache.
fn home() -> Home {
    let folder = std::env::var("RINGFENCE_MINILM").expect("set by `make test`: the folder of MiniLM's files");
    let cache = std::path::Path::new(&folder).with_file_name("archives");
    Home::made("minilm", |home| {
        home.cli_ok(&["model", "add", "minilm", "--cache", cache.to_str().unwrap()]);
    })
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
    let reason = || server.admin().get("/models").ok()["models"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason().contains("out of memory"), "{}", reason());
    assert_eq!(server.tcp().get("/health").status, 200, "nothing is loaded, and nothing fails");
    // With a profile, that is known before a worker is started.
    home.cli_ok(&["model", "calibrate", "minilm"]);
    assert_eq!(embed(&server, &json!("a")).code(), "package_refused");
    assert!(reason().contains("lease_too_small"), "{}", reason());
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

#[test]
fn a_profile_predicts_what_texts_of_unseen_shapes_take() {
    let home = home();
    home.cli_ok(&["model", "calibrate", "minilm"]);
    let file = std::fs::read_dir(home.path().join("profiles")).unwrap().next().unwrap().unwrap().path();
    let profile = ringfence_models::Profile::parse(&std::fs::read(file).unwrap()).unwrap();
    home.quotas("[models.default]\nstep_tokens = 4096\nthreads = 2\n");
    for (sequences, words) in [(1, 3), (9, 100), (21, 77), (150, 10), (13, 210)] {
        let server = home.start();
        embed(&server, &json!(vec!["word ".repeat(words); sequences])).ok();
        let measured = server.status()["workers"][0]["peak_bytes"].as_u64().unwrap();
        let [sequences, tokens] =
            [sequences, sequences * (words + 2)].map(|number| u32::try_from(number).unwrap());
        let predicted = profile.peak_bytes(2, sequences, tokens);
        let apart = predicted.abs_diff(measured) * 100 / measured;
        assert!(apart < 10, "{sequences} sequences, {tokens} tokens: predicted {predicted}, took {measured}");
        println!("{sequences} sequences, {tokens} tokens: predicted {predicted}, took {measured}");
    }
}

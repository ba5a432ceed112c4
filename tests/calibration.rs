//! Memory profiles: measured by `ringfence model calibrate`, and what the server makes of them.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use ringfence_models::Profile;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use support::{Home, Server};

fn calibrate(home: &Home) -> Value {
    serde_json::from_str(&home.cli_ok(&["model", "calibrate", "tiny-bert", "--json"])).unwrap()
}

fn model(server: &Server) -> Value {
    server.status()["models"][0].clone()
}

/// The only profile of the home.
fn file(home: &Home) -> PathBuf {
    let mut files = fs::read_dir(home.path().join("profiles")).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    file
}

/// One step of as many sequences, each of this many tokens.
fn embed(server: &Server, sequences: usize, length: usize) -> support::Answer {
    let ids: Vec<usize> = (0..length).map(|id| id % 30).collect();
    server.api().embed(&json!({ "model": "tiny-bert", "input": vec![ids; sequences] }))
}

#[test]
fn what_is_predicted_is_what_the_servers_worker_takes() {
    let home = Home::with_tiny();
    let answer = calibrate(&home);
    assert_eq!(answer["server"], "not_running");
    let profile = Profile::parse(&fs::read(file(&home)).unwrap()).unwrap();
    assert_eq!(serde_json::to_value(&profile).unwrap(), answer["calibrated"][0]["profile"]);
    home.quotas("[models.default]\nstep_tokens = 4096\nthreads = 3\n");
    for (sequences, length) in [(1, 5), (2, 61), (60, 50), (600, 4), (110, 35)] {
        let server = home.start();
        let tokens = embed(&server, sequences, length).ok()["usage"]["prompt_tokens"].as_u64().unwrap();
        let measured = server.status()["workers"][0]["peak_bytes"].as_u64().unwrap();
        let [sequences, tokens] = [sequences as u64, tokens].map(|number| u32::try_from(number).unwrap());
        let predicted = profile.peak_bytes(3, sequences, tokens);
        let apart = predicted.abs_diff(measured) * 100 / measured;
        assert!(apart < 10, "{sequences} sequences, {tokens} tokens: predicted {predicted}, took {measured}");
    }
}

const ON_GPU: &str =
    "[devices.wgpu]\nmemory_mib = 512\n[models.tiny-bert]\ndevice = \"wgpu\"\nlease_mib = 64\n";

#[test]
fn a_profile_of_a_gpu_is_of_its_memory_and_counts_for_models_on_it_only() {
    let home = Home::with_tiny();
    let answer = home.cli_ok(&["model", "calibrate", "tiny-bert", "--device", "wgpu", "--json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let profile = Profile::parse(&fs::read(file(&home)).unwrap()).unwrap();
    assert_eq!(serde_json::to_value(&profile).unwrap(), answer["calibrated"][0]["profile"]);
    assert!(file(&home).to_str().unwrap().ends_with(".wgpu.json"));
    assert_eq!(model(&home.start())["predicted_peak_bytes"], Value::Null, "it runs on the CPU");
    home.quotas(&format!("{ON_GPU}step_tokens = 2048\n"));
    for (sequences, length) in [(1, 5), (60, 30), (400, 4)] {
        let server = home.start();
        let tokens = embed(&server, sequences, length).ok()["usage"]["prompt_tokens"].as_u64().unwrap();
        let measured = server.status()["workers"][0]["peak_bytes"].as_u64().unwrap();
        let [sequences, tokens] = [sequences as u64, tokens].map(|number| u32::try_from(number).unwrap());
        let predicted = profile.peak_bytes(1, sequences, tokens);
        let apart = predicted.abs_diff(measured) * 100 / measured;
        assert!(apart < 10, "{sequences} sequences, {tokens} tokens: predicted {predicted}, took {measured}");
    }
    // What the device takes for itself is in the profile: a lease that does not hold that is refused unspawned.
    home.quotas(&ON_GPU.replace("lease_mib = 64", "lease_mib = 1"));
    let refused = model(&home.start());
    assert!(refused["reason"].as_str().unwrap().contains("lease_too_small"), "{refused}");
}

#[test]
fn a_running_server_takes_a_profile_and_refuses_a_lease_that_is_too_small_for_it() {
    let home = Home::with_tiny();
    home.quotas("[models.tiny-bert]\nlease_mib = 1\n");
    let server = home.start();
    assert_eq!(model(&server)["predicted_peak_bytes"], Value::Null);
    assert_eq!(calibrate(&home)["server"], "reloaded");
    assert!(model(&server)["predicted_peak_bytes"].as_u64().unwrap() > 1024 * 1024);
    embed(&server, 1, 4).ok();
    // The tiny model fits in the smallest lease there is; one of this profile does not.
    let path = file(&home);
    let mut profile = Profile::parse(&fs::read(&path).unwrap()).unwrap();
    profile.loaded.bytes = 2 * 1024 * 1024;
    fs::write(&path, profile.to_json()).unwrap();
    server.admin().post("/models/reload", &json!({})).ok();
    let refused = model(&server);
    assert_eq!(refused["state"], "refused", "{refused}");
    let reason = refused["reason"].as_str().unwrap();
    assert!(reason.contains("lease_too_small") && reason.contains("1 MiB"), "{reason}");
    assert_eq!(embed(&server, 1, 4).code(), "package_refused");
    drop(server);
    home.quotas("");
    let server = home.start();
    assert!(model(&server)["predicted_peak_bytes"].as_u64().unwrap() > 1024 * 1024);
    embed(&server, 1, 4).ok();
}

#[test]
fn a_profile_that_is_none_or_of_another_build_is_not_used() {
    let home = Home::with_tiny();
    calibrate(&home);
    let path = file(&home);
    let good = fs::read_to_string(&path).unwrap();
    let profile = Profile::parse(good.as_bytes()).unwrap();
    let [none, build, package] = [
        "{}".to_owned(),
        Profile { worker: "other".to_owned(), ..profile.clone() }.to_json(),
        Profile { package: "0".repeat(64), ..profile }.to_json(),
    ];
    let cases = [(none, "no memory profile"), (build, "another build"), (package, "another package")];
    for (text, reason) in cases {
        fs::write(&path, text).unwrap();
        let server = home.start();
        assert_eq!(model(&server)["predicted_peak_bytes"], Value::Null);
        let log = server.log();
        assert!(
            log.contains(reason) && log.contains("ringfence model calibrate tiny-bert --device cpu"),
            "{log}"
        );
        embed(&server, 1, 4).ok();
    }
    fs::write(&path, good).unwrap();
    assert_ne!(model(&home.start())["predicted_peak_bytes"], Value::Null);
}

#[test]
fn what_this_version_does_not_run_or_does_not_hold_is_not_calibrated() {
    let home = Home::with_tiny();
    let weights = home.path().join("models/tiny-bert/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let calibrated = home.cli(&["model", "calibrate", "tiny-bert", "--json"]);
    assert_eq!(calibrated.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&calibrated.stdout).contains("digest_mismatch"));
    assert!(!home.path().join("profiles").exists());
    let unknown = home.cli(&["model", "calibrate", "nobody", "--json"]);
    assert!(String::from_utf8_lossy(&unknown.stdout).contains("model_unknown"));
}

//! `ringfence stress` against a real server: the scenarios whose promises don't depend on how fast the machine is.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::Value;
use std::fs;
use support::Home;

#[test]
fn floods_and_edits_under_load_break_no_promise_and_the_quotas_come_back() {
    let home = Home::with_tiny();
    let server = home.start();
    let file = home.path().join("quotas.toml");
    let before = fs::read_to_string(&file).unwrap();
    let chart = home.path().join("run/stress.svg");
    let chart = chart.to_str().unwrap();
    let words =
        ["stress", "flood", "quota-edits", "--model", "tiny-bert", "--tokens", "16", "--seconds", "2"];
    let words = [&words[..], &["--rounds", "1", "--json", "--chart", chart]].concat();
    let report: Value = serde_json::from_str(&home.cli_ok(&words)).unwrap();
    let text = report.to_string();
    assert!(text.contains("retry") && text.contains("quota-edits"), "{text}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert!(fs::read_to_string(chart).unwrap().starts_with("<svg"));
    assert_eq!(server.admin().get("/health").status, 200);
}

/// Each way to want too much memory is stopped on a rung, and the model answers again; nobody else loses a job.
fn every_want_of_memory_is_stopped(device: &str, paths: &[&str]) {
    let home = Home::with_tiny();
    home.add_tiny("tiny-other");
    let server = home.start();
    let file = home.path().join("quotas.toml");
    let before = fs::read_to_string(&file).unwrap();
    let rounds = std::env::var("RINGFENCE_OOM_ROUNDS").unwrap_or_else(|_| "1".to_owned());
    let words = ["stress", "--oom", "--model", "tiny-bert", "--tokens", "16", "--json", "--device", device];
    let report = home.cli_ok(&[&words[..], &["--rounds", &rounds]].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    let found = report["paths"].as_array().unwrap();
    let names: Vec<&str> = found.iter().map(|path| path["path"].as_str().unwrap()).collect();
    assert_eq!(names, paths, "{report:#}");
    for path in found {
        assert_eq!((&path["verdict"], &path["others"]["lost"]), (&"held".into(), &0.into()), "{path:#}");
    }
    let stopped = |path: &str, rung: &str| {
        let path = found.iter().find(|found| found["path"] == path).unwrap();
        assert!(path["caught"][rung].as_u64() >= Some(1), "{rung}: {path:#}");
        assert!(path["recovery_ms"]["p99"].as_f64().unwrap() > 0.0, "{path:#}");
    };
    stopped("oversized-model", "refused-by-profile");
    stopped("host-memory", "killed-by-kernel");
    if device == "wgpu" {
        stopped("hostile-within-limits", "killed-by-reconcile");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert_eq!(server.admin().get("/health").status, 200, "{}", server.log());
}

const ON_EVERY_DEVICE: [&str; 8] = [
    "oversized-model",
    "small-lease",
    "growing-batch",
    "long-context",
    "fragmentation",
    "many-workers",
    "host-memory",
    "hostile-worker",
];

#[test]
fn every_want_of_memory_is_stopped_on_the_cpu() {
    every_want_of_memory_is_stopped("cpu", &ON_EVERY_DEVICE);
}

#[test]
fn every_want_of_memory_is_stopped_on_a_gpu() {
    let paths = [&ON_EVERY_DEVICE[..], &["hostile-within-limits", "driver-memory"]].concat();
    every_want_of_memory_is_stopped("wgpu", &paths);
}

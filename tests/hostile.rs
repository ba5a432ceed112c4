//! A worker that tries everything: each attempt ends in its death or in nothing, and the next good job succeeds.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::json;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use support::{Answer, Home, Server, programs};

/// A home whose server finds the hostile worker beside itself.
fn hostile(mode: &str, quotas: &str) -> Home {
    let mut home = Home::with_tiny();
    let folder = home.folder.path().join("programs");
    std::fs::create_dir(&folder).unwrap();
    for name in ["ringfence-server", "ringfence-fileguard", "ringfence-audio"] {
        std::fs::copy(programs().join(name), folder.join(name)).unwrap();
    }
    let worker: PathBuf = folder.join("ringfence-worker");
    std::fs::copy(programs().join("examples/hostile_worker"), &worker).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&worker).unwrap();
    write!(file, "\nringfence-mode:{mode}").unwrap();
    drop(file);
    std::fs::set_permissions(&worker, PermissionsExt::from_mode(0o755)).unwrap();
    home.use_programs(folder);
    home.quotas(quotas);
    home
}

/// Steps are short here, so that a hanging worker is found soon; backoff after crashes is the scheduler's own.
const QUOTAS: &str = "[models.default]\nstep_limit_ms = 1000\nload_limit_ms = 10000\n";

fn ask(server: &Server, text: &str) -> Answer {
    server.api().embed(&json!({ "model": "tiny-bert", "input": text }))
}

/// The next good job succeeds, though it may have to wait until the model is taken again.
fn assert_recovers(server: &Server, after: &str) {
    let until = std::time::Instant::now() + support::WAIT_MAX;
    loop {
        let answer = ask(server, "good");
        if answer.status == 200 {
            return;
        }
        assert!(
            answer.status == 503 && answer.header("retry-after-ms").is_some(),
            "after {after}: {answer:?}"
        );
        assert!(std::time::Instant::now() < until, "no good job after {after}");
        let pause = answer.header("retry-after-ms").unwrap().parse().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause));
    }
}

#[test]
fn every_forbidden_act_kills_the_worker_or_is_refused_by_the_kernel() {
    let home = hostile("", QUOTAS);
    let server = home.start();
    let status = server.status();
    let acts: Vec<String> = status["sandbox"]["probes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| act.as_str().unwrap().to_owned())
        .collect();
    assert!(acts.len() >= 20, "{acts:?}");
    for act in acts {
        let answer = ask(&server, &format!("act:{act}"));
        match answer.status {
            200 => {
                let number = answer.json()["data"][0]["embedding"][0].as_f64();
                assert_eq!(number, Some(0.0), "{act} succeeded");
            }
            500 => assert_eq!(answer.code(), "worker_died", "{act}"),
            503 => assert_eq!(answer.code(), "model_broken", "{act}"),
            status => panic!("{act}: {status} {answer:?}"),
        }
        assert_recovers(&server, &act);
    }
}

#[test]
fn every_illegal_message_kills_the_worker() {
    let home = hostile("", QUOTAS);
    let server = home.start();
    let messages = [
        "garbage",
        "one-byte",
        "too-long",
        "trailing",
        "descriptors",
        "hello-again",
        "sealed-again",
        "ready-again",
        "chunk-free-slot",
        "chunk-out-of-order",
        "chunk-empty",
        "chunk-too-much",
        "done-without-output",
        "done-free-slot",
        "done-too-many-tokens",
        "step-free-slot",
        "step-twice",
        "failed-other-item",
        "failed-free-slot",
        "cancelled-unasked",
        "device-failed-at-length",
    ];
    for message in messages {
        assert_recovers(&server, "the one before");
        let before = server.worker_pid();
        let answer = ask(&server, &format!("say:{message}"));
        assert!(answer.status == 500 || answer.status == 503, "{message}: {answer:?}");
        assert_recovers(&server, message);
        assert_ne!(server.worker_pid(), before, "{message}");
        assert!(!support::is_alive(before), "{message}");
    }
}

#[test]
fn a_worker_that_hangs_dies_or_takes_memory_costs_its_own_job_only() {
    let home = hostile("", QUOTAS);
    let server = home.start();
    let cases = [
        ("hang", vec!["worker_died", "model_broken"]),
        ("abort", vec!["worker_died", "model_broken"]),
        ("panic", vec!["worker_died", "model_broken"]),
        ("exit", vec!["worker_died", "model_broken"]),
        ("lose-device", vec!["worker_died", "model_broken"]),
        ("take-memory", vec!["out_of_memory"]),
        // Past the lease: the kernel's limit ends it.
        ("take-memory-uncounted", vec!["out_of_memory"]),
    ];
    for (what, codes) in cases {
        assert_recovers(&server, "the one before");
        let answer = ask(&server, &format!("do:{what}"));
        assert!(codes.contains(&answer.code().as_str()), "{what}: {answer:?}");
        let rung = answer.json()["error"]["rung"].as_str().map(str::to_owned);
        let expected = match what {
            "take-memory" => Some("refused-by-worker"),
            "take-memory-uncounted" => Some("killed-by-kernel"),
            _ => None,
        };
        assert_eq!(rung.as_deref(), expected, "{what}");
        assert_recovers(&server, what);
    }
    assert_eq!(ask(&server, "do:log-bomb").status, 200);
}

#[test]
fn a_device_that_fails_is_counted_by_that_name_and_its_word_stays_out_of_the_log() {
    let home = hostile("", QUOTAS);
    let server = home.start();
    assert_recovers(&server, "the start");
    let before = server.worker_pid();
    assert!(ask(&server, "do:lose-device").status >= 500);
    assert!(!support::is_alive(before));
    let metrics = String::from_utf8(server.admin().get("/metrics").body).unwrap();
    // The job was run again alone, as after a crash, so two workers ended.
    assert!(metrics.contains("ringfence_worker_ends_total{how=\"device_failed\"} 2"), "{metrics}");
    let log = server.log();
    assert!(log.contains("a worker's device failed") && !log.contains("fell off the bus"), "{log}");
    assert_recovers(&server, "the loss");
}

#[test]
fn a_deadline_is_kept_even_if_the_worker_ignores_the_cancel() {
    let home = hostile("", QUOTAS);
    let server = home.start();
    assert_recovers(&server, "the start");
    let before = server.worker_pid();
    let body = json!({ "model": "tiny-bert", "input": "do:hang" }).to_string();
    let headers = [("content-type", "application/json"), ("ringfence-deadline", "200")];
    let answer = server.api().send("POST", "/v1/embeddings", &headers, body.as_bytes());
    assert_eq!((answer.status, answer.code().as_str()), (504, "deadline_passed"));
    assert_recovers(&server, "the deadline");
    assert!(!support::is_alive(before), "a worker that ignores a cancel is killed");
}

#[test]
fn a_worker_that_lies_before_it_serves_never_gets_a_job() {
    for mode in [
        "other-protocol",
        "unsealed",
        "layer-missing",
        "ready-at-once",
        "dies-at-load",
        "width-zero",
        "never-ready",
    ] {
        let home = hostile(mode, "[models.default]\nload_limit_ms = 500\n");
        let server = home.start();
        let answer = ask(&server, "good");
        assert!(matches!(answer.status, 500 | 503), "{mode}: {answer:?}");
        let workers = server.status()["workers"].clone();
        let serving = workers.as_array().unwrap().iter().any(|worker| worker["state"] == "ready");
        assert!(!serving, "{mode}: {workers}");
    }
}

#[test]
fn a_probe_that_succeeds_stops_the_start() {
    let home = hostile("probe-escapes", "");
    let log = home.try_start().err().expect("the server must not start");
    assert!(log.contains("ringfence-server:"), "{log}");
}

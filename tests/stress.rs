//! `ringfence stress` against a real server: the scenarios whose promises don't depend on how fast the machine is.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::Value;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
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

/// Parts whose promises don't depend on how fast the machine is. `make soak` has full counts.
fn grants_words<'a>(parts: &[&'a str], rounds: &'a str) -> Vec<&'a str> {
    let words =
        ["stress", "--grants", "--model", "tiny-bert", "--seconds", "1", "--json", "--rounds", rounds];
    let parts = parts.iter().flat_map(|part| ["--part", part]);
    words.into_iter().chain(parts).collect()
}

fn promise<'a>(report: &'a Value, scenario: &str, name: &str) -> &'a Value {
    let mut promises = report["promises"].as_array().unwrap().iter();
    let found = promises.find(|promise| promise["scenario"] == scenario && promise["promise"] == name);
    found.unwrap_or_else(|| panic!("{scenario} {name}: {report:#}"))
}

#[test]
fn what_is_promised_about_grants_holds_and_nothing_is_left_behind() {
    let home = Home::with_tiny();
    let server = home.start();
    let rules = home.path().join("grants.toml");
    fs::write(&rules, "# the operator's\n").unwrap();
    let rounds = std::env::var("RINGFENCE_GRANT_STRESS_ROUNDS").unwrap_or_else(|_| "50".to_owned());
    let parts = ["refusals", "many-grants", "one-after-the-other", "traversal"];
    let report: Value = serde_json::from_str(&home.cli_ok(&grants_words(&parts, &rounds))).unwrap();
    for part in parts {
        let mut of_part = report["promises"].as_array().unwrap().iter();
        assert!(of_part.any(|promise| promise["scenario"] == part && promise["verdict"] == "held"), "{part}");
    }
    assert_eq!(promise(&report, "refusals", "clock_turned_back")["verdict"], "skipped");
    assert_eq!(promise(&report, "refusals", "of_a_former_run")["note"], "capability_of_another_run");
    assert_eq!(promise(&report, "traversal", "served_outside")["measured"], 0.0);

    // How soon depends on the machine; that no byte and no process is left does not.
    let parts = ["revocation", "expiry", "question-flood"];
    let output = home.cli(&grants_words(&parts, "8"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (part, name) in [
        ("revocation", "bytes_after_the_answer"),
        ("revocation", "jobs_with_another_code"),
        ("revocation", "processes_after_the_answer"),
        ("question-flood", "refused_with_its_code"),
        ("question-flood", "other_answers"),
        ("question-flood", "questions_taken"),
    ] {
        assert_eq!(promise(&report, part, name)["verdict"], "held", "{report:#}");
    }
    assert!(promise(&report, "expiry", "served_after_its_end")["measured"].is_number(), "{report:#}");

    assert_eq!(fs::read_to_string(&rules).unwrap(), "# the operator's\n");
    assert_eq!(server.admin().get("/clients").ok()["clients"], serde_json::json!([]));
    assert_eq!(server.status()["grants"], serde_json::json!({"open": 0, "file_services": 0}));
}

/// A worker that is stopped forgets nothing by itself: the server kills it, and nothing is served after the answer.
#[test]
fn a_worker_that_keeps_what_it_has_to_forget_is_killed() {
    let home = Home::with_tiny();
    let server = home.start();
    assert_eq!(server.api().embed(&serde_json::json!({"model": "tiny-bert", "input": "a"})).status, 200);
    let pid = server.worker_pid();
    let worker = rustix::process::Pid::from_raw(pid).unwrap();
    let done = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            // It works for a moment in each second, so that what is measured alone is measured at all. Once it is killed
            // there is nothing to stop.
            while !done.load(Ordering::Relaxed)
                && rustix::process::kill_process(worker, rustix::process::Signal::STOP).is_ok()
            {
                std::thread::sleep(Duration::from_millis(700));
                let _gone = rustix::process::kill_process(worker, rustix::process::Signal::CONT);
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let output = home.cli(&grants_words(&["revocation"], "16"));
        done.store(true, Ordering::Relaxed);
        output
    });
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(promise(&report, "revocation", "bytes_after_the_answer")["verdict"], "held", "{report:#}");
    assert!(!support::is_alive(pid), "{report:#}");
}

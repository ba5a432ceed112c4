//! Workers that take too much of an NVIDIA card: a stand-in for the driver's library says what each process has.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use support::{Home, Server, is_alive};

fn good(server: &Server) {
    server.api().embed(&json!({ "model": "tiny-bert", "input": "good" })).ok();
}

/// The stand-in, with the first process of every card in the file `process`.
fn compile(folder: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/nvml_stand_in.c");
    let process = format!("-DPROCESS=\"{}\"", folder.join("process").display());
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-Wno-unused-result", source, &process, "-o"]);
    assert!(compiler.arg(folder.join("libnvidia-ml.so.1")).status().unwrap().success());
}

#[test]
fn a_worker_that_has_too_much_of_a_card_is_killed_and_its_model_goes_on() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    // The server, which is another user by then, opens what lies in it.
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    compile(folder.path());
    let mut home = Home::with_tiny();
    home.set_variable("LD_LIBRARY_PATH", folder.path().to_owned());
    let server = home.start();
    let of_cards = |status: &serde_json::Value| status["nvml"]["cards"][0]["name"] == "Stand-in";
    let status = server.await_status("a card", of_cards);
    assert_eq!(status["nvml"]["cards"][0]["processes"][0], json!({"pid": 100, "used_bytes": 2_u64 << 30}));
    let shown = home.cli_ok(&["status"]);
    assert!(shown.contains("Stand-in") && shown.contains("100: 2.0 GiB"), "{shown}");
    good(&server);
    let pid = server.worker_pid();

    // What its driver may need is no reason.
    let has = |bytes: u64| std::fs::write(folder.path().join("process"), format!("{pid} {bytes}")).unwrap();
    let seen = |bytes: u64| {
        let process = json!({"pid": pid, "used_bytes": bytes});
        server.await_status("what the worker has", |status| {
            status["nvml"]["cards"][0]["processes"].as_array().is_some_and(|all| all.contains(&process))
        });
    };
    has(500 << 20);
    seen(500 << 20);
    good(&server);
    assert_eq!(server.worker_pid(), pid);

    has(2 << 30);
    server.await_status("the worker's end", |_| !is_alive(pid));
    good(&server);
    assert_ne!(server.worker_pid(), pid);
    let metrics = String::from_utf8(server.admin().get("/metrics").body).unwrap();
    for expected in [
        "ringfence_worker_kills_total{why=\"over_lease\"} 1",
        "ringfence_card_memory_total_bytes{card=\"0\"} 8589934592",
        "rung=\"killed-by-reconcile\"",
    ] {
        assert!(metrics.contains(expected), "{expected}: {metrics}");
    }
    assert!(!metrics.contains(&pid.to_string()), "processes are for the operator's socket");
}

//! An older trust file and a lowered floor, and what a revocation does to a running server.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::json;
use std::fs;
use support::{Home, Server};

const FILES: [&str; 2] = ["trust.json", "trust.floor"];

fn save(home: &Home) -> [Vec<u8>; 2] {
    FILES.map(|name| fs::read(home.path().join(name)).unwrap())
}

/// In the place of the files, as who owns the folder can.
fn put_back(home: &Home, files: &[Vec<u8>; 2], names: &[&str]) {
    for (name, bytes) in FILES.iter().zip(files).filter(|(name, _)| names.contains(name)) {
        fs::write(home.path().join(name), bytes).unwrap();
    }
}

fn reload(server: &Server) -> (u16, String) {
    let answer = server.admin().post("/models/reload", &json!({}));
    (answer.status, answer.code())
}

fn embed(server: &Server) -> support::Answer {
    server.api().embed(&json!({ "model": "tiny-bert", "input": "hello" }))
}

#[test]
fn a_server_does_not_start_on_an_older_trust_file_nor_without_a_floor() {
    let home = Home::with_tiny();
    let old = save(&home);
    home.cli_ok(&["trust", "renew"]);
    let new = save(&home);
    put_back(&home, &old, &["trust.json"]);
    let log = home.try_start().err().unwrap();
    assert!(
        log.contains("version 1 is older than version 2") && log.contains("ringfence trust restore"),
        "{log}"
    );
    put_back(&home, &new, &FILES);
    for floor in [None, Some(""), Some("two\n")] {
        match floor {
            None => fs::remove_file(home.path().join("trust.floor")).unwrap(),
            Some(text) => fs::write(home.path().join("trust.floor"), text).unwrap(),
        }
        let log = home.try_start().err().unwrap();
        assert!(log.contains("trust.floor") && log.contains("ringfence trust restore"), "{floor:?}: {log}");
    }
    home.cli_ok(&["trust", "restore"]);
    embed(&home.start()).ok();
}

#[test]
fn a_running_server_remembers_the_version_even_where_the_floor_is_lowered_too() {
    let home = Home::with_tiny();
    let old = save(&home);
    let server = home.start();
    home.cli_ok(&["trust", "digest", "revoke", "tiny-bert"]);
    assert_eq!(embed(&server).code(), "package_refused");
    put_back(&home, &old, &FILES);
    assert_eq!(reload(&server), (409, "trust_rolled_back".to_owned()));
    assert_eq!(embed(&server).code(), "package_refused", "what was in force stays in force");
    home.cli_ok(&["trust", "restore"]);
    assert_eq!(reload(&server).0, 200);
    assert_eq!(embed(&server).code(), "package_refused");
}

#[test]
fn a_revocation_ends_the_workers_of_a_running_model() {
    for arguments in [&["trust", "digest", "revoke", "tiny-bert"][..], &["trust", "key", "revoke"]] {
        let home = Home::with_tiny();
        let server = home.start();
        embed(&server).ok();
        let pid = server.worker_pid();
        let shown: serde_json::Value =
            serde_json::from_str(&home.cli_ok(&["trust", "show", "--json"])).unwrap();
        let id = shown["keys"][0]["id"].as_str().unwrap();
        let more: &[&str] = if arguments.len() == 3 { &[&id[..8]] } else { &[] };
        let said = home.cli_ok(&[arguments, more].concat());
        assert!(said.contains("the server has read it"), "{said}");
        assert_eq!(embed(&server).code(), "package_refused");
        server.await_status("no worker", |status| status["workers"].as_array().is_some_and(Vec::is_empty));
        let gone = rustix::process::test_kill_process(rustix::process::Pid::from_raw(pid).unwrap());
        assert_eq!(gone, Err(rustix::io::Errno::SRCH), "the worker's process is still there");
    }
}

#[test]
fn a_rotated_key_leaves_the_models_of_a_running_server_usable() {
    let home = Home::with_tiny();
    let server = home.start();
    embed(&server).ok();
    home.cli_ok(&["trust", "rotate"]);
    embed(&server).ok();
    home.cli_ok(&["trust", "rotate", "--root"]);
    embed(&server).ok();
    assert_eq!(reload(&server).0, 200);
}

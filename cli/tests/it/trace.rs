//! `ringfence trace`: files that are wrong, and a server that refuses or gives up.

use crate::command_line::{ringfence, stderr, stdout};
use crate::server::{Reply, Server};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Duration;

const HEADER: &str =
    r#"{"ringfence_trace":1,"models":{},"machine":{"memory_bytes":8589934592,"cores":2},"quotas":""}"#;

fn lines(body: &str) -> Reply {
    let body = body.as_bytes().to_vec();
    Reply { status: 200, headers: Vec::new(), body, delay: Duration::ZERO, then: None }
}

fn code_of(stdout: &[u8]) -> Value {
    serde_json::from_slice::<Value>(stdout).unwrap()["error"]["code"].clone()
}

#[test]
fn wrong_files_are_refused_with_the_line() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    let check = |trace: &str, quotas: &str, code: &str, part: &str| {
        fs::write(path("a.trace"), trace).unwrap();
        fs::write(path("new.toml"), quotas).unwrap();
        let (trace, quotas) = (path("a.trace"), path("new.toml"));
        let arguments = ["trace", "replay", trace.to_str().unwrap(), "--quotas", quotas.to_str().unwrap()];
        let output = ringfence(home.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
        assert_eq!(code_of(&ringfence(home.path(), &[&arguments[..], &["--json"]].concat()).stdout), code);
    };
    let good = format!("{HEADER}\n{{\"t\":5,\"stop\":\"time\"}}\n");
    check("", "", "trace_invalid", "a.trace: line 1: the end is missing");
    check(HEADER, "", "trace_invalid", "a.trace: line 2: the end is missing");
    check(&format!("{HEADER}\nx\n"), "", "trace_invalid", "a.trace: line 2: expected value");
    check(&good, "[queues]\ntotal = 0\n", "quota_invalid", "new.toml: line 2: queues.total is 0");
    check(&good, "[devices.cpu]\nreserve_mib = 16777216\n", "quota_invalid", "reserve_mib");
    let output = ringfence(home.path(), &["trace", "replay", "/nowhere/at/all", "--quotas", "/nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    fs::write(path("a.trace"), &good).unwrap();
    fs::write(path("new.toml"), "").unwrap();
    let (trace, quotas) = (path("a.trace"), path("new.toml"));
    let arguments = ["trace", "replay", trace.to_str().unwrap(), "--quotas", quotas.to_str().unwrap()];
    let output = ringfence(home.path(), &arguments);
    assert!(stdout(&output).contains("no job ended while the trace was recorded"), "{}", stdout(&output));
}

#[test]
fn a_recording_that_fails_leaves_the_file_that_was_there() {
    let check = |reply: Reply, exit: i32, code: &str, part: &str| {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("run")).unwrap();
        let server = Server::on_socket(&home.path().join("run/admin.sock"), reply);
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("a.trace");
        fs::write(&file, "old").unwrap();
        let output =
            ringfence(home.path(), &["trace", "record", file.to_str().unwrap(), "--seconds", "1", "--json"]);
        assert_eq!(output.status.code(), Some(exit), "{}", stdout(&output));
        assert_eq!(server.asked()[0].line, "GET /trace?seconds=1");
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
        assert_eq!(code_of(&output.stdout), code);
        assert!(stdout(&output).contains(part), "{}", stdout(&output));
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
    };
    let busy = json!({"error": {"message": "one at a time", "code": "trace_busy"}});
    check(Reply::json(409, &busy), 5, "trace_busy", "one at a time");
    let slow = format!("{HEADER}\n{{\"error\":\"not read in time\"}}\n");
    check(lines(&slow), 1, "trace_failed", "not read in time");
    check(lines(HEADER), 1, "trace_failed", "the server ended before the trace did");
}

#[test]
fn a_whole_recording_takes_the_files_place() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("run")).unwrap();
    let text = format!("{HEADER}\n{{\"t\":5,\"stop\":\"full\"}}\n");
    let _server = Server::on_socket(&home.path().join("run/admin.sock"), lines(&text));
    let file = home.path().join("a.trace");
    let output = ringfence(home.path(), &["trace", "record", file.to_str().unwrap(), "--seconds", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("has 2 lines; it ended early: a trace holds no more"));
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn without_a_server_nothing_is_written() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("a.trace");
    let output = ringfence(home.path(), &["trace", "record", file.to_str().unwrap(), "--seconds", "1"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(!Path::new(&file).exists() && fs::read_dir(home.path()).unwrap().count() == 0);
}

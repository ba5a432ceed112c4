//! The executable: help, exit codes, what goes where.

use crate::server::{Reply, Server};
use clap::{CommandFactory, Parser};
use ringfence_cli::args::Cli;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn ringfence(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringfence")).arg("--home").arg(home).args(arguments).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// The commands below `command`, itself included.
fn all(command: &clap::Command) -> Vec<clap::Command> {
    let below = command.get_subcommands().filter(|below| below.get_name() != "help").flat_map(all);
    std::iter::once(command.clone()).chain(below).collect()
}

#[test]
fn every_command_shows_examples_that_are_legal() {
    let mut root = Cli::command();
    root.build();
    for command in all(&root) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let name = command.get_bin_name().unwrap_or("ringfence").to_owned();
        let examples: Vec<&str> =
            help.lines().map(str::trim).filter(|line| line.starts_with("ringfence ")).collect();
        assert!(!examples.is_empty(), "`{name} --help` shows no example");
        for example in examples {
            assert!(example.starts_with(&name), "`{name} --help` shows `{example}`");
            Cli::try_parse_from(words(example.split(['|', '>', '<']).next().unwrap()))
                .unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
}

/// As a shell takes them apart, where quotes stand around whole words.
fn words(line: &str) -> Vec<&str> {
    let parts = line.split('\'').enumerate();
    parts
        .flat_map(|(at, part)| if at % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
        .collect()
}

#[test]
fn every_option_says_what_it_is_for() {
    let mut root = Cli::command();
    root.build();
    for command in all(&root) {
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{}: {}", command.get_name(), argument.get_id());
        }
    }
}

#[test]
fn usage_errors_end_with_2() {
    let home = tempfile::tempdir().unwrap();
    let check = |arguments: &[&str]| {
        let output = ringfence(home.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty() && !stderr(&output).is_empty(), "{arguments:?}");
    };
    check(&[]);
    check(&["frobnicate"]);
    check(&["status", "--frobnicate"]);
    check(&["client", "add"]);
    check(&["client", "add", "../x"]);
    check(&["client", "remove"]);
    check(&["client", "remove", "../x"]);
    check(&["key", "add", "notes", "--expires-in", "soon"]);
    check(&["key", "add", "notes", "--scope", "everything"]);
    check(&["key", "revoke", "../clients"]);
    check(&["quota", "set"]);
    check(&["quota", "set", "queues.total"]);
    check(&["quota", "set", "total=5"]);
    check(&["trace", "record", "a.trace"]);
    check(&["trace", "record", "a.trace", "--seconds", "3601"]);
    check(&["trace", "replay", "a.trace"]);
    check(&["serve", "--listen", "localhost"]);
    check(&["bench", "embed", "--connections", "0"]);
    check(&["bench", "embed", "--batch", "0"]);
    check(&["bench", "embed", "--rate", "nan"]);
    check(&["bench", "embed", "--url", "http://127.0.0.1:1"]);
    check(&["bench", "embed", "--requests", "5", "--duration", "5s"]);
    check(&["bench", "chat", "--clients", "0"]);
    check(&["bench", "chat", "--max-tokens", "0"]);
    check(&["run"]);
    check(&["run", "m", "a", "--temperature", "2.1"]);
    check(&["run", "m", "a", "--raw", "--system", "b"]);
    check(&["chat"]);
    check(&["summarize"]);
    check(&["summarize", "a", "--minutes", "0"]);
    check(&["audit"]);
    check(&["audit", "show"]);
    check(&["audit", "show", "7", "--client", "notes"]);
    check(&["audit", "prune", "--keep-days", "0"]);
    check(&["top"]);
    check(&["top", "--once", "--interval", "0"]);
    check(&["stress"]);
    check(&["stress", "everything"]);
    check(&["stress", "--all", "flood"]);
    check(&["stress", "flood", "--chart", "chart.jpg"]);
}

#[test]
fn a_usage_error_is_json_on_standard_output_where_json_was_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let output = ringfence(home.path(), &["--json", "frobnicate"]);
    let body: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &body["error"]["code"]), (Some(2), &json!("usage")));
    assert!(stderr(&output).is_empty());
}

#[test]
fn help_and_version_end_with_0() {
    let home = tempfile::tempdir().unwrap();
    for argument in ["--help", "--version"] {
        let output = ringfence(home.path(), &[argument]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).starts_with(if argument == "--help" {
            "Runs local models"
        } else {
            "ringfence 0."
        }));
    }
}

#[test]
fn without_a_server_a_command_ends_with_4_and_says_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let check = |arguments: &[&str]| {
        let output = ringfence(home.path(), arguments);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}");
        assert!(stderr(&output).contains("start the server: ringfence serve"), "{}", stderr(&output));
        assert!(stderr(&output).contains(home.path().to_str().unwrap()), "{}", stderr(&output));
        let output = ringfence(home.path(), &[arguments, &["--json"]].concat());
        let body: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(body["error"]["code"], "server_unreachable");
    };
    check(&["status"]);
    check(&["client", "add", "notes"]);
    check(&["client", "list"]);
    check(&["client", "remove", "notes"]);
    check(&["key", "add", "notes"]);
    check(&["key", "list"]);
    check(&["key", "revoke", "0a1b"]);
    check(&["quota", "set", "queues.total=5"]);
    check(&["bench", "embed", "--requests", "1"]);
    check(&["bench", "embed", "--client", "notes"]);
    check(&["top", "--once"]);
    check(&["stress", "flood"]);
    check(&["stress", "--grants"]);
}

#[test]
fn serving_without_the_servers_executable_says_where_it_was_looked_for() {
    let home = tempfile::tempdir().unwrap();
    let copy = home.path().join("ringfence");
    std::fs::copy(env!("CARGO_BIN_EXE_ringfence"), &copy).unwrap();
    let output = Command::new(&copy).arg("serve").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains(home.path().join("ringfence-server").to_str().unwrap()),
        "{}",
        stderr(&output)
    );
}

#[test]
fn serving_becomes_the_server_with_the_home_and_the_options() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_ringfence"), folder.path().join("ringfence")).unwrap();
    let server = folder.path().join("ringfence-server");
    std::fs::write(&server, "#!/bin/sh\necho $$ \"$@\"\n").unwrap();
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(&server, mode).unwrap();
    let child = Command::new(folder.path().join("ringfence"))
        .args(["--home", "/h", "serve", "--listen", "127.0.0.1:0", "--user", "nobody"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let expected = format!("{} --home /h --listen 127.0.0.1:0 --user nobody\n", child.id());
    assert_eq!(stdout(&child.wait_with_output().unwrap()), expected);
}

/// Runs a command against a server that answers `reply`; gives what was asked and the command's output.
fn asked(reply: Reply, arguments: &[&str]) -> (String, Value, Output) {
    let home = tempfile::tempdir().unwrap();
    let server = Server::on_socket(&home.path().join("run/admin.sock"), reply);
    let output = ringfence(home.path(), arguments);
    let asked = server.asked().remove(0);
    (asked.line, asked.body, output)
}

#[test]
fn a_client_is_added_by_name_and_uid() {
    let reply = Reply::json(201, &json!({"name": "notes", "socket": "/h/clients/notes/api.sock"}));
    let (line, body, output) = asked(reply, &["client", "add", "notes", "--uid", "1001"]);
    assert_eq!((line.as_str(), body), ("POST /clients", json!({"name": "notes", "uid": 1001})));
    assert_eq!(stdout(&output), "client notes has the socket /h/clients/notes/api.sock\n");
}

#[test]
fn a_client_is_removed_by_name_and_the_answer_says_what_went_with_it() {
    let reply = Reply::json(200, &json!({"name": "notes", "keys_revoked": 2, "grants_ended": 1}));
    let (line, _, output) = asked(reply, &["client", "remove", "notes"]);
    assert_eq!(line, "DELETE /clients/notes");
    let expected = "client notes is removed; 2 of its keys are revoked, 1 of its grants ended\n";
    assert_eq!(stdout(&output), expected);
}

#[test]
fn a_key_stands_alone_on_standard_output() {
    let reply =
        Reply::json(201, &json!({"id": "0a1b", "key": "rf_secret", "client": "notes", "scope": "metrics"}));
    let (line, body, output) =
        asked(reply, &["key", "add", "notes", "--scope", "metrics", "--expires-in", "30d"]);
    assert_eq!(line, "POST /keys");
    assert_eq!(body, json!({"client": "notes", "scope": "metrics", "expires_in_s": 2_592_000}));
    assert_eq!(stdout(&output), "rf_secret\n");
    assert!(stderr(&output).contains("ringfence key revoke 0a1b"), "{}", stderr(&output));
}

#[test]
fn keys_are_listed_with_dates() {
    let key = json!({"id": "0a1b", "client": "notes", "scope": "infer", "created_at": 0, "expires_at": null, "revoked": true});
    let (line, _, output) = asked(Reply::json(200, &json!({"keys": [key]})), &["key", "list"]);
    assert_eq!(line, "GET /keys");
    let expected = "\
ID    CLIENT  SCOPE  CREATED               EXPIRES  REVOKED
0a1b  notes   infer  1970-01-01 00:00:00Z  -        true
";
    assert_eq!(stdout(&output), expected);
}

#[test]
fn a_key_is_revoked_by_id() {
    let reply = Reply { body: Vec::new(), ..Reply::json(204, &json!({})) };
    let (line, _, output) = asked(reply, &["key", "revoke", "0a1b", "--json"]);
    assert_eq!(line, "DELETE /keys/0a1b");
    let body: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(body, json!({"id": "0a1b", "revoked": true}));
}

#[test]
fn what_the_server_refuses_ends_with_5_and_its_own_words() {
    let body = json!({"error": {"message": "client \"notes\" exists already", "code": "client_exists"}});
    let (_, _, output) = asked(Reply::json(409, &body), &["client", "add", "notes"]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(
        stderr(&output),
        "ringfence: the server refused POST /clients (409): client \"notes\" exists already\n"
    );
    let (_, _, output) = asked(Reply::json(409, &body), &["client", "add", "notes", "--json"]);
    let body: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &body["error"]["code"]), (Some(5), &json!("client_exists")));
}

#[test]
fn the_status_is_the_servers_own_json_where_json_was_asked_for() {
    let status = json!({"version": "0.1.0", "pid": 7, "new": {"field": 1}});
    let (line, _, output) = asked(Reply::json(200, &status), &["status", "--json"]);
    assert_eq!(line, "GET /status");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), status);
}

/// The answer of `GET /status` and of `GET /usage` in one.
fn status_and_usage() -> Value {
    json!({
        "run_id": "a", "health": {"status": "ok"}, "models": [{"name": "minilm", "state": "ready"}],
        "clients": [{"client": "notes", "weight": 2, "waiting": 1, "device_us": 7}], "refusals": {"rate_jobs": 4}})
}

#[test]
fn top_prints_one_plain_page_where_no_terminal_is() {
    let home = tempfile::tempdir().unwrap();
    let server =
        Server::on_socket(&home.path().join("run/admin.sock"), Reply::json(200, &status_and_usage()));
    let output = ringfence(home.path(), &["top", "--once", "--interval", "0.2"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let page = stdout(&output);
    for expected in ["health ok", "minilm  ready", "rate_jobs       4         0.0", "notes "] {
        assert!(page.contains(expected), "{expected:?} is not in\n{page}");
    }
    assert!(!page.contains('\u{1b}'));
    let asked: Vec<String> = server.asked().into_iter().map(|asked| asked.line).collect();
    assert_eq!(asked, ["GET /status", "GET /usage", "GET /status", "GET /usage"]);
}

#[test]
fn top_gives_its_data_as_json() {
    let home = tempfile::tempdir().unwrap();
    let _server =
        Server::on_socket(&home.path().join("run/admin.sock"), Reply::json(200, &status_and_usage()));
    let output = ringfence(home.path(), &["top", "--once", "--interval", "0.2", "--json"]);
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&view["clients"][0]["entitled"], &view["refusals"][0]["count"]), (&json!(1.0), &json!(4)));
    let output = ringfence(home.path(), &["top", "--json"]);
    let body: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &body["error"]["code"]), (Some(2), &json!("usage")));
}

#[test]
fn a_bench_reports_what_it_measured() {
    let home = tempfile::tempdir().unwrap();
    let body = json!({"data": [{"embedding": ""}, {"embedding": ""}], "usage": {"prompt_tokens": 32}});
    let reply = Reply::json(200, &body)
        .header("server-timing", "total;dur=5.250, queue;dur=0.040, worker;dur=5.000, compute;dur=4.900");
    let server = Server::on_socket(&home.path().join("run/api.sock"), reply);
    let options =
        ["--requests", "20", "--connections", "1,3", "--tokens", "16", "--batch", "2", "--warm-up", "5"];
    let output = ringfence(home.path(), &[["bench", "embed", "--json"].as_slice(), &options].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["tokens_per_input"], 16.0);
    for (run, connections) in report["runs"].as_array().unwrap().iter().zip([1, 3]) {
        assert_eq!((&run["connections"], &run["answered"]), (&json!(connections), &json!(20)));
        assert_eq!(run["overhead_ms"]["total_minus_worker"]["p50"], 0.25);
        // Histograms hold three digits and report a bucket's upper end.
        assert!((4.9..4.91).contains(&run["server_ms"]["compute"]["max"].as_f64().unwrap()), "{run}");
    }
    // One to try out, and for both runs the warm-up.
    assert_eq!(server.asked().len(), 1 + 2 * (5 + 20));
    let sent = &server.asked()[0].body;
    assert_eq!((sent["input"].as_array().unwrap().len(), &sent["model"]), (2, &json!("minilm")));
}

#[test]
fn a_bench_does_not_measure_answers_that_are_not_embeddings() {
    let home = tempfile::tempdir().unwrap();
    let reply = Reply::json(200, &json!({"data": [{"embedding": ""}], "usage": {"prompt_tokens": 32}}));
    let server = Server::on_socket(&home.path().join("run/api.sock"), reply);
    let output = ringfence(home.path(), &["bench", "embed", "--batch", "2"]);
    assert_eq!((output.status.code(), server.asked().len()), (Some(1), 1), "{}", stderr(&output));
}

#[test]
fn a_bench_that_only_measured_refusals_fails_with_their_codes() {
    let home = tempfile::tempdir().unwrap();
    let body = json!({"data": [{"embedding": ""}], "usage": {"prompt_tokens": 16}});
    let refusal = Reply::json(429, &json!({"error": {"code": "queue_full", "message": "full"}}));
    let _server = Server::on_socket(&home.path().join("run/api.sock"), Reply::json(200, &body).then(refusal));
    let options = ["--batch", "1", "--requests", "5", "--connections", "1", "--json"];
    let output = ringfence(home.path(), &[["bench", "embed"].as_slice(), &options].concat());
    assert_eq!(output.status.code(), Some(1));
    let body: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(body["error"]["code"], "nothing_answered");
    assert_eq!(body["error"]["message"], "minilm: no request was answered: 5 queue_full");
}

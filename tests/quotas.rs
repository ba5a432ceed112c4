//! `quotas.toml` of a running server: changed whole while jobs run, or not at all; kept over restarts and power cuts.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use ringfence_models::Profile;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use support::{Answer, Home, Server, Target};

fn embed(target: &Target) -> Answer {
    target.embed(&json!({ "model": "tiny-bert", "input": "hello" }))
}

fn put(server: &Server, text: &str) -> Answer {
    server.admin().send("PUT", "/quotas", &[("content-type", "application/toml")], text.as_bytes())
}

fn file(home: &Home) -> PathBuf {
    home.path().join("quotas.toml")
}

fn shown(server: &Server) -> Value {
    server.admin().get("/quotas").ok()
}

fn effective(server: &Server, field: &str) -> Value {
    let shown = shown(server);
    let values = shown["effective"].as_array().unwrap();
    values.iter().find(|value| value["field"] == field).map_or(Value::Null, |value| value["value"].clone())
}

fn lease_mib(server: &Server) -> u64 {
    server.status()["workers"][0]["lease_bytes"].as_u64().unwrap_or(0) >> 20
}

#[test]
fn a_new_home_has_the_documented_file_and_the_server_may_write_it() {
    let home = Home::with_tiny();
    let text = fs::read_to_string(file(&home)).unwrap();
    assert!(text.contains("#[clients.default]") && text.contains("#weight = 1"), "{text}");
    let (found, run) = (fs::metadata(file(&home)).unwrap(), fs::metadata(home.path().join("run")).unwrap());
    assert_eq!((found.uid(), found.permissions().mode() & 0o777), (run.uid(), 0o644));
    let server = home.start();
    let shown = shown(&server);
    assert_eq!((&shown["text"], &shown["revision"]), (&json!(text), &shown["applied"]));
    assert_eq!(shown["revision"].as_str().unwrap().len(), 16);
}

#[test]
fn a_change_while_jobs_run_is_what_the_next_jobs_get_and_survives_a_restart() {
    let home = Home::with_tiny();
    let server = home.start();
    embed(&server.api()).ok();
    assert_ne!(lease_mib(&server), 300);
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (api, over, answered) = (server.api(), &over, &answered);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    embed(&api).ok();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let said =
            home.cli_ok(&["quota", "set", "models.tiny-bert.lease_mib=300", "models.tiny-bert.queue=9"]);
        assert!(said.contains("models.tiny-bert.lease_mib") && said.contains("300"), "{said}");
        server.await_status("a worker with the new lease", |status| {
            let workers = status["workers"].as_array().unwrap();
            workers.iter().any(|worker| worker["lease_bytes"] == 300 << 20 && worker["state"] == "ready")
        });
        let before = answered.load(Ordering::Relaxed);
        while answered.load(Ordering::Relaxed) < before + 20 {
            std::thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
    });
    let text = fs::read_to_string(file(&home)).unwrap();
    assert!(
        text.starts_with("# What devices")
            && text.ends_with("[models.tiny-bert]\nlease_mib = 300\nqueue = 9\n")
    );
    assert!(server.stop().success());
    let server = home.start();
    embed(&server.api()).ok();
    assert_eq!((lease_mib(&server), effective(&server, "models.tiny-bert.queue")), (300, json!(9)));
    // The step is told to a worker when it starts: another one runs from now on.
    let pid = server.worker_pid();
    let changes = put(&server, "[models.tiny-bert]\nlease_mib = 300\nqueue = 9\nstep_tokens = 64\n").ok();
    let change = json!([{ "field": "models.tiny-bert.step_tokens", "from": 512, "to": 64 }]);
    assert_eq!(changes["changes"], change);
    embed(&server.api()).ok();
    assert_ne!(server.worker_pid(), pid);
}

#[test]
fn a_wrong_file_changes_nothing_and_says_where_it_is_wrong() {
    let home = Home::with_tiny();
    home.quotas("[queues]\ntotal = 77\n");
    let server = home.start();
    let before = shown(&server);
    let check = |text: &[u8], headers: &[(&str, &str)], status: u16, code: &str, part: &str| {
        let answer = server.admin().send("PUT", "/quotas", headers, text);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.json());
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(part), "{message}");
        assert_eq!(shown(&server), before);
        assert_eq!(fs::read_to_string(file(&home)).unwrap(), "[queues]\ntotal = 77\n");
    };
    let expected = "line 4: clients.notes.weight is 0; it must be from 1 to 1000";
    check(b"[queues]\ntotal = 5\n[clients.notes]\nweight = 0\n", &[], 400, "quota_invalid", expected);
    check(b"[queues]\ntotal\n", &[], 400, "quota_invalid", "line 2");
    check(b"[queues]\n\xff", &[], 400, "quota_invalid", "line 2: the file is not UTF-8");
    check(b"[devices.cpu]\nreserve_mib = 16777216\n", &[], 400, "quota_invalid", "devices.cpu.reserve_mib");
    check(&vec![b'#'; 300 * 1024], &[], 413, "body_too_large", "262144");
    check(b"[queues]\ntotal = 5\n", &[("if-match", "\"0123456789abcdef\"")], 412, "quota_changed", "");
    let answer = put(&server, "[queues]\ntotal = 0\n").json();
    assert_eq!(answer["error"]["param"], "queues.total");
    // The same change, made from what is there, is taken.
    let revision = before["revision"].as_str().unwrap();
    let good =
        server.admin().send("PUT", "/quotas", &[("if-match", revision)], b"[queues]\ntotal = 5\n").ok();
    assert_eq!(good["changes"], json!([{ "field": "queues.total", "from": 77, "to": 5 }]));
    assert_eq!(
        (&shown(&server)["applied"], effective(&server, "queues.total")),
        (&good["revision"], json!(5))
    );
    assert_eq!(server.api().send("PUT", "/quotas", &[], b"").code(), "admin_only");
}

#[test]
fn a_change_that_was_cut_off_is_finished_by_the_next_start() {
    let home = Home::with_tiny();
    let next = home.path().join("run/quotas.next");
    home.quotas("[queues]\ntotal = 55\nper_cl");
    fs::write(&next, "[queues]\ntotal = 55\nper_client = 44\n").unwrap();
    let server = home.start();
    assert_eq!(effective(&server, "queues.per_client"), json!(44));
    assert_eq!(fs::read_to_string(file(&home)).unwrap(), "[queues]\ntotal = 55\nper_client = 44\n");
    assert!(!next.exists());
    put(&server, "[queues]\ntotal = 66\n").ok();
    assert!(!next.exists());
    drop(server);
    home.quotas("[queues]\ntotal = 0\n");
    let log = home.try_start().err().expect("a wrong file stops the start");
    assert!(log.contains("quotas.toml: line 2: queues.total is 0"), "{log}");
}

#[test]
fn a_file_that_can_not_be_written_leaves_everything_as_it_is() {
    let home = Home::with_tiny();
    let server = home.start();
    fs::remove_file(file(&home)).unwrap();
    let answer = put(&server, "[queues]\ntotal = 5\n");
    assert_eq!((answer.status, answer.code().as_str()), (500, "quota_not_saved"));
    assert_eq!(effective(&server, "queues.total"), json!(4_096));
    assert!(!file(&home).exists() && !home.path().join("run/quotas.next").exists());
    // What the operator writes by hand is shown, and counts when it is applied.
    let user = fs::metadata(home.path().join("run")).unwrap();
    home.quotas("[queues]\ntotal = 6\n");
    std::os::unix::fs::chown(file(&home), Some(user.uid()), Some(user.gid())).unwrap();
    let by_hand = shown(&server);
    assert_eq!(by_hand["text"], "[queues]\ntotal = 6\n");
    assert_ne!(by_hand["revision"], by_hand["applied"]);
    let path = file(&home);
    home.cli_ok(&["quota", "apply", path.to_str().unwrap()]);
    assert_eq!(effective(&server, "queues.total"), json!(6));
}

#[test]
fn a_model_that_a_client_may_not_use_does_not_exist_for_it() {
    let home = Home::with_tiny();
    home.add_tiny("second");
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let (api, notes) = (server.api(), server.client("notes"));
    let names = |target: &Target| {
        let models = target.get("/v1/models").ok();
        models["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect::<Vec<_>>()
    };
    embed(&notes).ok();
    assert_eq!(names(&notes), ["second", "tiny-bert"]);
    home.cli_ok(&["quota", "set", "clients.notes.models=[\"sec*\"]"]);
    let refused = embed(&notes);
    assert_eq!((refused.status, refused.code().as_str()), (404, "model_unknown"));
    assert_eq!(notes.get("/v1/models/tiny-bert").code(), "model_unknown");
    assert_eq!(names(&notes), ["second"]);
    notes.embed(&json!({ "model": "second", "input": "a" })).ok();
    embed(&api).ok();
    assert_eq!(names(&api), ["second", "tiny-bert"]);
    // A section replaces `default` whole; the common socket's clients are named by uid.
    let uid = rustix::process::getuid().as_raw();
    put(&server, &format!("[clients.default]\nmodels = []\n[clients.\"uid:{uid}\"]\n")).ok();
    embed(&api).ok();
    assert_eq!(names(&notes), [""; 0]);
    assert_eq!(embed(&notes).code(), "model_unknown");
}

#[test]
fn deadlines_come_in_header_or_body_and_are_cut_to_what_a_client_may_have() {
    let home = Home::with_tiny();
    let server = home.start();
    embed(&server.api()).ok();
    let ask = |header: Option<&str>, body: Option<u64>| {
        let mut request = json!({ "model": "tiny-bert", "input": "hello" });
        if let Some(body) = body {
            request["ringfence_deadline_ms"] = body.into();
        }
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(header.map(|value| ("ringfence-deadline", value)));
        server.api().send("POST", "/v1/embeddings", &headers, request.to_string().as_bytes())
    };
    assert_eq!(ask(None, Some(60_000)).status, 200);
    let wrong = ask(None, Some(0));
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "deadline_invalid"));
    assert_eq!(wrong.json()["error"]["param"], "ringfence_deadline_ms");
    assert_eq!(ask(Some("0"), Some(60_000)).code(), "deadline_invalid");
    assert_eq!(ask(Some("60000"), Some(0)).status, 200, "the header wins");
    // A worker takes longer to load than this.
    put(&server, "[clients.default]\ndeadline_max_ms = 5\n").ok();
    for (header, body) in [(None, None), (Some("60000"), None), (None, Some(60_000))] {
        server.admin().post("/models/tiny-bert/unload", &json!({})).ok();
        server.await_status("no worker", |status| status["workers"] == json!([]));
        let late = ask(header, body);
        assert!(["deadline_passed", "deadline_unmeetable"].contains(&late.code().as_str()), "{late:?}");
    }
}

#[test]
fn a_lease_that_a_model_is_known_not_to_fit_in_is_refused_and_a_larger_one_lets_a_refused_model_in() {
    let home = Home::with_tiny();
    home.cli_ok(&["model", "calibrate", "tiny-bert"]);
    let profiles = fs::read_dir(home.path().join("profiles")).unwrap();
    let path = profiles.map(|entry| entry.unwrap().path()).next().unwrap();
    let mut profile = Profile::parse(&fs::read(&path).unwrap()).unwrap();
    profile.loaded.bytes = 8 << 20;
    fs::write(&path, profile.to_json()).unwrap();
    let server = home.start();
    embed(&server.api()).ok();
    let refused = put(&server, "[queues]\ntotal = 5\n[models.tiny-bert]\nlease_mib = 1\n");
    assert_eq!((refused.status, refused.code().as_str()), (400, "quota_invalid"));
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("tiny-bert") && message.contains("lease_too_small"), "{message}");
    assert_eq!(effective(&server, "queues.total"), json!(4_096));
    embed(&server.api()).ok();
    drop(server);
    home.quotas("[models.tiny-bert]\nlease_mib = 1\n");
    let server = home.start();
    assert_eq!(embed(&server.api()).code(), "package_refused");
    put(&server, "[models.tiny-bert]\nlease_mib = 300\n").ok();
    embed(&server.api()).ok();
    assert_eq!(lease_mib(&server), 300);
}

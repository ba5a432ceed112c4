//! What a change of a loaded package's files on the disk means: an alert, and by default no new jobs.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use support::{Answer, Home, Server};

const IGNORE: &str = "[models.default]\non_disk_change = \"ignore\"\n";

fn embed(server: &Server) -> Answer {
    server.api().embed(&json!({ "model": "tiny-bert", "input": "hello" }))
}

fn weights(home: &Home) -> PathBuf {
    home.path().join("models/tiny-bert/model.safetensors")
}

/// Flips a bit of the weights; the former bytes come back.
fn change_weights(home: &Home) -> Vec<u8> {
    let good = fs::read(weights(home)).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(weights(home), bad).unwrap();
    good
}

fn alert(status: &Value) -> &Value {
    &status["models"][0]["changed_on_disk"]
}

fn await_alert(server: &Server) -> Value {
    let status = server.await_status("the alert", |status| !alert(status).is_null());
    alert(&status).clone()
}

fn metrics(server: &Server) -> String {
    String::from_utf8(server.admin().get("/metrics").body).unwrap()
}

fn await_calm(server: &Server) {
    server.await_status("the alert's end", |status| alert(status).is_null());
}

#[test]
fn a_changed_file_is_named_new_jobs_are_refused_and_restoring_it_ends_that() {
    let home = Home::with_tiny();
    let server = home.start();
    let before = embed(&server).ok();
    let good = change_weights(&home);
    let alert = await_alert(&server);
    assert_eq!(alert["file"], "model.safetensors", "{alert}");
    assert_eq!((alert["running"].as_str().unwrap().len(), alert["found"].as_str().unwrap().len()), (64, 64));
    assert_ne!(alert["running"], alert["found"]);
    assert!(alert["since"].as_u64().unwrap() > 1_700_000_000);
    let refused = embed(&server);
    assert_eq!((refused.status, refused.code().as_str()), (503, "model_changed_on_disk"));
    assert!(server.log().contains("model changed on disk"), "{}", server.log());
    let said = home.cli_ok(&["status"]);
    assert!(said.contains("tiny-bert: changed on disk: model.safetensors is not what was signed"), "{said}");
    let counted = metrics(&server);
    assert!(counted.contains("ringfence_package_changes_total{model=\"tiny-bert\"} 1"), "{counted}");
    fs::write(weights(&home), good).unwrap();
    await_calm(&server);
    assert_eq!(embed(&server).ok()["data"], before["data"]);
}

#[test]
fn where_it_is_ignored_the_verified_bytes_go_on_answering_even_from_a_new_worker() {
    let home = Home::with_tiny();
    home.quotas(IGNORE);
    let server = home.start();
    let before = embed(&server).ok();
    change_weights(&home);
    await_alert(&server);
    assert_eq!(embed(&server).ok()["data"], before["data"]);
    let pid = server.worker_pid();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    server.await_status("the worker's end", |status| {
        status["workers"].as_array().unwrap().iter().all(|worker| worker["pid"] != pid)
    });
    assert_eq!(embed(&server).ok()["data"], before["data"], "a respawn takes the held bytes");
}

#[test]
fn the_same_bytes_written_again_are_no_change() {
    let home = Home::with_tiny();
    let server = home.start();
    embed(&server).ok();
    let good = fs::read(weights(&home)).unwrap();
    fs::remove_file(weights(&home)).unwrap();
    fs::write(weights(&home), &good).unwrap();
    let config = home.path().join("models/tiny-bert/config.json");
    let text = fs::read(&config).unwrap();
    fs::write(&config, &text).unwrap();
    // What comes after it is seen, so this was looked at and found to be the same.
    fs::write(home.path().join("models/tiny-bert/planted"), "x").unwrap();
    let alert = await_alert(&server);
    assert!(alert["reason"].as_str().unwrap().contains("planted"), "{alert}");
    fs::remove_file(home.path().join("models/tiny-bert/planted")).unwrap();
    await_calm(&server);
    let changes = metrics(&server);
    assert!(changes.contains("ringfence_package_changes_total{model=\"tiny-bert\"} 1"), "{changes}");
    embed(&server).ok();
}

#[test]
fn a_missing_package_is_a_change_and_one_that_was_replaced_is_taken_by_a_reload() {
    let home = Home::with_tiny();
    let server = home.start();
    embed(&server).ok();
    let folder = home.path().join("models/tiny-bert");
    fs::rename(&folder, home.path().join("models/.aside")).unwrap();
    assert_eq!(await_alert(&server)["reason"], "it is no longer there");
    assert_eq!(embed(&server).code(), "model_changed_on_disk");
    fs::rename(home.path().join("models/.aside"), &folder).unwrap();
    await_calm(&server);
    // The operator vouches for other weights: the command tells the server.
    change_weights(&home);
    await_alert(&server);
    home.cli_ok(&["model", "sign", "tiny-bert"]);
    assert!(alert(&server.status()).is_null(), "it is another model now");
    embed(&server).ok();
}

#[test]
fn an_unloaded_model_has_no_alert() {
    let home = Home::with_tiny();
    let server = home.start();
    embed(&server).ok();
    change_weights(&home);
    await_alert(&server);
    server.admin().post("/models/tiny-bert/unload", &json!({})).ok();
    await_calm(&server);
    let refused = embed(&server);
    assert_ne!(refused.status, 200, "its files are verified when it is loaded");
}

//! Live sound against a real server, as far as no weights are needed: who is asked what, and what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

#[path = "support/sound.rs"]
mod sound;
mod support;

use serde_json::{Value, json};
use sound::{Listening, granted, question};
use support::{Home, Server};

const MODEL: &str = "tiny-bert";

fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

fn pushed() -> Value {
    json!({"encoding": "s16le", "rate": 16_000, "channels": 1, "pace": "real_time", "framing": "websocket"})
}

#[track_caller]
fn refused(server: &Server, body: &Value, expected: (u16, &str)) {
    match Listening::start(&server.api(), body) {
        Ok(_) => panic!("{body} was not refused"),
        Err(answer) => {
            assert_eq!((answer.status, answer.code().as_str()), expected, "{body}: {}", answer.text())
        }
    }
}

#[test]
fn a_question_about_sound_says_from_where_and_until_when_and_opens_nothing() {
    let mut home = Home::with_tiny();
    home.set_options(&["--pulse-server=/nowhere/pulse.sock"]);
    let server = home.start();
    for (body, code) in [
        (with(question("pulse", MODEL, 60_000), "path", "microphone"), "source_invalid"),
        (with(question("pulse", MODEL, 60_000), "path", "pulse:a\nb"), "source_invalid"),
        (with(question("pulse", MODEL, 60_000), "bytes_max", 5), "grant_invalid"),
        (with(question("pulse", MODEL, 60_000), "snapshot", true), "grant_invalid"),
        (question("pulse", MODEL, 15 * 60_000 + 1), "grant_invalid"),
        (with(question("pulse", MODEL, 60_000), "model", Value::Null), "grant_invalid"),
    ] {
        let answer = server.api().post("/grants", &body);
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{body}");
    }
    // Neither is there such a sound server, nor does anybody look for it yet.
    let asked = server.api().post("/grants", &question("pulse:fakemic.monitor", MODEL, 300_000)).ok();
    assert_eq!(
        (&asked["state"], &asked["kind"], &asked["object"]),
        (&"pending".into(), &"audio_capture".into(), &Value::Null)
    );
    let grant = asked["grant"].to_string();
    let page = home.cli_ok(&["grant", "show", &grant]);
    assert!(page.contains("pulse:fakemic.monitor") && page.contains("5 min after approval"), "{page}");
    home.cli_ok(&["grant", "approve", &grant, "--minutes", "1"]);
    let claimed = server.api().post(&format!("/grants/{grant}/claim"), &json!({})).ok();
    let capability = claimed["capability"].as_str().unwrap();
    let start = json!({"capability": capability, "model": MODEL});
    refused(&server, &start, (503, "audio_server_gone"));
    let answer = Listening::start(&server.api(), &start).err().unwrap();
    assert!(answer.text().contains("start PulseAudio or PipeWire"), "{}", answer.text());
    // A file can't be read with it, and the other way round sound is not captured with a file's.
    let file = json!({"model": MODEL, "input": {"grant": capability, "path": ""}});
    assert_eq!(server.api().embed(&file).code(), "grant_out_of_scope");
}

#[test]
fn what_is_not_granted_is_not_captured_and_each_refusal_has_its_code() {
    let home = Home::with_tiny();
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let (grant, capability) =
        granted(&home, &server, &with(question("pushed", MODEL, 60_000), "uses_max", 2));
    let start = |capability: &str| json!({"capability": capability, "model": MODEL, "pushed": pushed()});
    let good = start(&capability);
    for (body, expected) in [
        (start("rfg_"), (401, "capability_malformed")),
        (start(&forged(&capability)), (401, "capability_unknown")),
        (with(good.clone(), "model", "other"), (403, "capability_wrong_audience")),
        (with(good.clone(), "transforms", json!([{"high_pass": {"hz": 5}}])), (400, "transforms_invalid")),
        (with(good.clone(), "transforms", json!(["louder"])), (400, "invalid_request")),
        (with(good.clone(), "silence_ms", 99_999_999), (400, "option_invalid")),
        (with(good.clone(), "language", "German!"), (400, "option_invalid")),
        (with(good.clone(), "pushed", with(pushed(), "rate", 16_001)), (400, "audio_bad_format")),
        (with(good.clone(), "pushed", with(pushed(), "channels", 9)), (400, "audio_bad_format")),
        (with(good.clone(), "pushed", with(pushed(), "encoding", "mp3")), (400, "invalid_request")),
        (with(good.clone(), "file", "x"), (400, "invalid_request")),
    ] {
        refused(&server, &body, expected);
    }
    let of_another = Listening::start(&server.client("notes"), &good).err().unwrap();
    assert_eq!((of_another.status, of_another.code().as_str()), (403, "capability_wrong_holder"));
    // A program is started for each of these, whose sandbox was proven; then it turns out that nothing can hear.
    refused(&server, &with(good.clone(), "pushed", Value::Null), (400, "pushed_invalid"));
    refused(&server, &good, (503, "detector_missing"));
    refused(&server, &good, (403, "grant_used_up"));
    server.api().send("DELETE", &format!("/grants/{grant}"), &[], b"").ok();
    refused(&server, &good, (403, "grant_revoked"));
    assert_eq!(server.api().get("/audio/captures").ok()["captures"], json!([]));
    for order in ["pause", "resume", "stop"] {
        let answer = server.api().post(&format!("/audio/captures/1/{order}"), &json!({}));
        assert_eq!((answer.status, answer.code().as_str()), (404, "capture_unknown"), "{order}");
    }
    assert_eq!(server.api().get("/audio/captures/1/push").code(), "capture_unknown");
    assert_eq!(server.status()["captures"], json!([]));
}

/// The same with another secret.
fn forged(capability: &str) -> String {
    let at = capability.len() - 5;
    let other = if capability.as_bytes()[at] == b'A' { "B" } else { "A" };
    format!("{}{other}{}", &capability[..at], &capability[at + 1..])
}

#[test]
fn rules_allow_a_source_beforehand() {
    let home = Home::with_tiny();
    let rule = "[[rule]]\nclient = \"*\"\nkind = \"audio_capture\"\ndecision = \"allow\"\nsource = \"pushed\"\nuntil = 2100-01-01\n";
    std::fs::write(home.path().join("grants.toml"), rule).unwrap();
    let server = home.start();
    let state =
        |source: &str| server.api().post("/grants", &question(source, MODEL, 60_000)).ok()["state"].clone();
    assert_eq!((state("pushed"), state("pulse")), ("live".into(), "pending".into()));
}

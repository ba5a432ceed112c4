//! The server as its clients and its operator see it: routes, identity, answers and typed errors, with a real worker.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::io::Write;
use support::{Home, Server, Target, read_answer};

fn embedding(answer: &Value, index: usize) -> Vec<f64> {
    let numbers = answer["data"][index]["embedding"].as_array().expect("an embedding");
    numbers.iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn embed(target: &Target, input: Value) -> Value {
    target.embed(&json!({ "model": "tiny-bert", "input": input })).ok()
}

#[test]
fn embeddings_equal_the_numbers_of_the_reference_implementation() {
    let home = Home::with_tiny();
    let server = home.start();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-bert.expected.json");
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = expected.as_array().expect("the file is a list of cases");
    assert!(cases.len() >= 10);
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let answer = server.api().embed(&json!({ "model": "tiny-bert", "input": texts, "truncate": true })).ok();
    for (index, case) in cases.iter().enumerate() {
        let wanted: Vec<f64> =
            case["embedding"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect();
        let got = embedding(&answer, index);
        assert_eq!(got.len(), wanted.len());
        let cosine = cosine(&got, &wanted);
        assert!(cosine > 0.9999, "{index}: {cosine}");
    }
}

#[test]
fn every_form_of_input_gives_the_same_embedding_and_base64_equals_numbers() {
    use base64::Engine;
    let home = Home::with_tiny();
    let server = home.start();
    let api = server.api();
    let one = embedding(&embed(&api, json!("hello")), 0);
    let many = embed(&api, json!(["z", "hello"]));
    assert!(cosine(&one, &embedding(&many, 1)) > 0.999_999);
    assert_eq!(many["data"][1]["index"], 1);
    assert_eq!(many["usage"]["prompt_tokens"], many["usage"]["total_tokens"]);
    let body = json!({ "model": "tiny-bert", "input": "hello", "encoding_format": "base64" });
    let text = api.embed(&body).ok()["data"][0]["embedding"].as_str().unwrap().to_owned();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let decoded: Vec<f64> =
        bytes.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect();
    assert!(cosine(&one, &decoded) > 0.999_999);
    let tokens = embed(&api, json!([[5, 6, 7], [8]]));
    assert_eq!(tokens["data"].as_array().unwrap().len(), 2);
    let prefixed = api.post("/openai/v1/embeddings", &json!({ "model": "tiny-bert", "input": "hello" })).ok();
    assert!(cosine(&one, &embedding(&prefixed, 0)) > 0.999_999);
}

#[test]
fn a_long_text_is_refused_or_cut_as_the_client_says() {
    let home = Home::with_tiny();
    let server = home.start();
    let long = "a ".repeat(5_000);
    let refused = server.api().embed(&json!({ "model": "tiny-bert", "input": ["a", long] }));
    assert_eq!((refused.status, refused.code().as_str()), (400, "input_too_long"));
    let cut =
        server.api().embed(&json!({ "model": "tiny-bert", "input": ["a", long], "truncate": true })).ok();
    assert_eq!(cut["usage"]["truncated"], 1);
    assert_eq!(embed(&server.api(), json!("a"))["usage"].get("truncated"), None);
}

#[test]
fn wrong_bodies_get_their_own_codes_and_the_next_job_succeeds() {
    let home = Home::with_tiny();
    let server = home.start();
    let good = r#"{"model":"tiny-bert","input":"a"}"#;
    let long_model = format!(r#"{{"model":"{}","input":"a"}}"#, "m".repeat(5_000));
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("no JSON", b"hello".to_vec(), 400, "invalid_json"),
        ("half JSON", b"{\"model\":".to_vec(), 400, "invalid_json"),
        ("nothing", b"".to_vec(), 400, "invalid_json"),
        ("invalid UTF-8", b"{\"model\":\"tiny-bert\",\"input\":\"\xff\"}".to_vec(), 400, "invalid_utf8"),
        ("no model", br#"{"input":"a"}"#.to_vec(), 400, "invalid_request"),
        ("no input", br#"{"model":"tiny-bert"}"#.to_vec(), 400, "invalid_request"),
        ("a number", br#"{"model":"tiny-bert","input":1}"#.to_vec(), 400, "invalid_request"),
        ("mixed", br#"{"model":"tiny-bert","input":["a",1]}"#.to_vec(), 400, "invalid_request"),
        ("a list as body", b"[1]".to_vec(), 400, "invalid_request"),
        ("an empty text", br#"{"model":"tiny-bert","input":""}"#.to_vec(), 400, "input_empty"),
        ("an empty list", br#"{"model":"tiny-bert","input":[]}"#.to_vec(), 400, "input_empty"),
        (
            "an empty text in a list",
            br#"{"model":"tiny-bert","input":["a",""]}"#.to_vec(),
            400,
            "input_empty",
        ),
        ("an unknown token", br#"{"model":"tiny-bert","input":[99999999]}"#.to_vec(), 400, "token_unknown"),
        (
            "another width",
            br#"{"model":"tiny-bert","input":"a","dimensions":7}"#.to_vec(),
            400,
            "dimensions_unsupported",
        ),
        (
            "another format",
            br#"{"model":"tiny-bert","input":"a","encoding_format":"int8"}"#.to_vec(),
            400,
            "invalid_request",
        ),
        ("an unknown model", br#"{"model":"absent","input":"a"}"#.to_vec(), 404, "model_unknown"),
        ("a path as model", br#"{"model":"../tiny-bert","input":"a"}"#.to_vec(), 404, "model_unknown"),
        ("a long model", long_model.into_bytes(), 404, "model_unknown"),
        ("deep JSON", "[".repeat(100_000).into_bytes(), 400, "invalid_request"),
        ("10 MB", vec![b' '; 10_000_000], 413, "body_too_large"),
    ];
    let json_type = [("content-type", "application/json")];
    for (what, body, status, code) in cases {
        let answer = server.api().send("POST", "/v1/embeddings", &json_type, &body);
        let got = answer.code();
        let deep_is_also_no_json = what == "deep JSON" && got == "invalid_json";
        assert!(
            answer.status == status && (got == code || deep_is_also_no_json),
            "{what}: {} {got}",
            answer.status
        );
        let next = server.api().send("POST", "/v1/embeddings", &json_type, good.as_bytes());
        assert_eq!(next.status, 200, "after {what}");
    }
    let plain =
        server.api().send("POST", "/v1/embeddings", &[("content-type", "text/plain")], good.as_bytes());
    assert_eq!((plain.status, plain.code().as_str()), (415, "content_type_unsupported"));
    for deadline in ["0", "-1", "x", "999999999999"] {
        let headers = [("content-type", "application/json"), ("ringfence-deadline", deadline)];
        let answer = server.api().send("POST", "/v1/embeddings", &headers, good.as_bytes());
        assert_eq!((answer.status, answer.code().as_str()), (400, "deadline_invalid"), "{deadline}");
    }
}

#[test]
fn a_body_that_lies_about_its_length_or_is_chunked_too_long_is_refused() {
    let home = Home::with_tiny();
    let server = home.start();
    let mut stream = server.api().connect();
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: 99999999999\r\nconnection: close\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut stream).code(), "body_too_large");
    let mut stream = server.api().connect();
    write!(stream, "{head}transfer-encoding: chunked\r\nconnection: close\r\n\r\n").unwrap();
    let chunk = vec![b' '; 1 << 20];
    for _ in 0..8 {
        let sent = write!(stream, "{:x}\r\n", chunk.len())
            .and_then(|()| stream.write_all(&chunk))
            .and_then(|()| stream.write_all(b"\r\n"));
        if sent.is_err() {
            break;
        }
    }
    drop(stream.write_all(b"0\r\n\r\n"));
    assert_eq!(read_answer(&mut stream).code(), "body_too_large");
}

#[test]
fn who_may_have_what_is_decided_by_socket_key_and_header() {
    let home = Home::with_tiny();
    let server = home.start();
    home.cli_ok(&["client", "add", "notes"]);
    let notes_key = home.cli_ok(&["key", "add", "notes"]).trim().to_owned();
    let other_key = home.cli_ok(&["key", "add", "other"]).trim().to_owned();
    let metrics_key = home.cli_ok(&["key", "add", "ops", "--scope", "metrics"]).trim().to_owned();
    let bearer = |key: &str| format!("Bearer {key}");
    let check = |target: &Target, path: &str, headers: &[(&str, &str)], status: u16, code: &str| {
        let answer = target.send("GET", path, headers, b"");
        let got = if answer.status < 300 { String::new() } else { answer.code() };
        assert_eq!((answer.status, got.as_str()), (status, code), "{target:?} {path} {headers:?}");
    };
    let (api, notes, tcp, admin) = (server.api(), server.client("notes"), server.tcp(), server.admin());
    // Unix sockets know who is there; a key of ours must agree, any other value is ignored.
    check(&api, "/v1/models", &[], 200, "");
    check(&notes, "/v1/models", &[], 200, "");
    check(&notes, "/v1/models", &[("authorization", &bearer(&notes_key))], 200, "");
    check(&notes, "/v1/models", &[("authorization", &bearer(&other_key))], 403, "key_of_another_client");
    check(&notes, "/v1/models", &[("authorization", "Bearer sk-something")], 200, "");
    check(&notes, "/v1/models", &[("authorization", "Bearer rf_0_x")], 401, "key_invalid");
    check(&api, "/v1/models", &[("authorization", &bearer(&other_key))], 200, "");
    // TCP knows nobody without a key.
    check(&tcp, "/v1/models", &[], 401, "key_missing");
    check(&tcp, "/v1/models", &[("authorization", &bearer(&notes_key))], 200, "");
    check(&tcp, "/v1/models", &[("authorization", "Bearer sk-something")], 401, "key_invalid");
    check(&tcp, "/v1/models", &[("authorization", &bearer(&metrics_key))], 403, "key_scope");
    check(&tcp, "/health", &[], 200, "");
    check(&tcp, "/metrics", &[("authorization", &bearer(&metrics_key))], 200, "");
    check(&tcp, "/metrics", &[("authorization", &bearer(&notes_key))], 403, "key_scope");
    check(&tcp, "/metrics", &[], 401, "key_missing");
    // The operator's routes are the operator's.
    for path in ["/status", "/workers", "/models", "/clients", "/keys", "/quotas", "/metrics"] {
        check(&admin, path, &[], 200, "");
        check(&api, path, &[], 403, "admin_only");
        check(&notes, path, &[("authorization", &bearer(&notes_key))], 403, "admin_only");
    }
    check(&tcp, "/status", &[("authorization", &bearer(&notes_key))], 403, "admin_only");
    check(&admin, "/v1/models", &[], 403, "public_only");
    // Web pages get nothing, whatever name they made for 127.0.0.1.
    let authorization = bearer(&notes_key);
    let with = |name, value| [("authorization", authorization.as_str()), (name, value)];
    check(&tcp, "/v1/models", &with("host", "evil.example"), 403, "host_refused");
    check(&tcp, "/v1/models", &with("origin", "http://localhost"), 403, "origin_refused");
    check(&tcp, "/health", &[("host", "evil.example")], 403, "host_refused");
    check(&api, "/v1/models", &[("origin", "https://evil.example")], 403, "origin_refused");
    // A revoked key is a key no more.
    let id = notes_key.split('_').nth(1).unwrap().to_owned();
    home.cli_ok(&["key", "revoke", &id]);
    check(&tcp, "/v1/models", &[("authorization", &bearer(&notes_key))], 401, "key_invalid");
    check(&api, "/nowhere", &[], 404, "not_found");
    assert_eq!(server.api().send("DELETE", "/v1/models", &[], b"").status, 405);
}

#[test]
fn clients_and_keys_survive_a_restart() {
    let home = Home::with_tiny();
    let server = home.start();
    home.cli_ok(&["client", "add", "notes", "--uid", "65534"]);
    let key = home.cli_ok(&["key", "add", "notes"]).trim().to_owned();
    assert!(server.stop().success());
    let server = home.start();
    assert_eq!(server.client("notes").get("/v1/models").status, 200);
    let authorization = format!("Bearer {key}");
    assert_eq!(server.tcp().send("GET", "/v1/models", &[("authorization", &authorization)], b"").status, 200);
    let again = home.cli(&["client", "add", "notes"]);
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists"));
}

#[test]
fn status_names_the_lease_the_tier_and_every_layer_of_a_worker() {
    let home = Home::with_tiny();
    let server = home.start();
    embed(&server.api(), json!("a"));
    let status = server.status();
    let worker = &status["workers"][0];
    assert_eq!(worker["model"], "tiny-bert");
    assert_eq!(worker["tier"], "kernel");
    let layers = json!(["descriptors", "namespaces", "rlimits", "privileges", "landlock", "seccomp"]);
    assert_eq!(worker["layers"], layers);
    assert_eq!(status["sandbox"]["layers"], layers);
    assert!(status["sandbox"]["probes"].as_array().unwrap().len() >= 20);
    let lease = worker["lease_bytes"].as_u64().unwrap();
    assert!(lease > 256 << 20);
    let pid = worker["pid"].as_i64().unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let data = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    let hard: u64 = data.split_whitespace().nth(4).unwrap().parse().unwrap();
    assert!(hard >= lease && hard < lease + (128 << 20), "{data}");
    assert_eq!(status["devices"][0]["promised_bytes"].as_u64(), Some(lease));
    let text = String::from_utf8(server.admin().get("/metrics").body).unwrap();
    for name in
        ["ringfence_jobs_total", "ringfence_worker_lease_bytes", "ringfence_device_microseconds_total"]
    {
        assert!(text.contains(name), "{name} is missing in:\n{text}");
    }
    let document = server.tcp().get("/openapi.json").ok();
    assert!(document["paths"]["/v1/embeddings"]["post"].is_object());
}

#[test]
fn health_is_asked_without_a_key_loads_nothing_and_knows_when_the_server_drains() {
    let home = Home::with_tiny();
    let server = home.start();
    let health = server.tcp().get("/health").ok();
    assert_eq!((&health["status"], &health["loaded_models"]), (&json!("ok"), &json!(0)));
    assert_eq!(server.status()["workers"], json!([]));
    embed(&server.api(), json!("a"));
    let health = server.tcp().get("/health").ok();
    assert_eq!(health["loaded_models"], 1);
    assert!(health["oldest_answer_ms"].as_u64().unwrap() < 60_000);
    assert!(!health.to_string().contains("tiny"), "health names no models");
}

#[test]
fn an_answer_says_where_its_time_went_and_has_a_request_id() {
    let home = Home::with_tiny();
    let server = home.start();
    let answer = server.api().embed(&json!({ "model": "tiny-bert", "input": "a" }));
    let timing = answer.header("server-timing").expect("a Server-Timing header");
    for part in ["total;dur=", "queue;dur=", "worker;dur=", "compute;dur="] {
        assert!(timing.contains(part), "{timing}");
    }
    assert_eq!(answer.header("x-request-id").map(str::len), Some(16));
}

#[test]
fn many_clients_at_once_all_get_their_own_answers() {
    let home = Home::with_tiny();
    let server = home.start();
    let words = ["a", "hello", "zebra", "one two three", "x y z"];
    let alone: Vec<Vec<f64>> =
        words.iter().map(|word| embedding(&embed(&server.api(), json!(word)), 0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (api, alone) = (server.api(), &alone);
            scope.spawn(move || {
                for round in 0..10 {
                    let index = (thread + round) % words.len();
                    let got = embedding(&embed(&api, json!(words[index])), 0);
                    assert!(cosine(&got, &alone[index]) > 0.999_99, "thread {thread} round {round}");
                }
            });
        }
    });
}

#[test]
fn packages_that_are_refused_say_why_and_do_not_stop_the_others() {
    let home = Home::with_tiny();
    home.add_tiny("second");
    let flip = |server_home: &std::path::Path| {
        let path = server_home.join("models/second/model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    flip(&home.path());
    let server = home.start();
    let answer = server.api().embed(&json!({ "model": "second", "input": "a" }));
    assert_eq!(answer.status, 503, "{answer:?}");
    let models = server.admin().get("/models").ok();
    let second =
        models["models"].as_array().unwrap().iter().find(|model| model["name"] == "second").unwrap().clone();
    assert!(second["reason"].as_str().unwrap().contains("model.safetensors"), "{second}");
    embed(&server.api(), json!("a"));
}

#[test]
fn an_ordinary_user_can_run_everything_and_status_says_what_identity_is_worth() {
    let home = Home::of_an_ordinary_user();
    let server = home.start();
    embed(&server.api(), json!("a"));
    let status = server.status();
    assert_eq!(status["identity"], "advisory");
    assert_eq!(status["workers"][0]["tier"], "kernel");
    assert!(server.stop().success());
}

#[test]
fn a_server_started_as_root_serves_as_another_user() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let home = Home::with_tiny();
    let server = home.start();
    embed(&server.api(), json!("a"));
    assert_eq!(server.status()["identity"], "enforced");
    for pid in [i32::try_from(server.pid()).unwrap(), server.worker_pid()] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uids = text.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert!(uids.split_whitespace().skip(1).all(|uid| uid != "0"), "{uids}");
    }
}

#[test]
fn a_second_server_on_the_same_home_does_not_start() {
    let home = Home::with_tiny();
    let _server = home.start();
    let log = home.try_start().err().expect("the second one must not start");
    assert!(log.contains("another server runs"), "{log}");
}

#[test]
fn a_server_that_is_told_to_stop_finishes_what_runs_and_leaves_no_worker() {
    let home = Home::with_tiny();
    let server: Server = home.start();
    embed(&server.api(), json!("a"));
    let pid = server.worker_pid();
    assert!(server.stop().success());
    assert!(!support::is_alive(pid));
}

//! The Open Inference Protocol over plain HTTP: what a conforming server answers, in JSON and with binary tensors, and how
//! every wrong request is refused.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use serde_json::{Value, json};
use support::{Answer, Home, Server, Target};

const INFER: &str = "/v2/models/tiny-bert/infer";

fn text(texts: &[&str]) -> Value {
    json!({ "name": "text", "datatype": "BYTES", "shape": [texts.len()], "data": texts })
}

fn infer(target: &Target, body: &Value) -> Answer {
    target.post(INFER, body)
}

/// A request whose only input lies behind its JSON.
fn infer_binary(target: &Target, body: &Value, raw: &[u8]) -> Answer {
    let json = body.to_string();
    let length = json.len().to_string();
    target.send(
        "POST",
        INFER,
        &[("inference-header-content-length", &length)],
        &[json.as_bytes(), raw].concat(),
    )
}

/// BYTES as they lie in a body.
fn elements(texts: &[&str]) -> Vec<u8> {
    let one = |text: &&str| [&u32::try_from(text.len()).unwrap().to_le_bytes(), text.as_bytes()].concat();
    texts.iter().flat_map(one).collect()
}

/// JSON and what is behind it.
fn parts(answer: &Answer) -> (Value, Vec<u8>) {
    let length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    (serde_json::from_slice(&answer.body[..length]).unwrap(), answer.body[length..].to_vec())
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn of_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|number| f32::from_le_bytes(number.try_into().unwrap())).collect()
}

/// All vectors of the other interface, one behind the other.
fn by_openai(server: &Server, texts: &[&str]) -> Vec<f32> {
    let answer = server.api().embed(&json!({ "model": "tiny-bert", "input": texts })).ok();
    answer["data"].as_array().unwrap().iter().flat_map(|item| floats(&item["embedding"])).collect()
}

/// The error's text and code; the form is the protocol's.
fn error(answer: &Answer) -> (String, String) {
    let body = answer.json();
    let text =
        |name: &str| body[name].as_str().unwrap_or_else(|| panic!("no text {name} in {body}")).to_owned();
    (text("error"), text("code"))
}

#[test]
fn health_needs_no_key_and_metadata_says_what_goes_in_and_out() {
    let home = Home::with_tiny();
    let server = home.start();
    assert_eq!(server.tcp().get("/v2/health/live").ok(), json!({ "live": true }));
    assert_eq!(server.tcp().get("/v2/health/ready").ok(), json!({ "ready": true }));
    let metadata = server.tcp().get("/v2").ok();
    assert_eq!(metadata["name"], "ringfence");
    assert_eq!(metadata["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(metadata["extensions"], json!(["binary_tensor_data", "model_repository", "parameters"]));
    let model = json!({
        "name": "tiny-bert",
        "versions": ["1"],
        "platform": "ringfence_safetensors",
        "inputs": [{ "name": "text", "datatype": "BYTES", "shape": [-1] }],
        "outputs": [{ "name": "embedding", "datatype": "FP32", "shape": [-1, -1] }],
    });
    for path in ["/v2/models/tiny-bert", "/v2/models/tiny-bert/versions/1"] {
        assert_eq!(server.api().get(path).ok(), model);
        assert_eq!(server.admin().get(path).ok(), model);
        let ready = server.api().get(&format!("{path}/ready")).ok();
        assert_eq!(ready, json!({ "name": "tiny-bert", "ready": true }));
    }
    assert_eq!(server.status()["workers"], json!([]), "asking about a model loads it");
}

#[test]
fn vectors_are_those_of_the_other_interface_in_json_and_in_binary() {
    let home = Home::with_tiny();
    let server = home.start();
    let texts = ["a cat sat", "hello", "z"];
    let expected = by_openai(&server, &texts);
    let width = expected.len() / 3;
    for (path, id) in [(INFER, "seven"), ("/v2/models/tiny-bert/versions/1/infer", "8")] {
        let answer = server.api().post(path, &json!({ "id": id, "inputs": [text(&texts)] }));
        let body = answer.ok();
        assert_eq!((&body["model_name"], &body["model_version"]), (&json!("tiny-bert"), &json!("1")));
        assert_eq!(body["id"], id);
        let output = &body["outputs"][0];
        assert_eq!((&output["name"], &output["datatype"]), (&json!("embedding"), &json!("FP32")));
        assert_eq!(output["shape"], json!([3, width]));
        assert_eq!(floats(&output["data"]), expected);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        for header in ["server-timing", "ringfence-job", "ringfence-device", "x-request-id"] {
            assert!(answer.header(header).is_some(), "{header}");
        }
    }
    // Binary in, and each way of asking for binary out.
    let raw = elements(&texts);
    let input = json!({
        "name": "text", "datatype": "BYTES", "shape": [3], "parameters": { "binary_data_size": raw.len() }
    });
    let all = json!({ "inputs": [input], "parameters": { "binary_data_output": true } });
    let named = json!({ "inputs": [input], "outputs": [{ "name": "embedding", "parameters": { "binary_data": true } }] });
    for body in [&all, &named] {
        let answer = infer_binary(&server.api(), body, &raw);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        let (body, behind) = parts(&answer);
        let output = &body["outputs"][0];
        assert_eq!(output["parameters"]["binary_data_size"], json!(behind.len()));
        assert_eq!((output.get("data"), &output["shape"]), (None, &json!([3, width])));
        assert_eq!(of_bytes(&behind), expected);
        assert_eq!(body["id"].as_str(), answer.header("x-request-id"), "an id where the client has none");
    }
    // An output says it for itself.
    let json_wanted = json!({
        "inputs": [input],
        "parameters": { "binary_data_output": true },
        "outputs": [{ "name": "embedding", "parameters": { "binary_data": false } }],
    });
    let answer = infer_binary(&server.api(), &json_wanted, &raw);
    assert_eq!(answer.header("inference-header-content-length"), None);
    assert_eq!(floats(&answer.ok()["outputs"][0]["data"]), expected);
}

#[test]
fn tokens_are_taken_for_one_text_and_long_texts_are_cut_if_asked() {
    let home = Home::with_tiny();
    let server = home.start();
    let tokens = [5, 6, 7];
    let answer = server.api().embed(&json!({ "model": "tiny-bert", "input": tokens })).ok();
    let expected = floats(&answer["data"][0]["embedding"]);
    for datatype in ["INT64", "INT32"] {
        let input = json!({ "name": "input_ids", "datatype": datatype, "shape": [3], "data": tokens });
        let output = &infer(&server.api(), &json!({ "inputs": [input] })).ok()["outputs"][0];
        assert_eq!((&output["shape"][0], floats(&output["data"])), (&json!(1), expected.clone()));
    }
    let long = "word ".repeat(500);
    let refused = infer(&server.api(), &json!({ "inputs": [text(&[&long])] }));
    assert_eq!((refused.status, error(&refused).1.as_str()), (400, "input_too_long"));
    let cut = json!({ "inputs": [text(&[&long])], "parameters": { "truncate": true, "priority": 2 } });
    assert_eq!(infer(&server.api(), &cut).status, 200);
}

#[test]
fn every_wrong_request_is_refused_in_the_protocols_form_and_says_what_is_expected() {
    let home = Home::with_tiny();
    let server = home.start();
    let with = |input: Value| json!({ "inputs": [input] });
    let tensor = |datatype: &str, shape: Value, data: Value| {
        with(json!({ "name": "text", "datatype": datatype, "shape": shape, "data": data }))
    };
    let cases = [
        ("no inputs field", json!({}), "invalid_request", "inputs"),
        ("no inputs", json!({ "inputs": [] }), "tensor_invalid", "input \"text\": it is missing"),
        (
            "an unknown input",
            with(json!({ "name": "words", "datatype": "BYTES", "shape": [1], "data": ["a"] })),
            "tensor_invalid",
            "input \"words\": the model has no such input, only text or input_ids",
        ),
        ("twice", json!({ "inputs": [text(&["a"]), text(&["a"])] }), "tensor_invalid", "twice"),
        (
            "both",
            json!({ "inputs": [text(&["a"]), { "name": "input_ids", "datatype": "INT64", "shape": [1], "data": [5] }] }),
            "tensor_invalid",
            "not both",
        ),
        (
            "wrong datatype",
            tensor("FP32", json!([1]), json!([1.5])),
            "tensor_invalid",
            "datatype is FP32, expected is BYTES",
        ),
        (
            "unknown datatype",
            tensor("TEXT", json!([1]), json!(["a"])),
            "tensor_invalid",
            "no datatype \"TEXT\"",
        ),
        (
            "wrong rank",
            tensor("BYTES", json!([1, 1]), json!(["a"])),
            "tensor_invalid",
            "shape is [1, 1], expected is [-1]",
        ),
        (
            "wrong count",
            tensor("BYTES", json!([2]), json!(["a"])),
            "tensor_invalid",
            "shape [2] is of 2 elements",
        ),
        (
            "ragged",
            tensor("BYTES", json!([2, 1]), json!([["a"], []])),
            "invalid_request",
            "different lengths",
        ),
        ("numbers as texts", tensor("BYTES", json!([1]), json!([1])), "tensor_invalid", "texts in JSON"),
        (
            "no data",
            with(json!({ "name": "text", "datatype": "BYTES", "shape": [1] })),
            "tensor_invalid",
            "neither `data` nor",
        ),
        (
            "no shape",
            with(json!({ "name": "text", "datatype": "BYTES", "data": ["a"] })),
            "invalid_request",
            "shape",
        ),
        ("nothing in it", tensor("BYTES", json!([0]), json!([])), "input_empty", "text is an empty list"),
        ("an empty text", tensor("BYTES", json!([1]), json!([""])), "input_empty", "text 0 is empty"),
        (
            "a token below 0",
            with(json!({ "name": "input_ids", "datatype": "INT64", "shape": [1], "data": [-1] })),
            "tensor_invalid",
            "a token is from 0",
        ),
        (
            "an unknown parameter",
            json!({ "inputs": [text(&["a"])], "parameters": { "sequence_id": 1 } }),
            "parameter_invalid",
            "\"sequence_id\"",
        ),
        (
            "a parameter of another task",
            json!({ "inputs": [text(&["a"])], "parameters": { "language": "en" } }),
            "parameter_invalid",
            "\"language\"",
        ),
        (
            "a parameter of another type",
            json!({ "inputs": [text(&["a"])], "parameters": { "truncate": "yes" } }),
            "parameter_invalid",
            "true or false",
        ),
        (
            "a parameter of an input",
            with(json!({ "name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"],
                         "parameters": { "shared_memory_region": "r" } })),
            "parameter_invalid",
            "\"shared_memory_region\"",
        ),
        (
            "an unknown output",
            json!({ "inputs": [text(&["a"])], "outputs": [{ "name": "logits" }] }),
            "tensor_invalid",
            "no output \"logits\"; the model gives embedding",
        ),
        (
            "an output twice",
            json!({ "inputs": [text(&["a"])], "outputs": [{ "name": "embedding" }, { "name": "embedding" }] }),
            "tensor_invalid",
            "wanted twice",
        ),
        (
            "a parameter of an output",
            json!({ "inputs": [text(&["a"])], "outputs": [{ "name": "embedding", "parameters": { "classification": 3 } }] }),
            "parameter_invalid",
            "\"classification\"",
        ),
        (
            "a timeout that is too long",
            json!({ "inputs": [text(&["a"])], "parameters": { "timeout": u64::MAX } }),
            "deadline_invalid",
            "microseconds",
        ),
        (
            "a long id",
            json!({ "id": "i".repeat(300), "inputs": [text(&["a"])] }),
            "invalid_request",
            "256 bytes",
        ),
        ("many inputs", json!({ "inputs": vec![text(&["a"]); 17] }), "invalid_request", "at most 16 inputs"),
        ("many texts", json!({ "inputs": [text(&vec!["a"; 2049])] }), "tensor_invalid", "at most 2048 texts"),
    ];
    for (what, body, code, says) in cases {
        let answer = infer(&server.api(), &body);
        let (message, got) = error(&answer);
        assert_eq!((answer.status, got.as_str()), (400, code), "{what}: {message}");
        assert!(message.contains(says), "{what}: {message}");
    }
    assert_eq!(infer(&server.api(), &json!({ "inputs": [text(&["a"])] })).status, 200);
}

#[test]
fn binary_parts_that_do_not_add_up_are_refused() {
    let home = Home::with_tiny();
    let server = home.start();
    let raw = elements(&["a", "b"]);
    let of = |size: usize, count: usize| {
        json!({ "inputs": [{ "name": "text", "datatype": "BYTES", "shape": [count],
                             "parameters": { "binary_data_size": size } }] })
    };
    let cases = [
        (of(raw.len() + 1, 2), "more than the 10 bytes"),
        (of(raw.len() - 1, 2), "length before each"),
        (of(5, 1), "5 more bytes than its inputs"),
        (of(raw.len(), 3), "the data is of 2"),
        (
            json!({ "inputs": [{ "name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"],
                                 "parameters": { "binary_data_size": raw.len() } }] }),
            "both `data` and",
        ),
    ];
    for (body, says) in cases {
        let answer = infer_binary(&server.api(), &body, &raw);
        let message = error(&answer).0;
        assert!(answer.status == 400 && message.contains(says), "{body}: {} {message}", answer.status);
    }
    let body = of(raw.len(), 2).to_string();
    for length in ["999999", "x", "-1"] {
        let headers = [("inference-header-content-length", length)];
        let answer = server.api().send("POST", INFER, &headers, body.as_bytes());
        assert_eq!((answer.status, error(&answer).1.as_str()), (400, "invalid_request"), "{length}");
    }
    // Without the header, all is JSON.
    let both = [body.as_bytes(), &raw].concat();
    let answer = server.api().send("POST", INFER, &[], &both);
    assert_eq!((answer.status, error(&answer).1.as_str()), (400, "invalid_json"));
    let answer = server.api().send("POST", INFER, &[], &vec![b' '; 10_000_000]);
    assert_eq!((answer.status, error(&answer).1.as_str()), (413, "body_too_large"));
    for headers in [[("content-type", "text/plain")], [("content-encoding", "gzip")]] {
        let answer = server.api().send("POST", INFER, &headers, b"{}");
        assert_eq!((answer.status, error(&answer).1.as_str()), (415, "content_type_unsupported"));
    }
}

#[test]
fn keys_clients_and_models_are_those_of_the_other_routes_and_so_are_refusals() {
    let home = Home::with_tiny();
    home.quotas("[clients.poor]\nmodels = []\n\n[clients.slow]\njobs_per_minute = 1\njobs_burst = 1\n");
    let server = home.start();
    for name in ["poor", "slow"] {
        home.cli_ok(&["client", "add", name]);
    }
    let check = |answer: &Answer, status: u16, code: &str| {
        let (message, got) = error(answer);
        assert_eq!((answer.status, got.as_str()), (status, code), "{message}");
    };
    let body = json!({ "inputs": [text(&["a"])] });
    check(&server.tcp().get("/v2/models/tiny-bert"), 401, "key_missing");
    check(&server.tcp().post("/v2/repository/index", &json!({})), 401, "key_missing");
    check(&infer(&server.tcp(), &body), 401, "key_missing");
    check(&infer(&server.admin(), &body), 403, "public_only");
    check(&infer(&server.client("poor"), &body), 404, "model_unknown");
    for path in ["/v2/models/tiny-bert", "/v2/models/tiny-bert/ready", "/v2/models/tiny-bert/versions/9"] {
        check(&server.client("poor").get(path), 404, "model_unknown");
    }
    assert_eq!(server.client("poor").post("/v2/repository/index", &json!({})).ok(), json!([]));
    for path in ["/v2/models/absent", "/v2/models/tiny-bert@cpu", "/v2/models/absent/ready"] {
        check(&server.api().get(path), 404, "model_unknown");
    }
    for path in ["/v2/models/tiny-bert/versions/2", "/v2/models/tiny-bert/versions/2/ready"] {
        check(&server.api().get(path), 404, "version_unknown");
    }
    check(&server.api().post("/v2/models/tiny-bert/versions/2/infer", &body), 404, "version_unknown");
    check(&server.api().get("/v2/nowhere"), 404, "not_found");
    check(&server.api().get(INFER), 405, "method_not_allowed");
    // A rate is one for all routes.
    assert_eq!(server.client("slow").embed(&json!({ "model": "tiny-bert", "input": "a" })).status, 200);
    let late = infer(&server.client("slow"), &body);
    check(&late, 429, "rate_jobs");
    assert!(late.header("retry-after").is_some() && late.header("retry-after-ms").is_some());
    assert_eq!(late.header("ringfence-retry"), Some("exact"));
}

#[test]
fn a_timeout_is_a_deadline_in_microseconds() {
    let home = Home::with_tiny();
    let server = home.start();
    let with = |micros: u64| json!({ "inputs": [text(&["a"])], "parameters": { "timeout": micros } });
    // No worker is there in a microsecond.
    let late = infer(&server.api(), &with(1));
    let code = error(&late).1;
    assert!(["deadline_passed", "deadline_unmeetable"].contains(&code.as_str()), "{} {code}", late.status);
    for micros in [0, 30_000_000] {
        assert_eq!(infer(&server.api(), &with(micros)).status, 200, "{micros}");
    }
}

#[test]
fn the_repository_is_listed_for_clients_and_changed_by_the_operator_only() {
    let home = Home::with_tiny();
    home.add_tiny("second");
    let weights = home.path().join("models/second/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let server = home.start();
    let index = |target: &Target, body: &[u8]| target.send("POST", "/v2/repository/index", &[], body).ok();
    let tiny = json!({ "name": "tiny-bert", "version": "1", "state": "READY", "reason": "unloaded: the first job loads it" });
    for target in [server.api(), server.admin()] {
        let all = index(&target, b"");
        assert_eq!(all.as_array().unwrap().len(), 2, "{all}");
        assert_eq!(all[1], tiny);
    }
    // The bytes of the second are looked at when they are wanted.
    let refused = server.api().post("/v2/models/second/infer", &json!({ "inputs": [text(&["a"])] }));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    let second = index(&server.api(), b"{}")[0].clone();
    assert_eq!((&second["name"], &second["state"]), (&json!("second"), &json!("UNAVAILABLE")));
    assert!(second["reason"].as_str().unwrap().contains("model.safetensors"), "{second}");
    assert_eq!(index(&server.api(), br#"{"ready":true}"#), json!([tiny]));
    let ready = server.api().get("/v2/models/second/ready");
    assert_eq!((ready.status, ready.json()["ready"].clone()), (400, json!(false)));
    // Load and unload are the operator's.
    for act in ["load", "unload"] {
        let path = format!("/v2/repository/models/tiny-bert/{act}");
        let refused = server.api().post(&path, &json!({}));
        assert_eq!((refused.status, error(&refused).1.as_str()), (403, "admin_only"));
        let absent = server.admin().post(&format!("/v2/repository/models/absent/{act}"), &json!({}));
        assert_eq!((absent.status, error(&absent).1.as_str()), (404, "model_unknown"));
        let odd = server.admin().post(&path, &json!({ "parameters": { "config": "{}" } }));
        assert_eq!((odd.status, error(&odd).1.as_str()), (400, "parameter_invalid"));
    }
    assert_eq!(server.admin().post("/v2/repository/models/tiny-bert/load", &json!({})).ok(), json!({}));
    let pid = server.worker_pid();
    assert_eq!(index(&server.api(), b"")[1]["reason"], "ready");
    let unload = json!({ "parameters": { "unload_dependents": false } });
    assert_eq!(server.admin().post("/v2/repository/models/tiny-bert/unload", &unload).ok(), json!({}));
    server.await_status("no worker", |status| status["workers"].as_array().is_some_and(Vec::is_empty));
    assert!(!support::is_alive(pid));
}

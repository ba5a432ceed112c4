//! The `tritonclient` package as a client over TCP: MiniLM's vectors, in binary and in JSON, are those of the other
//! interface bit for bit; speech becomes text.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use serde_json::json;
use std::path::{Path, PathBuf};
use support::{Home, python};

const MINILM: &str = r#"
import base64, json, sys, urllib.request
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

url, key, model = sys.argv[1:4]
headers = {"Authorization": "Bearer " + key}
client = triton.InferenceServerClient(url.split("//")[1])
texts = ["a cat sat on the mat", "hello world", "\u00fcber \u6f22\u5b57", "z" * 300]
result = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "server": client.get_server_metadata(),
    "model_ready": client.is_model_ready(model, headers=headers),
    "version_ready": client.is_model_ready(model, "1", headers=headers),
    "absent_ready": client.is_model_ready("absent", headers=headers),
    "model": client.get_model_metadata(model, headers=headers),
    "index": client.get_model_repository_index(headers=headers),
}

body = json.dumps({"model": model, "input": texts, "encoding_format": "base64"}).encode()
request = urllib.request.Request(
    url + "/v1/embeddings", body, {**headers, "Content-Type": "application/json"})
answer = json.load(urllib.request.urlopen(request))
expected = np.stack([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]])

def infer(shape, binary_in, binary_out, **more):
    array = np.array(texts, dtype=np.object_).reshape(shape)
    tensor = triton.InferInput("text", shape, "BYTES").set_data_from_numpy(array, binary_data=binary_in)
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput("embedding", binary_data=binary_out)]
    return client.infer(model, [tensor], outputs=outputs, headers=dict(headers), **more)

for name, binary_in, binary_out in [
    ("default", True, None), ("binary", True, True), ("binary_to_json", True, False),
    ("json_to_binary", False, True), ("json", False, False),
]:
    answer = infer([4], binary_in, binary_out, request_id="seven", timeout=60_000_000, priority=1)
    vectors = answer.as_numpy("embedding")
    same = vectors.dtype == np.float32 and vectors.shape == expected.shape
    result[name] = bool(same and vectors.tobytes() == expected.tobytes())
    result["id"] = answer.get_response()["id"]
result["width"] = expected.shape[1]

def refused(call):
    try:
        call()
        return None
    except InferenceServerException as error:
        return [error.status(), error.message()]

result["shape"] = refused(lambda: infer([2, 2], True, True))
result["parameter"] = refused(lambda: infer([4], True, True, parameters={"beams": 3}))
result["version"] = refused(lambda: infer([4], True, True, model_version="2"))
result["load"] = refused(lambda: client.load_model(model, headers=headers))
headers = {"Authorization": "Bearer rf_wrong"}
result["key"] = refused(lambda: infer([4], True, True))
print(json.dumps(result))
"#;

const SPEECH: &str = r#"
import json, sys
import numpy as np
import tritonclient.http as triton

url, key, model, file = sys.argv[1:5]
headers = {"Authorization": "Bearer " + key}
client = triton.InferenceServerClient(url.split("//")[1], network_timeout=120)
audio = np.fromfile(file, dtype=np.uint8)
tensor = triton.InferInput("audio", list(audio.shape), "UINT8").set_data_from_numpy(audio)
answer = client.infer(model, [tensor], headers=headers, parameters={"temperature": 0.0, "prompt": "A speech."})
text = answer.as_numpy("text")
result = {"shape": list(text.shape), "text": text[0].decode(), "model": client.get_model_metadata(model, headers=headers)}
print(json.dumps(result))
"#;

fn folder_of(variable: &str) -> PathBuf {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable}: set by `make test`")).into()
}

fn home(model: &str, variable: &str) -> Home {
    let cache = folder_of(variable).with_file_name("archives");
    Home::made(&format!("oip-{model}"), |home| {
        home.cli_ok(&["model", "add", model, "--cache", cache.to_str().unwrap()]);
    })
}

#[test]
fn the_tritonclient_package_gets_the_vectors_of_the_other_interface_bit_for_bit() {
    let home = home("minilm", "RINGFENCE_MINILM");
    let server = home.start();
    let result = python(&server, &home, MINILM, &["minilm"]);
    for yes in [
        "live",
        "ready",
        "model_ready",
        "version_ready",
        "default",
        "binary",
        "binary_to_json",
        "json_to_binary",
        "json",
    ] {
        assert_eq!(result[yes], true, "{yes}: {result:#}");
    }
    assert_eq!(result["absent_ready"], false);
    assert_eq!((&result["id"], &result["width"]), (&json!("seven"), &json!(384)));
    assert_eq!(result["server"]["name"], "ringfence");
    assert_eq!(result["model"]["inputs"], json!([{ "name": "text", "datatype": "BYTES", "shape": [-1] }]));
    assert_eq!(result["index"][0]["name"], "minilm");
    let refused = |what: &str, status: &str, says: &str| {
        let [is, message] = [0, 1].map(|at| result[what][at].as_str().unwrap_or_default());
        assert!(is == status && message.contains(says), "{what}: {}", result[what]);
    };
    refused("shape", "400", "shape is [2, 2], expected is [-1]");
    refused("parameter", "400", "no parameter \"beams\"");
    refused("version", "404", "version 1 only");
    refused("load", "403", "admin.sock");
    refused("key", "401", "key");
}

#[test]
fn the_tritonclient_package_gets_the_text_of_a_sound() {
    let home = home("whisper-tiny.en", "RINGFENCE_SPEECH");
    let server = home.start();
    let file = Path::new(&folder_of("RINGFENCE_SPEECH")).join("jfk.wav");
    let result = python(&server, &home, SPEECH, &["whisper-tiny.en", file.to_str().unwrap()]);
    assert_eq!(result["shape"], json!([1]));
    let text = result["text"].as_str().unwrap().to_lowercase();
    assert!(text.contains("ask not what your country can do for you"), "{text}");
    assert_eq!(result["model"]["inputs"], json!([{ "name": "audio", "datatype": "UINT8", "shape": [-1] }]));
    assert_eq!(result["model"]["outputs"], json!([{ "name": "text", "datatype": "BYTES", "shape": [1] }]));
    // What is wrong with a sound, or with what is asked of it.
    let octets =
        |data: &[u8]| json!({ "name": "audio", "datatype": "UINT8", "shape": [data.len()], "data": data });
    let language = json!({ "language": "EN" });
    let cases = [
        ("no sound", json!({ "inputs": [octets(b"hello")] }), "audio_unsupported"),
        ("nothing", json!({ "inputs": [octets(b"")] }), "input_empty"),
        (
            "too hot",
            json!({ "inputs": [octets(b"a")], "parameters": { "temperature": 2 } }),
            "option_invalid",
        ),
        ("no code", json!({ "inputs": [octets(b"a")], "parameters": language }), "option_invalid"),
        (
            "of the other task",
            json!({ "inputs": [octets(b"a")], "parameters": { "truncate": true } }),
            "parameter_invalid",
        ),
        (
            "a text",
            json!({ "inputs": [{ "name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"] }] }),
            "tensor_invalid",
        ),
        (
            "no octet",
            json!({ "inputs": [{ "name": "audio", "datatype": "UINT8", "shape": [1], "data": [256] }] }),
            "tensor_invalid",
        ),
    ];
    for (what, body, code) in cases {
        let answer = server.api().post("/v2/models/whisper-tiny.en/infer", &body);
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!(code)), "{what}: {}", answer.text());
    }
}

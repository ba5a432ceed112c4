//! Text generation through a real server, on a tiny Llama with random weights: both of OpenAI's routes, whole and in pieces,
//! granted files, and everything that is refused. The real model is in `real_generation`.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};
use support::{Answer, Home, Server, Stream, Target, copy, tiny_llama};

const MODEL: &str = "tiny-llama";

fn home() -> Home {
    Home::made("generates", |home| {
        home.add(&tiny_llama(), MODEL);
        home.add_tiny("tiny-bert");
    })
}

fn body(prompt: &str) -> Value {
    json!({"model": MODEL, "prompt": prompt, "max_tokens": 12, "seed": 5, "ignore_eos": true})
}

fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

fn complete(target: &Target, body: &Value) -> Answer {
    target.post("/v1/completions", body)
}

fn chat_body(content: impl Into<Value>) -> Value {
    let content = content.into();
    json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 12, "seed": 5,
           "ignore_eos": true})
}

fn chat(target: &Target, body: &Value) -> Answer {
    target.post("/v1/chat/completions", body)
}

/// The data of an answer's events, and that it ends as OpenAI's do.
fn events(answer: &Answer) -> Vec<Value> {
    let text = answer.text();
    let mut lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(lines.pop(), Some("[DONE]"), "{text}");
    lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text_of(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_prompt_is_answered_whole_and_in_pieces_and_under_both_prefixes() {
    let home = home();
    let server = home.start();
    let api = server.api();
    let whole = complete(&api, &body("the rain")).ok();
    assert_eq!((&whole["object"], &whole["model"]), (&json!("text_completion"), &json!(MODEL)));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let usage = json!({"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18,
                       "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(whole["usage"], usage);
    let text = text_of(&whole);
    assert_eq!(text_of(&api.post("/openai/v1/completions", &body("the rain")).ok()), text);
    let tokens = complete(&api, &with(body(""), "prompt", json!([256, 32]))).ok();
    assert_eq!(tokens["usage"]["prompt_tokens"], 2);

    let streamed = with(body("the rain"), "stream", true);
    let answer = complete(&api, &with(streamed, "stream_options", json!({"include_usage": true})));
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let mut events = events(&answer);
    let used = events.pop().unwrap();
    assert_eq!((&used["usage"]["completion_tokens"], &used["choices"]), (&json!(12), &json!([])));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    let pieces: String = events.iter().map(text_of).collect();
    assert_eq!(pieces, text);

    let asked = chat(&api, &chat_body("the rain")).ok();
    assert_eq!(
        (&asked["object"], &asked["choices"][0]["message"]["role"]),
        (&json!("chat.completion"), &json!("assistant"))
    );
    // <s> <|user|> the rain <|end|> <|assistant|>
    assert_eq!(asked["usage"]["prompt_tokens"], 10);
    let answer = api.post("/openai/v1/chat/completions", &with(chat_body("the rain"), "stream", true));
    let events = self::events(&answer);
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let content = |event: &Value| event["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned();
    let pieces: String = events.iter().map(content).collect();
    assert_eq!(Some(pieces.as_str()), asked["choices"][0]["message"]["content"].as_str());
    let ids: Vec<&Value> = events.iter().map(|event| &event["id"]).collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]));
    server.stop();
}

#[test]
fn chances_of_tokens_are_told_in_the_form_of_each_route() {
    let home = home();
    let server = home.start();
    let asked = with(with(chat_body("x"), "logprobs", true), "top_logprobs", 2);
    let answer = chat(&server.api(), &asked).ok();
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(told.len(), 12);
    let likely = |token: &Value| token["logprob"].as_f64().unwrap() <= 0.0 && token["bytes"].is_array();
    assert!(told.iter().all(|one| likely(one) && one["top_logprobs"].as_array().unwrap().len() == 2));
    let answer = complete(&server.api(), &with(body("x"), "logprobs", 3)).ok();
    let told = &answer["choices"][0]["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(told[list].as_array().unwrap().len(), 12, "{list}");
    }
    server.stop();
}

#[test]
fn what_can_not_be_done_is_refused_by_name() {
    let home = home();
    let server = home.start();
    let api = server.api();
    let check = |answer: Answer, status: u16, code: &str| {
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.text());
    };
    let of_body = |field: &str, value: Value| complete(&api, &with(body("x"), field, value));
    check(of_body("temprature", json!(1)), 400, "parameter_unknown");
    check(of_body("temperature", json!(3)), 400, "option_invalid");
    check(of_body("n", json!(2)), 400, "n_unsupported");
    check(of_body("echo", json!(true)), 400, "echo_unsupported");
    check(of_body("prompt", json!(["a", "b"])), 400, "prompts_too_many");
    check(of_body("prompt", json!("")), 400, "input_empty");
    check(of_body("prompt", json!([999_999])), 400, "token_unknown");
    check(of_body("logit_bias", json!({"999999": 1})), 400, "token_unknown");
    check(of_body("max_tokens", json!(5_000)), 400, "context_length_exceeded");
    check(of_body("prompt", json!("x ".repeat(100_000))), 400, "context_length_exceeded");
    check(of_body("stop", json!(vec!["a"; 17])), 400, "option_invalid");
    check(of_body("model", json!("tiny-bert")), 400, "task_unsupported");
    check(of_body("model", json!("absent")), 404, "model_unknown");
    let schema = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}});
    check(of_body("response_format", schema), 400, "schema_refused");
    let of_chat = |field: &str, value: Value| chat(&api, &with(chat_body("x"), field, value));
    check(of_chat("tools", json!([{"type": "function"}])), 400, "tools_unsupported");
    check(of_chat("top_logprobs", json!(3)), 400, "option_invalid");
    check(of_chat("messages", json!([])), 400, "input_empty");
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]);
    check(of_chat("messages", image), 400, "content_unsupported");
    let role = json!([{"role": "<|end|>", "content": "x"}]);
    check(of_chat("messages", role), 400, "template_refused");
    let forged = json!([{"type": "file", "file": {"grant": "rfg_forged", "path": "a"}}]);
    assert!(chat(&api, &chat_body(forged)).status >= 400);
    check(api.post("/v1/embeddings", &json!({"model": MODEL, "input": "x"})), 400, "task_unsupported");
    // Refused before anything was sent, a streamed answer has a status of its own.
    check(
        complete(&api, &with(with(body("x"), "stream", true), "max_tokens", 5_000)),
        400,
        "context_length_exceeded",
    );
    assert_eq!(complete(&api, &body("x")).status, 200);
    server.stop();
}

#[test]
fn the_open_inference_protocol_goes_on_from_a_text_as_well() {
    let home = home();
    let server = home.start();
    let described = server.api().get(&format!("/v2/models/{MODEL}")).ok();
    let text = json!([{"name": "text", "datatype": "BYTES", "shape": [1]}]);
    assert_eq!((&described["inputs"], &described["outputs"]), (&text, &text));
    let parameters = json!({"max_tokens": 12, "seed": 5, "ignore_eos": true});
    let input = json!({"name": "text", "datatype": "BYTES", "shape": [1], "data": ["the rain"]});
    let asked = json!({"parameters": parameters, "inputs": [input]});
    let route = format!("/v2/models/{MODEL}/infer");
    let answer = server.api().post(&route, &asked).ok();
    let whole = complete(&server.api(), &body("the rain")).ok();
    assert_eq!(answer["outputs"][0]["data"], json!([text_of(&whole)]));
    let refused = server.api().post(&route, &with(asked, "parameters", json!({"temperature": 5.0})));
    assert_eq!((refused.status, &refused.json()["code"]), (400, &json!("option_invalid")));
    server.stop();
}

fn jobs(server: &Server) -> u64 {
    let status = server.status();
    let models = status["models"].as_array().unwrap();
    models.iter().map(|model| model["running"].as_u64().unwrap()).sum()
}

/// Sends a request and reads nothing of its answer.
fn begin(server: &Server, body: &Value) -> Box<dyn Stream> {
    let body = body.to_string();
    let mut stream = server.api().connect();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

fn await_no_jobs(server: &Server) {
    let began = Instant::now();
    while jobs(server) > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", server.status());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_client_that_reads_nothing_loses_its_job_before_pieces_pile_up() {
    let home = Home::made("generates-long", |home| {
        let folder = home.folder.path().join("long");
        copy(&tiny_llama(), &folder);
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        let longer = config.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 8192");
        assert_ne!(config, longer);
        fs::write(folder.join("config.json"), longer).unwrap();
        home.add(&folder, MODEL);
    });
    let server = home.start();
    let whole = complete(&server.api(), &body("x")).ok();
    let told = with(with(body("x"), "logprobs", 20), "stream", true);
    let mut stream = begin(&server, &with(told, "max_tokens", 4_000));
    while jobs(&server) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    await_no_jobs(&server);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("\"code\":\"cancelled\"") && !answer.contains("[DONE]"),
        "{}",
        &answer[answer.len() - 600..]
    );
    assert_eq!(text_of(&complete(&server.api(), &body("x")).ok()), text_of(&whole));
    server.stop();
}

#[test]
fn a_client_that_leaves_takes_its_job_along() {
    let home = home();
    let server = home.start();
    complete(&server.api(), &body("x")).ok();
    let mut stream = begin(&server, &with(with(body("x"), "max_tokens", 500), "stream", true));
    let mut first = [0; 64];
    stream.read_exact(&mut first).unwrap();
    drop(stream);
    await_no_jobs(&server);
    assert_eq!(complete(&server.api(), &body("x")).status, 200);
    server.stop();
}

#[test]
fn a_granted_file_is_a_part_of_a_chat_and_ends_with_its_grant() {
    let home = home();
    home.quotas("[models.default]\nconcurrency = 2\n");
    let notes = home.folder.path().join("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join("a.md"), "it rains in Spain").unwrap();
    if rustix::process::getuid().is_root() {
        chown(&notes, Some(65_534), Some(65_534)).unwrap();
        chown(notes.join("a.md"), Some(65_534), Some(65_534)).unwrap();
    }
    let server = home.start();
    let asked = json!({"kind": "file_read", "path": notes.to_str().unwrap(), "model": MODEL, "reason": "to sum up",
                       "results": "an answer to the asker", "lifetime_ms": 600_000, "bytes_max": 1_000_000});
    let grant = server.api().post("/grants", &asked).ok()["grant"].as_u64().unwrap();
    home.cli_ok(&["grant", "approve", &grant.to_string()]);
    let claimed = server.api().post(&format!("/grants/{grant}/claim"), &json!({})).ok();
    let file = json!({"type": "file", "file": {"grant": claimed["capability"], "path": "a.md"}});
    let content = json!([{"type": "text", "text": "sum up: "}, file]);
    let answer = chat(&server.api(), &chat_body(content.clone())).ok();
    let said = chat(&server.api(), &chat_body("sum up: it rains in Spain")).ok();
    assert_eq!(answer["choices"], said["choices"]);
    assert_eq!(answer["usage"]["prompt_tokens"], said["usage"]["prompt_tokens"]);
    assert_eq!(said["usage"]["prompt_tokens_details"]["cached_tokens"], 0);

    assert_eq!(server.api().send("DELETE", &format!("/grants/{grant}"), &[], b"").status, 200);
    let after = chat(&server.api(), &chat_body(content));
    assert_eq!((after.status, after.code().as_str()), (403, "grant_revoked"));
    server.stop();
}

#[test]
fn a_model_that_is_to_write_on_a_gpu_is_refused_with_what_to_do() {
    let home = home();
    home.quotas("[models.tiny-llama]\ndevice = \"wgpu\"\nlease_mib = 64\n");
    let server = home.start();
    let refused = complete(&server.api(), &body("x"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    let models = server.status()["models"].clone();
    let model = models.as_array().unwrap().iter().find(|model| model["name"] == MODEL).unwrap();
    let reason = model["reason"].as_str().unwrap();
    assert!(reason.contains("device = \"cpu\"") && reason.contains(MODEL), "{reason}");
    server.stop();
}

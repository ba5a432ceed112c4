//! `run`, `chat`, `summarize` and `bench chat`: what is asked, what is printed where, and how they end.

use crate::command_line::{ringfence, stderr, stdout};
use crate::server::{Asked, Reply, Server};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// An answer in pieces: the words, each a token, and how it ends.
fn answer(words: &[&str], finish_reason: &str) -> Reply {
    let event = |choice: Value| json!({"model": "m", "choices": [choice]});
    let mut events =
        vec![event(json!({"delta": {"role": "assistant", "content": ""}, "finish_reason": null}))];
    events.extend(words.iter().map(|word| event(json!({"delta": {"content": word}, "finish_reason": null}))));
    events.push(event(json!({"delta": {}, "finish_reason": finish_reason})));
    let usage =
        json!({"prompt_tokens": 9, "completion_tokens": words.len(), "total_tokens": 9 + words.len()});
    events.push(json!({"model": "m", "choices": [], "usage": usage}));
    let mut body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    body.push_str("data: [DONE]\n\n");
    Reply { body: body.into_bytes(), ..Reply::json(200, &Value::Null) }
        .header("content-type", "text/event-stream")
}

fn refusal(status: u16, code: &str) -> Reply {
    Reply::json(status, &json!({"error": {"code": code, "message": "no"}}))
}

fn asked(reply: Reply, arguments: &[&str]) -> (Vec<Asked>, Output) {
    typed(reply, arguments, "")
}

/// The same with something on standard input.
fn typed(reply: Reply, arguments: &[&str], input: &str) -> (Vec<Asked>, Output) {
    let home = tempfile::tempdir().unwrap();
    let server = Server::on_socket(&home.path().join("run/api.sock"), reply);
    let output = with_input(home.path(), arguments, input);
    (server.asked(), output)
}

fn with_input(home: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.arg("--home").arg(home).args(arguments).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever has its prompt does not read.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn an_answer_goes_to_standard_output_and_that_it_was_cut_off_beside_it() {
    let options = ["--system", "Be brief.", "--max-tokens", "2", "--temperature", "0.5", "--seed", "-3"];
    let (asked, output) =
        asked(answer(&["Hel", "lo"], "length"), &[&["run", "m", "Say", "hello"], &options[..]].concat());
    assert_eq!((code(&output), stdout(&output)), (0, "Hello\n"));
    assert!(stderr(&output).contains("cut off after 2 tokens"), "{}", stderr(&output));
    assert_eq!(asked[0].line, "POST /v1/chat/completions");
    let expected = json!({
        "model": "m", "max_tokens": 2, "temperature": 0.5, "seed": -3, "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello"}]});
    assert_eq!(asked[0].body, expected);
}

#[test]
fn a_prompt_may_come_from_standard_input_and_be_gone_on_from() {
    for arguments in [&["run", "m", "--raw"][..], &["run", "m", "-", "--raw"]] {
        let (asked, output) = typed(answer(&["!"], "stop"), arguments, "Once upon\na time\n");
        assert_eq!((code(&output), asked[0].line.as_str()), (0, "POST /v1/completions"));
        assert_eq!(asked[0].body["prompt"], "Once upon\na time");
    }
    let (asked, output) = typed(answer(&["!"], "stop"), &["run", "m"], "\n");
    assert_eq!((code(&output), asked.len()), (2, 0), "an empty prompt is not asked");
}

#[test]
fn an_answer_as_json_is_one_object_with_what_was_used() {
    let (_, output) = asked(answer(&["Hel", "lo"], "stop"), &["run", "m", "hello", "--json"]);
    let answer: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!((&answer["text"], &answer["finish_reason"]), (&json!("Hello"), &json!("stop")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}));
    assert!(answer["first_token_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn refusals_end_with_5_and_answers_without_an_end_with_1() {
    let (_, output) = asked(refusal(404, "model_unknown"), &["run", "m", "hello", "--json"]);
    let error: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!((code(&output), &error["error"]["code"]), (5, &json!("model_unknown")));
    let mut cut = answer(&["Hel"], "stop");
    cut.body.truncate(cut.body.len() / 2);
    let (_, output) = asked(cut, &["run", "m", "hello"]);
    assert_eq!((code(&output), stdout(&output)), (1, "Hel\n"));
    let home = tempfile::tempdir().unwrap();
    assert_eq!(code(&ringfence(home.path(), &["run", "m", "hello"])), 4);
}

#[test]
fn a_schema_is_read_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("schema.json");
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    std::fs::write(&file, schema.to_string()).unwrap();
    let arguments = ["run", "m", "hello", "--schema", file.to_str().unwrap()];
    let (sent, output) = asked(answer(&["{}"], "stop"), &arguments);
    assert_eq!((code(&output), &sent[0].body["response_format"]["type"]), (0, &json!("json_schema")));
    assert_eq!(sent[0].body["response_format"]["json_schema"]["schema"], schema);
    std::fs::write(&file, "{").unwrap();
    let (sent, output) = asked(answer(&["{}"], "stop"), &arguments);
    assert_eq!((code(&output), sent.len()), (2, 0));
}

/// Role and text of each message.
fn messages(asked: &Asked) -> Vec<String> {
    let messages = asked.body["messages"].as_array().unwrap().iter();
    messages.map(|m| format!("{}: {}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap())).collect()
}

#[test]
fn a_chat_in_a_pipe_is_a_turn_for_each_line_with_what_came_before() {
    let input = "one\n\n/system Be brief.\n/what\ntwo\n/clear\nthree\n/exit\nfour\n";
    let (asked, output) = typed(answer(&["yes"], "stop"), &["chat", "m", "--max-tokens", "7"], input);
    assert_eq!((code(&output), stdout(&output)), (0, "yes\nyes\nyes\n"));
    assert!(stderr(&output).contains("there is no /what"), "{}", stderr(&output));
    assert_eq!(asked.len(), 3);
    assert_eq!(messages(&asked[0]), ["user: one"]);
    assert_eq!(messages(&asked[1]), ["system: Be brief.", "user: one", "assistant: yes", "user: two"]);
    assert_eq!(messages(&asked[2]), ["system: Be brief.", "user: three"]);
    assert_eq!(asked[2].body["max_tokens"], 7);
}

#[test]
fn a_chat_that_is_too_long_loses_its_oldest_turns_and_says_so_once() {
    // Seven requests: two that are answered, then what is too long until two turns are gone.
    let long = || refusal(400, "context_length_exceeded");
    let yes = || answer(&["yes"], "stop");
    let replies = yes().then(yes().then(long().then(long().then(yes()))));
    let (asked, output) = typed(replies, &["chat", "m"], "one\ntwo\nthree\nfour\n");
    assert_eq!((code(&output), stdout(&output)), (0, "yes\nyes\nyes\nyes\n"));
    let sent: Vec<usize> = asked.iter().map(|asked| messages(asked).len()).collect();
    assert_eq!(sent, [1, 3, 5, 3, 1, 3]);
    assert_eq!(messages(&asked[4]), ["user: three"]);
    assert_eq!(stderr(&output).matches("oldest turns are forgotten").count(), 1, "{}", stderr(&output));
    let (asked, output) = typed(long(), &["chat", "m"], "one\ntwo\n");
    assert_eq!((code(&output), asked.len()), (5, 1), "a single turn can't be shortened");
}

#[test]
fn a_chat_as_json_is_a_line_for_each_turn() {
    let (_, output) = typed(answer(&["yes"], "stop"), &["chat", "m", "--json"], "one\ntwo\n");
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines.iter().all(|line| line["text"] == "yes" && line["usage"]["total_tokens"] == 10),
        "{lines:?}"
    );
}

#[test]
fn a_folder_is_not_summed_up_and_a_file_has_to_be_there() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().to_str().unwrap().to_owned();
    let (asked, output) = asked(answer(&["x"], "stop"), &["summarize", &folder]);
    assert_eq!((code(&output), asked.len()), (2, 0));
    assert_eq!(code(&ringfence(home.path(), &["summarize", &format!("{folder}/none.md")])), 1);
}

#[test]
fn a_bench_of_chats_counts_tokens_and_errors_apart() {
    let options =
        ["--clients", "2", "--requests", "6", "--prompt-tokens", "8", "--max-tokens", "3", "--warm-up", "2"];
    let arguments = [&["bench", "chat", "--model", "m", "--json"], &options[..]].concat();
    let (sent, output) = asked(answer(&["a", "b", "c"], "length"), &arguments);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!((&report["answered"], &report["prompt_tokens_per_request"]), (&json!(6), &json!(9.0)));
    assert_eq!((&report["errors"], sent.len()), (&json!({}), 8));
    assert!(report["first_token_ms"]["p95"].as_f64().unwrap() > 0.0);
    assert!(report["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(report["machine_after"]["load_1m"].is_number());
    assert!(sent.iter().all(|asked| asked.body["ignore_eos"] == true && asked.body["seed"].is_number()));
    let (_, output) = asked(refusal(429, "queue_full"), &arguments);
    let error: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!((code(&output), &error["error"]["code"]), (1, &json!("nothing_answered")));
    assert_eq!(error["error"]["message"], "m: no request was answered: 6 queue_full");
}

//! SmolLM2 through a real server: the `openai` package as a client, what the model says, and that neighbours change nothing.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use serde_json::{Value, json};
use support::{Home, python};

const SCRIPT: &str = r#"
import json, sys
import openai

url, key, model = sys.argv[1:4]
client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0)
result = {}
question = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
answer = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=24)
result["chat"] = answer.choices[0].message.content
result["finish"] = answer.choices[0].finish_reason
result["usage"] = [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens]
pieces, usage = [], None
for event in client.chat.completions.create(
    model=model, messages=question, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}
):
    if event.choices:
        pieces.append(event.choices[0].delta.content or "")
    usage = event.usage or usage
result["pieces"] = "".join(pieces)
result["streamed_usage"] = [usage.prompt_tokens, usage.completion_tokens]
result["cached"] = usage.prompt_tokens_details.cached_tokens
answer = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=4, logprobs=2)
result["text"] = answer.choices[0].text
result["logprobs"] = len(answer.choices[0].logprobs.tokens)
schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "rainy": {"type": "boolean"}},
          "required": ["city", "rainy"], "additionalProperties": False}
answer = client.chat.completions.create(
    model=model, messages=question, seed=1, max_tokens=60,
    response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
)
result["json"] = answer.choices[0].message.content
seeded = lambda: client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Tell me a story."}], seed=7, temperature=0.8, top_p=0.9, max_tokens=20
).choices[0].message.content
result["seeded"] = [seeded(), seeded()]
answer = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=24, stop=["Paris"])
result["stopped"] = answer.choices[0].message.content
for name, call in {
    "tools": lambda: client.chat.completions.create(
        model=model, messages=question, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
    ),
    "long": lambda: client.chat.completions.create(model=model, messages=question, max_tokens=100_000),
}.items():
    try:
        call()
        result[name] = None
    except openai.APIStatusError as error:
        result[name] = [error.status_code, error.code]
with client.chat.completions.create(model=model, messages=question, max_tokens=2000, stream=True) as stream:
    next(iter(stream))
print(json.dumps(result))
"#;

#[test]
fn the_openai_package_chats_over_tcp_whole_in_pieces_and_by_schema() {
    let model = std::env::var("RINGFENCE_SMOLLM2").expect("set by `make test`: SmolLM2's file");
    let cache = std::path::Path::new(&model).ancestors().nth(2).unwrap().join("archives");
    let home = Home::made("chats", |home| {
        home.cli_ok(&["model", "add", "smollm2-135m", "--cache", cache.to_str().unwrap()]);
    });
    let server = home.start();
    let result = python(&server, &home, SCRIPT, &["smollm2-135m"]);
    let chat = result["chat"].as_str().unwrap();
    assert!(chat.contains("Paris") && result["finish"] == "stop", "{result}");
    assert_eq!(result["pieces"], chat);
    let usage: Vec<u64> = result["usage"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert!(usage[0] + usage[1] == usage[2] && usage[1] < 24, "{usage:?}");
    assert_eq!(result["streamed_usage"], json!([usage[0], usage[1]]));
    // The second time, the prompt's whole blocks were known.
    assert_eq!(result["cached"], usage[0] / 32 * 32);
    assert!(result["text"].as_str().unwrap().starts_with(" Paris") && result["logprobs"] == 4, "{result}");
    let json: Value = serde_json::from_str(result["json"].as_str().unwrap()).unwrap();
    assert!(json["city"].is_string() && json["rainy"].is_boolean(), "{json}");
    assert_eq!(result["seeded"][0], result["seeded"][1]);
    let stopped = result["stopped"].as_str().unwrap();
    assert!(chat.starts_with(stopped) && !stopped.contains("Paris"), "{stopped}");
    assert_eq!(result["tools"], json!([400, "tools_unsupported"]));
    assert_eq!(result["long"], json!([400, "context_length_exceeded"]));
    server.stop();
}

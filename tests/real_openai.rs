//! The `openai` package as a client over TCP, in its own virtual environment (`make test` makes it).

mod support;

use serde_json::json;

const SCRIPT: &str = r#"
import json, sys
import openai

url, key, model = sys.argv[1:4]
client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0)
result = {"models": [model.id for model in client.models.list()]}
texts = ["a cat sat", "hello world", "z"]
answer = client.embeddings.create(model=model, input=texts)
result["default"] = [item.embedding for item in answer.data]
result["tokens"] = answer.usage.total_tokens
answer = client.embeddings.create(model=model, input=texts, encoding_format="float")
result["float"] = [item.embedding for item in answer.data]
for name, call in {
    "model_unknown": lambda: client.embeddings.create(model="absent", input="a"),
    "input_too_long": lambda: client.embeddings.create(model=model, input="word " * 4000),
    "input_empty": lambda: client.embeddings.create(model=model, input=""),
}.items():
    try:
        call()
        result[name] = None
    except openai.APIStatusError as error:
        result[name] = [error.status_code, error.code]
try:
    openai.OpenAI(base_url=url + "/v1", api_key="rf_wrong", max_retries=0).models.list()
    result["wrong_key"] = None
except openai.AuthenticationError as error:
    result["wrong_key"] = [error.status_code, error.code]
print(json.dumps(result))
"#;

#[test]
fn the_openai_package_embeds_over_tcp_and_sees_typed_errors() {
    let home = support::Home::with_tiny();
    let server = home.start();
    let result = support::python(&server, &home, SCRIPT, &["tiny-bert"]);
    assert_eq!(result["models"], json!(["tiny-bert"]));
    assert_eq!(result["default"].as_array().map(Vec::len), Some(3));
    let default = result["default"][0][0].as_f64().expect("a number");
    let float = result["float"][0][0].as_f64().expect("a number");
    assert!((default - float).abs() < 1e-6, "base64 and float differ: {default} {float}");
    assert_eq!(result["model_unknown"], json!([404, "model_unknown"]));
    assert_eq!(result["input_too_long"], json!([400, "input_too_long"]));
    assert_eq!(result["input_empty"], json!([400, "input_empty"]));
    assert_eq!(result["wrong_key"], json!([401, "key_invalid"]));
}

//! How a package says it is spoken to: chat templates, special tokens and end tokens, and what is refused.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ringfence_protocol::LoadError;
use ringfence_worker::generation::template::Message;
use ringfence_worker::package::chat::{Chat, EndTokens};
use ringfence_worker::package::{FileBytes, Files};
use serde_json::{Value, json};
use std::sync::Arc;
use tokenizers::Tokenizer;

fn files(files: &[(&str, &str)]) -> Files {
    let file =
        |(name, text): &(&str, &str)| ((*name).to_owned(), Arc::new(text.as_bytes().to_vec()) as FileBytes);
    files.iter().map(file).collect()
}

fn config(config: &Value) -> Files {
    files(&[("tokenizer_config.json", &config.to_string())])
}

#[track_caller]
fn prompt(files: &Files, expected: Option<&str>) {
    let chat = Chat::read(files).unwrap();
    let messages = [Message { role: "user", content: "hi" }];
    let parts = chat.template.map(|template| template.render_parts(&messages, &chat.tokens).unwrap());
    let prompt = parts.map(|parts| parts.into_iter().map(|part| part.text).collect::<String>());
    assert_eq!(prompt.as_deref(), expected);
}

#[track_caller]
fn refused(files: &Files, file: &str, part: &str) {
    match Chat::read(files) {
        Err(LoadError::Malformed { file: of, reason }) => {
            assert!(of == file && reason.contains(part), "{of}: {reason}")
        }
        other => panic!("{other:?}"),
    }
}

const TEMPLATE: &str = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";

#[test]
fn a_template_is_a_text_or_the_default_of_several_or_a_file() {
    let tokens = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}});
    let with = |template: Value| {
        let mut config = tokens.clone();
        config["chat_template"] = template;
        config
    };
    prompt(&config(&with(json!(TEMPLATE))), Some("<s>hi</s>"));
    let named =
        json!([{"name": "tool_use", "template": "{% bad"}, {"name": "default", "template": TEMPLATE}]);
    prompt(&config(&with(named)), Some("<s>hi</s>"));
    let text = with(json!("another")).to_string();
    prompt(&files(&[("tokenizer_config.json", &text), ("chat_template.jinja", TEMPLATE)]), Some("<s>hi</s>"));
    prompt(&files(&[("chat_template.jinja", TEMPLATE)]), Some("hi"));
}

#[test]
fn without_a_template_there_is_none() {
    prompt(&files(&[]), None);
    prompt(&config(&json!({"bos_token": null})), None);
    prompt(&config(&json!({"chat_template": null})), None);
    prompt(&config(&json!({"chat_template": [{"name": "rag", "template": TEMPLATE}]})), None);
}

#[test]
fn what_is_malformed_is_refused() {
    let file = "tokenizer_config.json";
    refused(&config(&json!({"chat_template": "{% for %}"})), file, "line 1");
    refused(&config(&json!({"chat_template": 5})), file, "of another type");
    refused(&config(&json!({"chat_template": "a".repeat(65_537)})), file, "at most 65536");
    let default = json!({"name": "default", "template": TEMPLATE});
    refused(&config(&json!({"chat_template": [default, default]})), file, "two chat templates");
    refused(
        &config(&json!({"chat_template": vec![json!({"name": "a", "template": ""}); 17]})),
        file,
        "too many",
    );
    refused(&config(&json!({"bos_token": "a".repeat(257)})), file, "too long");
    refused(&files(&[(file, r#"{"bos_token": "a", "bos_token": "b"}"#)]), file, "doubled");
    refused(&files(&[("chat_template.jinja", &"a".repeat(65_537))]), "chat_template.jinja", "at most 65536");
}

fn tokenizer() -> Tokenizer {
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, "</s>": 7}, "merges": [],
        },
    });
    Tokenizer::from_bytes(file.to_string()).unwrap()
}

fn ends(texts: &[(&str, &str)]) -> Result<Vec<u32>, LoadError> {
    EndTokens::read(&files(texts), &tokenizer(), 10).map(|ends| ends.ids().to_vec())
}

#[test]
fn end_tokens_are_what_is_stated_for_generation_else_for_the_model_and_the_tokenisers() {
    let model = ("config.json", r#"{"eos_token_id": 2, "model_type": "llama"}"#);
    let generation = ("generation_config.json", r#"{"eos_token_id": [5, 3, 5]}"#);
    let own = ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    assert_eq!(ends(&[model]), Ok(vec![2]));
    assert_eq!(ends(&[model, generation]), Ok(vec![3, 5]));
    assert_eq!(ends(&[model, generation, own]), Ok(vec![3, 5, 7]));
    assert_eq!(ends(&[model, ("generation_config.json", "{}")]), Ok(vec![2]));
    assert_eq!(ends(&[model, ("tokenizer_config.json", r#"{"eos_token": "unknown"}"#)]), Ok(vec![2]));
    assert_eq!(ends(&[]), Ok(vec![]));
}

#[test]
fn end_tokens_are_known_and_few() {
    let malformed = |text: &str| match ends(&[("config.json", text)]) {
        Err(LoadError::Malformed { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(malformed(r#"{"eos_token_id": 10}"#).contains("outside the vocabulary"));
    assert!(malformed(r#"{"eos_token_id": -1}"#).contains("another type"));
    assert!(malformed(&json!({"eos_token_id": vec![1; 17]}).to_string()).contains("too many"));
}

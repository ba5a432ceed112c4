//! `POST /v1/chat/completions`: OpenAI's chat, whose messages may have a granted file in them.

use super::App;
use super::body::JsonBody;
use super::completion_events::{Completion, Form};
use super::error::ApiError;
use super::generate::{self, Sampling, Wanted};
use super::identity::Caller;
use crate::grants::{GrantedFile, Holder};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use ringfence_protocol::{
    CHAT_MESSAGES_MAX, ChatContent, ChatMessage, INPUT_BYTES_MAX, Prompt, ROLE_BYTES_MAX,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// Body of `POST /v1/chat/completions`.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ChatRequest {
    /// A model's name.
    model: String,
    /// What was said, oldest first.
    messages: Vec<Message>,
    /// Whether the answer says how likely its tokens were.
    #[serde(default)]
    logprobs: Option<bool>,
    /// How many of the likeliest tokens it says beside each; only with `logprobs`.
    #[serde(default)]
    top_logprobs: Option<u8>,
    #[serde(flatten)]
    sampling: Sampling,
    /// Everything else.
    #[serde(flatten)]
    #[schema(ignore)]
    rest: BTreeMap<String, Value>,
}

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Message {
    /// `system`, `user`, `assistant`, or what else the model's template knows.
    role: String,
    /// A text, or a list of parts: `{"type": "text", "text": TEXT}`, or `{"type": "file", "file": {"grant": CAPABILITY, "path":
    /// PATH}}`, a granted file as text, which is not in OpenAI's interface.
    #[schema(value_type = Object)]
    content: Option<Content>,
    /// Taken and ignored.
    #[serde(default, rename = "name")]
    _name: Option<String>,
    /// Taken where it is null.
    #[serde(default)]
    #[schema(ignore)]
    tool_calls: Option<Value>,
    #[serde(default)]
    #[schema(ignore)]
    tool_call_id: Option<Value>,
    /// As answers have it.
    #[serde(default, rename = "refusal")]
    #[schema(ignore)]
    _refusal: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text {
        text: String,
    },
    File {
        file: GrantedPart,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantedPart {
    grant: String,
    #[serde(default)]
    path: String,
}

/// `POST /v1/chat/completions`
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest,
    params(("Ringfence-Deadline" = Option<u64>, Header, description = "milliseconds from receipt until the answer is worthless")),
    responses((status = 200, content((Completion = "application/json"), (Completion = "text/event-stream"))),
              (status = "4XX", body = super::error::ErrorBody),
              (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody { value: request, received }: JsonBody<ChatRequest>,
) -> Result<Response, ApiError> {
    let ChatRequest { model, messages, logprobs, top_logprobs, sampling, rest } = request;
    generate::known(&rest)?;
    generate::named(&model)?;
    let logprobs = match (logprobs.unwrap_or(false), top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            let message = "top_logprobs needs \"logprobs\": true";
            return Err(ApiError::invalid("option_invalid", "top_logprobs", message));
        }
    };
    let options = sampling.options(logprobs)?;
    let (messages, file) = read(messages)?;
    let granted = match file {
        None => None,
        Some(GrantedPart { grant, path }) => {
            let holder = Holder::new(&caller.who, &caller.client, &grant, Some(model.clone()));
            let file: Arc<GrantedFile> = app.grants.read(&holder, &path, INPUT_BYTES_MAX as u64).await?;
            Some(file)
        }
    };
    let prompt = Prompt::Chat(messages);
    let wanted = Wanted { model, prompt, options, granted, sampling, received, form: Form::Chat };
    generate::answer(&app, caller, &headers, wanted).await
}

/// The messages in the worker's words, and the granted file that is in them.
fn read(messages: Vec<Message>) -> Result<(Vec<ChatMessage>, Option<GrantedPart>), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("input_empty", "messages", "messages is an empty list"));
    }
    if messages.len() > CHAT_MESSAGES_MAX {
        let message = format!("a chat has at most {CHAT_MESSAGES_MAX} messages; leave the oldest out");
        return Err(ApiError::invalid("messages_too_many", "messages", message));
    }
    let mut file = None;
    let messages = messages.into_iter().map(|message| one(message, &mut file)).collect::<Result<_, _>>()?;
    Ok((messages, file))
}

fn one(message: Message, file: &mut Option<GrantedPart>) -> Result<ChatMessage, ApiError> {
    let Message { role, content, tool_calls, tool_call_id, .. } = message;
    if tool_calls.is_some() || tool_call_id.is_some() || role == "tool" || role == "function" {
        let message = "tools are not supported: put what a tool said into a user's message";
        return Err(ApiError::invalid("tools_unsupported", "messages", message));
    }
    if role.is_empty() || role.len() > ROLE_BYTES_MAX {
        let message = format!("a role has 1 to {ROLE_BYTES_MAX} bytes");
        return Err(ApiError::invalid("option_invalid", "messages", message));
    }
    let parts = match content {
        None => return Err(ApiError::invalid("input_empty", "messages", "a message has no content")),
        Some(Content::Text(text)) => return Ok(ChatMessage { role, content: vec![ChatContent::Text(text)] }),
        Some(Content::Parts(parts)) => parts,
    };
    let mut content = Vec::with_capacity(parts.len());
    for part in parts {
        content.push(match part {
            Part::Text { text } => ChatContent::Text(text),
            Part::File { file: granted } if file.is_none() => {
                *file = Some(granted);
                ChatContent::File
            }
            Part::File { .. } => {
                let message =
                    "one granted file in a request: ask about each by itself, then about the answers";
                return Err(ApiError::invalid("files_too_many", "messages", message));
            }
            Part::Other => {
                let message =
                    "a part of a message is a text or a granted file; images and sounds are not supported";
                return Err(ApiError::invalid("content_unsupported", "messages", message));
            }
        });
    }
    Ok(ChatMessage { role, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(messages: &str) -> Result<(Vec<ChatMessage>, Option<GrantedPart>), ApiError> {
        read(serde_json::from_str(messages).unwrap())
    }

    #[test]
    fn messages_are_texts_or_parts_of_which_one_may_be_a_file() {
        let (messages, file) = read_all(
            r#"[{"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Sum up: "},
                    {"type": "file", "file": {"grant": "rfc_x", "path": "a.md"}}]}]"#,
        )
        .unwrap();
        assert_eq!(messages[0].content, [ChatContent::Text("Be brief.".to_owned())]);
        assert_eq!(messages[1].content, [ChatContent::Text("Sum up: ".to_owned()), ChatContent::File]);
        let file = file.unwrap();
        assert_eq!((file.grant.as_str(), file.path.as_str()), ("rfc_x", "a.md"));
    }

    #[test]
    fn tools_images_and_second_files_are_refused_by_name() {
        let check = |messages: &str, code: &str| {
            assert_eq!(read_all(messages).unwrap_err().code(), code, "{messages}");
        };
        check("[]", "input_empty");
        check(r#"[{"role": "user", "content": null}]"#, "input_empty");
        check(r#"[{"role": "tool", "content": "1", "tool_call_id": "a"}]"#, "tools_unsupported");
        check(r#"[{"role": "assistant", "content": "", "tool_calls": []}]"#, "tools_unsupported");
        let image = r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]"#;
        check(image, "content_unsupported");
        let file = r#"{"type": "file", "file": {"grant": "g"}}"#;
        check(&format!(r#"[{{"role": "user", "content": [{file}, {file}]}}]"#), "files_too_many");
        check(r#"[{"role": "", "content": "a"}]"#, "option_invalid");
    }
}

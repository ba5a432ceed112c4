//! `POST /v1/completions`: OpenAI's older interface, whose answer goes on from a text.

use super::App;
use super::body::JsonBody;
use super::completion_events::{Completion, Form};
use super::error::ApiError;
use super::generate::{self, Sampling, Wanted};
use super::identity::Caller;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use ringfence_protocol::Prompt;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// Tokens of an answer where nothing is said, as OpenAI has it for this route.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// Body of `POST /v1/completions`.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CompletionRequest {
    /// A model's name.
    model: String,
    /// A text, or an array of token ids; a list with one of these is taken as well.
    #[schema(value_type = Object)]
    prompt: Prompts,
    /// How many of the likeliest tokens the answer says beside each of its own.
    #[serde(default)]
    logprobs: Option<u8>,
    /// Only false.
    #[serde(default)]
    echo: Option<bool>,
    /// Only 1.
    #[serde(default)]
    best_of: Option<u32>,
    #[serde(flatten)]
    sampling: Sampling,
    /// Everything else.
    #[serde(flatten)]
    #[schema(ignore)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// `POST /v1/completions`
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest,
    params(("Ringfence-Deadline" = Option<u64>, Header, description = "milliseconds from receipt until the answer is worthless")),
    responses((status = 200, content((Completion = "application/json"), (Completion = "text/event-stream"))),
              (status = "4XX", body = super::error::ErrorBody),
              (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody { value: request, received }: JsonBody<CompletionRequest>,
) -> Result<Response, ApiError> {
    let CompletionRequest { model, prompt, logprobs, echo, best_of, sampling, rest } = request;
    generate::known(&rest)?;
    generate::named(&model)?;
    if echo == Some(true) {
        return Err(ApiError::invalid("echo_unsupported", "echo", "the answer does not repeat the prompt"));
    }
    if best_of.is_some_and(|best_of| best_of != 1) {
        return Err(ApiError::invalid(
            "n_unsupported",
            "best_of",
            "one answer at a time: leave `best_of` out",
        ));
    }
    let mut options = sampling.options(logprobs)?;
    options.max_tokens = options.max_tokens.or(Some(MAX_TOKENS_DEFAULT));
    let prompt = one(prompt)?;
    let wanted = Wanted { model, prompt, options, granted: None, sampling, received, form: Form::Text };
    generate::answer(&app, caller, &headers, wanted).await
}

fn one(prompt: Prompts) -> Result<Prompt, ApiError> {
    match prompt {
        Prompts::Text(text) => Ok(Prompt::Text(text)),
        Prompts::Tokens(tokens) if tokens.is_empty() => {
            Err(ApiError::invalid("input_empty", "prompt", "prompt is an empty list"))
        }
        Prompts::Tokens(tokens) => Ok(Prompt::Tokens(tokens)),
        Prompts::Texts(texts) => single(texts).map(Prompt::Text),
        Prompts::TokenLists(lists) => single(lists).map(Prompt::Tokens),
    }
}

fn single<T>(list: Vec<T>) -> Result<T, ApiError> {
    let message = "one prompt in a request: send the others in requests of their own, they run together";
    let [prompt] =
        <[T; 1]>::try_from(list).map_err(|_| ApiError::invalid("prompts_too_many", "prompt", message))?;
    Ok(prompt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_comes_alone_in_each_of_its_forms() {
        let read = |json: &str| one(serde_json::from_str(json).unwrap());
        assert_eq!(read(r#""a""#).unwrap(), Prompt::Text("a".to_owned()));
        assert_eq!(read(r#"["a"]"#).unwrap(), Prompt::Text("a".to_owned()));
        assert_eq!(read("[1, 2]").unwrap(), Prompt::Tokens(vec![1, 2]));
        assert_eq!(read("[[1, 2]]").unwrap(), Prompt::Tokens(vec![1, 2]));
        assert_eq!(read(r#"["a", "b"]"#).unwrap_err().code(), "prompts_too_many");
        assert_eq!(read("[]").unwrap_err().code(), "input_empty");
    }
}

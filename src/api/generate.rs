//! What the two routes of text generation share: how an answer is made, in OpenAI's words and some of ours, and the way from
//! a request to an answer.

use super::App;
use super::answered::stamped;
use super::completion_events::{Completed, CompletionEvents, Form};
use super::error::ApiError;
use super::identity::Caller;
use super::openai::{MODEL_NAME_BYTES_MAX, answer_granted, deadline};
use super::pieces;
use crate::dispatch::{JobInput, JobRequest, Purpose};
use crate::grants::GrantedFile;
use crate::workers::Made;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use ringfence_protocol::{GenerateInput, GenerateOptions, Prompt};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// What is taken and changes nothing: who asks, and what is kept where others keep it.
const IGNORED: [&str; 11] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "reasoning_effort",
    "verbosity",
    "prediction",
];

/// How an answer is made. Bounds are OpenAI's where they have them.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct Sampling {
    /// The most tokens of the answer; without it as many as the model has room for.
    #[serde(default)]
    pub(super) max_tokens: Option<u32>,
    /// The same, as newer clients say it; it wins.
    #[serde(default)]
    pub(super) max_completion_tokens: Option<u32>,
    /// From 0, which always takes the likeliest token, to 2; without it 1.
    #[serde(default)]
    pub(super) temperature: Option<f32>,
    /// Only the likeliest tokens that are so likely together; without it 1.
    #[serde(default)]
    pub(super) top_p: Option<f32>,
    /// Only so many of the likeliest tokens; 0 for all. Not in OpenAI's interface.
    #[serde(default)]
    pub(super) top_k: Option<u32>,
    /// Only tokens at least so likely, where the likeliest is 1. Not in OpenAI's interface.
    #[serde(default)]
    pub(super) min_p: Option<f32>,
    /// Above 1, what was said before becomes less likely. Not in OpenAI's interface.
    #[serde(default)]
    pub(super) repetition_penalty: Option<f32>,
    /// Taken from the logits of what the answer has.
    #[serde(default)]
    pub(super) presence_penalty: Option<f32>,
    /// The same for each time that the answer has it.
    #[serde(default)]
    pub(super) frequency_penalty: Option<f32>,
    /// Added to logits, by token id.
    #[serde(default)]
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
    /// A text that ends the answer, or a list of them.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub(super) stop: Option<Stop>,
    /// The same seed gives the same answer, whatever else runs.
    #[serde(default)]
    pub(super) seed: Option<i64>,
    /// Without a seed: 0 is taken, so that the answer is the same each time. Not in OpenAI's interface.
    #[serde(default)]
    pub(super) deterministic: bool,
    /// The model's own end of an answer does not end it. Not in OpenAI's interface.
    #[serde(default)]
    pub(super) ignore_eos: bool,
    /// Answers; only 1.
    #[serde(default)]
    pub(super) n: Option<u32>,
    /// Whether pieces come as they are written, as server-sent events.
    #[serde(default)]
    pub(super) stream: bool,
    /// How they come.
    #[serde(default)]
    pub(super) stream_options: Option<StreamOptions>,
    /// `text`, `json_object`, or `json_schema` with a schema.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub(super) response_format: Option<ResponseFormat>,
    /// As the header `Ringfence-Deadline`, which wins. Not in OpenAI's interface.
    #[serde(default)]
    pub(super) ringfence_deadline_ms: Option<u64>,
}

/// How pieces come.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// Whether a last event says what was used.
    #[serde(default)]
    pub(super) include_usage: bool,
    /// Taken and not followed: pieces are not padded.
    #[serde(default, rename = "include_obfuscation")]
    #[schema(ignore)]
    _include_obfuscation: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: JsonSchema },
}

#[derive(Debug, Deserialize)]
pub(super) struct JsonSchema {
    schema: Value,
}

/// Any JSON object.
const OBJECT: &str = r#"{"type": "object"}"#;

impl Sampling {
    /// The same in the worker's words; `logprobs` as the route has it.
    pub(super) fn options(&self, logprobs: Option<u8>) -> Result<GenerateOptions, ApiError> {
        if self.n.is_some_and(|n| n != 1) {
            let message = "one answer at a time: leave `n` out and ask again for another";
            return Err(ApiError::invalid("n_unsupported", "n", message));
        }
        let seed = match (self.seed, self.deterministic) {
            (Some(seed), _) => seed.cast_unsigned(),
            (None, true) => 0,
            (None, false) => random_seed()?,
        };
        let options = GenerateOptions {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias()?,
            stops: match &self.stop {
                None => Vec::new(),
                Some(Stop::One(stop)) => vec![stop.clone()],
                Some(Stop::Many(stops)) => stops.clone(),
            },
            ignore_end: self.ignore_eos,
            logprobs,
            seed,
            schema: match &self.response_format {
                None | Some(ResponseFormat::Text) => None,
                Some(ResponseFormat::JsonObject) => Some(OBJECT.to_owned()),
                Some(ResponseFormat::JsonSchema { json_schema }) => Some(json_schema.schema.to_string()),
            },
        };
        match options.out_of_bounds() {
            None => Ok(options),
            Some(name) => {
                let message = format!("{name} {}", GenerateOptions::bounds_of(name));
                Err(ApiError::invalid("option_invalid", name, message))
            }
        }
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let of = |(token, bias): (&String, &f32)| {
            let wrong = |_| ApiError::invalid("option_invalid", "logit_bias", "its keys are token ids");
            token.parse().map(|token| (token, *bias)).map_err(wrong)
        };
        // Two spellings of a number are one token, which has one bias.
        let by_token: BTreeMap<u32, f32> =
            self.logit_bias.iter().flatten().map(of).collect::<Result<_, _>>()?;
        Ok(by_token.into_iter().collect())
    }
}

fn random_seed() -> Result<u64, ApiError> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| ApiError::internal(&error))?;
    Ok(u64::from_le_bytes(seed))
}

/// Refuses fields that nobody here knows: what they ask for would silently not be done.
pub(super) fn known(rest: &BTreeMap<String, Value>) -> Result<(), ApiError> {
    let Some((name, _)) =
        rest.iter().find(|(name, value)| !IGNORED.contains(&name.as_str()) && !value.is_null())
    else {
        return Ok(());
    };
    let name: String = name.chars().take(64).collect();
    match name.as_str() {
        "tools" | "tool_choice" | "functions" | "function_call" => Err(ApiError::invalid(
            "tools_unsupported",
            &name,
            "tools are not supported: ask for JSON with `response_format` and run the tool yourself",
        )),
        "modalities" | "audio" | "web_search_options" => Err(ApiError::invalid(
            "modality_unsupported",
            &name,
            "answers are texts: sound goes to /v1/audio/transcriptions first",
        )),
        _ => Err(ApiError::invalid(
            "parameter_unknown",
            &name,
            format!("{name} is not known here; GET /openapi.json has every field"),
        )),
    }
}

/// A request for an answer.
pub(super) struct Wanted {
    pub(super) model: String,
    pub(super) prompt: Prompt,
    pub(super) options: GenerateOptions,
    pub(super) granted: Option<Arc<GrantedFile>>,
    pub(super) sampling: Sampling,
    pub(super) received: Instant,
    pub(super) form: Form,
}

/// Answers it, at once or in pieces.
pub(super) async fn answer(
    app: &Arc<App>,
    caller: Caller,
    headers: &HeaderMap,
    wanted: Wanted,
) -> Result<Response, ApiError> {
    let Wanted { model, prompt, options, granted, sampling, received, form } = wanted;
    let deadline = deadline(headers, sampling.ringfence_deadline_ms)?;
    let input = Box::new(GenerateInput { prompt, options });
    let request_id = caller.who.request.clone().unwrap_or_default();
    let job = JobRequest {
        client: caller.client,
        request_id: request_id.clone(),
        who: caller.who,
        model: model.clone(),
        input: JobInput::Generate { input, file: granted.clone(), pieces: None },
        received,
        deadline,
        dimensions: None,
        purpose: Purpose::Client,
    };
    let completed = Completed::new(form, request_id, model);
    if sampling.stream {
        let usage = sampling.stream_options.is_some_and(|options| options.include_usage);
        return pieces::answer(app, job, granted, CompletionEvents::new(completed, usage)).await;
    }
    let answered = match granted {
        None => app.dispatcher.answer(job).await?,
        Some(file) => answer_granted(app, job, &file).await?,
    };
    let Made::Text(answer) = &answered.output.made else {
        return Err(ApiError::internal(&"an answer without text"));
    };
    let body = completed.whole(&answered.model, answer)?;
    let response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    stamped(response, &answered, received)
}

/// A name that can be a model's.
pub(super) fn named(model: &str) -> Result<(), ApiError> {
    if model.len() > MODEL_NAME_BYTES_MAX { Err(ApiError::model_unknown(model)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &str) -> Result<GenerateOptions, ApiError> {
        serde_json::from_str::<Sampling>(json).unwrap().options(None)
    }

    #[test]
    fn what_is_not_said_means_what_openai_means() {
        let read = options(r#"{"seed": 7}"#).unwrap();
        assert_eq!(read, GenerateOptions { seed: 7, ..GenerateOptions::default() });
        assert_eq!(options(r#"{"deterministic": true}"#).unwrap().seed, 0);
        let both = options(r#"{"max_tokens": 5, "max_completion_tokens": 6, "seed": 1}"#).unwrap();
        assert_eq!(both.max_tokens, Some(6));
        let read = options(r#"{"seed": -1, "stop": "x", "logit_bias": {"5": -100}}"#).unwrap();
        assert_eq!(
            (read.seed, &read.stops[..], &read.logit_bias[..]),
            (u64::MAX, &["x".to_owned()][..], &[(5, -100.0)][..])
        );
        let json = options(r#"{"seed": 1, "response_format": {"type": "json_object"}}"#).unwrap();
        assert_eq!(json.schema.as_deref(), Some(OBJECT));
    }

    #[test]
    fn what_is_out_of_bounds_or_unknown_is_refused_by_name() {
        let check = |json: &str, code: &str| assert_eq!(options(json).unwrap_err().code(), code, "{json}");
        check(r#"{"temperature": 2.5}"#, "option_invalid");
        check(r#"{"max_tokens": 0}"#, "option_invalid");
        check(r#"{"logit_bias": {"x": 1}}"#, "option_invalid");
        check(r#"{"stop": [""]}"#, "option_invalid");
        check(r#"{"n": 2}"#, "n_unsupported");
        let rest = |name: &str| known(&BTreeMap::from([(name.to_owned(), Value::Bool(true))]));
        assert!(rest("user").is_ok());
        assert_eq!(rest("tools").unwrap_err().code(), "tools_unsupported");
        assert_eq!(rest("temprature").unwrap_err().code(), "parameter_unknown");
        assert!(known(&BTreeMap::from([("tools".to_owned(), Value::Null)])).is_ok());
    }
}

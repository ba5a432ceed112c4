//! The OpenAI-compatible routes: embeddings and the list of models.

use super::App;
use super::answered::stamped;
use super::body::JsonBody;
use super::error::ApiError;
use super::identity::Caller;
use crate::dispatch::{Answered, JobInput, JobRequest, Output, Purpose};
use crate::grants::{GrantedFile, Holder};
use crate::workers::Made;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringfence_protocol::{EmbedInput, INPUT_BYTES_MAX, ITEMS_MAX, Item, Split};
use ringfence_scheduler::quotas::DEADLINE_MAX;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// Longest model name in a request.
pub(super) const MODEL_NAME_BYTES_MAX: usize = 128;

/// Body of `POST /v1/embeddings`. Fields that are not listed are ignored, as OpenAI clients send several.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct EmbeddingsRequest {
    /// A model's name.
    model: String,
    /// A text, a list of texts, an array of token ids, or a list of such arrays; or `{"grant": CAPABILITY, "path": PATH}`,
    /// a granted file as one text, or with `"passage_tokens": N` in it as many as it has passages. The last two are not in
    /// OpenAI's interface.
    #[schema(value_type = Object)]
    input: Input,
    /// `float` (default) or `base64`: little-endian f32.
    #[serde(default)]
    encoding_format: EncodingFormat,
    /// Only the model's own width is accepted.
    #[serde(default)]
    dimensions: Option<u32>,
    /// Cut texts that are too long for the model instead of refusing them. Not in OpenAI's interface.
    #[serde(default)]
    truncate: bool,
    /// As the header `Ringfence-Deadline`, which wins. Not in OpenAI's interface.
    #[serde(default)]
    ringfence_deadline_ms: Option<u64>,
}

/// How an embedding is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    /// A JSON array of numbers.
    #[default]
    Float,
    /// Base64 of little-endian f32.
    Base64,
}

/// Answer of `POST /v1/embeddings`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbeddingsResponse<'a> {
    /// Always `list`.
    object: &'static str,
    /// One for each input, in order.
    data: Vec<Embedding<'a>>,
    /// The model's name.
    model: &'a str,
    /// What was used.
    usage: Usage,
}

/// One embedding.
#[derive(Debug, Serialize, ToSchema)]
struct Embedding<'a> {
    /// Always `embedding`.
    object: &'static str,
    /// Which input.
    index: usize,
    /// Numbers or base64, as asked.
    #[schema(value_type = Vec<f32>)]
    embedding: Vector<'a>,
    /// Of a passage, its first byte in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<u32>,
    /// Of a passage, the byte behind its last.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<u32>,
}

/// What a request used.
#[derive(Debug, Serialize, ToSchema)]
struct Usage {
    /// Tokens run, special tokens included.
    prompt_tokens: u32,
    /// The same.
    total_tokens: u32,
    /// Inputs that were cut; absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<u32>,
}

/// `POST /v1/embeddings`
#[utoipa::path(post, path = "/v1/embeddings", request_body = EmbeddingsRequest,
    params(("Ringfence-Deadline" = Option<u64>, Header, description = "milliseconds from receipt until the answer is worthless")),
    responses((status = 200, body = EmbeddingsResponse), (status = "4XX", body = super::error::ErrorBody),
              (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody { value: request, received }: JsonBody<EmbeddingsRequest>,
) -> Result<Response, ApiError> {
    let deadline = deadline(&headers, request.ringfence_deadline_ms)?;
    if request.model.len() > MODEL_NAME_BYTES_MAX {
        return Err(ApiError::model_unknown(&request.model));
    }
    let truncate = request.truncate;
    let (input, granted) = match request.input {
        Input::Granted(GrantedInput { grant, path, passage_tokens }) => {
            let split = split(passage_tokens, truncate)?;
            let holder = Holder::new(&caller.who, &caller.client, &grant, Some(request.model.clone()));
            let file = app.grants.read(&holder, &path, INPUT_BYTES_MAX as u64).await?;
            (JobInput::Granted { file: file.clone(), split }, Some(file))
        }
        input => (JobInput::Items(EmbedInput { items: input.into_items()?, truncate }), None),
    };
    let items = match &input {
        JobInput::Items(input) => input.items.len(),
        JobInput::Granted { .. } | JobInput::Audio { .. } | JobInput::Generate { .. } | JobInput::Live(_) => {
            1
        }
    };
    let job = JobRequest {
        client: caller.client,
        request_id: caller.who.request.clone().unwrap_or_default(),
        who: caller.who,
        model: request.model.clone(),
        input,
        received,
        deadline,
        dimensions: request.dimensions,
        purpose: Purpose::Client,
    };
    let answered = match granted {
        None => app.dispatcher.answer(job).await?,
        Some(file) => answer_granted(&app, job, &file).await?,
    };
    let body = body(&answered.model, items, request.encoding_format, &answered.output)?;
    stamped(([("content-type", "application/json")], body).into_response(), &answered, received)
}

/// Says which model was asked for, where another one answered.
pub(super) fn with_fallback(mut response: Response, asked: Option<&str>) -> Result<Response, ApiError> {
    if let Some(asked) = asked {
        // A model's name that was found is one of a package, and so legal in a header.
        let value = HeaderValue::from_str(asked).map_err(|error| ApiError::internal(&error))?;
        response.headers_mut().insert("ringfence-fallback-from", value);
    }
    Ok(response)
}

/// An answer made from a granted file, unless the grant ends first: then the job is cancelled, and the worker forgets it.
pub(super) async fn answer_granted(
    app: &Arc<App>,
    job: JobRequest,
    file: &GrantedFile,
) -> Result<Answered, ApiError> {
    let answered = tokio::select! {
        biased;
        () = file.ended() => {
            let message = "the grant ended before the answer; what was made from the file is forgotten";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "grant_revoked", message));
        }
        answered = app.dispatcher.answer(job) => answered,
    };
    file.finish().await;
    answered.map_err(|error| match error.code() {
        // The worker knows only that nothing came.
        "input_unavailable" => file.refusal().unwrap_or(error),
        _ => error,
    })
}

/// What becomes of a granted file's text.
fn split(passage_tokens: Option<u32>, truncate: bool) -> Result<Split, ApiError> {
    let wrong = |message: &str| Err(ApiError::invalid("passage_tokens_invalid", "input", message.to_owned()));
    match passage_tokens {
        None => Ok(Split::Whole { truncate }),
        Some(_) if truncate => wrong("a passage is never too long: leave `truncate` out"),
        Some(0) => wrong("`passage_tokens` is at least 1; more than the model takes counts as what it takes"),
        Some(tokens_max) => Ok(Split::Passages { tokens_max }),
    }
}

fn body(model: &str, items: usize, format: EncodingFormat, output: &Output) -> Result<Vec<u8>, ApiError> {
    let Made::Vectors { data, passages, truncated } = &output.made else {
        return Err(ApiError::internal(&"an embedding without vectors"));
    };
    let items = passages.as_ref().map_or(items, Vec::len);
    // A text without passages has no bytes.
    let row = data.len().checked_div(items).unwrap_or(1);
    let embedding = |(index, bytes)| {
        let passage = passages.as_ref().map(|passages| passages[index]);
        Embedding {
            object: "embedding",
            index,
            embedding: Vector { bytes, format },
            start: passage.map(|passage| passage.start),
            end: passage.map(|passage| passage.end),
        }
    };
    let data = data.chunks_exact(row).enumerate().map(embedding).collect();
    let truncated = (*truncated > 0).then_some(*truncated);
    let usage = Usage { prompt_tokens: output.tokens, total_tokens: output.tokens, truncated };
    let body = EmbeddingsResponse { object: "list", data, model, usage };
    serde_json::to_vec(&body).map_err(|error| ApiError::internal(&error))
}

/// The header's deadline, else the body's.
pub(super) fn deadline(headers: &HeaderMap, in_body: Option<u64>) -> Result<Option<Duration>, ApiError> {
    let in_header = headers.get("ringfence-deadline");
    let header_millis = |value: &HeaderValue| value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    let (name, millis) = match (in_header, in_body) {
        (Some(value), _) => ("Ringfence-Deadline", header_millis(value)),
        (None, Some(millis)) => ("ringfence_deadline_ms", Some(millis)),
        (None, None) => return Ok(None),
    };
    let message = format!("{name} is a number of milliseconds from 1 to {}", DEADLINE_MAX.as_millis());
    match millis.map(Duration::from_millis).filter(can_be_deadline) {
        Some(deadline) => Ok(Some(deadline)),
        None => Err(ApiError::invalid("deadline_invalid", name, message)),
    }
}

/// Whether a job can be given so long.
pub(super) fn can_be_deadline(deadline: &Duration) -> bool {
    !deadline.is_zero() && *deadline <= DEADLINE_MAX
}

/// An embedding as the worker sent it: little-endian f32.
#[derive(Debug)]
struct Vector<'a> {
    bytes: &'a [u8],
    format: EncodingFormat,
}

impl Serialize for Vector<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.format {
            EncodingFormat::Base64 => serializer.serialize_str(&STANDARD.encode(self.bytes)),
            EncodingFormat::Float => Floats(self.bytes).serialize(serializer),
        }
    }
}

/// Little-endian f32 as a JSON array of numbers.
pub(super) struct Floats<'a>(pub(super) &'a [u8]);

impl Serialize for Floats<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(self.0.len() / 4))?;
        for number in self.0.chunks_exact(4) {
            let number: [u8; 4] = number.try_into().expect("chunks of four");
            sequence.serialize_element(&f32::from_le_bytes(number))?;
        }
        sequence.end()
    }
}

/// The four forms of `input`.
#[derive(Debug, PartialEq)]
enum Input {
    One(Item),
    Many(Vec<Item>),
    Granted(GrantedInput),
}

/// A file, by the capability string of a grant of it or of a folder that it is in:
/// `{"grant": CAPABILITY, "path": "notes/a.md"}`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantedInput {
    grant: String,
    #[serde(default)]
    path: String,
    /// The most tokens of a passage; without it the file is one text.
    #[serde(default)]
    passage_tokens: Option<u32>,
}

impl Input {
    fn into_items(self) -> Result<Vec<Item>, ApiError> {
        let items = match self {
            Self::One(item) => vec![item],
            Self::Many(items) => items,
            Self::Granted(_) => return Err(ApiError::internal(&"a file has no items")),
        };
        not_empty("input", items)
    }
}

/// Refuses an empty list, and one with an empty item.
pub(super) fn not_empty(name: &str, items: Vec<Item>) -> Result<Vec<Item>, ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid("input_empty", name, format!("{name} is an empty list")));
    }
    let empty = |item: &Item| match item {
        Item::Text(text) => text.is_empty(),
        Item::Tokens(tokens) => tokens.is_empty(),
    };
    match items.iter().position(empty) {
        Some(index) => Err(ApiError::invalid("input_empty", name, format!("{name} {index} is empty"))),
        None => Ok(items),
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text, a list of texts, an array of token ids, a list of such arrays or a granted file")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Input, A::Error> {
        GrantedInput::deserialize(MapAccessDeserializer::new(map)).map(Input::Granted)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input::One(Item::Text(text.to_owned())))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Input, E> {
        Ok(Input::One(Item::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Input, A::Error> {
        match sequence.next_element::<Element>()? {
            None => Ok(Input::Many(Vec::new())),
            Some(Element::Token(first)) => {
                let mut tokens = vec![first];
                while let Some(token) = sequence.next_element()? {
                    tokens.push(token);
                }
                Ok(Input::One(Item::Tokens(tokens)))
            }
            Some(Element::Item(first)) => {
                let texts = matches!(first, Item::Text(_));
                let mut items = vec![first];
                while let Some(element) = sequence.next_element::<Element>()? {
                    match element {
                        Element::Item(item) if matches!(item, Item::Text(_)) == texts => items.push(item),
                        Element::Item(_) | Element::Token(_) => {
                            return Err(A::Error::custom("input mixes texts and tokens"));
                        }
                    }
                    if items.len() > ITEMS_MAX {
                        return Err(A::Error::custom(format!("input has more than {ITEMS_MAX} items")));
                    }
                }
                Ok(Input::Many(items))
            }
        }
    }
}

enum Element {
    Token(u32),
    Item(Item),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text, a token id or an array of token ids")
    }

    fn visit_u64<E: serde::de::Error>(self, token: u64) -> Result<Element, E> {
        u32::try_from(token).map(Element::Token).map_err(|_| E::custom("a token id is below 4294967296"))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Item(Item::Text(text.to_owned())))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Item(Item::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Element, A::Error> {
        let mut tokens = Vec::new();
        while let Some(token) = sequence.next_element()? {
            tokens.push(token);
        }
        Ok(Element::Item(Item::Tokens(tokens)))
    }
}

/// Answer of `GET /v1/models`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// Always `list`.
    object: &'static str,
    /// The models that can be asked for.
    data: Vec<Model>,
}

/// One model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Model {
    /// Its name.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// When its package was signed, in Unix seconds; 0 as the signature does not say.
    created: u64,
    /// Who signed it.
    owned_by: String,
    /// SHA-256 of its package: what was computed by another can't be compared. Not in OpenAI's interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

/// `GET /v1/models`
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = ModelList)))]
pub(super) async fn models(State(app): State<Arc<App>>, caller: Caller) -> axum::Json<ModelList> {
    let data = app.dispatcher.models_for(&caller.client).into_iter().filter_map(describe).collect();
    axum::Json(ModelList { object: "list", data })
}

/// `GET /v1/models/{model}`
#[utoipa::path(get, path = "/v1/models/{model}", params(("model" = String, Path)),
    responses((status = 200, body = Model), (status = 404, body = super::error::ErrorBody)))]
pub(super) async fn model(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<axum::Json<Model>, ApiError> {
    let mut models = app.dispatcher.models_for(&caller.client).into_iter();
    let found = models.find(|model| model.name == name).and_then(describe);
    found.map(axum::Json).ok_or_else(|| ApiError::model_unknown(&name))
}

fn describe(model: crate::dispatch::ModelView) -> Option<Model> {
    let signer = model.signer?;
    Some(Model {
        id: model.name,
        object: "model",
        created: 0,
        owned_by: format!("key:{signer}"),
        digest: model.digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_input_is_read_and_every_other_is_refused() {
        let text = |text: &str| Item::Text(text.to_owned());
        let good = [
            (r#""a""#, Input::One(text("a"))),
            (r#"["a","b"]"#, Input::Many(vec![text("a"), text("b")])),
            ("[1,2]", Input::One(Item::Tokens(vec![1, 2]))),
            ("[[1],[2,3]]", Input::Many(vec![Item::Tokens(vec![1]), Item::Tokens(vec![2, 3])])),
            ("[]", Input::Many(vec![])),
        ];
        for (json, expected) in good {
            assert_eq!(serde_json::from_str::<Input>(json).unwrap(), expected, "{json}");
        }
        for json in [
            "1",
            "null",
            "{}",
            "true",
            "[null]",
            "[1.5]",
            "[-1]",
            "[4294967296]",
            r#"["a",1]"#,
            r#"[1,"a"]"#,
            r#"["a",[1]]"#,
            r#"[[1],"a"]"#,
            "[[[1]]]",
            r#"[["a"]]"#,
        ] {
            assert!(serde_json::from_str::<Input>(json).is_err(), "{json}");
        }
        let many = format!("[{}\"a\"]", "\"a\",".repeat(ITEMS_MAX));
        assert!(serde_json::from_str::<Input>(&many).is_err());
    }
}

//! The body of an answer: JSON, and behind it what is wanted as binary.

use super::request::{JSON_LENGTH, Wanted};
use super::signature::TensorMetadata;
use super::tensor::{Datatype, joined};
use crate::api::ApiError;
use crate::api::openai::Floats;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use utoipa::ToSchema;

/// An output with its elements.
#[derive(Debug)]
pub(super) struct Output<'a> {
    pub(super) is: TensorMetadata,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values<'a>,
}

/// Elements in row-major order.
#[derive(Debug, PartialEq)]
pub(super) enum Values<'a> {
    /// FP32, little-endian, as the worker sent them.
    Floats(&'a [u8]),
    /// BYTES.
    Texts(Vec<String>),
}

impl Values<'_> {
    /// As they lie behind the JSON.
    fn raw(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Floats(bytes) => Cow::Borrowed(bytes),
            Self::Texts(texts) => joined(texts.iter().map(String::as_bytes)).into(),
        }
    }
}

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Floats(bytes) => Floats(bytes).serialize(serializer),
            Self::Texts(texts) => texts.serialize(serializer),
        }
    }
}

/// Answer of `POST /v2/models/{model}/infer`; with `Inference-Header-Content-Length`, its first part.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InferResponse<'a> {
    /// The model that answered.
    pub(super) model_name: &'a str,
    /// Its only version.
    pub(super) model_version: &'static str,
    /// The request's; where it has none, that of `x-request-id`.
    pub(super) id: String,
    /// What came out.
    pub(super) outputs: Vec<OutputTensor<'a>>,
}

/// An output.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OutputTensor<'a> {
    /// Its name.
    name: &'static str,
    /// What its elements are.
    datatype: Datatype,
    /// Its dimensions.
    shape: Vec<usize>,
    /// Where its data is behind the JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    /// Else its elements, flat.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    data: Option<Values<'a>>,
}

/// How much of what is behind the JSON is an output's.
#[derive(Debug, Serialize, ToSchema)]
struct BinarySize {
    /// In bytes.
    binary_data_size: usize,
}

/// The wanted outputs, and all that is binary of them.
pub(super) fn outputs<'a>(mut made: Vec<Output<'a>>, wanted: &[Wanted]) -> (Vec<OutputTensor<'a>>, Vec<u8>) {
    let (mut outputs, mut binary) = (Vec::with_capacity(wanted.len()), Vec::new());
    for wanted in wanted {
        let at = made.iter().position(|output| output.is.name == wanted.name);
        let Output { is, shape, values } =
            made.swap_remove(at.expect("wanted is what the signature has, once"));
        let (parameters, data) = if wanted.binary {
            let raw = values.raw();
            binary.extend_from_slice(&raw);
            (Some(BinarySize { binary_data_size: raw.len() }), None)
        } else {
            (None, Some(values))
        };
        outputs.push(OutputTensor { name: is.name, datatype: is.datatype, shape, parameters, data });
    }
    (outputs, binary)
}

/// Writes an answer, JSON only where no output is behind it.
pub(super) fn response(answer: &InferResponse<'_>, binary: &[u8]) -> Result<Response, ApiError> {
    let mut body = serde_json::to_vec(answer).map_err(|error| ApiError::internal(&error))?;
    if answer.outputs.iter().all(|output| output.parameters.is_none()) {
        return Ok(([("content-type", "application/json")], body).into_response());
    }
    let length = body.len();
    body.extend_from_slice(binary);
    let mut response = ([("content-type", "application/octet-stream")], body).into_response();
    response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    Ok(response)
}

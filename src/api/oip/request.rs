//! The body of an inference: JSON, and behind it what is binary.

use super::parameters::Parameters;
use super::signature::Signature;
use super::tensor::{Data, JsonData, Tensor, invalid};
use crate::api::ApiError;
use crate::api::body::{self, BODY_BYTES_MAX};
use axum::http::{HeaderMap, StatusCode};
use hyper::body::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

/// Says how much of a body is JSON, where there is something binary behind it.
pub(super) const JSON_LENGTH: &str = "inference-header-content-length";

/// The most inputs, and the most outputs that are named: no model has as many.
const TENSORS_MAX: usize = 16;

/// The longest `id` of a request.
const ID_BYTES_MAX: usize = 256;

/// Body of `POST /v2/models/{model}/infer`; with `Inference-Header-Content-Length`, its first part. Fields that are not
/// listed are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct InferRequest {
    /// What the client calls it, at most 256 bytes; the answer has it again.
    #[serde(default)]
    id: Option<String>,
    /// `timeout` in microseconds, `priority` (read, and without effect: who goes first is a matter of quotas),
    /// `binary_data_output`; and those of the task.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: Parameters,
    /// What goes in.
    inputs: Vec<GivenTensor>,
    /// What of the answer is wanted; without it, all.
    #[serde(default)]
    outputs: Vec<RequestedOutput>,
}

/// An input.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GivenTensor {
    /// Its name.
    name: String,
    /// Its dimensions.
    shape: Vec<i64>,
    /// BOOL, UINT8 to UINT64, INT8 to INT64, FP16, FP32, FP64 or BYTES.
    datatype: String,
    /// `binary_data_size`, where its data is behind the JSON: in bytes.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: Parameters,
    /// In row-major order, flat or nested.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Object>>)]
    data: Option<JsonData>,
}

/// A wanted output.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RequestedOutput {
    /// Its name.
    name: String,
    /// `binary_data`: whether its data comes behind the JSON.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: Parameters,
}

/// A request whose tensors agree with themselves.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) id: Option<String>,
    /// Those of the task, not taken yet.
    pub(super) parameters: Parameters,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<Wanted>,
}

/// An output that is wanted, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: &'static str,
    pub(super) binary: bool,
}

impl Parsed {
    /// # Errors
    /// Not a request of this protocol, or not one for a model of this signature.
    pub(super) fn read(headers: &HeaderMap, body: Bytes, signature: &Signature) -> Result<Self, ApiError> {
        let (json, binary) = parts(headers, body)?;
        let InferRequest { id, mut parameters, inputs, outputs } = body::parse(&json)?;
        if id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
            let message = format!("an id has at most {ID_BYTES_MAX} bytes");
            return Err(ApiError::invalid("invalid_request", "id", message));
        }
        if inputs.len() > TENSORS_MAX || outputs.len() > TENSORS_MAX {
            let message = format!("a request has at most {TENSORS_MAX} inputs, and as many outputs");
            return Err(ApiError::invalid("invalid_request", "inputs", message));
        }
        let binary_output = parameters.flag("binary_data_output")?.unwrap_or(false);
        let inputs = tensors(inputs, binary)?;
        let outputs = wanted(outputs, binary_output, signature)?;
        Ok(Self { id, parameters, inputs, outputs })
    }
}

/// JSON and what is behind it.
fn parts(headers: &HeaderMap, mut body: Bytes) -> Result<(Bytes, Bytes), ApiError> {
    let binary = match headers.get(JSON_LENGTH) {
        None => Bytes::new(),
        Some(value) => {
            let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
            let length = length.filter(|length| *length <= body.len()).ok_or_else(|| {
                let message = format!(
                    "Inference-Header-Content-Length is the number of bytes of the JSON, of a body of {}",
                    body.len()
                );
                ApiError::invalid("invalid_request", "Inference-Header-Content-Length", message)
            })?;
            body.split_off(length)
        }
    };
    if body.len() > BODY_BYTES_MAX {
        let message =
            format!("the JSON has at most {BODY_BYTES_MAX} bytes; send the data as binary behind it");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    Ok((body, binary))
}

/// Inputs with their data, which lies behind the JSON in their order.
fn tensors(given: Vec<GivenTensor>, mut binary: Bytes) -> Result<Vec<Tensor>, ApiError> {
    let mut tensors: Vec<Tensor> = Vec::with_capacity(given.len());
    for GivenTensor { name, shape, datatype, mut parameters, data } in given {
        if tensors.iter().any(|other| other.name() == name) {
            return Err(invalid(&name, "it is there twice"));
        }
        let size = parameters.count("binary_data_size")?;
        parameters.end("an input")?;
        let data = match (data, size) {
            (Some(data), None) => Data::Json(data),
            (None, Some(size)) => Data::Raw(part(&name, &mut binary, size)?),
            (None, None) => {
                return Err(invalid(&name, "it has neither `data` nor the parameter `binary_data_size`"));
            }
            (Some(_), Some(_)) => {
                return Err(invalid(&name, "it has both `data` and the parameter `binary_data_size`"));
            }
        };
        tensors.push(Tensor::new(name, &datatype, &shape, data)?);
    }
    if !binary.is_empty() {
        let message = format!("the body has {} more bytes than its inputs", binary.len());
        return Err(ApiError::invalid("invalid_request", "inputs", message));
    }
    Ok(tensors)
}

fn part(name: &str, binary: &mut Bytes, size: u64) -> Result<Bytes, ApiError> {
    let size = usize::try_from(size).ok().filter(|size| *size <= binary.len());
    let size = size.ok_or_else(|| {
        invalid(
            name,
            &format!("binary_data_size is more than the {} bytes that the body has left", binary.len()),
        )
    })?;
    Ok(binary.split_to(size))
}

fn wanted(
    requested: Vec<RequestedOutput>,
    binary: bool,
    signature: &Signature,
) -> Result<Vec<Wanted>, ApiError> {
    if requested.is_empty() {
        return Ok(signature.outputs.iter().map(|output| Wanted { name: output.name, binary }).collect());
    }
    let mut wanted: Vec<Wanted> = Vec::with_capacity(requested.len());
    for RequestedOutput { name, mut parameters } in requested {
        let output = signature.output(&name)?;
        if wanted.iter().any(|other| other.name == output.name) {
            let message = format!("output {name:?} is wanted twice");
            return Err(ApiError::invalid("tensor_invalid", &name, message));
        }
        let binary = parameters.flag("binary_data")?.unwrap_or(binary);
        parameters.end("an output")?;
        wanted.push(Wanted { name: output.name, binary });
    }
    Ok(wanted)
}

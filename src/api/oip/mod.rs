//! The Open Inference Protocol, version 2, with the extensions for binary tensors and model repositories: what clients of
//! inference servers speak that know tensors instead of texts. Jobs go the same way as those of the OpenAI routes.

mod infer;
mod parameters;
pub(super) mod repository;
mod request;
mod response;
mod signature;
mod tensor;

use super::error::ErrorDetail;
use super::identity::{Caller, Viewer};
use super::{ApiError, App, Verdict};
use crate::dispatch::ModelView;
use crate::oom::Rung;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use request::InferRequest;
use response::InferResponse;
use serde::Serialize;
use signature::{Signature, TensorMetadata};
use std::sync::Arc;
use utoipa::ToSchema;

/// The only version of every model: a package that is replaced is the same model.
const VERSION: &str = "1";

/// What models are, after the rule PROJECT_FORMAT.
const PLATFORM: &str = "ringfence_safetensors";

/// The extensions that are served, by the names that servers of this protocol give them.
const EXTENSIONS: [&str; 3] = ["binary_tensor_data", "model_repository", "parameters"];

/// The JSON body of every error under `/v2`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TextError {
    /// What happened and what to do.
    error: String,
    /// Stable, for programs. Not in the protocol.
    code: &'static str,
    /// What stopped the job, where it is over for want of memory. Not in the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    rung: Option<Rung>,
}

/// Whether a path is of this protocol.
pub(super) fn has(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// An answer in the form of this protocol: one that is an error gets another body, and keeps its status and headers.
pub(super) fn reworded(mut response: Response) -> Response {
    let Some(ErrorDetail { message, code, rung, .. }) = response.extensions_mut().remove() else {
        return response;
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let (_, body) = Json(TextError { error: message, code, rung }).into_response().into_parts();
    Response::from_parts(parts, body)
}

/// Answer of `GET /v2/health/live`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Live {
    /// Always, where there is an answer.
    live: bool,
}

/// `GET /v2/health/live`
#[utoipa::path(get, path = "/v2/health/live", responses((status = 200, body = Live)))]
pub(super) async fn live() -> Json<Live> {
    Json(Live { live: true })
}

/// Answer of `GET /v2/health/ready`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ready {
    /// Whether the server takes jobs, and every loaded model answered when last asked.
    ready: bool,
}

/// `GET /v2/health/ready`: as `GET /health`.
#[utoipa::path(get, path = "/v2/health/ready", responses((status = 200, body = Ready), (status = 400, body = Ready)))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Ready>) {
    let ready = app.dispatcher.health().status == Verdict::Ok;
    (readiness(ready), Json(Ready { ready }))
}

/// The protocol has a status of 4xx for no.
fn readiness(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::BAD_REQUEST }
}

/// Answer of `GET /v2`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServerMetadata {
    /// Always `ringfence`.
    name: &'static str,
    /// The server's.
    version: &'static str,
    /// Those that are served.
    extensions: [&'static str; 3],
}

/// `GET /v2`
#[utoipa::path(get, path = "/v2", responses((status = 200, body = ServerMetadata)))]
pub(super) async fn server() -> Json<ServerMetadata> {
    Json(ServerMetadata { name: "ringfence", version: env!("CARGO_PKG_VERSION"), extensions: EXTENSIONS })
}

/// Answer of `GET /v2/models/{model}`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelMetadata {
    /// The model's.
    name: String,
    /// Always one.
    versions: [&'static str; 1],
    /// Always `ringfence_safetensors`.
    platform: &'static str,
    /// What goes in.
    inputs: &'static [TensorMetadata],
    /// What comes out.
    outputs: &'static [TensorMetadata],
}

/// `GET /v2/models/{model}`
#[utoipa::path(get, path = "/v2/models/{model}", params(("model" = String, Path)),
    responses((status = 200, body = ModelMetadata), (status = "4XX", body = TextError)))]
pub(super) async fn model(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    Path(name): Path<String>,
) -> Result<Json<ModelMetadata>, ApiError> {
    metadata(&app, &viewer, name).map(Json)
}

/// `GET /v2/models/{model}/versions/{version}`
#[utoipa::path(get, path = "/v2/models/{model}/versions/{version}",
    params(("model" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ModelMetadata), (status = "4XX", body = TextError)))]
pub(super) async fn model_version(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<ModelMetadata>, ApiError> {
    let metadata = metadata(&app, &viewer, name)?;
    known(&version)?;
    Ok(Json(metadata))
}

fn metadata(app: &App, viewer: &Viewer, name: String) -> Result<ModelMetadata, ApiError> {
    let architecture = app.dispatcher.architecture_for(viewer.0.as_deref(), &name)?;
    let Signature { inputs, outputs } = Signature::of(architecture);
    Ok(ModelMetadata { name, versions: [VERSION], platform: PLATFORM, inputs, outputs })
}

fn known(version: &str) -> Result<(), ApiError> {
    if version == VERSION {
        return Ok(());
    }
    let message = format!("a model has version {VERSION} only; leave `/versions/...` out");
    Err(ApiError::new(StatusCode::NOT_FOUND, "version_unknown", message))
}

/// Answer of `GET /v2/models/{model}/ready`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelReady {
    /// The model's.
    name: String,
    /// Whether it can be asked: a model that is not loaded can, and is loaded by the first job.
    ready: bool,
}

/// `GET /v2/models/{model}/ready`
#[utoipa::path(get, path = "/v2/models/{model}/ready", params(("model" = String, Path)),
    responses((status = 200, body = ModelReady), (status = "4XX", body = ModelReady)))]
pub(super) async fn model_ready(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<ModelReady>), ApiError> {
    is_ready(&app, &viewer, name)
}

/// `GET /v2/models/{model}/versions/{version}/ready`
#[utoipa::path(get, path = "/v2/models/{model}/versions/{version}/ready",
    params(("model" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ModelReady), (status = "4XX", body = ModelReady)))]
pub(super) async fn model_version_ready(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    Path((name, version)): Path<(String, String)>,
) -> Result<(StatusCode, Json<ModelReady>), ApiError> {
    let ready = is_ready(&app, &viewer, name)?;
    known(&version)?;
    Ok(ready)
}

fn is_ready(app: &App, viewer: &Viewer, name: String) -> Result<(StatusCode, Json<ModelReady>), ApiError> {
    let model = visible(app, viewer).into_iter().find(|model| model.name == name);
    let ready = can_be_asked(&model.ok_or_else(|| ApiError::model_unknown(&name))?);
    Ok((readiness(ready), Json(ModelReady { name, ready })))
}

/// A client's own models, or all for the operator.
fn visible(app: &App, Viewer(client): &Viewer) -> Vec<ModelView> {
    match client {
        Some(client) => app.dispatcher.models_for(client),
        None => app.dispatcher.models(),
    }
}

fn can_be_asked(model: &ModelView) -> bool {
    !matches!(model.state, "refused" | "broken")
}

/// `POST /v2/models/{model}/infer`
#[utoipa::path(post, path = "/v2/models/{model}/infer", request_body = InferRequest,
    params(("model" = String, Path),
           ("Inference-Header-Content-Length" = Option<u64>, Header, description = "bytes of the JSON, where binary data is behind it"),
           ("Ringfence-Deadline" = Option<u64>, Header, description = "milliseconds from receipt until the answer is worthless")),
    responses((status = 200, body = InferResponse), (status = "4XX", body = TextError), (status = "5XX", body = TextError)))]
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(model): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    infer::infer(&app, caller, model, request).await
}

/// `POST /v2/models/{model}/versions/{version}/infer`
#[utoipa::path(post, path = "/v2/models/{model}/versions/{version}/infer", request_body = InferRequest,
    params(("model" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = InferResponse), (status = "4XX", body = TextError), (status = "5XX", body = TextError)))]
pub(super) async fn infer_version(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((model, version)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    app.dispatcher.architecture_for(Some(&caller.client), &model)?;
    known(&version)?;
    infer::infer(&app, caller, model, request).await
}

//! The repository of models, as clients of this protocol see it: what there is, and for the operator load and unload.

use super::parameters::Parameters;
use super::{TextError, VERSION, can_be_asked, visible};
use crate::api::admin;
use crate::api::body::{self, NO_BODY_BYTES_MAX, NoBody};
use crate::api::identity::Viewer;
use crate::api::{ApiError, App};
use crate::dispatch::ModelView;
use axum::Json;
use axum::extract::{Path, Request, State};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Body of `POST /v2/repository/index`, if there is one.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct IndexRequest {
    /// Only what can be asked.
    #[serde(default)]
    ready: bool,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct IndexEntry {
    /// Its name.
    name: String,
    /// Always `1`.
    version: &'static str,
    /// `READY` (also where the first job loads it), `LOADING` or `UNAVAILABLE`.
    state: &'static str,
    /// Why it is not ready; of one that is, whether it is loaded.
    reason: String,
}

/// `POST /v2/repository/index`
#[utoipa::path(post, path = "/v2/repository/index", request_body = Option<IndexRequest>,
    responses((status = 200, body = Vec<IndexEntry>), (status = "4XX", body = TextError)))]
pub(in crate::api) async fn index(
    State(app): State<Arc<App>>,
    viewer: Viewer,
    request: Request,
) -> Result<Json<Vec<IndexEntry>>, ApiError> {
    let IndexRequest { ready } = optional(request).await?;
    let models = visible(&app, &viewer).into_iter().filter(|model| !ready || can_be_asked(model));
    Ok(Json(models.map(entry).collect()))
}

fn entry(model: ModelView) -> IndexEntry {
    let state = match model.state {
        "loading" => "LOADING",
        _ if can_be_asked(&model) => "READY",
        _ => "UNAVAILABLE",
    };
    let reason = match (state, model.reason) {
        ("UNAVAILABLE", Some(reason)) => reason,
        _ if model.state == "unloaded" => "unloaded: the first job loads it".to_owned(),
        _ => model.state.to_owned(),
    };
    IndexEntry { name: model.name, version: VERSION, state, reason }
}

/// Body of `POST /v2/repository/models/{model}/unload`, if there is one; that of `load` has no parameters.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ChangeRequest {
    /// `unload_dependents`: no model has any.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: Parameters,
}

/// Nothing.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Changed {}

/// `POST /v2/repository/models/{model}/load`: as `POST /models/{model}/load`.
#[utoipa::path(post, path = "/v2/repository/models/{model}/load", params(("model" = String, Path)),
    request_body = Option<ChangeRequest>,
    responses((status = 200, body = Changed), (status = "4XX", body = TextError)))]
pub(in crate::api) async fn load(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<Changed>, ApiError> {
    let ChangeRequest { parameters } = optional(request).await?;
    parameters.end("load (what a model is, its signed package says)")?;
    admin::load_model(State(app), Path(name), NoBody).await.map(|_| Json(Changed {}))
}

/// `POST /v2/repository/models/{model}/unload`: as `POST /models/{model}/unload`.
#[utoipa::path(post, path = "/v2/repository/models/{model}/unload", params(("model" = String, Path)),
    request_body = Option<ChangeRequest>,
    responses((status = 200, body = Changed), (status = "4XX", body = TextError)))]
pub(in crate::api) async fn unload(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<Changed>, ApiError> {
    let ChangeRequest { mut parameters } = optional(request).await?;
    parameters.flag("unload_dependents")?;
    parameters.end("unload")?;
    admin::unload_model(State(app), Path(name), NoBody).await.map(|_| Json(Changed {}))
}

/// A body that may be left out, whatever its content type says.
async fn optional<T: Default + DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let bytes = body::read(request, NO_BODY_BYTES_MAX).await?;
    if bytes.trim_ascii().is_empty() { Ok(T::default()) } else { body::parse(&bytes) }
}

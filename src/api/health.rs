//! `GET /health`: what the last canaries found. It loads nothing, needs no key and names no model.

use super::App;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Whether the server does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Every loaded model answered when last asked.
    Ok,
    /// A loaded model did not, or the audit log can't be written.
    Failing,
    /// The server takes no new jobs.
    Draining,
}

/// Answer of `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Health {
    /// In one word.
    pub(crate) status: Verdict,
    /// Models with a worker that serves.
    pub(crate) loaded_models: usize,
    /// Of these, how many did not answer when last asked.
    pub(crate) failing_models: usize,
    /// Age of the oldest answer among loaded models, in milliseconds; absent if none is loaded.
    pub(crate) oldest_answer_ms: Option<u64>,
    /// `audit_unavailable` where the audit log can't be written: the server must be started again. Absent where it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<&'static str>,
}

/// `GET /health`
#[utoipa::path(get, path = "/health", responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let health = app.dispatcher.health();
    let status = match health.status {
        Verdict::Ok => StatusCode::OK,
        Verdict::Failing | Verdict::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health)).into_response()
}

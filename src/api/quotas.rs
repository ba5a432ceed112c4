//! The operator's routes about `quotas.toml`.

use super::error::ApiError;
use super::{App, body};
use crate::audit::Who;
use crate::dispatch::{QuotasView, Replaced, Replacement};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::IF_MATCH;
use axum::http::{HeaderMap, StatusCode};
use ringfence_scheduler::quotas::FILE_BYTES_MAX;
use std::sync::Arc;

/// `GET /quotas`: the file as it is, and what counts.
#[utoipa::path(get, path = "/quotas", responses((status = 200, body = QuotasView)))]
pub(super) async fn show(State(app): State<Arc<App>>) -> Result<Json<QuotasView>, ApiError> {
    app.dispatcher.quotas(&app.home).map(Json)
}

/// `PUT /quotas`: the whole text of a new file. It is taken whole, while jobs run, or refused.
#[utoipa::path(put, path = "/quotas", request_body(content = String, content_type = "application/toml"),
    params(("If-Match" = Option<String>, Header, description = "the revision that the text was made from")),
    responses((status = 200, body = Replaced), (status = "4XX", body = super::error::ErrorBody),
              (status = 500, body = super::error::ErrorBody)))]
pub(super) async fn replace(
    State(app): State<Arc<App>>,
    who: Who,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<Replaced>, ApiError> {
    let made_from = made_from(&headers)?;
    let text = body::read(request, FILE_BYTES_MAX).await?;
    let replacement = Replacement { text, made_from };
    app.dispatcher.replace_quotas(app.home.clone(), replacement, who).await.map(Json)
}

/// The revision in `If-Match`, with or without the quotes of an entity tag.
fn made_from(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(None) };
    let text = value.to_str().map_err(|_| {
        ApiError::new(
            StatusCode::PRECONDITION_FAILED,
            "quota_changed",
            "If-Match is no revision of quotas.toml",
        )
    })?;
    Ok(Some(text.trim_matches('"').to_owned()))
}

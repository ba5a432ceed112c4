//! Jobs and usage: a client's own on its sockets, everybody's on `admin.sock`.

use super::App;
use super::error::ApiError;
use super::identity::Viewer;
use crate::dispatch::{JobView, UsageView};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use std::sync::Arc;

/// `GET /jobs/{job}`: where a job is, and why.
#[utoipa::path(get, path = "/jobs/{job}", params(("job" = u64, Path, description = "as in `ringfence-job`")),
    responses((status = 200, body = JobView), (status = 404, body = super::error::ErrorBody)))]
pub(super) async fn job(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    Path(job): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let found = job.parse().ok().and_then(|number| app.dispatcher.job(number, viewer.as_deref()));
    found.map(Json).ok_or_else(|| {
        let name: String = job.chars().take(32).collect();
        ApiError::new(
            StatusCode::NOT_FOUND,
            "job_unknown",
            format!("no job {name:?} of yours is known; ended jobs are remembered for a while only"),
        )
    })
}

/// `GET /usage`: what clients have had, may have and were refused.
#[utoipa::path(get, path = "/usage", responses((status = 200, body = UsageView)))]
pub(super) async fn usage(State(app): State<Arc<App>>, Viewer(viewer): Viewer) -> Json<UsageView> {
    Json(app.dispatcher.usage(viewer.as_deref()))
}

//! The operator's route of alerts.

use super::App;
use super::error::ApiError;
use crate::alerts::Alert;
use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// The longest wait for an alert, in milliseconds.
const WAIT_MS_MAX: u64 = 60_000;

/// Answer of `GET /alerts`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AlertsView {
    /// Those that were asked for, the oldest first.
    alerts: Vec<Alert>,
    /// The number of the last one of this run; 0 where there was none.
    last: u64,
}

/// `GET /alerts?after=ID&wait_ms=N`: alerts after one, at once or as soon as there is one.
#[utoipa::path(get, path = "/alerts",
    params(("after" = Option<u64>, Query, description = "the number of the last one that is known: 0"),
           ("wait_ms" = Option<u64>, Query, description = "how long to wait for one: 0 to 60000")),
    responses((status = 200, body = AlertsView), (status = 400, body = super::error::ErrorBody)))]
pub(super) async fn alerts(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<AlertsView>, ApiError> {
    let (after, wait) = asked(uri.query().unwrap_or(""))?;
    let (alerts, last) = app.dispatcher.alerts().wait(after, wait).await;
    Ok(Json(AlertsView { alerts, last }))
}

fn asked(query: &str) -> Result<(u64, Duration), ApiError> {
    let (mut after, mut wait_ms) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = match name {
            "after" => &mut after,
            "wait_ms" => &mut wait_ms,
            _ => return Err(wrong("there are after and wait_ms")),
        };
        let number = value.parse::<u64>().map_err(|_| wrong("after and wait_ms are whole numbers"))?;
        if place.replace(number).is_some() {
            return Err(wrong("after and wait_ms may stand once"));
        }
    }
    match wait_ms.unwrap_or(0) {
        wait_ms @ 0..=WAIT_MS_MAX => Ok((after.unwrap_or(0), Duration::from_millis(wait_ms))),
        _ => Err(wrong("wait_ms is at most 60000")),
    }
}

fn wrong(message: &str) -> ApiError {
    ApiError::invalid("alerts_invalid", "wait_ms", format!("GET /alerts?after=ID&wait_ms=N: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_names_a_number_and_a_time() {
        let ok = |query: &str| asked(query).expect(query);
        assert_eq!(ok(""), (0, Duration::ZERO));
        assert_eq!(ok("after=7&wait_ms=60000"), (7, Duration::from_secs(60)));
        for query in ["after", "after=-1", "wait_ms=60001", "after=1&after=2", "since=1"] {
            assert_eq!(asked(query).err().map(|error| error.code()), Some("alerts_invalid"), "{query}");
        }
    }
}

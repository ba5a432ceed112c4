//! Queries of routes: whole numbers and nothing else.

use super::error::ApiError;
use axum::http::Uri;
use std::time::Duration;

/// The longest wait for a change, in milliseconds.
const WAIT_MS_MAX: u64 = 60_000;

/// Whole numbers of a query, each at most once, and nothing else.
pub(super) fn query<const N: usize>(uri: &Uri, names: [&str; N]) -> Result<[Option<u64>; N], ApiError> {
    let mut values = [None; N];
    for pair in uri.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = names.iter().position(|known| *known == name).map(|at| &mut values[at]);
        let number = value.parse::<u64>().ok();
        match (place, number) {
            (Some(place @ None), Some(number)) => *place = Some(number),
            _ => {
                let message =
                    format!("the query has {}, each a whole number and at most once", names.join(" and "));
                return Err(ApiError::invalid("query_invalid", "query", message));
            }
        }
    }
    Ok(values)
}

/// How long a request waits for a change; without a number not at all.
pub(super) fn wait(ms: Option<u64>) -> Result<Duration, ApiError> {
    match ms.unwrap_or(0) {
        ms @ 0..=WAIT_MS_MAX => Ok(Duration::from_millis(ms)),
        _ => Err(ApiError::invalid("wait_invalid", "wait_ms", "wait_ms is at most 60000")),
    }
}

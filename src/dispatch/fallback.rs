//! A model that can't answer now may have another that does, if the operator said so and the client may use it.

use super::{Dispatcher, JobRequest, Output};
use crate::api::ApiError;
use std::sync::Arc;

/// The most models that are tried for one request; circles are refused by `quotas.toml`.
const TRIES_MAX: usize = 4;

/// Codes of answers that say that a model can't run this job now, whoever asks. Nothing of it has run.
const UNABLE: [&str; 6] = [
    "model_broken",
    "load_failed",
    "package_refused",
    "lease_too_large",
    "job_too_large",
    "model_changed_on_disk",
];

/// An output with the model that gave it.
#[derive(Debug)]
pub(crate) struct Answered {
    /// What it gave.
    pub(crate) output: Output,
    /// The model's name.
    pub(crate) model: String,
    /// The model that was asked for, if another answered.
    pub(crate) fallback_from: Option<String>,
}

impl Dispatcher {
    /// Runs a client's job to its end, in the model that it names or where that one falls back to.
    pub(crate) async fn answer(self: &Arc<Self>, mut request: JobRequest) -> Result<Answered, ApiError> {
        let asked = request.model.clone();
        for _ in 1..TRIES_MAX {
            let model = request.model.clone();
            let Some(fallback) = self.fallback(&request.client, &model) else { break };
            let again = request.clone();
            match self.run(request).await {
                Ok(output) => return Ok(Answered::new(output, model, asked)),
                Err(error) if UNABLE.contains(&error.code()) => {
                    tracing::info!(model, fallback, code = error.code(), "another model is asked");
                    metrics::counter!("ringfence_fallbacks_total", "from" => model, "code" => error.code())
                        .increment(1);
                    request = JobRequest { model: fallback, ..again };
                }
                Err(error) => return Err(error),
            }
        }
        let model = request.model.clone();
        Ok(Answered::new(self.run(request).await?, model, asked))
    }

    fn fallback(&self, client: &str, model: &str) -> Option<String> {
        let state = self.lock();
        let quotas = &state.quotas.quotas;
        // Whoever may not use a model learns nothing of where it falls back to.
        if !quotas.may_use(client, model) {
            return None;
        }
        let fallback = quotas.fallback(model)?;
        quotas.may_use(client, fallback).then(|| fallback.to_owned())
    }
}

impl Answered {
    fn new(output: Output, model: String, asked: String) -> Self {
        let fallback_from = (asked != model).then_some(asked);
        Self { output, model, fallback_from }
    }
}

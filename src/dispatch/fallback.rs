//! A model that can't answer now may have another that does, if the operator said so and the client may use it.

use super::models::{package_of_twin, twin};
use super::{Dispatcher, JobRequest, Output};
use crate::api::ApiError;
use ringfence_protocol::Architecture;
use std::sync::Arc;

/// The most models that are tried for one request; circles are refused by `quotas.toml`.
const TRIES_MAX: usize = 4;

/// Codes of answers that say that a model can't run this job now, whoever asks. Nothing of it was given out.
const UNABLE: [&str; 7] = [
    "model_broken",
    "load_failed",
    "package_refused",
    "lease_too_large",
    "job_too_large",
    "model_changed_on_disk",
    "out_of_memory",
];

/// An output with the model that gave it.
#[derive(Debug)]
pub(crate) struct Answered {
    /// What it gave.
    pub(crate) output: Output,
    /// The model's name.
    pub(crate) model: String,
    /// The model that was asked for, if another answered, or the same on another device.
    pub(crate) fallback_from: Option<String>,
}

impl Dispatcher {
    /// Runs a client's job to its end, in the model that it names or where that one falls back to.
    pub(crate) async fn answer(self: &Arc<Self>, mut request: JobRequest) -> Result<Answered, ApiError> {
        let asked = request.model.clone();
        if package_of_twin(&asked).is_some() {
            return Err(ApiError::model_unknown(&asked));
        }
        let mut rest = self.chain(&request.client, &asked);
        if request.input.granted().is_some() {
            // The file was granted to this model and to no other; on which device it runs makes no difference.
            rest.retain(|next| package_of_twin(next) == Some(asked.as_str()));
        }
        let mut rest = rest.into_iter();
        loop {
            let model = request.model.clone();
            // Only where another may be asked: an input has megabytes.
            let again = rest.next().map(|next| JobRequest { model: next, ..request.clone() });
            match (self.run(request).await, again) {
                (Ok(output), _) => return Ok(Answered::new(output, &model, asked)),
                (Err(error), Some(next)) if UNABLE.contains(&error.code()) => {
                    let code = error.code();
                    tracing::info!(model, next = next.model, code, "another model or device is asked");
                    request = next;
                    metrics::counter!("ringfence_fallbacks_total", "from" => model, "code" => error.code())
                        .increment(1);
                }
                (Err(error), _) => return Err(error),
            }
        }
    }

    /// What models of this name do, for a client or the operator: its own package, or the first that can be asked where it
    /// falls back to.
    pub(crate) fn architecture_for(
        &self,
        client: Option<&str>,
        asked: &str,
    ) -> Result<Architecture, ApiError> {
        if package_of_twin(asked).is_some() {
            return Err(ApiError::model_unknown(asked));
        }
        let rest = client.map_or_else(Vec::new, |client| self.chain(client, asked));
        let state = self.lock();
        if client.is_some_and(|client| !state.quotas.quotas.may_use(client, asked)) {
            return Err(ApiError::model_unknown(asked));
        }
        let mut chain = std::iter::once(asked).chain(rest.iter().map(String::as_str));
        let found = chain.find_map(|name| state.models.named(name));
        found.map(|found| found.architecture).ok_or_else(|| state.unusable(asked))
    }

    /// The models that are tried after the one that a client asks for: those it falls back to, then all of them on the CPU.
    fn chain(&self, client: &str, asked: &str) -> Vec<String> {
        let state = self.lock();
        let quotas = &state.quotas.quotas;
        let mut chain = vec![asked.to_owned()];
        // Whoever may not use a model learns nothing of where it falls back to.
        let mut next = quotas.fallback(asked).filter(|_| quotas.may_use(client, asked));
        while let Some(model) = next.filter(|model| chain.len() < TRIES_MAX && quotas.may_use(client, model))
        {
            chain.push(model.to_owned());
            next = quotas.fallback(model);
        }
        let twins: Vec<String> = chain.iter().map(|model| twin(model)).collect();
        chain.extend(twins.into_iter().filter(|twin| state.models.named(twin).is_some()));
        chain.split_off(1)
    }
}

impl Answered {
    fn new(output: Output, model: &str, asked: String) -> Self {
        let fallback_from = (asked != model).then_some(asked);
        Self { output, model: package_of_twin(model).unwrap_or(model).to_owned(), fallback_from }
    }
}

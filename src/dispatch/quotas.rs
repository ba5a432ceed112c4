//! A change of the quotas while jobs run: checked whole, saved, then taken under the lock in one go.

use super::models::{TermsError, package_of_twin};
use super::{Dispatcher, ModelView, State};
use crate::api::ApiError;
use crate::audit::Who;
use crate::gpus::Gpus;
use crate::home::{Home, HomeError};
use crate::nvml::Cards;
use crate::quota_file;
use crate::workers::ProbeError;
use axum::http::StatusCode;
use ringfence_audit::{Event as Entry, Word};
use ringfence_scheduler::Event;
use ringfence_scheduler::quotas::{Change, Effective, QuotaError, Quotas};
use ringfence_scheduler::replay::Stop;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use utoipa::ToSchema;

/// What the machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) memory_bytes: u64,
    pub(crate) cores: u16,
}

/// What workers compute on.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) machine: Machine,
    pub(crate) gpus: Gpus,
    /// NVIDIA's cards, and who has memory on them.
    pub(crate) cards: Cards,
}

/// The quotas that count, their text and its revision.
pub(super) struct Applied {
    pub(super) quotas: Quotas,
    pub(super) text: String,
    pub(super) revision: String,
}

impl Applied {
    /// From a text and what it says.
    pub(super) fn new(quotas: Quotas, text: &[u8]) -> Self {
        let revision = quota_file::revision(text);
        Self { quotas, text: String::from_utf8_lossy(text).into_owned(), revision }
    }
}

/// Answer of `GET /quotas`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QuotasView {
    /// Names the text, for `If-Match`.
    revision: String,
    /// The revision of what counts; another one than `revision` where the file was edited and not applied.
    applied: String,
    /// `quotas.toml` as it is.
    text: String,
    /// Every value that counts: `field`, `value`, `unit` and `doc`.
    #[schema(value_type = Vec<Object>)]
    effective: Vec<Effective>,
}

/// What to replace the file by.
#[derive(Debug)]
pub(crate) struct Replacement {
    /// The whole text.
    pub(crate) text: Vec<u8>,
    /// The revision of the text that it is made from, where the operator wants to lose no other change.
    pub(crate) made_from: Option<String>,
}

/// Answer of `PUT /quotas`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Replaced {
    /// Names the new text.
    revision: String,
    /// Each value that counts now and is another one than before: `field`, `from` and `to`.
    #[schema(value_type = Vec<Object>)]
    changes: Vec<Change>,
}

impl Dispatcher {
    /// The file and what counts of it.
    pub(crate) fn quotas(&self, home: &Home) -> Result<QuotasView, ApiError> {
        let text = quota_file::read(home).map_err(|error| ApiError::internal(&error))?.unwrap_or_default();
        let revision = quota_file::revision(&text);
        let state = self.lock();
        Ok(QuotasView {
            revision,
            applied: state.quotas.revision.clone(),
            text: String::from_utf8_lossy(&text).into_owned(),
            effective: state.quotas.quotas.effective(),
        })
    }

    /// Replaces the file and what counts, or nothing.
    pub(crate) async fn replace_quotas(
        self: &Arc<Self>,
        home: Arc<Home>,
        replacement: Replacement,
        who: Who,
    ) -> Result<Replaced, ApiError> {
        // A task of its own: an operator who hangs up does not leave a file that is saved and not applied.
        let replacing = tokio::spawn(self.clone().replace(home, replacement, who));
        replacing.await.map_err(|error| ApiError::internal(&error))?
    }

    async fn replace(
        self: Arc<Self>,
        home: Arc<Home>,
        Replacement { text, made_from }: Replacement,
        who: Who,
    ) -> Result<Replaced, ApiError> {
        // No model comes or goes between the check and the change.
        let _reading = self.reading.lock().await;
        let old = quota_file::read(&home).map_err(|error| not_saved(&error))?.unwrap_or_default();
        let found = quota_file::revision(&old);
        if made_from.is_some_and(|made_from| made_from != found) {
            return Err(changed(&found));
        }
        let quotas = Quotas::parse_bytes(&text).map_err(|error| invalid(&error))?;
        let gpus = Gpus::of(&quotas)
            .map_err(|error| ApiError::invalid("quota_invalid", &error.name, error.to_string()))?;
        if gpus != self.gpus {
            return Err(other_gpus());
        }
        self.prove_gpus(&gpus.drivers_in_use(&quotas)).await.map_err(|error| gpu_not_proven(&error))?;
        let config = quotas.config(self.machine.memory_bytes, self.machine.cores);
        let config =
            config.map_err(|error| ApiError::invalid("quota_invalid", error.field, error.to_string()))?;
        let terms = self.lock().models.terms(&quotas, self.machine).map_err(|error| unfit(&error))?;
        let applied = Applied::new(quotas, &text);
        let revision = applied.revision.clone();
        let digest = Word::lossy(&crate::keys::hex(&Sha256::digest(&text)));
        self.audit.record(&who, move |_| Entry::QuotasChanged { digest }).await?;
        let saving = tokio::task::spawn_blocking(move || quota_file::save(&home, &old, &text)).await;
        saving.map_err(|error| ApiError::internal(&error))?.map_err(|error| not_saved(&error))?;

        let mut state = self.lock();
        state.end_recording(Stop::QuotasChanged);
        let before = std::mem::replace(&mut state.quotas, applied).quotas;
        let mut events = vec![Event::Configured(config)];
        events.extend(state.changed_clients(&before));
        let State { models, quotas, .. } = &mut *state;
        events.extend(models.take_terms(terms, &quotas.quotas, self.machine));
        for event in events {
            self.step(&mut state, event);
        }
        let changes = before.changes(&state.quotas.quotas);
        for Change { field, from, to } in &changes {
            tracing::info!(revision, field, %from, %to, "quota changed");
        }
        Ok(Replaced { revision, changes })
    }

    /// Every package that a client may know of, by name.
    pub(crate) fn models_for(&self, client: &str) -> Vec<ModelView> {
        let mut models = self.models();
        let state = self.lock();
        models.retain(|model| {
            package_of_twin(&model.name).is_none() && state.quotas.quotas.may_use(client, &model.name)
        });
        models
    }
}

impl State {
    /// The clients seen so far for whom something else counts now. Those without a section follow the defaults.
    fn changed_clients(&self, before: &Quotas) -> Vec<Event> {
        let now = &self.quotas.quotas;
        let changed = |name: &str| {
            let config = now.client(name);
            (config != before.client(name)).then_some(config)
        };
        let clients = self.clients.iter();
        clients
            .filter_map(|(name, client)| {
                changed(name).map(|config| Event::ClientConfigured { client: client.id, config })
            })
            .collect()
    }
}

fn invalid(error: &QuotaError) -> ApiError {
    ApiError::invalid("quota_invalid", &error.field, error.to_string())
}

fn unfit(TermsError { model, reason }: &TermsError) -> ApiError {
    let message = format!("the model {model} would be refused: {reason}");
    ApiError::invalid("quota_invalid", &format!("models.{model}"), message)
}

/// Workers and their sandboxes are those of the GPUs that were there at the start.
fn other_gpus() -> ApiError {
    let message = "which GPUs there are, and their driver and node, counts from the server's start: stop it, set this in \
                   quotas.toml and start it again; memory_mib can be changed at any time";
    ApiError::invalid("quota_needs_restart", "devices", message.to_owned())
}

/// No worker on a GPU is started where its sandbox does not hold.
fn gpu_not_proven(error: &ProbeError) -> ApiError {
    let message = format!("nothing was changed: the sandbox of workers on a GPU does not hold here: {error}");
    tracing::error!(%error, "the sandbox of workers on a GPU does not hold");
    ApiError::new(StatusCode::CONFLICT, "gpu_sandbox_not_proven", message)
}

fn changed(found: &str) -> ApiError {
    let message = format!("quotas.toml is another one by now, of revision {found}: read it again");
    ApiError::new(StatusCode::PRECONDITION_FAILED, "quota_changed", message)
}

fn not_saved(error: &HomeError) -> ApiError {
    let message = format!(
        "nothing was changed: {error}; quotas.toml must be there and belong to the user that the server runs as"
    );
    tracing::error!(%error, "quotas.toml can't be saved");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "quota_not_saved", message)
}

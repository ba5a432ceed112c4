//! The models of this home as the server knows them: their packages' verdicts, held bytes and last answers.

use super::disk::ChangeView;
use super::quotas::Machine;
use super::worker::Leases;
use super::{Dispatcher, State};
use crate::alerts::{Alerts, Kind, News};
use crate::api::ApiError;
use crate::audit::{AUDIT_UNAVAILABLE, Audit, AuditError, Who};
use crate::clock;
use crate::oom::Rung;
use crate::packages::{Package, Packages, PackagesError, Survey, Surveyed};
use crate::settings;
use crate::workers::Ending;
use axum::http::StatusCode;
use ringfence_audit::{Event as Entry, Word};
use ringfence_models::{FileName, ProfileDevice, TrustError};
use ringfence_protocol as protocol;
use ringfence_scheduler::quotas::{GpuDriver, ModelDevice, ModelQuota, OnDiskChange, Quotas};
use ringfence_scheduler::replay::{Stop, TracedModel};
use ringfence_scheduler::{ConfigError, Event, ModelConfig, ModelId, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// The built-in client that canaries are charged to.
pub(crate) const SYSTEM: &str = crate::clients::ClientName::SYSTEM;

/// The most packages that a home has.
const MODELS_MAX: usize = 1_024;

/// Why the packages could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelsError {
    /// The folder or the trust file.
    #[error(transparent)]
    Packages(#[from] PackagesError),
    /// Too many.
    #[error("there are more than {MODELS_MAX} packages in models/")]
    TooMany,
    /// A thread of ours.
    #[error("the packages could not be read: {0}")]
    Thread(#[from] tokio::task::JoinError),
    /// A change of trust can't be written down.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl ModelsError {
    /// A stable name for the operator's scripts.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Packages(PackagesError::Trust(TrustError::RolledBack { .. })) => "trust_rolled_back",
            Self::Audit(_) => AUDIT_UNAVAILABLE,
            Self::Packages(_) | Self::TooMany | Self::Thread(_) => "models_unreadable",
        }
    }
}

/// A model for the operator and, in part, for clients.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ModelView {
    /// Its name.
    pub(crate) name: String,
    /// `refused`, `broken`, `unloaded`, `loading` or `ready`.
    pub(crate) state: &'static str,
    /// Why it is refused or broken.
    pub(crate) reason: Option<String>,
    /// SHA-256 over its files' digests, as signed.
    pub(crate) digest: Option<String>,
    /// Id of the key that signed it.
    pub(crate) signer: Option<String>,
    /// Whether it was imported from a source without a pinned digest.
    pub(crate) unverified_source: bool,
    /// Longest input in tokens.
    pub(crate) max_tokens: Option<u32>,
    /// A worker's lease.
    pub(crate) lease_bytes: Option<u64>,
    /// What a worker takes at most with steps of the largest size, by its profile; absent where it was not measured.
    pub(crate) predicted_peak_bytes: Option<u64>,
    /// The files on the disk are not the running ones; absent where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) changed_on_disk: Option<ChangeView>,
    /// Jobs that wait.
    pub(crate) queued: usize,
    /// Jobs in workers.
    pub(crate) running: usize,
}

/// Ends the name of a package's second model, which runs on the CPU. No package has it in its name.
const ON_CPU: &str = "@cpu";

/// The name of the model that a package has beside its own.
pub(super) fn twin(package: &str) -> String {
    format!("{package}{ON_CPU}")
}

/// The package whose twin this is.
pub(super) fn package_of_twin(name: &str) -> Option<&str> {
    name.strip_suffix(ON_CPU)
}

/// What a submission needs to know.
pub(super) struct Found {
    pub(super) id: ModelId,
    pub(super) architecture: protocol::Architecture,
    pub(super) max_tokens: u32,
    pub(super) step_tokens: u32,
}

/// All models by number; numbers are never used twice.
pub(super) struct Models {
    pub(super) alerts: Alerts,
    pub(super) audit: Audit,
    known: BTreeMap<ModelId, Model>,
    /// Packages that can't be used, by name.
    refused: BTreeMap<String, Refused>,
    last: u32,
}

/// A package that can't be used.
struct Refused {
    reason: String,
    /// What it is, where only its quotas are in the way: others may let it in.
    surveyed: Option<Surveyed>,
}

/// A model that does not fit in what other quotas give it.
#[derive(Debug)]
pub(super) struct TermsError {
    pub(super) model: String,
    pub(super) reason: String,
}

/// What the quotas come to for a package.
pub(super) struct Terms {
    quota: ModelQuota,
    measured_on: Option<ProfileDevice>,
    predicted_peak_bytes: Option<u64>,
    config: ModelConfig,
}

pub(super) struct Model {
    pub(super) name: String,
    surveyed: Surveyed,
    terms: Terms,
    source: Arc<Source>,
    /// What `/health` counts.
    pub(super) health: ModelHealth,
    /// The last worker's end that was not wanted.
    trouble: Option<String>,
    /// Its next worker is to find no memory for the package.
    drill: bool,
    /// The disk holds something else than what is loaded.
    pub(super) change: Option<ChangeView>,
}

/// What the last answers of a loaded model say.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct ModelHealth {
    /// The last finished job or canary.
    pub(super) answered: Option<Instant>,
    /// The last canary failed, and nothing has succeeded since.
    pub(super) failing: bool,
}

/// The package's bytes, read once and held while the scheduler says so.
pub(super) struct Source {
    pub(super) name: String,
    digest: String,
    files: Vec<FileName>,
    held: tokio::sync::Mutex<Option<Arc<Package>>>,
}

impl Source {
    /// The held bytes, or reads and verifies them; true if it had to.
    pub(super) async fn load(&self, packages: &Arc<Packages>) -> Result<(Arc<Package>, bool), String> {
        let mut held = self.held.lock().await;
        if let Some(package) = held.as_ref() {
            return Ok((package.clone(), false));
        }
        let (packages, name, files) = (packages.clone(), self.name.clone(), self.files.clone());
        let loading = tokio::task::spawn_blocking(move || packages.load(&name, files));
        let package = loading.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        if package.digest != self.digest {
            return Err(
                "the package was replaced; `ringfence model list` shows it, POST /models/reload takes it"
                    .into(),
            );
        }
        let package = Arc::new(package);
        *held = Some(package.clone());
        Ok((package, true))
    }
}

impl Dispatcher {
    /// Reads the packages again: new ones are added, changed ones replaced, missing ones removed.
    pub(crate) async fn reload_models(self: &Arc<Self>) -> Result<(), ModelsError> {
        let _reading = self.reading.lock().await;
        let packages = self.packages.clone();
        let survey = tokio::task::spawn_blocking(move || packages.survey()).await??;
        if survey.len() > MODELS_MAX {
            return Err(ModelsError::TooMany);
        }
        self.record_trust().await?;
        let mut state = self.lock();
        // It is verified anew when it is wanted next.
        state.detector = None;
        let events = state.merge(survey, self.machine);
        if !events.is_empty() {
            state.end_recording(Stop::ModelsChanged);
        }
        for event in events {
            self.step(&mut state, event);
        }
        Ok(())
    }

    /// Whether there is a usable package of this name.
    pub(crate) fn knows_model(&self, name: &str) -> bool {
        self.lock().models.named(name).is_some()
    }

    /// What of a model and its twin is there.
    fn model_and_twin(state: &State, name: &str) -> Result<Vec<ModelId>, ApiError> {
        let twin = state.models.named(&twin(name)).map(|found| found.id);
        Ok([state.models.id(name)?].into_iter().chain(twin).collect())
    }

    /// Starts a worker for a model.
    pub(crate) fn load(self: &Arc<Self>, name: &str) -> Result<(), ApiError> {
        let mut state = self.lock();
        let model = state.models.id(name)?;
        self.step(&mut state, Event::Load { model });
        Ok(())
    }

    /// Lets the next worker of a model find next to no memory for its package.
    pub(crate) fn drill_load(&self, name: &str) -> Result<(), ApiError> {
        let mut state = self.lock();
        let model = state.models.id(name)?;
        tracing::warn!(model = name, "a drill: the next worker finds no memory for the package");
        if let Some(model) = state.models.get_mut(model) {
            model.drill = true;
        }
        Ok(())
    }

    /// Stops the workers of a model after their jobs.
    pub(crate) fn unload(self: &Arc<Self>, name: &str) -> Result<(), ApiError> {
        let mut state = self.lock();
        for model in Self::model_and_twin(&state, name)? {
            self.step(&mut state, Event::Unload { model });
        }
        Ok(())
    }
}

impl State {
    fn merge(&mut self, survey: Vec<Survey>, machine: Machine) -> Vec<Event> {
        self.models.merge(survey, &self.quotas.quotas, machine)
    }
}

impl Terms {
    /// What is wrong with the quotas for this package, if they are.
    fn new(name: &str, surveyed: &Surveyed, quotas: &Quotas, machine: Machine) -> Result<Self, String> {
        let (name, quota) = match package_of_twin(name) {
            None => (name, quotas.model(name)),
            // The lease that the file names is of the GPU's memory.
            Some(package) => {
                let quota = quotas.model(package);
                (package, ModelQuota { device: ModelDevice::Cpu, lease_mib: None, ..quota })
            }
        };
        if surveyed.architecture == protocol::Architecture::Llama && quota.device != ModelDevice::Cpu {
            return Err(format!(
                "device_unsupported: text is generated on the CPU so far; set device = \"cpu\" in models.{name} of quotas.toml"
            ));
        }
        let threads = quotas.threads(name, machine.cores);
        let measured_on = measured_on(&quota.device, quotas);
        let predicted = measured_on.and_then(|device| surveyed.predicted(device, threads, quota.step_tokens));
        let lease_bytes = settings::lease_bytes(&quota, surveyed.weight_bytes, predicted.as_ref())?;
        let shares_steps = surveyed.architecture == protocol::Architecture::Llama;
        let config = quotas.config_of(&quota, threads, lease_bytes, surveyed.package_bytes, shares_steps);
        let config = config.map_err(|error: ConfigError| format!("quotas.toml: {error}"))?;
        let predicted_peak_bytes = predicted.map(|predicted| predicted.peak_bytes);
        Ok(Self { quota, measured_on, predicted_peak_bytes, config })
    }
}

/// Tells the audit log that a package is not used.
pub(super) fn note_refused(audit: &Audit, name: &str, result: &'static str) {
    let (model, result) = (Word::lossy(package_of_twin(name).unwrap_or(name)), Word::lossy(result));
    audit.note(&Who::server(), move |_| Entry::ModelRefused { model, result });
}

/// Whose profile says what a model takes there. A card's is none: `ringfence model calibrate` knows Mesa's software driver.
fn measured_on(device: &ModelDevice, quotas: &Quotas) -> Option<ProfileDevice> {
    let in_software =
        |name: &String| quotas.gpus.get(name).is_some_and(|gpu| gpu.driver == GpuDriver::Software);
    match device {
        ModelDevice::Cpu => Some(ProfileDevice::Cpu),
        ModelDevice::AnyGpu => quotas.gpus.keys().all(in_software).then_some(ProfileDevice::Wgpu),
        ModelDevice::Gpu(name) => in_software(name).then_some(ProfileDevice::Wgpu),
    }
}

impl Models {
    /// None yet.
    pub(super) fn new(alerts: Alerts, audit: Audit) -> Self {
        Self { alerts, audit, known: BTreeMap::new(), refused: BTreeMap::new(), last: 0 }
    }

    /// Takes a survey in, and says what the scheduler must hear.
    fn merge(&mut self, survey: Vec<Survey>, quotas: &Quotas, machine: Machine) -> Vec<Event> {
        let mut events = Vec::new();
        self.refused.clear();
        let gone: Vec<ModelId> = self
            .known
            .iter()
            .filter(|(_, model)| !survey.iter().any(|found| model.is(found)))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.known.remove(&id);
            events.push(Event::ModelRemoved { model: id });
        }
        for Survey { name, verdict } in survey {
            let known = self.named(&name).is_some();
            match verdict {
                Err(_) if known => {}
                Err(reason) => self.refuse(name, reason, None, quotas),
                Ok(surveyed) => {
                    events.extend(self.add_twin(&name, &surveyed, quotas, machine));
                    if !known {
                        events.extend(self.add(name, surveyed, quotas, machine));
                    }
                }
            }
        }
        events
    }

    fn refuse(&mut self, name: String, reason: String, surveyed: Option<Surveyed>, quotas: &Quotas) {
        tracing::warn!(model = name, reason, "package refused");
        note_refused(
            &self.audit,
            &name,
            if surveyed.is_some() { "refused_by_quotas" } else { "package_refused" },
        );
        let quota = quotas.model(&name);
        let device = quota.device.name();
        if surveyed.is_some() {
            Rung::RefusedByProfile.stopped(&self.alerts, &name, device, reason.clone());
        } else {
            let (kind, message) = (Kind::PackageRefused, reason.clone());
            self.alerts.raise(News { kind, model: &name, device, rung: None, message });
        }
        self.refused.insert(name, Refused { reason, surveyed });
    }

    /// The digest of a model's package.
    pub(super) fn digest(&self, model: ModelId) -> Option<&str> {
        self.known.get(&model).map(|model| model.surveyed.digest.as_str())
    }

    /// Adds a package a second time, to run on the CPU where its GPU can't run it.
    fn add_twin(
        &mut self,
        package: &str,
        surveyed: &Surveyed,
        quotas: &Quotas,
        machine: Machine,
    ) -> Option<Event> {
        let name = twin(package);
        if !quotas.falls_back_to_cpu(package) || self.named(&name).is_some() {
            return None;
        }
        self.add(name, surveyed.clone(), quotas, machine)
    }

    /// Adds a model, unless its quotas are in the way.
    fn add(&mut self, name: String, surveyed: Surveyed, quotas: &Quotas, machine: Machine) -> Option<Event> {
        let terms = match Terms::new(&name, &surveyed, quotas, machine) {
            Ok(terms) => terms,
            Err(reason) => {
                self.refuse(name, reason, Some(surveyed), quotas);
                return None;
            }
        };
        self.last += 1;
        let id = ModelId(self.last);
        let source = Arc::new(Source {
            name: package_of_twin(&name).unwrap_or(&name).to_owned(),
            digest: surveyed.digest.clone(),
            files: surveyed.files.clone(),
            held: tokio::sync::Mutex::new(None),
        });
        let health = ModelHealth::default();
        let config = terms.config.clone();
        self.known.insert(
            id,
            Model { name, surveyed, terms, source, health, trouble: None, drill: false, change: None },
        );
        Some(Event::ModelAdded { model: id, config })
    }

    /// What other quotas would come to for each model.
    ///
    /// # Errors
    /// They leave a model that is used now without a lease that it fits in.
    pub(super) fn terms(
        &self,
        quotas: &Quotas,
        machine: Machine,
    ) -> Result<Vec<(ModelId, Terms)>, TermsError> {
        let of = |(id, model): (&ModelId, &Model)| {
            let terms = Terms::new(&model.name, &model.surveyed, quotas, machine);
            terms.map(|terms| (*id, terms)).map_err(|reason| TermsError { model: model.name.clone(), reason })
        };
        self.known.iter().map(of).collect()
    }

    /// Takes those terms, and says what the scheduler must hear. A package that the old quotas refused is tried again.
    pub(super) fn take_terms(
        &mut self,
        terms: Vec<(ModelId, Terms)>,
        quotas: &Quotas,
        machine: Machine,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for (id, terms) in terms {
            let Some(model) = self.known.get_mut(&id) else { continue };
            let old = std::mem::replace(&mut model.terms, terms);
            let now = &model.terms;
            if now.config != old.config {
                events.push(Event::ModelChanged { model: id, config: now.config.clone() });
            }
            if now.quota.step_tokens != old.quota.step_tokens {
                // Workers are told the size of a step once, when they start.
                events.push(Event::Unload { model: id });
            }
        }
        let (again, refused): (BTreeMap<_, _>, _) = std::mem::take(&mut self.refused)
            .into_iter()
            .partition(|(_, refused)| refused.surveyed.is_some());
        self.refused = refused;
        for (name, refused) in again {
            let surveyed = refused.surveyed.expect("parted by it");
            events.extend(self.add_twin(&name, &surveyed, quotas, machine));
            events.extend(self.add(name, surveyed, quotas, machine));
        }
        events.extend(self.fit_twins(quotas, machine));
        events
    }

    /// Removes twins that the quotas want no longer, and adds those that they want now.
    fn fit_twins(&mut self, quotas: &Quotas, machine: Machine) -> Vec<Event> {
        let unwanted = |(id, model): (&ModelId, &Model)| {
            let package = package_of_twin(&model.name)?;
            (!quotas.falls_back_to_cpu(package)).then_some(*id)
        };
        let unwanted: Vec<ModelId> = self.known.iter().filter_map(unwanted).collect();
        let mut events: Vec<Event> = unwanted.iter().map(|id| Event::ModelRemoved { model: *id }).collect();
        self.known.retain(|id, _| !unwanted.contains(id));
        let packages = self.known.values().filter(|model| package_of_twin(&model.name).is_none());
        let packages: Vec<(String, Surveyed)> =
            packages.map(|model| (model.name.clone(), model.surveyed.clone())).collect();
        for (name, surveyed) in packages {
            events.extend(self.add_twin(&name, &surveyed, quotas, machine));
        }
        events
    }

    pub(super) fn named(&self, name: &str) -> Option<Found> {
        let (id, model) = self.known.iter().find(|(_, model)| model.name == name)?;
        let (max_tokens, step_tokens) = (model.surveyed.max_tokens, model.terms.quota.step_tokens);
        Some(Found { id: *id, architecture: model.surveyed.architecture, max_tokens, step_tokens })
    }

    fn id(&self, name: &str) -> Result<ModelId, ApiError> {
        if let Some(Refused { reason, .. }) = self.refused.get(name) {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "package_refused",
                format!("the package of {name} is refused: {reason}"),
            ));
        }
        self.named(name).map(|found| found.id).ok_or_else(|| ApiError::model_unknown(name))
    }

    /// Why a package of this name can't be asked for, if there is one.
    pub(super) fn refusal(&self, name: &str) -> Option<&str> {
        self.refused.get(name).map(|refused| refused.reason.as_str())
    }

    /// The name, for logs; a removed model has none.
    pub(super) fn name(&self, model: ModelId) -> String {
        self.known.get(&model).map_or_else(|| "(removed)".to_owned(), |model| model.name.clone())
    }

    /// The name of the device that its workers compute on.
    pub(super) fn device_name(&self, model: ModelId) -> String {
        self.known.get(&model).map_or("cpu", |model| model.terms.quota.device.name()).to_owned()
    }

    /// What a trace tells of a model, but for what the scheduler measured.
    pub(super) fn traced(&self, model: ModelId) -> Option<(String, TracedModel)> {
        let model = self.known.get(&model)?;
        let now = model.terms.config.values();
        let default = ModelQuota { lease_mib: None, ..model.terms.quota.clone() };
        let predicted = |device| model.surveyed.predicted(device, now.threads, default.step_tokens);
        let predicted = model.terms.measured_on.and_then(predicted);
        let default = settings::lease_bytes(&default, model.surveyed.weight_bytes, predicted.as_ref());
        let traced = TracedModel {
            lease_bytes: now.tensors_lease_bytes(),
            default_lease_bytes: default.unwrap_or(now.tensors_lease_bytes()),
            package_bytes: now.package_bytes,
            threads: now.threads,
            shares_steps: now.shares_steps,
            load_us: 0,
            token_ns: 0,
            ready: 0,
        };
        Some((model.name.clone(), traced))
    }

    pub(super) fn source(&self, model: ModelId) -> Option<Arc<Source>> {
        self.known.get(&model).map(|model| model.source.clone())
    }

    /// What a worker of this model is told first.
    pub(super) fn start(&self, model: ModelId, leases: Leases, threads: u16) -> protocol::Start {
        let model = self.known.get(&model).expect("the scheduler starts workers of known models");
        protocol::Start {
            architecture: model.surveyed.architecture,
            device: match leases.device {
                0 => protocol::Device::Cpu,
                lease_bytes => protocol::Device::Wgpu { lease_bytes },
            },
            threads,
            lease_bytes: leases.host,
            max_tokens: model.surveyed.max_tokens,
            step_tokens: model.terms.quota.step_tokens,
            slots: model.terms.config.values().concurrency,
            step_us: u32::try_from(model.terms.quota.step_ms * 1_000).expect("at most 50 ms"),
            calibrate: false,
        }
    }

    /// Whether the worker that starts now is to find no memory; the one after it is not.
    pub(super) fn take_drill(&mut self, model: ModelId) -> bool {
        self.known.get_mut(&model).is_some_and(|model| std::mem::take(&mut model.drill))
    }

    /// Closes the held bytes; a load that is under way keeps its own.
    pub(super) fn drop_package(&self, model: ModelId) {
        if let Some(model) = self.known.get(&model)
            && let Ok(mut held) = model.source.held.try_lock()
        {
            *held = None;
        }
    }

    /// A worker is ready: the model has answered for itself.
    pub(super) fn loaded(&mut self, model: ModelId) {
        if let Some(model) = self.known.get_mut(&model) {
            model.health = ModelHealth { answered: Some(clock::instant()), failing: false };
            model.trouble = None;
        }
    }

    /// A job ended: a finished one is as good as a canary.
    pub(super) fn answered(&mut self, model: ModelId, outcome: &Outcome) {
        if let (Some(model), Outcome::Done) = (self.known.get_mut(&model), outcome) {
            model.health = ModelHealth { answered: Some(clock::instant()), failing: false };
        }
    }

    /// A canary did not succeed.
    pub(super) fn canary_failed(&mut self, model: ModelId) {
        if let Some(model) = self.known.get_mut(&model) {
            model.health.failing = true;
        }
    }

    /// Counts device time.
    pub(super) fn used(&self, model: ModelId, device_us: u64) {
        metrics::counter!("ringfence_device_microseconds_total", "model" => self.name(model))
            .increment(device_us);
    }

    /// A worker ended. What it last printed may hold client contents: it stays in memory, for the operator.
    pub(super) fn ended(&mut self, model: ModelId, ending: &Ending, printed: Option<String>) {
        let Some(model) = self.known.get_mut(&model) else { return };
        if *ending == Ending::Stopped {
            return;
        }
        model.trouble = Some(match (ending, printed) {
            (Ending::DeviceFailed(reason), _) => format!("{ending}: {reason}"),
            (_, Some(line)) => format!("{ending}; it printed: {line}"),
            (_, None) => ending.to_string(),
        });
    }

    /// The models whose bytes are held. One that is being read now is not.
    pub(super) fn held(&self) -> Vec<(ModelId, Arc<Source>, Arc<Package>)> {
        let held = |(id, model): (&ModelId, &Model)| {
            let package = model.source.held.try_lock().ok()?.clone()?;
            Some((*id, model.source.clone(), package))
        };
        self.known.iter().filter_map(held).collect()
    }

    pub(super) fn get_mut(&mut self, model: ModelId) -> Option<&mut Model> {
        self.known.get_mut(&model)
    }

    /// Ends the alerts of these models.
    pub(super) fn forget_changes(&mut self, of: impl Fn(ModelId) -> bool) {
        self.known.iter_mut().filter(|(id, _)| of(**id)).for_each(|(_, model)| model.change = None);
    }

    /// The refusal of a new job where the disk holds something else than what runs, and the operator wants it so.
    pub(super) fn refuse_changed(&self, model: ModelId) -> Result<(), ApiError> {
        let Some(Model { name, change: Some(change), terms, .. }) = self.known.get(&model) else {
            return Ok(());
        };
        match terms.quota.on_disk_change {
            OnDiskChange::RefuseNew => {}
            OnDiskChange::Ignore => return Ok(()),
        }
        let message = format!(
            "the files of {name} are no longer the verified ones that run: {}; the operator must restore them, or add \
             the model again",
            change.reason
        );
        Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "model_changed_on_disk", message))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ModelId, &Model)> {
        self.known.iter().map(|(id, model)| (*id, model))
    }

    /// Views of the packages that are refused.
    pub(super) fn refused_views(&self) -> impl Iterator<Item = ModelView> {
        self.refused.iter().map(|(name, Refused { reason, .. })| ModelView {
            name: name.clone(),
            state: "refused",
            reason: Some(reason.clone()),
            digest: None,
            signer: None,
            unverified_source: false,
            max_tokens: None,
            lease_bytes: None,
            predicted_peak_bytes: None,
            changed_on_disk: None,
            queued: 0,
            running: 0,
        })
    }
}

impl Model {
    /// Whether this is still what lies on the disk.
    fn is(&self, found: &Survey) -> bool {
        self.source.name == found.name && found.verdict.as_ref().is_ok_and(|now| *now == self.surveyed)
    }

    pub(super) fn view(
        &self,
        state: &'static str,
        broken: Option<String>,
        queued: u32,
        running: u32,
    ) -> ModelView {
        let trouble = self.trouble.clone();
        let reason = match (broken, trouble) {
            (Some(broken), Some(trouble)) => Some(format!("{broken}: {trouble}")),
            (broken, trouble) => broken.or(trouble),
        };
        ModelView {
            name: self.name.clone(),
            state,
            reason,
            digest: Some(self.surveyed.digest.clone()),
            signer: Some(self.surveyed.signer.clone()),
            unverified_source: self.surveyed.unverified_source,
            max_tokens: Some(self.surveyed.max_tokens),
            lease_bytes: Some(self.terms.config.values().tensors_lease_bytes()),
            predicted_peak_bytes: self.terms.predicted_peak_bytes,
            changed_on_disk: self.change.clone(),
            queued: queued as usize,
            running: running as usize,
        }
    }
}

impl State {
    /// A typed answer for a name that no usable model has.
    pub(super) fn unusable(&self, name: &str) -> ApiError {
        match self.models.refusal(name) {
            None => ApiError::model_unknown(name),
            Some(reason) => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "package_refused",
                format!("the package of {name} is refused: {reason}"),
            ),
        }
    }
}

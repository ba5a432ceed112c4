//! The tables as the operator sees them.

use super::worker::{Phase, Worker};
use super::{Dispatcher, ModelView, State};
use crate::api::{Health, Verdict};
use crate::audit::AUDIT_UNAVAILABLE;
use crate::clock;
use crate::status::{DeviceView, Tier, WorkerView};
use crate::workers::Usage;
use ringfence_scheduler::{BudgetSnapshot, ModelSnapshot, Snapshot, WorkerId};
use std::sync::Arc;

impl Dispatcher {
    /// Every package of the home, by name.
    pub(crate) fn models(&self) -> Vec<ModelView> {
        let state = self.lock();
        let snapshot = state.scheduler.snapshot();
        let mut views: Vec<ModelView> = state.models.refused_views().collect();
        for (id, model) in state.models.iter() {
            let Some(now) = snapshot.models.iter().find(|now| now.model == id) else { continue };
            let broken = now.broken.map(|cause| cause.to_string());
            views.push(model.view(model_state(now, &snapshot), broken, now.waiting, now.running));
        }
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// Every worker that was started and has not ended.
    pub(crate) fn workers(&self) -> Vec<WorkerView> {
        let state = self.lock();
        let snapshot = state.scheduler.snapshot();
        state.workers.iter().map(|(id, worker)| view(&state, &snapshot, *id, worker)).collect()
    }

    /// Budgets and what is promised of them.
    pub(crate) fn devices(&self) -> Vec<DeviceView> {
        let snapshot = self.lock().scheduler.snapshot();
        let device = |name: &str, budget: BudgetSnapshot| DeviceView {
            name: name.to_owned(),
            driver: None,
            budget_bytes: budget.budget_bytes,
            promised_bytes: budget.promised_bytes,
            cores: None,
            cores_held: None,
        };
        let (cores, cores_held) = (Some(snapshot.cores.budget), Some(snapshot.cores.held));
        let cpu = DeviceView { cores, cores_held, ..device("cpu", snapshot.cpu) };
        let gpus = self.gpus.iter().zip(snapshot.gpus).filter(|(_, budget)| budget.budget_bytes > 0);
        let gpus = gpus.map(|(gpu, budget)| DeviceView {
            driver: Some(gpu.driver.to_string()),
            ..device(&gpu.name, budget)
        });
        [cpu].into_iter().chain(gpus).chain([device("host", snapshot.host)]).collect()
    }

    /// What the last answers say; touches no model.
    pub(crate) fn health(self: &Arc<Self>) -> Health {
        let state = self.lock();
        let loaded: Vec<_> = state
            .models
            .iter()
            .filter(|(id, _)| {
                state.workers.values().any(|worker| worker.model == *id && worker.phase == Phase::Ready)
            })
            .map(|(_, model)| model.health)
            .collect();
        let failing_models = loaded.iter().filter(|health| health.failing).count();
        let now = clock::instant();
        let ages = loaded.iter().filter_map(|health| health.answered).map(|at| now.duration_since(at));
        let code = self.audit.well().err().map(|_| AUDIT_UNAVAILABLE);
        let status = match (state.draining, failing_models, code) {
            (true, _, _) => Verdict::Draining,
            (false, 0, None) => Verdict::Ok,
            (false, _, _) => Verdict::Failing,
        };
        let oldest_answer_ms = ages.max().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Health { status, loaded_models: loaded.len(), failing_models, oldest_answer_ms, code }
    }
}

fn model_state(now: &ModelSnapshot, snapshot: &Snapshot) -> &'static str {
    if now.broken.is_some() {
        "broken"
    } else if now.ready > 0 {
        "ready"
    } else if snapshot.workers.iter().any(|worker| worker.model == now.model) {
        "loading"
    } else {
        "unloaded"
    }
}

fn view(state: &State, snapshot: &Snapshot, id: WorkerId, worker: &Worker) -> WorkerView {
    let ready = worker.serving.as_ref().map(|serving| &serving.ready);
    let usage = usage(worker);
    let jobs = snapshot.workers.iter().find(|now| now.worker == id).map_or(0, |now| now.jobs.len());
    WorkerView {
        id: id.0,
        pid: worker.pid,
        model: state.models.name(worker.model),
        state: worker.phase.name().to_owned(),
        device: worker.device.clone(),
        tier: ready.map_or(Tier::InProcess, |ready| ready.tier),
        lease_bytes: worker.leases.of_tensors(),
        used_bytes: usage.used_bytes,
        peak_bytes: usage.peak_bytes,
        bytes_per_token: ready.map_or(0, |ready| ready.bytes_per_token),
        rss_bytes: worker.pid.and_then(resident_bytes).unwrap_or(0),
        layers: ready.map_or_else(Vec::new, |ready| ready.layers.iter().map(layer_name).collect()),
        landlock_abi: ready.map_or(0, |ready| ready.landlock_abi),
        running: jobs,
        ready_after_ms: worker.ready_after.map(|after| after.as_secs_f64() * 1e3),
        cold: worker.cold,
        sandbox_setup_us: ready.map_or(0, |ready| ready.sandbox_setup_us),
        warm_up_us: ready.map_or(0, |ready| ready.warm_up_us),
    }
}

/// What a worker has of the memory that its lease is of: its allocator's count, or on a GPU its own word.
fn usage(worker: &Worker) -> Usage {
    let page = worker.page.as_ref().map(|page| page.read());
    let of_host = page.map(|page| Usage { used_bytes: page.used_bytes, peak_bytes: page.peak_bytes });
    let of_gpu = worker.serving.as_ref().map(|serving| serving.slots.usage());
    let usage = if worker.leases.device > 0 { of_gpu } else { of_host };
    usage.unwrap_or(Usage { used_bytes: 0, peak_bytes: 0 })
}

fn layer_name(layer: &ringfence_protocol::Layer) -> String {
    serde_json::to_value(layer)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .expect("a layer is written as its name")
}

/// Resident memory by `/proc/PID/statm`.
fn resident_bytes(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

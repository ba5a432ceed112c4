//! What the operator sees: the server, its devices, models and workers, and the sandbox that holds.

use crate::api::App;
use crate::audit::AuditView;
use crate::capture::CaptureView;
use crate::clock;
use crate::dispatch::ModelView;
use crate::nvml::{Card, NvmlView};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use sysinfo::System;
use utoipa::ToSchema;

/// What does not change while the server runs.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Random for each run.
    pub(crate) run_id: String,
    /// `enforced` where clients can't tamper with the server, else `advisory`.
    pub(crate) identity: Identity,
    /// The home.
    pub(crate) home: PathBuf,
    /// The TCP address, if there is one.
    pub(crate) listen: Option<SocketAddr>,
    /// What the probes at the start proved.
    pub(crate) sandbox: SandboxView,
}

/// How much a client's identity means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Identity {
    /// The server runs under a uid of its own.
    Enforced,
    /// Unconfined programs of the server's own uid could tamper with it.
    Advisory,
}

/// The sandbox of this run.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct SandboxView {
    /// The layers that every worker is in, in the order in which they are applied.
    pub(crate) layers: Vec<String>,
    /// Landlock's ABI on this kernel.
    pub(crate) landlock_abi: u32,
    /// Floors that this kernel does not have, each with what compensates.
    pub(crate) missing: Vec<String>,
    /// Forbidden acts that were tried at the start and stopped.
    pub(crate) probes: Vec<String>,
}

/// Answer of `GET /status`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Status {
    version: &'static str,
    pid: u32,
    run_id: String,
    uptime_s: u64,
    identity: Identity,
    home: String,
    listen: Option<String>,
    health: crate::api::Health,
    host: HostView,
    devices: Vec<DeviceView>,
    /// NVIDIA's cards, with what each process has on them.
    nvml: NvmlView,
    models: Vec<ModelView>,
    workers: Vec<WorkerView>,
    grants: GrantCounts,
    /// Live sound: whatever captures now is here.
    captures: Vec<CaptureView>,
    audit: AuditView,
    sandbox: SandboxView,
}

/// How many grants there are.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GrantCounts {
    /// Pending and live ones.
    pub(crate) open: usize,
    /// File services that run, one for each root that is asked for or granted.
    pub(crate) file_services: usize,
}

/// The machine.
#[derive(Debug, Serialize, ToSchema)]
struct HostView {
    memory_total_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    load_1m: Option<f64>,
    cores: usize,
}

/// A device and what is promised of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct DeviceView {
    /// `cpu`, the name of a GPU, or `host` for the memory that packages lie in.
    pub(crate) name: String,
    /// Of a GPU: whose Vulkan driver, and which card, as in `vulkan-mesa /dev/dri/renderD128`.
    pub(crate) driver: Option<String>,
    /// Sum of what may be promised.
    pub(crate) budget_bytes: u64,
    /// Sum of what is.
    pub(crate) promised_bytes: u64,
    /// Cores that workers may use; only the CPU has some.
    pub(crate) cores: Option<u16>,
    /// Threads of workers that have jobs; more than the cores while jobs that take long share them.
    pub(crate) cores_held: Option<u32>,
}

/// A worker.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct WorkerView {
    /// Its number in this run.
    pub(crate) id: u64,
    /// Its process, once it said hello.
    pub(crate) pid: Option<i32>,
    /// What it runs.
    pub(crate) model: String,
    /// `starting`, `ready`, `stopping` or `killed`.
    pub(crate) state: String,
    /// Where: `cpu`, or the name of a GPU.
    pub(crate) device: String,
    /// What backs its lease.
    pub(crate) tier: Tier,
    /// Bytes that it may take of its device's memory.
    pub(crate) lease_bytes: u64,
    /// Bytes of it that are handed out: by its allocator, as the status page says, or on a GPU by its own word.
    pub(crate) used_bytes: u64,
    /// The most of that at one time.
    pub(crate) peak_bytes: u64,
    /// Bytes that a token of a step takes at most, by the worker's own word; 0 until it is ready.
    pub(crate) bytes_per_token: u64,
    /// Resident memory as the kernel counts it, weights that it shares included.
    pub(crate) rss_bytes: u64,
    /// The layers that it reported and the server checked.
    pub(crate) layers: Vec<String>,
    /// Landlock's ABI that it uses.
    pub(crate) landlock_abi: u32,
    /// Jobs in it.
    pub(crate) running: usize,
    /// From the decision to start it until it could serve.
    pub(crate) ready_after_ms: Option<f64>,
    /// Whether its package had to be read and verified first.
    pub(crate) cold: bool,
    /// Time that the sandbox took of that.
    pub(crate) sandbox_setup_us: u64,
    /// Time that the warm-up took of that.
    pub(crate) warm_up_us: u64,
}

/// What stops a worker that wants more than its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tier {
    /// The kernel refuses (RLIMIT_DATA), behind the worker's own allocator.
    Kernel,
    /// The server looks four times a second what the worker has, and kills it above what it may have.
    PolledKill,
    /// Only the worker's own allocator refuses; before the limit is set.
    InProcess,
}

/// Everything.
pub(crate) fn status(app: &App) -> Status {
    let facts = &app.facts;
    Status {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        run_id: facts.run_id.clone(),
        uptime_s: clock::now().0 / 1_000_000,
        identity: facts.identity,
        home: facts.home.display().to_string(),
        listen: facts.listen.map(|address| address.to_string()),
        health: app.dispatcher.health(),
        host: host(),
        devices: app.dispatcher.devices(),
        nvml: app.dispatcher.cards(),
        models: app.dispatcher.models(),
        workers: workers(app),
        grants: app.grants.counts(),
        captures: app.captures.running(),
        audit: app.audit.view(),
        sandbox: SandboxView {
            probes: [facts.sandbox.probes.clone(), app.dispatcher.gpu_probes()].concat(),
            ..facts.sandbox.clone()
        },
    }
}

/// The workers with what the kernel says of each.
pub(crate) fn workers(app: &App) -> Vec<WorkerView> {
    app.dispatcher.workers()
}

fn host() -> HostView {
    let memory = memory().ok();
    HostView {
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        memory_available_bytes: memory.as_ref().map(|memory| memory.available),
        load_1m: System::load_average().ok().map(|load| load.one),
        cores: cores(),
    }
}

/// Memory of the machine, in bytes.
pub(crate) struct Memory {
    /// All of it.
    pub(crate) total: u64,
    /// What can be had without swapping.
    pub(crate) available: u64,
}

/// Asks the system.
pub(crate) fn memory() -> Result<Memory, sysinfo::Error> {
    let mut system = System::new()?;
    system.refresh_memory();
    Ok(Memory { total: system.total_memory(), available: system.available_memory() })
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Sets the gauges that are read and not counted.
pub(crate) fn gauges(app: &App) {
    usage_gauges(app);
    let host = host();
    if let Some(available) = host.memory_available_bytes {
        gauge("ringfence_host_memory_available_bytes", available);
    }
    if let Some(load) = host.load_1m {
        metrics::gauge!("ringfence_host_load1").set(load);
    }
    for device in app.dispatcher.devices() {
        labelled("ringfence_device_budget_bytes", "device", &device.name, device.budget_bytes);
        labelled("ringfence_device_promised_bytes", "device", &device.name, device.promised_bytes);
        if let (Some(cores), Some(held)) = (device.cores, device.cores_held) {
            labelled("ringfence_device_cores", "device", &device.name, u64::from(cores));
            labelled("ringfence_device_cores_held", "device", &device.name, u64::from(held));
        }
    }
    let cards = app.dispatcher.cards().cards;
    gauge("ringfence_cards_read", cards.len() as u64);
    cards.iter().for_each(card_gauges);
    for worker in workers(app) {
        labelled("ringfence_worker_lease_bytes", "model", &worker.model, worker.lease_bytes);
        labelled("ringfence_worker_peak_bytes", "model", &worker.model, worker.peak_bytes);
        labelled("ringfence_worker_rss_bytes", "model", &worker.model, worker.rss_bytes);
    }
    for model in app.dispatcher.models() {
        labelled("ringfence_jobs_waiting", "model", &model.name, model.queued as u64);
        labelled("ringfence_jobs_running", "model", &model.name, model.running as u64);
    }
}

/// Of the card only: what each process has is on the operator's socket.
fn card_gauges(card: &Card) {
    let numbers = [
        ("ringfence_card_memory_used_bytes", card.used_bytes),
        ("ringfence_card_memory_total_bytes", card.total_bytes),
        ("ringfence_card_temperature_celsius", card.temperature_c.map(u64::from)),
        ("ringfence_card_busy_percent", card.busy_percent.map(u64::from)),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            labelled(name, "card", &card.index.to_string(), number);
        }
    }
}

/// Clients beyond this have no series of their own, so that strangers don't fill whoever collects them.
const CLIENT_SERIES_MAX: usize = 1_000;

fn usage_gauges(app: &App) {
    let usage = app.dispatcher.usage(None);
    gauge("ringfence_unfairness_bound_microseconds", usage.unfairness_bound_us);
    for (code, count) in usage.refusals {
        labelled("ringfence_refusals", "code", code, count);
    }
    for client in usage.clients.iter().take(CLIENT_SERIES_MAX) {
        labelled("ringfence_client_device_microseconds", "client", &client.client, client.device_us);
        labelled("ringfence_client_waiting", "client", &client.client, u64::from(client.waiting));
        labelled("ringfence_client_running", "client", &client.client, u64::from(client.running));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn gauge(name: &'static str, value: u64) {
    metrics::gauge!(name).set(value as f64);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn labelled(name: &'static str, label: &'static str, of: &str, value: u64) {
    metrics::gauge!(name, label => of.to_owned()).set(value as f64);
}

//! What operators set, checked once on the way in.

use crate::ids::GpuId;
use std::time::Duration;

/// The most GPUs.
pub const GPUS_MAX: usize = 16;

/// The most jobs at a time in one worker.
pub const CONCURRENCY_MAX: u16 = 256;

/// The most workers of one model.
pub const WORKERS_MAX: u16 = 64;

/// The largest bound of a queue, in jobs.
pub const QUEUE_MAX: u32 = 1_000_000;

/// The largest weight of a client.
pub const WEIGHT_MAX: u16 = 1_000;

/// The most units of a rate in a minute.
pub const RATE_MAX: u64 = 1_000_000_000_000;

/// The longest target of a step.
pub const STEP_TARGET_MAX: Duration = Duration::from_millis(50);

/// The longest of the configured times.
pub const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The machine's budgets and the bounds of all queues together; see [`ConfigValues`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config(ConfigValues);

/// What [`Config::new`] checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigValues {
    /// The devices that workers run on.
    pub devices: Devices,
    /// Sum of all loaded packages in bytes: the sealed memfds, once a model.
    pub host_budget_bytes: u64,
    /// Jobs that wait in all.
    pub queue_total_max: u32,
    /// In which order waiting jobs run.
    pub order: Order,
    /// While jobs of better classes wait, a class gets a job started after so long without one.
    pub aging: Duration,
    /// What clients may do that have no section of their own.
    pub client: ClientConfig,
}

/// In which order waiting jobs of one model run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By class, and inside a class to the client that has had the least device time for its weight.
    Fair,
    /// First come, first served: what fairness is measured against.
    Arrival,
}

/// Which jobs come first, whatever anybody has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// First.
    Realtime,
    /// Then these.
    Interactive,
    /// Last.
    Batch,
}

impl Class {
    /// A stable name.
    pub fn name(self) -> &'static str {
        match self {
            Class::Realtime => "realtime",
            Class::Interactive => "interactive",
            Class::Batch => "batch",
        }
    }
}

/// What one client may do; see [`ClientValues`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig(ClientValues);

/// What [`ClientConfig::new`] checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientValues {
    /// Its share of device time beside others of its class.
    pub weight: u16,
    /// Its class.
    pub class: Class,
    /// Its jobs that wait.
    pub queue_max: u32,
    /// Jobs; each counts 1.
    pub jobs: Option<Rate>,
    /// Device time in microseconds.
    pub device_us: Option<Rate>,
    /// Tokens of inputs.
    pub tokens: Option<Rate>,
    /// Audio in milliseconds.
    pub audio_ms: Option<Rate>,
}

/// How much of something in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units in a minute.
    pub per_minute: u64,
    /// Units that may come at once after a pause.
    pub burst: u64,
}

/// The devices that workers run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The CPU and the memory that all workers may allocate.
    pub cpu: DeviceConfig,
    /// Of each GPU the memory that workers may have reserved, in bytes, by [`GpuId`]; 0 where none may. At most
    /// [`GPUS_MAX`].
    pub gpu_budgets_bytes: Vec<u64>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Sum of all leases in bytes.
    pub budget_bytes: u64,
    /// The most threads that one worker gets.
    pub cores: u16,
}

/// What one model may take; see [`ModelValues`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig(ModelValues);

/// What [`ModelConfig::new`] checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelValues {
    /// What one worker may allocate on its device, in bytes.
    pub lease_bytes: u64,
    /// What one worker may have of a GPU's memory beside it, in bytes; 0 where it computes on the CPU.
    pub device_lease_bytes: u64,
    /// The GPUs that its workers may be on; none where they compute on the CPU.
    pub gpus: Vec<GpuId>,
    /// Host memory of the package's sealed memfds in bytes, counted once however many workers share it.
    pub package_bytes: u64,
    /// Workers at a time.
    pub workers_max: u16,
    /// Jobs at a time in one worker.
    pub concurrency: u16,
    /// Jobs that wait for this model.
    pub queue_max: u32,
    /// Device time of one job.
    pub timeout: Duration,
    /// Its workers share every step among all of their jobs, by the clients' weights: whoever joins has a part of the next
    /// one, however much the others have left. So it is with generators.
    pub shares_steps: bool,
    /// The most tokens in one step.
    pub step_tokens: u32,
    /// How long a step should last, by measured speed: what is in a worker at a time is cut to it.
    pub step_target: Duration,
    /// How long one step may last before its worker is killed.
    pub step_limit: Duration,
    /// How long a worker may take from its spawn until it is ready.
    pub load_limit: Duration,
    /// A worker without a job for this long is stopped; `None` keeps it until its memory is needed.
    pub idle_unload: Option<Duration>,
    /// Compute threads of a worker; at most the device's cores are used.
    pub threads: u16,
    /// Keep one worker ready without being asked. Its memory is given to another model's jobs only if nothing else is.
    pub keep_loaded: bool,
}

/// A value that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; it must be from {least} to {most}")]
pub struct ConfigError {
    /// Name of the field; times are in microseconds.
    pub field: &'static str,
    /// What it is.
    pub value: u64,
    /// Inclusive.
    pub least: u64,
    /// Inclusive.
    pub most: u64,
}

impl Config {
    /// Checks each value.
    pub fn new(values: ConfigValues) -> Result<Self, ConfigError> {
        let queue_max = u64::from(QUEUE_MAX);
        within("devices.cpu.budget_bytes", values.devices.cpu.budget_bytes, 1, BYTES_MAX)?;
        within("devices.cpu.cores", u64::from(values.devices.cpu.cores), 1, u64::from(u16::MAX))?;
        let gpus = &values.devices.gpu_budgets_bytes;
        within("devices.gpus", gpus.len() as u64, 0, GPUS_MAX as u64)?;
        gpus.iter().try_for_each(|budget| within("devices.gpu_budgets_bytes", *budget, 0, BYTES_MAX))?;
        within("host_budget_bytes", values.host_budget_bytes, 1, BYTES_MAX)?;
        within("queue_total_max", u64::from(values.queue_total_max), 1, queue_max)?;
        within_time("aging", values.aging)?;
        Ok(Self(values))
    }

    /// The checked values.
    pub fn values(&self) -> &ConfigValues {
        &self.0
    }
}

impl ClientConfig {
    /// Checks each value.
    pub fn new(values: ClientValues) -> Result<Self, ConfigError> {
        within("weight", u64::from(values.weight), 1, u64::from(WEIGHT_MAX))?;
        within("queue_max", u64::from(values.queue_max), 1, u64::from(QUEUE_MAX))?;
        for (field, rate) in [
            ("jobs", values.jobs),
            ("device_us", values.device_us),
            ("tokens", values.tokens),
            ("audio_ms", values.audio_ms),
        ] {
            let Some(rate) = rate else { continue };
            within(field, rate.per_minute, 1, RATE_MAX)?;
            within(field, rate.burst, 1, RATE_MAX)?;
        }
        Ok(Self(values))
    }

    /// The checked values.
    pub fn values(&self) -> &ClientValues {
        &self.0
    }
}

impl ModelValues {
    /// The lease that weights and activations count against.
    pub fn tensors_lease_bytes(&self) -> u64 {
        if self.device_lease_bytes > 0 { self.device_lease_bytes } else { self.lease_bytes }
    }
}

impl ModelConfig {
    /// Checks each value.
    pub fn new(values: ModelValues) -> Result<Self, ConfigError> {
        within("lease_bytes", values.lease_bytes, 1, BYTES_MAX)?;
        within("device_lease_bytes", values.device_lease_bytes, 0, BYTES_MAX)?;
        let (least, most) = if values.device_lease_bytes > 0 { (1, GPUS_MAX as u64) } else { (0, 0) };
        within("gpus", values.gpus.len() as u64, least, most)?;
        within("package_bytes", values.package_bytes, 0, BYTES_MAX)?;
        within("workers_max", u64::from(values.workers_max), 1, u64::from(WORKERS_MAX))?;
        within("concurrency", u64::from(values.concurrency), 1, u64::from(CONCURRENCY_MAX))?;
        within("queue_max", u64::from(values.queue_max), 1, u64::from(QUEUE_MAX))?;
        within("threads", u64::from(values.threads), 1, u64::from(u16::MAX))?;
        within("step_tokens", u64::from(values.step_tokens), 1, u64::from(u32::MAX))?;
        within(
            "step_target",
            crate::ids::micros(values.step_target),
            1,
            crate::ids::micros(STEP_TARGET_MAX),
        )?;
        within_time("timeout", values.timeout)?;
        within_time("step_limit", values.step_limit)?;
        within_time("load_limit", values.load_limit)?;
        values.idle_unload.map_or(Ok(()), |idle| within_time("idle_unload", idle))?;
        Ok(Self(values))
    }

    /// The checked values.
    pub fn values(&self) -> &ModelValues {
        &self.0
    }
}

/// Sums of as many of these as there can be workers don't overflow.
const BYTES_MAX: u64 = 1 << 44;

fn within(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(ConfigError { field, value, least, most }) }
}

fn within_time(field: &'static str, value: Duration) -> Result<(), ConfigError> {
    within(field, crate::ids::micros(value), 1, crate::ids::micros(TIME_MAX))
}

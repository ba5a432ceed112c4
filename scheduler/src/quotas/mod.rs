//! `quotas.toml`: what devices, models and clients may take. Text in, checked values out; no IO.

mod pattern;
mod read;
mod rule;
mod sections;
mod text;

pub use pattern::Pattern;
pub use read::QuotaError;
pub use rule::{FallbackDevice, GpuDriver, Key, ModelDevice, OnDiskChange, Shown};
pub use sections::{ClientQuota, Cpu, Gpu, Host, ModelQuota, Queues};
pub use text::{Change, Effective, documented, sections};

use crate::config::{
    ClientConfig, ClientValues, Config, ConfigError, ConfigValues, DeviceConfig, Devices, ModelConfig,
    ModelValues, Rate,
};
use crate::ids::GpuId;
use std::collections::BTreeMap;
use std::time::Duration;

/// The largest `quotas.toml`.
pub const FILE_BYTES_MAX: usize = 256 * 1024;

/// The longest deadline where nobody set one.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The GPU that is there where the file names none.
const GPU: &str = "wgpu";

/// The section for whoever has none.
const DEFAULT: &str = "default";

const MIB: u64 = 1024 * 1024;

/// The whole file. Every value has a default; an unknown name is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// The CPU and its memory, from which workers get leases.
    pub cpu: Cpu,
    /// The GPUs by name, from which workers of models that name them get leases; at least one, which may have nothing
    /// to give.
    pub gpus: BTreeMap<String, Gpu>,
    /// Memory of the host for weights, which all workers of a model share.
    pub host: Host,
    /// How much may wait, and in which order it runs.
    pub queues: Queues,
    models: BTreeMap<String, ModelQuota>,
    clients: BTreeMap<String, ClientQuota>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            cpu: Cpu::default(),
            gpus: BTreeMap::from([(GPU.to_owned(), Gpu::default())]),
            host: Host::default(),
            queues: Queues::default(),
            models: BTreeMap::new(),
            clients: BTreeMap::new(),
        }
    }
}

impl Quotas {
    /// Reads and checks the whole text.
    ///
    /// # Errors
    /// What is wrong first, with its line.
    pub fn parse(text: &str) -> Result<Self, QuotaError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(whole_file(format!("the file is longer than {FILE_BYTES_MAX} bytes")));
        }
        read::read(text)
    }

    /// As [`Quotas::parse`], from what lies on a disk or came over a socket.
    ///
    /// # Errors
    /// Also where the bytes are not UTF-8.
    pub fn parse_bytes(bytes: &[u8]) -> Result<Self, QuotaError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            QuotaError { line: Some(line), ..whole_file("the file is not UTF-8".to_owned()) }
        })?;
        Self::parse(text)
    }

    /// Budgets and bounds on a machine with this much memory and as many cores.
    ///
    /// # Errors
    /// The reserve leaves nothing for leases.
    pub fn config(&self, machine_bytes: u64, machine_cores: u16) -> Result<Config, ConfigError> {
        let memory = self.cpu.memory_mib.map_or(machine_bytes / 2, |mib| mib * MIB);
        let reserve = self.cpu.reserve_mib * MIB;
        let budget_bytes = memory.checked_sub(reserve).filter(|budget| *budget > 0).ok_or(ConfigError {
            field: "devices.cpu.reserve_mib",
            value: self.cpu.reserve_mib,
            least: 0,
            most: (memory / MIB).saturating_sub(1),
        })?;
        let cores = self.cpu.cores.unwrap_or(machine_cores);
        Config::new(ConfigValues {
            devices: Devices {
                cpu: DeviceConfig { budget_bytes, cores },
                gpu_budgets_bytes: self.gpus.values().map(|gpu| gpu.memory_mib * MIB).collect(),
            },
            host_budget_bytes: self.host.memory_mib.map_or(machine_bytes / 4, |mib| mib * MIB),
            queue_total_max: self.queues.total,
            order: self.queues.order,
            aging: Duration::from_millis(self.queues.aging_ms),
            client: self.default_client(),
        })
    }

    /// What a client with a section of its own may do.
    pub fn client(&self, name: &str) -> Option<ClientConfig> {
        self.clients.get(name).map(|client| self.client_config(client))
    }

    /// What a client without a section may do.
    pub fn default_client(&self) -> ClientConfig {
        self.client_config(&self.client_quota(DEFAULT))
    }

    /// What applies to the model of this name: its own section, else `default`, whole.
    pub fn model(&self, name: &str) -> ModelQuota {
        let mut quota =
            self.models.get(name).or_else(|| self.models.get(DEFAULT)).cloned().unwrap_or_default();
        // The fallback that `default` names is not its own.
        quota.fallback = quota.fallback.filter(|fallback| fallback != name || self.models.contains_key(name));
        quota
    }

    /// Whether the model of this name falls back from its GPU to the CPU.
    pub fn falls_back_to_cpu(&self, name: &str) -> bool {
        let quota = self.model(name);
        quota.device != ModelDevice::Cpu && quota.fallback_device == FallbackDevice::Cpu
    }

    /// What a model with this quota may take, with so many threads, a lease on its device, a package of so many bytes, and
    /// workers that share their steps or don't.
    ///
    /// # Errors
    /// A value that the scheduler does not take.
    pub fn config_of(
        &self,
        quota: &ModelQuota,
        threads: u16,
        lease_bytes: u64,
        package_bytes: u64,
        shares_steps: bool,
    ) -> Result<ModelConfig, ConfigError> {
        let gpus = self.gpu_ids(&quota.device);
        let (lease_bytes, device_lease_bytes) = match quota.device {
            ModelDevice::Cpu => (lease_bytes, 0),
            ModelDevice::AnyGpu | ModelDevice::Gpu(_) => (quota.host_lease_mib * MIB, lease_bytes),
        };
        ModelConfig::new(ModelValues {
            lease_bytes,
            device_lease_bytes,
            gpus,
            package_bytes,
            workers_max: quota.workers,
            concurrency: quota.concurrency,
            queue_max: quota.queue,
            timeout: Duration::from_millis(quota.timeout_ms),
            shares_steps,
            step_tokens: quota.step_tokens,
            step_target: Duration::from_millis(quota.step_ms),
            step_limit: Duration::from_millis(quota.step_limit_ms),
            load_limit: Duration::from_millis(quota.load_limit_ms),
            idle_unload: (quota.idle_unload_s > 0).then(|| Duration::from_secs(quota.idle_unload_s)),
            threads,
            keep_loaded: false,
        })
    }

    /// The numbers of the GPUs that a device means: their places in order of name.
    fn gpu_ids(&self, device: &ModelDevice) -> Vec<GpuId> {
        let means = |name: &str| match device {
            ModelDevice::Cpu => false,
            ModelDevice::AnyGpu => true,
            ModelDevice::Gpu(wanted) => wanted == name,
        };
        let ids = (0..).map(GpuId).zip(self.gpus.keys());
        ids.filter(|(_, name)| means(name)).map(|(id, _)| id).collect()
    }

    /// Compute threads of a worker of this model.
    pub fn threads(&self, model: &str, machine_cores: u16) -> u16 {
        self.model(model).threads.or(self.cpu.cores).unwrap_or(machine_cores)
    }

    /// The model that answers where this one can't.
    pub fn fallback(&self, model: &str) -> Option<&str> {
        let own = self.models.get(model);
        let quota = own.or_else(|| self.models.get(DEFAULT))?;
        quota.fallback.as_deref().filter(|fallback| *fallback != model || own.is_some())
    }

    /// Whether a client may use a model.
    pub fn may_use(&self, client: &str, model: &str) -> bool {
        let Some(quota) = self.clients.get(client).or_else(|| self.clients.get(DEFAULT)) else { return true };
        quota.models.iter().any(|pattern| pattern.matches(model))
    }

    /// The longest deadline of a client's jobs.
    pub fn deadline_max(&self, client: &str) -> Duration {
        self.deadline_set(client).unwrap_or(DEADLINE_MAX)
    }

    /// The deadline of a client's job that asks for `asked`.
    pub fn deadline(&self, client: &str, asked: Option<Duration>) -> Option<Duration> {
        match asked {
            Some(asked) => Some(asked.min(self.deadline_max(client))),
            None => self.deadline_set(client),
        }
    }

    fn deadline_set(&self, client: &str) -> Option<Duration> {
        let quota = self.clients.get(client).or_else(|| self.clients.get(DEFAULT))?;
        quota.deadline_max_ms.map(Duration::from_millis)
    }

    /// What applies to the client of this name, with defaults in words resolved.
    fn client_quota(&self, name: &str) -> ClientQuota {
        let quota = self.clients.get(name).or_else(|| self.clients.get(DEFAULT));
        quota.cloned().unwrap_or_default().resolved(&self.queues)
    }

    fn client_config(&self, quota: &ClientQuota) -> ClientConfig {
        let quota = quota.resolved(&self.queues);
        let [jobs, device_us, tokens, audio_ms] = quota.rates().map(|(name, rate, burst)| {
            let unit = if matches!(name, "device_ms" | "audio_s") { 1_000 } else { 1 };
            rate.zip(burst).map(|(rate, burst)| Rate { per_minute: rate * unit, burst: burst * unit })
        });
        let values = ClientValues {
            weight: quota.weight,
            class: quota.class,
            queue_max: quota.queue.unwrap_or(self.queues.per_client),
            jobs,
            device_us,
            tokens,
            audio_ms,
        };
        ClientConfig::new(values).expect("the ranges of the file are within those of the scheduler")
    }
}

fn whole_file(reason: String) -> QuotaError {
    QuotaError { line: None, field: String::new(), reason }
}

/// A name below a dotted path, quoted where it has to be.
fn join(parent: &str, name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let name = if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { rule::quoted(name) };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

#[cfg(test)]
mod tests;

//! `quotas.toml`: budgets of devices, and leases, limits and timeouts of models.

use crate::packages::Predicted;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The largest `quotas.toml`.
pub(crate) const FILE_BYTES_MAX: usize = 256 * 1024;

const MIB: u64 = 1024 * 1024;

/// Room for jobs' inputs in a lease that follows from a profile.
const INPUTS_BYTES: u64 = 64 * MIB;

/// The whole file. Every value has a default; an unknown name is an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// What the machine gives.
    pub(crate) devices: Devices,
    /// What each model may take, by name; `default` stands for the rest.
    pub(crate) models: BTreeMap<String, ModelSettings>,
    /// How much may wait.
    pub(crate) queues: Queues,
}

/// Section `devices`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Devices {
    /// The CPU and its memory, from which workers get leases.
    pub(crate) cpu: Cpu,
    /// Memory of the host for weights, which all workers of a model share.
    pub(crate) host: Host,
}

/// Section `devices.cpu`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cpu {
    /// Sum of all leases, in MiB. Default: half of the machine's memory.
    pub(crate) memory_mib: Option<u64>,
    /// The most threads that one worker gets. Default: the machine's cores.
    pub(crate) cores: Option<u16>,
}

/// Section `devices.host`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Host {
    /// Sum of all loaded packages, in MiB. Default: a quarter of the machine's memory.
    pub(crate) memory_mib: Option<u64>,
}

/// Section `queues`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Queues {
    /// Jobs that wait in all.
    pub(crate) total: u32,
    /// Jobs that wait for one client.
    pub(crate) per_client: u32,
}

impl Default for Queues {
    fn default() -> Self {
        Self { total: 4_096, per_client: 256 }
    }
}

/// Section `models.NAME`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelSettings {
    /// A worker's lease, in MiB. Default: 1.25 times the weights, plus 256; more where the model was measured to take more.
    pub(crate) lease_mib: Option<u64>,
    /// Workers at a time.
    pub(crate) workers: u16,
    /// Jobs in a worker at a time.
    pub(crate) concurrency: u16,
    /// Jobs that wait for this model.
    pub(crate) queue: u32,
    /// Device time of one job, in milliseconds.
    pub(crate) timeout_ms: u64,
    /// How long one step may take before its worker is killed, in milliseconds.
    pub(crate) step_limit_ms: u64,
    /// How long a start with its load may take, in milliseconds.
    pub(crate) load_limit_ms: u64,
    /// Unload a worker that did nothing for this many seconds; 0 keeps it.
    pub(crate) idle_unload_s: u64,
    /// Tokens in one step.
    pub(crate) step_tokens: u32,
    /// Compute threads of a worker. Default: the device's cores.
    pub(crate) threads: Option<u16>,
    /// What happens to new jobs while the files of a loaded package are not the running ones. An alert in any case.
    pub(crate) on_disk_change: OnDiskChange,
}

/// Values of `on_disk_change`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnDiskChange {
    /// They are refused.
    #[default]
    RefuseNew,
    /// They run, with the verified bytes that are held in memory.
    Ignore,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            lease_mib: None,
            workers: 1,
            concurrency: 64,
            queue: 1_024,
            timeout_ms: 60_000,
            step_limit_ms: 10_000,
            load_limit_ms: 30_000,
            idle_unload_s: 600,
            step_tokens: 512,
            threads: None,
            on_disk_change: OnDiskChange::default(),
        }
    }
}

/// Why the file is refused; the message names the line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// Not UTF-8.
    #[error("quotas.toml is not UTF-8")]
    NotUtf8,
    /// Not TOML, or a name or type that it does not have.
    #[error("quotas.toml: {0}")]
    Malformed(#[from] toml::de::Error),
    /// A number out of its range.
    #[error("quotas.toml: {field} is {value}; it must be from {least} to {most}")]
    Range {
        /// Which.
        field: String,
        /// What it is.
        value: u64,
        /// Inclusive.
        least: u64,
        /// Inclusive.
        most: u64,
    },
}

impl Settings {
    /// Reads and checks the whole text.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, SettingsError> {
        let text = std::str::from_utf8(bytes).map_err(|_| SettingsError::NotUtf8)?;
        let settings: Self = toml::from_str(text)?;
        settings.check()?;
        Ok(settings)
    }

    /// What applies to the model of this name.
    pub(crate) fn model(&self, name: &str) -> ModelSettings {
        self.models.get(name).or_else(|| self.models.get("default")).cloned().unwrap_or_default()
    }

    fn check(&self) -> Result<(), SettingsError> {
        let day_ms = 24 * 60 * 60 * 1_000;
        range("queues.total", u64::from(self.queues.total), 1, 1_000_000)?;
        range("queues.per_client", u64::from(self.queues.per_client), 1, 1_000_000)?;
        optional("devices.cpu.memory_mib", self.devices.cpu.memory_mib, 1, 1 << 24)?;
        optional("devices.cpu.cores", self.devices.cpu.cores.map(u64::from), 1, 1_024)?;
        optional("devices.host.memory_mib", self.devices.host.memory_mib, 1, 1 << 24)?;
        for (name, model) in &self.models {
            let field = |field: &str| format!("models.{name}.{field}");
            let slots = u64::from(ringfence_protocol::SLOTS_MAX);
            optional(&field("lease_mib"), model.lease_mib, 1, 1 << 24)?;
            range(&field("workers"), u64::from(model.workers), 1, 64)?;
            range(&field("concurrency"), u64::from(model.concurrency), 1, slots)?;
            range(&field("queue"), u64::from(model.queue), 1, 1_000_000)?;
            range(&field("timeout_ms"), model.timeout_ms, 1, day_ms)?;
            range(&field("step_limit_ms"), model.step_limit_ms, 1, day_ms)?;
            range(&field("load_limit_ms"), model.load_limit_ms, 100, day_ms)?;
            range(&field("idle_unload_s"), model.idle_unload_s, 0, 365 * 86_400)?;
            range(&field("step_tokens"), u64::from(model.step_tokens), 16, 65_536)?;
            optional(&field("threads"), model.threads.map(u64::from), 1, 1_024)?;
        }
        Ok(())
    }
}

impl ModelSettings {
    /// The lease in bytes for weights of this many bytes, and for what the model was measured to take.
    ///
    /// # Errors
    /// The model does not fit in the lease that the file names: said before a worker is started for it.
    pub(crate) fn lease_bytes(
        &self,
        weight_bytes: u64,
        predicted: Option<&Predicted>,
    ) -> Result<u64, String> {
        let Some(mib) = self.lease_mib else {
            let guess = weight_bytes + weight_bytes / 4 + 256 * MIB;
            let measured = predicted.map_or(0, |predicted| {
                predicted.peak_bytes.saturating_add(predicted.peak_bytes / 10).saturating_add(INPUTS_BYTES)
            });
            return Ok(guess.max(measured));
        };
        match predicted {
            Some(predicted) if predicted.least_bytes > mib * MIB => Err(format!(
                "lease_too_small: its lease is {mib} MiB, and by its profile it takes {} MiB loaded with a step of \
                 one token; raise models.NAME.lease_mib in quotas.toml to {} MiB for full steps",
                predicted.least_bytes.div_ceil(MIB),
                predicted.peak_bytes.div_ceil(MIB),
            )),
            _ => Ok(mib * MIB),
        }
    }
}

impl Devices {
    /// Sum of all leases in bytes on a machine with this much memory.
    pub(crate) fn lease_budget_bytes(&self, machine_bytes: u64) -> u64 {
        self.cpu.memory_mib.map_or(machine_bytes / 2, |mib| mib * MIB)
    }

    /// Sum of all loaded packages in bytes on a machine with this much memory.
    pub(crate) fn package_budget_bytes(&self, machine_bytes: u64) -> u64 {
        self.host.memory_mib.map_or(machine_bytes / 4, |mib| mib * MIB)
    }
}

fn range(field: &str, value: u64, least: u64, most: u64) -> Result<(), SettingsError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(SettingsError::Range { field: field.to_owned(), value, least, most })
}

fn optional(field: &str, value: Option<u64>, least: u64, most: u64) -> Result<(), SettingsError> {
    value.map_or(Ok(()), |value| range(field, value, least, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_has_every_default_and_a_model_falls_back_to_the_default_section() {
        let settings = Settings::parse(b"").unwrap();
        assert_eq!(settings.model("any").concurrency, 64);
        assert_eq!(settings.model("any").on_disk_change, OnDiskChange::RefuseNew);
        let ignoring = Settings::parse(b"[models.default]\non_disk_change = \"ignore\"").unwrap();
        assert_eq!(ignoring.model("any").on_disk_change, OnDiskChange::Ignore);
        let settings = Settings::parse(b"[models.default]\nworkers = 2\n[models.a]\nworkers = 3").unwrap();
        assert_eq!((settings.model("a").workers, settings.model("b").workers), (3, 2));
        assert_eq!(settings.model("a").lease_bytes(80 * MIB, None), Ok(356 * MIB));
    }

    #[test]
    fn a_profile_raises_the_default_lease_and_refuses_one_that_is_too_small() {
        let predicted = Predicted { least_bytes: 90 * MIB, peak_bytes: 1000 * MIB };
        let settings =
            Settings::parse(b"[models.small]\nlease_mib = 89\n[models.fits]\nlease_mib = 90").unwrap();
        let modest = Predicted { peak_bytes: 100 * MIB, ..predicted };
        let lease = |name, predicted| settings.model(name).lease_bytes(80 * MIB, predicted);
        assert_eq!(lease("any", Some(&predicted)), Ok(1164 * MIB));
        assert_eq!(lease("any", Some(&modest)), Ok(356 * MIB));
        assert_eq!(lease("fits", Some(&predicted)), Ok(90 * MIB));
        assert_eq!(lease("small", None), Ok(89 * MIB));
        let refused = lease("small", Some(&predicted)).unwrap_err();
        assert!(
            refused.contains("89 MiB") && refused.contains("90 MiB") && refused.contains("1000 MiB"),
            "{refused}"
        );
    }

    #[test]
    fn every_wrong_file_is_refused_with_the_field_that_is_wrong() {
        let cases = [
            ("[models.a]\nworkers = 0", "models.a.workers is 0"),
            ("[models.a]\nconcurrency = 257", "models.a.concurrency is 257"),
            ("[models.a]\nlease_gib = 1", "lease_gib"),
            ("[models.a]\non_disk_change = \"refuse\"", "refuse_new"),
            ("[device]", "device"),
            ("[queues]\ntotal = -1", "total"),
            ("[models.a]\nstep_limit_ms = 0", "models.a.step_limit_ms is 0"),
            ("x", "quotas.toml"),
        ];
        for (text, part) in cases {
            let message = Settings::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
        assert!(matches!(Settings::parse(&[0xff]), Err(SettingsError::NotUtf8)));
    }
}

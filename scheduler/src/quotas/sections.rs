//! Every key of the file: name, type, default, range, unit and what it is for.

use super::pattern::Pattern;
use super::rule::{
    FallbackDevice, GpuDriver, Key, ModelDevice, OnDiskChange, Rule, Section, Shown, device, model, node,
    number, optional, patterns, section, word,
};
use crate::config::{
    CONCURRENCY_MAX, Class, Order, QUEUE_MAX, RATE_MAX, STEP_TARGET_MAX, WEIGHT_MAX, WORKERS_MAX,
};
use toml::de::DeValue;

const MIB_MAX: u64 = 1 << 24;
const CORES: (u64, u64) = (1, 1_024);
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
const YEAR_S: u64 = 365 * 24 * 60 * 60;
const JOBS_MAX: u64 = QUEUE_MAX as u64;
const STEP_MS_MAX: u64 = STEP_TARGET_MAX.as_millis() as u64;
/// Device time is counted in microseconds.
const DEVICE_MS_MAX: u64 = RATE_MAX / 1_000;
/// So is audio, in milliseconds.
const AUDIO_S_MAX: u64 = RATE_MAX / 1_000;

section! {
    /// Section `devices.cpu`.
    Cpu {
        /// Memory for all leases and the reserve together.
        memory_mib: Option<u64> = optional("half of the machine's memory", "4096", (1, MIB_MAX), "MiB");
        /// Memory that is kept free of leases: leases get the rest.
        reserve_mib: u64 = number(0, 0, MIB_MAX, "MiB");
        /// Cores that workers take turns at: a worker with jobs holds one for each of its threads.
        cores: Option<u16> = optional("the machine's cores", "4", CORES, "threads");
    }
}

section! {
    /// Section `devices.NAME` of a GPU.
    Gpu {
        /// Memory of the GPU for all leases of models on it; 0: no model may have any.
        memory_mib: u64 = number(0, 0, MIB_MAX, "MiB");
        /// Whose Vulkan driver: "software" is Mesa's, which needs no card, "mesa" one of Mesa's for a card, "nvidia" NVIDIA's.
        driver: GpuDriver = word(GpuDriver::Software, &["software", "mesa", "nvidia"]);
        /// The card: for "mesa" its render node, for "nvidia" its number; none for "software".
        node: Option<String> = node();
    }
}

section! {
    /// Section `devices.host`.
    Host {
        /// Memory for the weights of all loaded models, which the workers of a model share.
        memory_mib: Option<u64> = optional("a quarter of the machine's memory", "2048", (1, MIB_MAX), "MiB");
    }
}

section! {
    /// Section `queues`.
    Queues {
        /// Jobs that wait in all.
        total: u32 = number(4_096, 1, JOBS_MAX, "jobs");
        /// Jobs that wait for one client whose own section does not say.
        per_client: u32 = number(256, 1, JOBS_MAX, "jobs");
        /// "fair": by class, then to the client that has had the least device time for its weight. "arrival": first
        /// come, first served.
        order: Order = word(Order::Fair, &["fair", "arrival"]);
        /// A class that had no job started for so long gets one started, whatever better classes want.
        aging_ms: u64 = number(10_000, 1, DAY_MS, "ms");
    }
}

section! {
    /// Section `models.NAME`.
    ModelQuota {
        /// Memory that one worker may allocate.
        lease_mib: Option<u64> = optional(
            "1.25 times the weights plus 256, or more where the model was measured to take more",
            "512",
            (1, MIB_MAX),
            "MiB",
        );
        /// "cpu", "wgpu" for any GPU, or the NAME of one [devices.NAME]. On a GPU lease_mib is of its memory.
        device: ModelDevice = device();
        /// Memory of the host that a worker on a GPU may allocate beside its lease there.
        host_lease_mib: u64 = number(256, 64, MIB_MAX, "MiB");
        /// Workers at a time; another starts only if its threads and those of the others together have cores.
        workers: u16 = number(1, 1, WORKERS_MAX as u64, "workers");
        /// Jobs in one worker at a time.
        concurrency: u16 = number(64, 1, CONCURRENCY_MAX as u64, "jobs");
        /// Jobs that wait for this model.
        queue: u32 = number(1_024, 1, JOBS_MAX, "jobs");
        /// Device time of one job, beside the length of its audio if it has any; what takes longer is stopped.
        timeout_ms: u64 = number(60_000, 1, DAY_MS, "ms");
        /// The most tokens in one step of a worker.
        step_tokens: u32 = number(512, 16, 65_536, "tokens");
        /// How long a step should last: by measured speed, what is in a worker at a time is cut to it.
        step_ms: u64 = number(20, 1, STEP_MS_MAX, "ms");
        /// How long a step may last before its worker is killed.
        step_limit_ms: u64 = number(10_000, 1, DAY_MS, "ms");
        /// How long the start of a worker with its load may last.
        load_limit_ms: u64 = number(30_000, 100, DAY_MS, "ms");
        /// A worker without a job for so long is unloaded; 0 keeps it until its memory is needed.
        idle_unload_s: u64 = number(600, 0, YEAR_S, "s");
        /// Compute threads of a worker; at most the device's cores are used.
        threads: Option<u16> = optional("devices.cpu.cores", "2", CORES, "threads");
        /// The model that answers where this one can't.
        fallback: Option<String> = model("none", "\"minilm\"");
        /// "cpu": where its GPU can't run it, nor a model that it falls back to, it runs on the CPU. "none": nowhere else.
        fallback_device: FallbackDevice = word(FallbackDevice::None, &["none", "cpu"]);
        /// "refuse_new": no new jobs while the files of the loaded package are not the running ones. "ignore": the
        /// verified bytes go on answering.
        on_disk_change: OnDiskChange = word(OnDiskChange::RefuseNew, &["refuse_new", "ignore"]);
    }
}

section! {
    /// Section `clients.NAME`.
    ClientQuota {
        /// Share of device time beside others of the same class.
        weight: u16 = number(1, 1, WEIGHT_MAX as u64, "");
        /// Jobs of "realtime" come first, then "interactive", then "batch".
        class: Class = word(Class::Interactive, &["realtime", "interactive", "batch"]);
        /// Its jobs that wait.
        queue: Option<u32> = optional("queues.per_client", "64", (1, JOBS_MAX), "jobs");
        /// The models that it may use; others do not exist for it.
        models: Vec<Pattern> = patterns();
        /// The longest deadline of a job; longer ones are cut. Where it is set, a job without a deadline gets it.
        deadline_max_ms: Option<u64> = optional(
            "86400000, and no deadline for a job without one",
            "60000",
            (1, DAY_MS),
            "ms",
        );
        /// Jobs in a minute.
        jobs_per_minute: Option<u64> = optional("no limit", "600", (1, RATE_MAX), "jobs");
        /// Jobs at once after a pause; only with jobs_per_minute.
        jobs_burst: Option<u64> = optional("a sixth of jobs_per_minute", "100", (1, RATE_MAX), "jobs");
        /// Device time in a minute.
        device_ms_per_minute: Option<u64> = optional("no limit", "30000", (1, DEVICE_MS_MAX), "ms");
        /// Device time at once after a pause; only with device_ms_per_minute.
        device_ms_burst: Option<u64> =
            optional("a sixth of device_ms_per_minute", "5000", (1, DEVICE_MS_MAX), "ms");
        /// Tokens of inputs in a minute.
        tokens_per_minute: Option<u64> = optional("no limit", "600000", (1, RATE_MAX), "tokens");
        /// Tokens at once after a pause; only with tokens_per_minute.
        tokens_burst: Option<u64> =
            optional("a sixth of tokens_per_minute", "100000", (1, RATE_MAX), "tokens");
        /// Audio in a minute, in seconds.
        audio_s_per_minute: Option<u64> = optional("no limit", "600", (1, AUDIO_S_MAX), "s");
        /// Audio at once after a pause, in seconds; only with audio_s_per_minute.
        audio_s_burst: Option<u64> =
            optional("a sixth of audio_s_per_minute", "3600", (1, AUDIO_S_MAX), "s");
    }
}

impl ModelQuota {
    /// The lease that it names.
    pub fn lease_bytes(&self) -> Option<u64> {
        self.lease_mib.map(|mib| mib * super::MIB)
    }
}

impl ClientQuota {
    /// Each rate with its burst, by the beginning of their names.
    pub(super) fn rates(&self) -> [(&'static str, Option<u64>, Option<u64>); 4] {
        [
            ("jobs", self.jobs_per_minute, self.jobs_burst),
            ("device_ms", self.device_ms_per_minute, self.device_ms_burst),
            ("tokens", self.tokens_per_minute, self.tokens_burst),
            ("audio_s", self.audio_s_per_minute, self.audio_s_burst),
        ]
    }

    /// With what its defaults in words come to.
    pub(super) fn resolved(&self, queues: &Queues) -> Self {
        let burst =
            |rate: Option<u64>, burst: Option<u64>| rate.map(|rate| burst.unwrap_or((rate / 6).max(1)));
        let [jobs, device, tokens, audio] = self.rates().map(|(_, rate, given)| burst(rate, given));
        Self {
            queue: Some(self.queue.unwrap_or(queues.per_client)),
            jobs_burst: jobs,
            device_ms_burst: device,
            tokens_burst: tokens,
            audio_s_burst: audio,
            ..self.clone()
        }
    }
}

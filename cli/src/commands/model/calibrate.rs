//! `ringfence model calibrate`: measures what a package takes of memory, in a worker of this command's own.

use super::sandboxed::{Over, Program, Role, check_sealed, system, user};
use super::trusted::Trusted;
use super::{Told, describe, tell_server};
use crate::durable;
use crate::error::CliError;
use crate::home::Home;
use crate::output::{Output, Style, bytes, progress_of, table};
use clap::Args;
use ringfence_models::{
    Architecture, LoadMeasurement, LoadedPackage, Measurement, PROFILES_FOLDER, PackageName, Profile,
    ProfileDevice,
};
use ringfence_protocol::{
    self as protocol, DIGEST, Data, Device, EmbedInput, FromWorker, INLINE_INPUT_BYTES_MAX, Item, JobError,
    LoadError, Start, ToWorker,
};
use ringfence_sandbox::{SealedFile, User};
use serde::Serialize;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

const WORKER: Role = Role {
    arguments: &["serve"],
    noun: "worker",
    not_started: "worker_not_started",
    illegal: "worker_illegal",
    silent: "worker_silent",
    died: "worker_died",
    suspicion: "the model may be an attack on it: do not use it; report it",
};

/// The same on Vulkan, by the driver that every machine can have.
const WORKER_ON_GPU: Role = Role { arguments: &["serve", "vulkan-software"], ..WORKER };

/// Tokens of the largest step that is measured, special tokens not counted.
const STEP_TOKENS: u32 = 2048;
/// Memory of the worker beside twice its weights, in bytes.
const ROOM_BYTES: u64 = 1024 * 1024 * 1024;
/// The most messages of a worker about one step.
const MESSAGES_MAX: usize = 65_536;
/// Memory of the host that a worker on a GPU may take, in bytes; its software driver may take as much for itself.
const HOST_BYTES: u64 = 1024 * 1024 * 1024;
/// Compute threads of the two workers that are measured: what a thread takes is their difference.
const THREADS: [u16; 2] = [1, 2];
/// The only job at a time.
const SLOT: u32 = 0;

/// Measure what models take of memory, for their leases; run it again after an update of ringfence
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence model calibrate
  ringfence model calibrate minilm --json
  ringfence model calibrate minilm --device wgpu

The model runs in a sandboxed worker of this command's own. Its profile is written to HOME/profiles, beside what is
signed; the server takes it for the lease where quotas.toml names none, and refuses a lease that the model does not fit
in. It is compared with shapes that it was not fitted to: more than 10% apart is an error, and nothing is written.")]
pub(super) struct CalibrateArgs {
    /// The models [default: all that this version runs]
    names: Vec<PackageName>,

    /// Where to measure: each device's memory has a profile of its own
    #[arg(long, value_enum, default_value_t = On::Cpu, value_name = "DEVICE")]
    device: On,
}

/// A device to measure on.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum On {
    /// The CPU
    Cpu,
    /// Vulkan, by Mesa's software driver; for models on a card there is no profile yet
    Wgpu,
}

/// A profile, as it is printed.
#[derive(Serialize)]
struct Calibrated {
    model: String,
    /// Compute threads that the figures below are for.
    threads: u32,
    loaded_bytes: u64,
    load_peak_bytes: u64,
    per_token_bytes: u64,
    /// What the largest step that was measured takes, what is loaded included.
    largest_step_bytes: u64,
    /// How far the worst prediction of an unseen shape was off.
    deviation_percent: f64,
    profile: Profile,
}

#[derive(Serialize)]
struct Answer {
    calibrated: Vec<Calibrated>,
    server: Told,
}

/// Runs it.
///
/// # Errors
/// Where a model is refused, can't be run or is not what its profile predicts; models before it have theirs then.
pub(super) fn run(args: CalibrateArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let trusted = Trusted::open(home)?;
    let user = user(home)?;
    let mut calibrated = Vec::new();
    let on = args.device;
    for name in chosen(args.names, &trusted)? {
        let subject = format!("model {name}");
        let profile = calibrate(&subject, &trusted.load(&name)?, on, user, output)?;
        write(home, &profile)?;
        calibrated.push(Calibrated::new(&name, profile));
    }
    let server = tell_server(home);
    let told = describe(&server);
    let answer = Answer { calibrated, server: server? };
    output.answer(&answer, |style| answer.text(style, told))
}

/// What was asked for, or whatever a worker of this version can run.
fn chosen(names: Vec<PackageName>, trusted: &Trusted) -> Result<Vec<PackageName>, CliError> {
    if !names.is_empty() {
        return Ok(names);
    }
    let all = trusted.store.list().map_err(|error| CliError::io(error.what, error.source))?;
    let runs = |name: &PackageName| {
        trusted.judge(name).is_ok_and(|verified| architecture(verified.manifest.architecture()).is_some())
    };
    Ok(all.into_iter().filter(runs).collect())
}

/// What a worker calls it, where it can run it.
fn architecture(architecture: Architecture) -> Option<protocol::Architecture> {
    match architecture {
        Architecture::Bert => Some(protocol::Architecture::Bert),
        Architecture::Llama | Architecture::Whisper | Architecture::SileroVad => None,
    }
}

fn write(home: &Home, profile: &Profile) -> Result<(), CliError> {
    let folder = home.path().join(PROFILES_FOLDER);
    let name = Profile::file_name(&profile.package, profile.device);
    let write = || {
        make_folder(&folder, &home.models())?;
        durable::replace(&folder, &name, &profile.to_json(), 0o644)
    };
    write().map_err(|source| CliError::io(folder.join(&name).display().to_string(), source))
}

/// Whoever may read the packages may read their profiles.
fn make_folder(folder: &Path, like: &Path) -> std::io::Result<()> {
    let mode = fs::metadata(like)?.permissions().mode() & 0o777;
    match fs::DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    // Whatever the umask took away.
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))
}

/// Why a worker could not run what was asked.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("this version does not run models of this architecture")]
    Architecture,
    #[error("the package can't be run: {0}")]
    Load(LoadError),
    #[error("the device failed: {0}")]
    Device(String),
    #[error("a step of {sequences} sequences of {length} tokens failed: {error}")]
    Step { sequences: u32, length: u32, error: JobError },
}

type Outcome<T> = Result<T, Over<Refused>>;

/// A worker for one package.
struct Worker<'a> {
    program: Program<'a, ToWorker, FromWorker>,
    package: &'a LoadedPackage,
    threads: u16,
    device: Device,
    lease_bytes: u64,
}

/// What it says of the package.
struct Ready {
    load: LoadMeasurement,
    max_tokens: u32,
    vocabulary: u32,
}

/// A step's sequences and their length in tokens.
type Shape = (u32, u32);

fn calibrate(
    subject: &str,
    package: &LoadedPackage,
    on: On,
    user: Option<User>,
    output: &Output,
) -> Result<Profile, CliError> {
    let start = |threads| Worker::start(subject, package, on, user, threads);
    let [few, many] = THREADS;
    let few = start(few)?.run(|_, _| Ok(()))?.0;
    let (many, (fitted, checked)) = start(many)?.run(|worker, ready| {
        let (fitted, checked) = shapes(ready.max_tokens);
        let bar = progress_of(output, (fitted.len() + checked.len()) as u64, "measuring");
        let measure = |shapes: Vec<Shape>| -> Outcome<Vec<Measurement>> {
            shapes.into_iter().map(|shape| worker.step(ready, shape).inspect(|_| bar.inc(1))).collect()
        };
        let measured = (measure(fitted)?, measure(checked)?);
        bar.finish_and_clear();
        Ok(measured)
    })?;
    let digest = &package.verified.digest;
    let profile = Profile::fit(digest, on.of_profile(), DIGEST, [few, many], fitted, checked);
    profile.map_err(|error| CliError::Failed {
        subject: subject.to_owned(),
        code: "profile_unfit",
        source: error.into(),
        advice: "no profile was written; give the model a lease in quotas.toml, and report it".to_owned(),
    })
}

/// Shapes to fit a profile to, and others to compare it with, for sequences of at most this many tokens.
fn shapes(max_tokens: u32) -> (Vec<Shape>, Vec<Shape>) {
    let max = max_tokens.min(STEP_TOKENS);
    let within = |shapes: &[Shape]| {
        let bound = |&(sequences, length): &Shape| {
            let length = length.clamp(1, max);
            (sequences.min(STEP_TOKENS / length), length)
        };
        let mut shapes: Vec<Shape> = shapes.iter().map(bound).collect();
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    };
    let fitted =
        within(&[(1, 1), (1, max / 2), (1, max), (8, 16), (16, max / 4), (64, 1), (256, 8), (512, 4)]);
    let mut checked =
        within(&[(1, max / 3), (3, max / 5), (7, 13), (33, 5), (100, 3), (300, 6), (2, max / 7)]);
    checked.retain(|shape| !fitted.contains(shape));
    (fitted, checked)
}

impl<'a> Worker<'a> {
    fn start(
        subject: &'a str,
        package: &'a LoadedPackage,
        on: On,
        user: Option<User>,
        threads: u16,
    ) -> Result<Self, CliError> {
        let tensors = package.verified.weight_bytes().saturating_mul(2).saturating_add(ROOM_BYTES);
        let (role, device, lease_bytes, limit) = match on {
            On::Cpu => (&WORKER, Device::Cpu, tensors, tensors),
            // A software driver's device memory is the process's own.
            On::Wgpu => {
                let limit = tensors.saturating_add(2 * HOST_BYTES);
                (&WORKER_ON_GPU, Device::Wgpu { lease_bytes: tensors }, HOST_BYTES, limit)
            }
        };
        let program = Program::start(subject, role, user, Some(threads), limit)?;
        Ok(Self { program, package, threads, device, lease_bytes })
    }

    /// Loads the package, measures and ends the worker.
    fn run<T>(
        mut self,
        measure: impl FnOnce(&Self, &Ready) -> Outcome<T>,
    ) -> Result<(LoadMeasurement, T), CliError> {
        let outcome = self.load().and_then(|ready| Ok((ready.load, measure(&self, &ready)?)));
        self.program.end(outcome, |refused| {
            let (code, advice) = refused.explain();
            (code, refused.into(), advice)
        })
    }

    fn load(&self) -> Outcome<Ready> {
        let pid = self.program.hello(|message| match message {
            FromWorker::Hello { digest } => Some(digest),
            _ => None,
        })?;
        let manifest = &self.package.verified.manifest;
        let start = Start {
            architecture: architecture(manifest.architecture())
                .ok_or(Over::Refused(Refused::Architecture))?,
            device: self.device,
            threads: self.threads,
            lease_bytes: self.lease_bytes,
            max_tokens: manifest.max_tokens(),
            step_tokens: 2 * STEP_TOKENS,
            slots: 1,
            step_us: u32::MAX,
            calibrate: true,
        };
        self.program.send(&ToWorker::Start(start), &[])?;
        match self.program.receive()? {
            FromWorker::Sealed { .. } => check_sealed(pid)?,
            FromWorker::LoadFailed { error } => return Err(Over::Refused(Refused::Load(error))),
            FromWorker::DeviceFailed { reason } => return Err(Over::Refused(Refused::Device(reason))),
            _ => return Err(Over::Illegal("something before its seal")),
        }
        let files = self.package.files.iter().map(|file| file.name.to_string()).collect();
        let descriptors: Vec<_> = self.package.files.iter().map(|file| file.fd.as_fd()).collect();
        self.program.send(&ToWorker::Load { files, blocks: Vec::new() }, &descriptors)?;
        match self.program.receive()? {
            FromWorker::Ready { used_bytes, peak_bytes, max_tokens, vocabulary, .. }
                if max_tokens > 0 && vocabulary > 0 =>
            {
                let load = LoadMeasurement { threads: u32::from(self.threads), used_bytes, peak_bytes };
                Ok(Ready { load, max_tokens, vocabulary })
            }
            FromWorker::LoadFailed { error } => Err(Over::Refused(Refused::Load(error))),
            FromWorker::DeviceFailed { reason } => Err(Over::Refused(Refused::Device(reason))),
            _ => Err(Over::Illegal("something else than whether the package can be run")),
        }
    }

    /// Runs one step and says what it took. The worker adds the special tokens, so sequences get a little longer.
    fn step(&self, ready: &Ready, (sequences, length): Shape) -> Outcome<Measurement> {
        let ids = (0..length).map(|id| id % ready.vocabulary).collect();
        let items = vec![Item::Tokens(ids); sequences as usize];
        self.send_job(EmbedInput { items, truncate: true })?;
        let mut steps = 0;
        for _ in 0..MESSAGES_MAX {
            match self.program.receive()? {
                FromWorker::Chunk { .. } => {}
                FromWorker::Step { .. } => steps += 1,
                FromWorker::Done { slot: SLOT, tokens, peak_bytes, .. } if steps == 1 => {
                    let (threads, length) = (u32::from(self.threads), tokens / sequences);
                    if !(1..=ready.max_tokens).contains(&length) {
                        return Err(Over::Illegal("a length that can't be"));
                    }
                    return Ok(Measurement { threads, sequences, length, peak_bytes });
                }
                FromWorker::Failed { slot: SLOT, error } => {
                    return Err(Over::Refused(Refused::Step { sequences, length, error }));
                }
                FromWorker::DeviceFailed { reason } => return Err(Over::Refused(Refused::Device(reason))),
                _ => return Err(Over::Illegal("something that is not about its job")),
            }
        }
        Err(Over::Illegal("too many messages about one job"))
    }

    fn send_job(&self, input: EmbedInput) -> Outcome<()> {
        let encoded = input.encode();
        let run = |input| ToWorker::Run { slot: SLOT, domain: 0, weight: 1, input };
        if encoded.len() <= INLINE_INPUT_BYTES_MAX {
            return self.program.send(&run(Data::Inline(input)), &[]);
        }
        let file = SealedFile::from_bytes("input", &encoded).map_err(system("memory for a job's input"))?;
        self.program.send(&run(Data::Descriptor { bytes: encoded.len() as u64 }), &[file.as_fd()])
    }
}

impl On {
    fn of_profile(self) -> ProfileDevice {
        match self {
            Self::Cpu => ProfileDevice::Cpu,
            Self::Wgpu => ProfileDevice::Wgpu,
        }
    }
}

impl Refused {
    /// A code and what to do.
    fn explain(&self) -> (&'static str, &'static str) {
        match self {
            Self::Architecture => {
                ("architecture_unsupported", "its signature holds; a later version may run it")
            }
            Self::Load(LoadError::OutOfMemory { .. })
            | Self::Step { error: JobError::OutOfMemory { .. }, .. } => {
                ("out_of_memory", "free memory on this machine; if there is enough, report it")
            }
            Self::Load(_) => ("load_failed", "add the model again, or report it"),
            Self::Device(_) => ("device_failed", "`ringfence doctor` shows the devices and their drivers"),
            Self::Step { .. } => ("step_failed", "report it"),
        }
    }
}

impl Calibrated {
    fn new(name: &PackageName, profile: Profile) -> Self {
        let largest = profile.fitted.iter().max_by_key(|at| at.peak_bytes).expect("a fit needs measurements");
        let threads = largest.threads;
        Self {
            model: name.to_string(),
            threads,
            loaded_bytes: profile.loaded_bytes(threads),
            load_peak_bytes: profile.peak_bytes(threads, 0, 0),
            per_token_bytes: profile.step.per_token_bytes,
            largest_step_bytes: largest.peak_bytes,
            deviation_percent: profile.worst().map_or(0.0, |(_, percent)| percent),
            profile,
        }
    }

    fn row(&self) -> Vec<String> {
        let sizes = [self.loaded_bytes, self.load_peak_bytes, self.per_token_bytes, self.largest_step_bytes];
        let mut row = vec![self.model.clone()];
        row.extend(sizes.map(bytes));
        row.push(format!("{:.2}%", self.deviation_percent));
        row
    }
}

impl Answer {
    fn text(&self, style: Style, told: &str) -> String {
        const HEADING: [&str; 6] =
            ["MODEL", "LOADED", "PEAK OF LOAD", "PER TOKEN", "LARGEST STEP", "UNSEEN SHAPES WITHIN"];
        let rows: Vec<_> = self.calibrated.iter().map(Calibrated::row).collect();
        format!("{}\n({told})", table(style, &HEADING, &rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_within_bounds_and_what_is_checked_was_not_fitted() {
        for max_tokens in [1, 2, 7, 64, 512, 8192] {
            let (fitted, checked) = shapes(max_tokens);
            assert!(fitted.len() >= 3 && !checked.is_empty(), "{max_tokens}: {fitted:?} {checked:?}");
            for (sequences, length) in fitted.iter().chain(&checked) {
                assert!((1..=max_tokens).contains(length) && *sequences > 0);
                assert!(sequences * length <= STEP_TOKENS, "{sequences} x {length}");
            }
            assert!(checked.iter().all(|shape| !fitted.contains(shape)));
        }
    }
}

//! The life of one worker: package, process, handshake, service, end. One task for each worker runs this.

use super::connection::Connection;
use super::drill;
use super::log::Log;
use super::readiness::watch;
use super::reconcile::{self, Overshoot};
use super::slots::{Illegal, Shape, Usage};
use super::spawner::{self, Spawner, StartError};
use crate::alerts::Kind;
use crate::clock;
use crate::nvml::Cards;
use crate::oom::Rung;
use crate::packages::Package;
use crate::status::Tier;
use ringfence_protocol::{self as protocol, FromWorker, Layer, LinkError, LoadError, Received, ToWorker};
use ringfence_sandbox::{Child, Denial, StatusPage, VulkanDriver};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long a killed worker may take to disappear before that is logged as a fault of the host.
const REAP_MAX: Duration = Duration::from_secs(5);

/// Memory beside the lease that the kernel's limit leaves a worker: stacks, the allocator's slack, code.
const BACKSTOP_SLACK_BYTES: u64 = 64 * 1024 * 1024;

/// Memory that the limit leaves a driver for itself: its compiler, compiled shaders, stacks.
const DRIVER_BYTES: u64 = 512 * 1024 * 1024;

/// What a worker is started for.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Sent as it is.
    pub(crate) start: protocol::Start,
    /// Whose Vulkan driver it uses; none on the CPU.
    pub(crate) driver: Option<VulkanDriver>,
    /// The verified files.
    pub(crate) package: Arc<Package>,
    /// Tells the task to end the worker.
    pub(crate) kill: Arc<Notify>,
    /// Whether it is to find next to no memory for its package, as a drill.
    pub(crate) starve_load: bool,
    /// Where the worker's output goes.
    pub(crate) log: Log,
    /// Shared with the worker and its shim.
    pub(crate) page: Arc<StatusPage>,
    /// Where it is seen how much of a card's memory it has.
    pub(crate) cards: Cards,
}

impl Plan {
    /// The program's words: which sandbox it enters.
    fn arguments(&self) -> Vec<String> {
        let driver = self.driver.map(VulkanDriver::words).unwrap_or_default();
        ["serve".to_owned()].into_iter().chain(driver).collect()
    }
}

/// What is known of a worker once it can serve.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) pid: i32,
    pub(crate) shape: Shape,
    pub(crate) bytes_per_token: u64,
    pub(crate) usage: Usage,
    pub(crate) layers: Vec<Layer>,
    pub(crate) landlock_abi: u32,
    pub(crate) sandbox_setup_us: u64,
    pub(crate) warm_up_us: u64,
    pub(crate) tier: Tier,
}

/// Whom the task tells.
pub(crate) trait Audience: Send + Sync {
    /// It said hello; its pid as the kernel states it.
    fn hello(&self, pid: i32);
    /// It can serve.
    fn ready(&self, ready: Ready, connection: Arc<Connection>);
    /// It said something while it served.
    fn message(&self, message: FromWorker) -> Result<(), Illegal>;
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ending {
    #[error("its package is refused: {0}")]
    PackageRefused(String),
    #[error("it could not be started: {0}")]
    NotStarted(String),
    #[error("it could not run the package: {0}")]
    LoadFailed(LoadError),
    /// What it says of that may hold a client's contents: it is for the operator, and stays out of the log.
    #[error("its device failed")]
    DeviceFailed(String),
    #[error("it stopped as it was told")]
    Stopped,
    #[error("it sent an illegal message: {0}")]
    Illegal(Illegal),
    #[error("its sandbox is not what it reported: {0}")]
    SandboxFalse(String),
    #[error("out of memory ({}): {wanted} bytes wanted, {used} of {limit} in use", .rung.code())]
    OutOfMemory { wanted: u64, used: u64, limit: u64, rung: Rung },
    #[error("out of memory ({}): it has {} bytes of its own and may have {}", Rung::KilledByReconcile.code(), .0.used, .0.limit)]
    OverLease(Overshoot),
    #[error("it was killed by the server")]
    Killed,
    #[error("it died with wait status {0:#x}")]
    Died(i32),
    #[error("it died without a trace")]
    Vanished,
}

impl Ending {
    /// What stopped it, if it wanted too much memory.
    pub(crate) fn rung(&self) -> Option<Rung> {
        match self {
            Self::OutOfMemory { rung, .. } => Some(*rung),
            Self::OverLease(_) => Some(Rung::KilledByReconcile),
            Self::LoadFailed(LoadError::OutOfMemory { .. }) => Some(Rung::RefusedByWorker),
            Self::PackageRefused(_)
            | Self::NotStarted(_)
            | Self::LoadFailed(_)
            | Self::DeviceFailed(_)
            | Self::Stopped
            | Self::Illegal(_)
            | Self::SandboxFalse(_)
            | Self::Killed
            | Self::Died(_)
            | Self::Vanished => None,
        }
    }

    /// Whether the server's part of it was to end a worker for what it did, beside what the scheduler has ended.
    pub(crate) fn is_kill(&self) -> bool {
        match self {
            Self::Illegal(_) | Self::SandboxFalse(_) | Self::OverLease(_) => true,
            Self::PackageRefused(_)
            | Self::NotStarted(_)
            | Self::LoadFailed(_)
            | Self::DeviceFailed(_)
            | Self::Stopped
            | Self::OutOfMemory { .. }
            | Self::Killed
            | Self::Died(_)
            | Self::Vanished => false,
        }
    }

    /// How it ended, if it did so by itself.
    pub(crate) fn death(&self) -> Option<String> {
        match self {
            Self::Died(status) => {
                let status = ExitStatus::from_raw(*status);
                let exit = || status.code().map(|code| format!("exit_{code}"));
                Some(
                    status
                        .signal()
                        .map(|signal| format!("signal_{signal}"))
                        .or_else(exit)
                        .unwrap_or_default(),
                )
            }
            Self::DeviceFailed(_) | Self::Vanished => Some(self.code().to_owned()),
            Self::PackageRefused(_)
            | Self::NotStarted(_)
            | Self::LoadFailed(_)
            | Self::Stopped
            | Self::Illegal(_)
            | Self::SandboxFalse(_)
            | Self::OutOfMemory { .. }
            | Self::OverLease(_)
            | Self::Killed => None,
        }
    }

    /// What the operator must be told of, beside want of memory.
    pub(crate) fn alert(&self) -> Option<Kind> {
        match self {
            Self::DeviceFailed(_) => Some(Kind::DeviceFailed),
            Self::Illegal(_) | Self::SandboxFalse(_) => Some(Kind::WorkerIllegal),
            Self::PackageRefused(_) => Some(Kind::PackageRefused),
            Self::NotStarted(_)
            | Self::LoadFailed(_)
            | Self::Stopped
            | Self::OutOfMemory { .. }
            | Self::OverLease(_)
            | Self::Killed
            | Self::Died(_)
            | Self::Vanished => None,
        }
    }

    /// A stable name, for metrics.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::PackageRefused(_) => "package_refused",
            Self::NotStarted(_) => "not_started",
            Self::LoadFailed(_) => "load_failed",
            Self::DeviceFailed(_) => "device_failed",
            Self::Stopped => "stopped",
            Self::Illegal(_) => "illegal_message",
            Self::SandboxFalse(_) => "sandbox_false",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::OverLease(_) => "over_lease",
            Self::Killed => "killed",
            Self::Died(_) => "died",
            Self::Vanished => "vanished",
        }
    }
}

/// Why the conversation with a worker is over.
enum Over {
    Closed,
    LoadFailed(LoadError),
    DeviceFailed(String),
    Illegal(Illegal),
    SandboxFalse(String),
    AboveLease(Overshoot),
    Killed,
}

/// Runs one worker to its end. The process is gone when this returns.
pub(crate) async fn live(spawner: &Spawner, plan: Plan, audience: &dyn Audience) -> Ending {
    let (child, connection) = match start(spawner, &plan).await {
        Ok(started) => started,
        Err(error) => return Ending::NotStarted(error.to_string()),
    };
    let over = tokio::select! {
        over = converse(&connection, &plan, audience) => over,
        () = plan.kill.notified() => Over::Killed,
    };
    let ended = match over {
        Over::Closed => wait(&child).await,
        Over::LoadFailed(_)
        | Over::DeviceFailed(_)
        | Over::Illegal(_)
        | Over::SandboxFalse(_)
        | Over::AboveLease(_)
        | Over::Killed => end(&child).await,
    };
    if !ended {
        tracing::error!(pid = child.pid, "a worker did not end within {} s of SIGKILL", REAP_MAX.as_secs());
    }
    verdict(over, &plan)
}

async fn start(spawner: &Spawner, plan: &Plan) -> Result<(Child, Arc<Connection>), Failure> {
    let (ours, theirs) = protocol::connected_pair().map_err(std::io::Error::from)?;
    // Before the worker can say anything: the kernel attaches a sender's pid when a message is sent.
    let connection = Arc::new(Connection::new(ours)?);
    let start = spawner::Start {
        arguments: plan.arguments(),
        threads: Some(plan.start.threads),
        link: theirs,
        status_page: plan.page.clone(),
        data_bytes_max: None,
    };
    let child = spawner.start(start).await?;
    for pipe in [&child.stdout, &child.stderr] {
        plan.log.follow(pipe.try_clone()?);
    }
    Ok((child, connection))
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Link(#[from] std::io::Error),
}

async fn converse(connection: &Arc<Connection>, plan: &Plan, audience: &dyn Audience) -> Over {
    tokio::select! {
        over = speak(connection, plan, audience) => over,
        error = connection.flush() => over_by(&error),
    }
}

async fn speak(connection: &Arc<Connection>, plan: &Plan, audience: &dyn Audience) -> Over {
    let sealed = match handshake(connection, plan, audience).await {
        Ok(sealed) => sealed,
        Err(over) => return over,
    };
    let (pid, limit) = (sealed.pid, sealed.may_have);
    tokio::select! {
        over = serve(connection, plan, sealed, audience) => over,
        overshoot = reconcile::overshoot(pid, limit, &plan.cards, device_bytes(&plan.start)) => {
            let Overshoot { used, limit } = overshoot;
            tracing::warn!(pid, used, limit, "a worker has more memory than it may, it is killed");
            metrics::counter!("ringfence_worker_kills_total", "why" => "over_lease").increment(1);
            metrics::histogram!("ringfence_overshoot_bytes").record((used - limit) as f64);
            Over::AboveLease(overshoot)
        }
    }
}

/// What the worker may have of a card's memory by its lease.
fn device_bytes(start: &protocol::Start) -> u64 {
    match start.device {
        protocol::Device::Cpu => 0,
        protocol::Device::Wgpu { lease_bytes, .. } => lease_bytes,
    }
}

async fn serve(connection: &Arc<Connection>, plan: &Plan, sealed: Sealed, audience: &dyn Audience) -> Over {
    let ready = match load(connection, plan, sealed).await {
        Ok(ready) => ready,
        Err(over) => return over,
    };
    audience.ready(ready, connection.clone());
    loop {
        match next(connection).await {
            Ok(Received { message: FromWorker::DeviceFailed { reason }, .. }) => {
                return device_failed(reason);
            }
            Ok(received) => {
                if let Err(illegal) = audience.message(received.message) {
                    return Over::Illegal(illegal);
                }
            }
            Err(over) => return over,
        }
    }
}

/// A worker whose sandbox is complete, before it gets the first byte of a stranger.
struct Sealed {
    pid: i32,
    layers: Vec<Layer>,
    landlock_abi: u32,
    setup_us: u64,
    warm_up_us: u64,
    tier: Tier,
    /// Memory of its own, in bytes: what it has now, and what its leases give it beside that.
    may_have: u64,
}

async fn handshake(connection: &Connection, plan: &Plan, audience: &dyn Audience) -> Result<Sealed, Over> {
    let hello = next(connection).await?;
    let FromWorker::Hello { digest } = hello.message else { return Err(Over::Illegal(Illegal::State)) };
    if digest != protocol::DIGEST {
        return Err(Over::Illegal(Illegal::Digest));
    }
    let pid = hello.pid.ok_or(Over::Illegal(Illegal::State))?;
    audience.hello(pid);
    let tier = set_backstop(pid, plan)?;
    send(connection, ToWorker::Start(plan.start.clone()), Vec::new())?;

    let (layers, landlock_abi, setup_us, warm_up_us) = match next(connection).await?.message {
        FromWorker::Sealed { layers, landlock_abi, setup_us, warm_up_us } => {
            (layers, landlock_abi, setup_us, warm_up_us)
        }
        other => return Err(failure(other)),
    };
    check_sandbox(pid, &layers)?;
    if plan.starve_load {
        drill::leave_memory(pid, drill::LOAD_BYTES).map_err(|_| Over::Closed)?;
    }
    let has = reconcile::own_bytes(pid).ok_or(Over::Closed)?;
    let may_have = has.saturating_add(leased_bytes(plan)).saturating_add(BACKSTOP_SLACK_BYTES);
    Ok(Sealed { pid, layers, landlock_abi, setup_us, warm_up_us, tier, may_have })
}

async fn load(connection: &Connection, plan: &Plan, sealed: Sealed) -> Result<Ready, Over> {
    let (files, descriptors) = plan.package.files();
    send(connection, ToWorker::Load { files, blocks: plan.package.blocks() }, descriptors)?;

    match next(connection).await?.message {
        FromWorker::Ready { dimensions, bytes_per_token, used_bytes, peak_bytes, max_tokens, vocabulary } => {
            let shape = check_shape(Shape { dimensions, max_tokens, vocabulary }, &plan.start)?;
            Ok(Ready {
                pid: sealed.pid,
                shape,
                bytes_per_token,
                usage: Usage { used_bytes, peak_bytes },
                layers: sealed.layers,
                landlock_abi: sealed.landlock_abi,
                sandbox_setup_us: sealed.setup_us,
                warm_up_us: sealed.warm_up_us,
                tier: sealed.tier,
            })
        }
        other => Err(failure(other)),
    }
}

/// What a message means that is not the one that the handshake waits for.
fn failure(message: FromWorker) -> Over {
    match message {
        FromWorker::LoadFailed { error } => Over::LoadFailed(error),
        FromWorker::DeviceFailed { reason } => device_failed(reason),
        FromWorker::Hello { .. }
        | FromWorker::Sealed { .. }
        | FromWorker::Ready { .. }
        | FromWorker::Passages { .. }
        | FromWorker::Chunk { .. }
        | FromWorker::Heard { .. }
        | FromWorker::Segment { .. }
        | FromWorker::Step { .. }
        | FromWorker::Done { .. }
        | FromWorker::Failed { .. }
        | FromWorker::Listens { .. }
        | FromWorker::Partial { .. }
        | FromWorker::Listened { .. }
        | FromWorker::Prompted { .. }
        | FromWorker::Text { .. }
        | FromWorker::Finished { .. } => Over::Illegal(Illegal::State),
    }
}

fn device_failed(reason: String) -> Over {
    if reason.len() <= protocol::REASON_BYTES_MAX {
        Over::DeviceFailed(reason)
    } else {
        Over::Illegal(Illegal::Range)
    }
}

/// The largest width and vocabulary that are believed; the output of a job is bounded by the first.
const DIMENSIONS_MAX: u32 = 65_536;
const VOCABULARY_MAX: u32 = 4_000_000;

fn check_shape(shape: Shape, start: &protocol::Start) -> Result<Shape, Over> {
    let legal = (1..=DIMENSIONS_MAX).contains(&shape.dimensions)
        && (1..=start.max_tokens).contains(&shape.max_tokens)
        && (1..=VOCABULARY_MAX).contains(&shape.vocabulary);
    if legal { Ok(shape) } else { Err(Over::Illegal(Illegal::Range)) }
}

/// What the leases give a worker of the host's memory. A software driver's device memory is the process's own.
fn leased_bytes(plan: &Plan) -> u64 {
    let of_device = match (plan.start.device, plan.driver) {
        (protocol::Device::Wgpu { lease_bytes }, Some(VulkanDriver::Software)) => lease_bytes,
        (protocol::Device::Cpu | protocol::Device::Wgpu { .. }, _) => 0,
    };
    plan.start.lease_bytes.saturating_add(of_device)
}

/// Sets RLIMIT_DATA from outside, where the worker can't raise it, and reads it back.
fn set_backstop(pid: i32, plan: &Plan) -> Result<Tier, Over> {
    // With the room that a driver needs, the kernel's limit is no bound of the lease any more.
    let (driver_bytes, tier) = match plan.driver {
        None => (0, Tier::Kernel),
        Some(VulkanDriver::Software) => (DRIVER_BYTES, Tier::PolledKill),
        // The memory of a card is not the process's own: only the worker itself keeps count of it.
        Some(VulkanDriver::Mesa { .. } | VulkanDriver::Nvidia { .. }) => (DRIVER_BYTES, Tier::InProcess),
    };
    let bytes = leased_bytes(plan).saturating_add(driver_bytes).saturating_add(BACKSTOP_SLACK_BYTES);
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    let failed = |error: rustix::io::Errno| Over::SandboxFalse(format!("RLIMIT_DATA can't be set: {error}"));
    let process = Pid::from_raw(pid).ok_or(Over::Illegal(Illegal::State))?;
    prlimit(Some(process), Resource::Data, limit).map_err(failed)?;
    let held = prlimit(Some(process), Resource::Data, limit).map_err(failed)?;
    if held.current == limit.current && held.maximum == limit.maximum {
        Ok(tier)
    } else {
        Err(Over::SandboxFalse("RLIMIT_DATA did not hold".to_owned()))
    }
}

/// Every layer that a worker must report before it gets a stranger's descriptor.
const LAYERS: [Layer; 6] = [
    Layer::Descriptors,
    Layer::Namespaces,
    Layer::Rlimits,
    Layer::Privileges,
    Layer::Landlock,
    Layer::Seccomp,
];

fn check_sandbox(pid: i32, reported: &[Layer]) -> Result<(), Over> {
    is_sealed(pid, reported).map_err(Over::SandboxFalse)
}

/// Whether a program has reported every layer and the kernel says the same; else what is missing.
pub(crate) fn is_sealed(pid: i32, reported: &[Layer]) -> Result<(), String> {
    if let Some(missing) = LAYERS.iter().find(|layer| !reported.contains(layer)) {
        return Err(format!("{missing:?} is not reported"));
    }
    let facts = ringfence_sandbox::process_facts(pid).map_err(|error| error.to_string())?;
    facts.check_sealed().map_err(|error| error.to_string())
}

fn send(connection: &Connection, message: ToWorker, descriptors: Vec<Arc<OwnedFd>>) -> Result<(), Over> {
    connection.send(message, descriptors).map_err(|error| over_by(&error))
}

async fn next(connection: &Connection) -> Result<Received<FromWorker>, Over> {
    let received = connection.receive().await.map_err(|error| over_by(&error))?;
    if received.descriptors.is_empty() { Ok(received) } else { Err(Over::Illegal(Illegal::Descriptors)) }
}

fn over_by(error: &LinkError) -> Over {
    match error {
        LinkError::Closed | LinkError::Os(_) => Over::Closed,
        LinkError::Malformed(_) => Over::Illegal(Illegal::Malformed),
        LinkError::WouldBlock | LinkError::TooLarge { .. } => {
            Over::SandboxFalse(format!("our own message could not be sent: {error}"))
        }
    }
}

/// A worker whose link is closed is ending; it is killed if it takes too long over it.
async fn wait(child: &Child) -> bool {
    exited(child, Duration::from_secs(1)).await || end(child).await
}

/// Kills a program; whether all of it was gone in time.
pub(crate) async fn end(child: &Child) -> bool {
    if let Err(error) = child.kill() {
        tracing::error!(pid = child.pid, %error, "a program could not be killed");
    }
    exited(child, REAP_MAX).await
}

async fn exited(child: &Child, within: Duration) -> bool {
    let reaped = async {
        let pidfd = watch(child.pidfd.as_fd())?;
        loop {
            let mut ready = pidfd.readable().await?;
            if child.try_wait()?.is_some() {
                return Ok::<(), std::io::Error>(());
            }
            ready.clear_ready();
        }
    };
    matches!(timeout(within, reaped).await, Some(Ok(())))
}

async fn timeout<T>(within: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(within, future).await.ok()
}

/// A denial on the page means out of memory, whatever ended the process afterwards.
fn verdict(over: Over, plan: &Plan) -> Ending {
    let status = plan.page.read();
    match over {
        Over::AboveLease(overshoot) => Ending::OverLease(overshoot),
        Over::Killed => Ending::Killed,
        Over::Illegal(illegal) => Ending::Illegal(illegal),
        Over::SandboxFalse(what) => Ending::SandboxFalse(what),
        Over::LoadFailed(error) => Ending::LoadFailed(error),
        Over::DeviceFailed(reason) => Ending::DeviceFailed(reason),
        Over::Closed => match (status.denial, status.wait_status) {
            (_, Some(0)) => Ending::Stopped,
            (Some(Denial { wanted, used, limit }), _) => {
                let rung = if status.denied_by_kernel { Rung::KilledByKernel } else { Rung::RefusedByWorker };
                Ending::OutOfMemory { wanted, used, limit, rung }
            }
            (None, Some(status)) => Ending::Died(status),
            (None, None) => Ending::Vanished,
        },
    }
}

/// Time since `since` in whole microseconds.
pub(crate) fn micros_since(since: std::time::Instant) -> u64 {
    u64::try_from(clock::instant().duration_since(since).as_micros()).unwrap_or(u64::MAX)
}

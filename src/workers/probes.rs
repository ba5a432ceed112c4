//! Before a sandbox holds a worker: every forbidden act is tried once in it, and has to fail. That of the CPU is proven
//! before the server listens, that of a GPU before any of its memory is given away.

use super::readiness::watch;
use super::spawner::{Spawner, Start, StartError};
use crate::status::SandboxView;
use ringfence_sandbox::{
    Act, AudioKind, Child, Exit, Host, Policy, ProbeFailure, StatusPage, VulkanDriver, judge,
};
use rustix::net::{SendFlags, send};
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long one probe may take.
const PROBE_MAX: Duration = Duration::from_secs(10);

/// Probes that run at the same time.
const PROBES_AT_A_TIME: usize = 4;

/// How much of a probe's words is repeated to the operator.
const WORDS_BYTES_MAX: u64 = 2_000;

/// The layers that every worker reports, as `/status` names them.
const LAYERS: [&str; 6] = ["descriptors", "namespaces", "rlimits", "privileges", "landlock", "seccomp"];

/// Why the sandbox is not believed, and the server does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// An act was not stopped.
    #[error("{failure}{said}")]
    Failure {
        /// Which, and what to do.
        failure: ProbeFailure,
        /// What the probe printed, if anything.
        said: String,
    },
    /// It could not be tried.
    #[error("the probe {act} could not be run: {reason}")]
    NotRun {
        /// Which.
        act: &'static str,
        /// Why.
        reason: String,
    },
}

/// What every worker is in, once the sandbox of those on the CPU is proven.
pub(crate) async fn prove_cpu(spawner: &Spawner, host: &Host) -> Result<SandboxView, ProbeError> {
    let probes = probe_all(spawner, &[], None, &Policy::worker_cpu()).await?;
    let missing = host.missing.iter().map(|gap| format!("{}: {}", gap.name(), gap.compensation())).collect();
    let layers = LAYERS.iter().map(|layer| (*layer).to_owned()).collect();
    Ok(SandboxView { layers, landlock_abi: host.landlock_abi, missing, probes })
}

/// Proves the sandbox of workers on a GPU by this driver; what is returned is for `/status`.
pub(crate) async fn prove_gpu(spawner: &Spawner, driver: VulkanDriver) -> Result<Vec<String>, ProbeError> {
    let words = driver.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    probe_all(spawner, &words, None, &Policy::worker_vulkan(&driver)).await
}

/// Proves the sandbox of file services, on a root that one has and with what may be done with it.
pub(crate) async fn prove_fileguard(spawner: &Spawner, access: &str, path: &str) -> Result<(), ProbeError> {
    probe_all(spawner, &[access], Some(path), &Policy::fileguard()).await.map(drop)
}

/// Proves the sandbox of programs that capture sound by this interface; none of its devices is opened.
pub(crate) async fn prove_audio(spawner: &Spawner, kind: AudioKind) -> Result<(), ProbeError> {
    probe_all(spawner, &[kind.name()], None, &Policy::audio(kind)).await.map(drop)
}

/// Tries every act under a policy, and names what was tried. Each is alone in a process of its own, most of whose time goes
/// by while the kernel makes and removes its namespaces.
async fn probe_all(
    spawner: &Spawner,
    words: &[&str],
    first: Option<&str>,
    policy: &Policy,
) -> Result<Vec<String>, ProbeError> {
    let mut trying = JoinSet::new();
    let mut left = Act::ALL.iter().copied();
    loop {
        while trying.len() < PROBES_AT_A_TIME
            && let Some(act) = left.next()
        {
            let (spawner, first) = (spawner.clone(), first.map(str::to_owned));
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            trying.spawn(async move { (act, probe(&spawner, &words, first.as_deref(), act).await) });
        }
        let Some(tried) = trying.join_next().await else { break };
        let (act, tried) = tried.expect("no probe panics, and nobody ends its task before");
        let (exit, said) = tried?;
        judge(policy, act, exit).map_err(|failure| ProbeError::Failure { failure, said })?;
    }
    let name = |act: &Act| [words, &[act.name()]].concat().join(" ");
    let probes: Vec<String> = Act::ALL.iter().map(name).collect();
    tracing::info!(policy = words.join(" "), probes = probes.len(), "sandbox proven");
    Ok(probes)
}

/// `first` is what the program is told over its link before anything.
async fn probe(
    spawner: &Spawner,
    words: &[String],
    first: Option<&str>,
    act: Act,
) -> Result<(Exit, String), ProbeError> {
    let failed = |reason: String| ProbeError::NotRun { act: act.name(), reason };
    let page = StatusPage::create().map_err(|error| failed(error.to_string()))?;
    let (ours, theirs) = ringfence_protocol::connected_pair().map_err(|error| failed(error.to_string()))?;
    if let Some(first) = first {
        send(&ours, first.as_bytes(), SendFlags::NOSIGNAL).map_err(|error| failed(error.to_string()))?;
    }
    let start = Start {
        arguments: [&["probe".to_owned()], words, &[act.name().to_owned()]].concat(),
        threads: None,
        link: theirs,
        status_page: Arc::new(page),
        data_bytes_max: None,
    };
    let child = spawner.start(start).await.map_err(|error: StartError| failed(error.to_string()))?;
    let exit = exited(&child).await.map_err(|error| failed(error.to_string()))?;
    Ok((exit, said(&child)))
}

async fn exited(child: &Child) -> std::io::Result<Exit> {
    let pidfd = watch(child.pidfd.as_fd())?;
    let ended = async {
        loop {
            let mut ready = pidfd.readable().await?;
            if let Some(exit) = child.try_wait()? {
                return Ok(exit);
            }
            ready.clear_ready();
        }
    };
    let late = |_| std::io::Error::other(format!("it did not end within {} s", PROBE_MAX.as_secs()));
    tokio::time::timeout(PROBE_MAX, ended).await.map_err(late)?
}

fn said(child: &Child) -> String {
    let Ok(pipe) = child.stderr.try_clone() else { return String::new() };
    if rustix::io::ioctl_fionbio(&pipe, true).is_err() {
        return String::new();
    }
    let mut bytes = Vec::new();
    // What can't be read is left out: this only explains a failure that is reported anyway.
    drop(std::fs::File::from(pipe).take(WORDS_BYTES_MAX).read_to_end(&mut bytes));
    match String::from_utf8_lossy(&bytes).trim() {
        "" => String::new(),
        said => format!(" (it said: {said})"),
    }
}

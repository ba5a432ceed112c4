//! Every way to want too much memory, gone on purpose: on which rung it was stopped, how long until the next answer, and
//! what it cost others.

mod ground;
mod paths;
mod report;
mod stop;

pub use report::OomReport;

use super::chart::{Panel, Series};
use super::server::Server;
use super::{Extent, interrupted, quotas};
use crate::error::CliError;
use clap::ValueEnum;
use ground::Ground;
use indicatif::ProgressBar;
use report::PathReport;
use serde::Serialize;
use std::time::Duration;
use tokio::time::timeout;

/// How long one path may take.
const PATH_WAIT_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// Where the model computes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// On the processor
    Cpu,
    /// On a GPU, or the software driver that stands in for one
    Wgpu,
}

impl Device {
    /// As in `quotas.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
        }
    }
}

/// A way to want too much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// The model's lease is larger than its device.
    OversizedModel,
    /// The lease is smaller than the model.
    SmallLease,
    /// One job with more and more texts, in a lease that holds little more than the model.
    GrowingBatch,
    /// The longest text that the model takes, in such a lease.
    LongContext,
    /// Jobs of many sizes, one after the other, in such a lease.
    Fragmentation,
    /// More workers than the device holds.
    ManyWorkers,
    /// The kernel gives the worker nothing more.
    HostMemory,
    /// A worker takes memory past its own count, all that it gets.
    HostileWorker,
    /// A worker takes more than it may and less than the kernel's limit.
    HostileWithinLimits,
    /// The GPU's driver is out of memory.
    DriverMemory,
}

impl Path {
    const ALL: [Self; 10] = [
        Self::OversizedModel,
        Self::SmallLease,
        Self::GrowingBatch,
        Self::LongContext,
        Self::Fragmentation,
        Self::ManyWorkers,
        Self::HostMemory,
        Self::HostileWorker,
        Self::HostileWithinLimits,
        Self::DriverMemory,
    ];

    /// As in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::OversizedModel => "oversized-model",
            Self::SmallLease => "small-lease",
            Self::GrowingBatch => "growing-batch",
            Self::LongContext => "long-context",
            Self::Fragmentation => "fragmentation",
            Self::ManyWorkers => "many-workers",
            Self::HostMemory => "host-memory",
            Self::HostileWorker => "hostile-worker",
            Self::HostileWithinLimits => "hostile-within-limits",
            Self::DriverMemory => "driver-memory",
        }
    }

    /// Whether a worker on this device can go it.
    fn is_on(self, device: Device) -> bool {
        match self {
            Self::OversizedModel
            | Self::SmallLease
            | Self::GrowingBatch
            | Self::LongContext
            | Self::Fragmentation
            | Self::ManyWorkers
            | Self::HostMemory
            | Self::HostileWorker => true,
            // On the CPU the kernel's limit is the lease and a little; only a driver has room beside it.
            Self::HostileWithinLimits | Self::DriverMemory => device == Device::Wgpu,
        }
    }
}

/// Goes every path on this device. The quotas are then those from before, whatever happened.
///
/// # Errors
/// Those of the connections, and [`CliError::Failed`] where the quotas can't be changed or put back, where somebody
/// interrupts it, or where it takes too long.
pub async fn run(
    server: &Server,
    device: Device,
    extent: Extent,
    bar: &ProgressBar,
) -> Result<OomReport, CliError> {
    let original = quotas::read(server).await?;
    let original = original.ok_or_else(|| failed("quotas_fixed", "this server's quotas can't be changed"))?;
    let found = tokio::select! {
        found = go(server, device, extent, &original, bar) => found,
        stopped = interrupted() => stopped.and(Err(failed("interrupted", "a signal ended it"))),
    };
    // That the quotas are not what they were is worse than whatever ended the paths.
    quotas::restore(server, &original).await.and(found)
}

async fn go(
    server: &Server,
    device: Device,
    extent: Extent,
    original: &quotas::Original,
    bar: &ProgressBar,
) -> Result<OomReport, CliError> {
    let ground = Ground::prepare(server, device, extent, original).await?;
    let mut paths = Vec::new();
    let wanted = Path::ALL.into_iter().filter(|path| path.is_on(device));
    bar.set_length(wanted.clone().count() as u64);
    for path in wanted {
        bar.set_message(path.name());
        let gone = timeout(PATH_WAIT_MAX, paths::go(path, &ground)).await;
        paths.push(gone.unwrap_or_else(|_| Err(failed("too_long", path.name())))?);
        bar.inc(1);
    }
    Ok(OomReport::new(&server.model, device, extent.rounds, paths))
}

/// What can be drawn of it: how long after each stop the next answer came.
pub fn panels(report: &OomReport) -> Vec<Panel> {
    let recovered = report.paths.iter().filter(|path| !path.recoveries.is_empty());
    let series = |path: &PathReport| Series::by_number(path.path.name(), &path.recoveries);
    let title = format!("from the stop to the next answer, on {}", report.device.name());
    let series: Vec<Series> = recovered.map(series).collect();
    if series.is_empty() {
        Vec::new()
    } else {
        vec![Panel { title, across: "try", up: "ms", series, bound: None }]
    }
}

fn failed(code: &'static str, what: &str) -> CliError {
    let subject = "stress --oom".to_owned();
    CliError::Failed { subject, code, source: what.to_owned().into(), advice: String::new() }
}

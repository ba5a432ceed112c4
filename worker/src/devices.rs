//! What a worker sees of the devices that its sandbox shows it, as the operator's command asks before there is a model.

use ringfence_gpu::{Adapter, AdapterKind, Adapters, Gpu, NoAdapters, OpenError, PassedOver};
use serde::Serialize;

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// `cpu` (in software), `integrated`, `discrete` or `other`.
    pub kind: &'static str,
    /// Whether shaders compute with halves.
    pub f16: bool,
    /// Whether invocations of a subgroup reduce without shared memory.
    pub subgroups: bool,
    /// Invocations of a subgroup: at least, at most.
    pub subgroup_size: (u32, u32),
    /// Shapes of small matrices that are multiplied by one instruction.
    pub cooperative_matrices: usize,
    /// Bytes that one binding of a shader reaches.
    pub binding_bytes_max: u64,
    /// Bytes of the largest buffer.
    pub buffer_bytes_max: u64,
    /// How weights in halves are multiplied, as the warm-up chose.
    pub products: Option<&'static str>,
    /// What it reports and can't do: why it can't be used at all, if `products` is none.
    pub faults: Vec<String>,
}

/// Enough for a device's own needs and the warm-up.
const LEASE_BYTES: u64 = 64 << 20;

/// What a driver shows. Who turns on the filter keeps it until the process ends, as a worker does its device: threads of a
/// driver that end make calls that a worker never needs.
#[derive(Debug)]
pub struct Seen {
    /// Every device that models can run on, the one that workers take first.
    pub devices: Vec<Device>,
    _opened: Vec<Gpu>,
}

/// Looks for devices; each is opened and warmed up as for a model.
///
/// # Errors
/// There is none.
pub fn seen() -> Result<Seen, NoAdapters> {
    let looked: Vec<(Device, Option<Gpu>)> = Adapters::list()?.all().iter().map(Device::of).collect();
    let (devices, opened): (Vec<_>, Vec<_>) = looked.into_iter().unzip();
    Ok(Seen { devices, _opened: opened.into_iter().flatten().collect() })
}

impl Device {
    fn of(adapter: &Adapter) -> (Self, Option<Gpu>) {
        let (gpu, faults) = match warm_up(adapter) {
            Ok(gpu) => {
                let fault = |over: &PassedOver| format!("{}: {}", over.products.name(), over.reason);
                let faults = gpu.passed_over().iter().map(fault).collect();
                (Some(gpu), faults)
            }
            Err(error) => (None, vec![error.to_string()]),
        };
        let device = Self {
            name: adapter.name.clone(),
            driver: adapter.driver.clone(),
            kind: kind(adapter.kind),
            f16: adapter.f16,
            subgroups: adapter.subgroups,
            subgroup_size: adapter.subgroup_size,
            cooperative_matrices: adapter.cooperative_matrices,
            binding_bytes_max: adapter.binding_bytes_max,
            buffer_bytes_max: adapter.buffer_bytes_max,
            products: gpu.as_ref().map(|gpu| gpu.products().name()),
            faults,
        };
        (device, gpu)
    }
}

fn warm_up(adapter: &Adapter) -> Result<Gpu, OpenError> {
    let gpu = Gpu::open(adapter, LEASE_BYTES)?;
    gpu.warm_up()?;
    Ok(gpu)
}

fn kind(kind: AdapterKind) -> &'static str {
    match kind {
        AdapterKind::Cpu => "cpu",
        AdapterKind::Integrated => "integrated",
        AdapterKind::Discrete => "discrete",
        AdapterKind::Other => "other",
    }
}

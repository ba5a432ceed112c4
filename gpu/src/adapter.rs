//! Which devices there are, as plain facts.

use crate::device::now;
use crate::products::Matrices;

/// What kind of device an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterKind {
    /// Software on the host's CPU.
    Cpu,
    /// Shares the host's memory.
    Integrated,
    /// Has memory of its own.
    Discrete,
    /// A virtual machine's share, or unknown.
    Other,
}

/// One device that can be opened.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// The device's name.
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// What kind of device it is.
    pub kind: AdapterKind,
    /// Shaders can compute with halves.
    pub f16: bool,
    /// Invocations of a subgroup can reduce without shared memory.
    pub subgroups: bool,
    /// Invocations of a subgroup, if there are any: at least, at most.
    pub subgroup_size: (u32, u32),
    /// Products of small matrices as one instruction: how many shapes.
    pub cooperative_matrices: usize,
    /// The one that products with weights in halves are made of; there may be none among the shapes.
    pub matrices: Option<Matrices>,
    /// Bytes that one binding of a shader reaches. May be lowered before the device is opened.
    pub binding_bytes_max: u64,
    /// Bytes of the largest buffer.
    pub buffer_bytes_max: u64,
    pub(crate) raw: wgpu::Adapter,
}

/// All devices of a host.
#[derive(Clone, Debug)]
pub struct Adapters(Vec<Adapter>);

/// There is no Vulkan driver, or none with a device that can run these shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no Vulkan device: is a driver installed? (Debian's `libvulkan1 mesa-vulkan-drivers` bring one in software)"
)]
pub struct NoAdapters;

impl Adapters {
    /// Looks for devices; hardware first, then the order in which the loader names them.
    ///
    /// # Errors
    /// There is none.
    pub fn list() -> Result<Self, NoAdapters> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::VULKAN,
            // No validation layers, whatever the build: they are files that somebody could put there.
            flags: wgpu::InstanceFlags::empty(),
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let found = now(instance.enumerate_adapters(wgpu::Backends::VULKAN));
        let mut adapters: Vec<Adapter> = found.into_iter().filter_map(Adapter::describe).collect();
        adapters.sort_by_key(|adapter| match adapter.kind {
            AdapterKind::Discrete => 0,
            AdapterKind::Integrated => 1,
            AdapterKind::Other => 2,
            AdapterKind::Cpu => 3,
        });
        if adapters.is_empty() { Err(NoAdapters) } else { Ok(Self(adapters)) }
    }

    /// At least one.
    pub fn all(&self) -> &[Adapter] {
        &self.0
    }
}

impl Adapter {
    /// Nothing if the adapter lacks what every kernel here needs.
    fn describe(raw: wgpu::Adapter) -> Option<Self> {
        let (info, features, limits) = (raw.get_info(), raw.features(), raw.limits());
        let enough = limits.max_compute_invocations_per_workgroup >= 256
            && limits.max_immediate_size >= crate::pipelines::PARAMETER_BYTES;
        if !features.contains(wgpu::Features::IMMEDIATES) || !enough {
            return None;
        }
        let cooperative = raw.cooperative_matrix_properties();
        Some(Self {
            name: info.name,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            kind: kind(info.device_type),
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            subgroup_size: (info.subgroup_min_size, info.subgroup_max_size),
            cooperative_matrices: cooperative.len(),
            matrices: Matrices::among(&cooperative, &features, &limits, info.subgroup_max_size),
            binding_bytes_max: limits.max_storage_buffer_binding_size,
            buffer_bytes_max: limits.max_buffer_size,
            raw,
        })
    }
}

fn kind(of: wgpu::DeviceType) -> AdapterKind {
    match of {
        wgpu::DeviceType::Cpu => AdapterKind::Cpu,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => AdapterKind::Other,
    }
}

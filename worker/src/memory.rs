//! The worker's own memory lease: what may still be allocated, and how a refusal reads.

use crate::device::{DeviceError, DeviceFailure};
use ringfence_kernels::OutOfMemory;
use ringfence_protocol::{JobError, LoadError};
use ringfence_sandbox::{CountingAllocator, Denial, check_headroom, clear_denial};

/// The lease under which a model is loaded and run. All in bytes.
pub trait Memory {
    /// Whether this much more fits now, before anything is allocated.
    fn check(&self, bytes: u64) -> Result<(), Denial>;
    /// The refusal of an allocation that was tried; it is answered for now, so that it counts as handled.
    fn denied(&self, allocation: OutOfMemory) -> Denial;
    /// Handed out now.
    fn used(&self) -> u64;
    /// The most that was handed out at one time.
    fn peak(&self) -> u64;
    /// Counts the peak anew from what is handed out now.
    fn restart_peak(&self);
}

/// The process's own lease, kept by the counting allocator. Without that allocator there is no bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease;

impl Memory for Lease {
    fn check(&self, bytes: u64) -> Result<(), Denial> {
        check_headroom(bytes)
    }

    fn denied(&self, allocation: OutOfMemory) -> Denial {
        let wanted = u64::try_from(allocation.bytes).unwrap_or(u64::MAX);
        let now = Denial { wanted, used: CountingAllocator::used(), limit: CountingAllocator::lease() };
        clear_denial().unwrap_or(now)
    }

    fn used(&self) -> u64 {
        CountingAllocator::used()
    }

    fn peak(&self) -> u64 {
        CountingAllocator::peak()
    }

    fn restart_peak(&self) {
        CountingAllocator::restart_peak();
    }
}

/// Why there is no room for a batch or a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not fit into the lease of the host's memory or of the device's; less may fit.
    #[error("{0}")]
    Denied(Denial),
    /// The device failed; nothing fits any more.
    #[error("{0}")]
    Failed(DeviceFailure),
}

impl Refusal {
    /// What a device said, an allocation of the host's memory completed by the lease.
    pub fn new(error: DeviceError, memory: &dyn Memory) -> Self {
        match error {
            DeviceError::Host(allocation) => Self::Denied(memory.denied(allocation)),
            DeviceError::Full(denial) => Self::Denied(denial),
            DeviceError::Failed(failure) => Self::Failed(failure),
        }
    }
}

/// A denial as the failure of a load.
pub fn load_error(denial: Denial) -> LoadError {
    let Denial { wanted, used, limit } = denial;
    LoadError::OutOfMemory { wanted, used, limit }
}

/// A refusal as the failure of a load.
pub fn load_refused(refusal: Refusal) -> LoadError {
    match refusal {
        Refusal::Denied(denial) => load_error(denial),
        Refusal::Failed(DeviceFailure { reason }) => LoadError::Device { reason },
    }
}

/// A denial as the failure of a job.
pub fn job_error(denial: Denial) -> JobError {
    let Denial { wanted, used, limit } = denial;
    JobError::OutOfMemory { wanted, used, limit }
}

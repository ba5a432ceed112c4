//! What can go wrong, sorted by who is to blame, and where the driver's word of it is kept.

use std::sync::{Arc, Mutex, PoisonError};

/// Who refused an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    /// The gate, by its own count, before the driver was asked.
    Gate,
    /// The gate, because the driver had to reserve more than the lease; the allocation was undone.
    Reserved,
    /// The driver.
    Driver,
}

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// The allocation does not fit; what there was before is as it was.
    #[error("out of device memory: {wanted} bytes wanted, {used} of {limit} in use")]
    OutOfMemory {
        /// The request, in bytes.
        wanted: u64,
        /// Counted then, headroom included.
        used: u64,
        /// The lease.
        limit: u64,
        /// Who said so.
        by: RefusedBy,
    },
    /// One matrix is larger than what a shader can be given at once.
    #[error("{bytes} bytes are more than the {limit} that a shader can be given")]
    TooLarge {
        /// The request, in bytes.
        bytes: u64,
        /// The adapter's limit.
        limit: u64,
    },
    /// The device is gone: nothing works from now on.
    #[error("the device is lost: {reason}")]
    Lost {
        /// The driver's word.
        reason: String,
    },
    /// The device computes something wrong that has one right result: it can't be used.
    #[error("the device computes {what} wrong: its driver, or the card, is broken")]
    Wrong {
        /// What was tried.
        what: &'static str,
    },
    /// The driver or the validation before it refused a command (for the lack of memory of its own, perhaps); results
    /// since the last read are worth nothing.
    #[error("the device refused a command: {reason}")]
    Refused {
        /// The driver's word.
        reason: String,
    },
}

/// What the driver said outside of any call. Its callbacks write here, from whichever thread they run on.
#[derive(Debug, Default)]
pub(crate) struct Health {
    lost: Mutex<Option<String>>,
    refused: Mutex<Option<String>>,
}

impl Health {
    /// Installs the callbacks of a device.
    pub(crate) fn watch(device: &wgpu::Device) -> Arc<Self> {
        let health = Arc::new(Self::default());
        let refused = Arc::clone(&health);
        device.on_uncaptured_error(Arc::new(move |error| refused.refuse(error.to_string())));
        let lost = Arc::clone(&health);
        device.set_device_lost_callback(move |reason, text| lost.lose(format!("{reason:?}: {text}")));
        health
    }

    /// The first reason stays.
    pub(crate) fn lose(&self, reason: String) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    fn refuse(&self, reason: String) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    /// Whether the device is still there.
    pub(crate) fn alive(&self) -> Result<(), GpuError> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.as_ref().map_or(Ok(()), |reason| Err(GpuError::Lost { reason: reason.clone() }))
    }

    /// What went wrong since the last time this was asked.
    pub(crate) fn settle(&self) -> Result<(), GpuError> {
        self.alive()?;
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        refused.map_or(Ok(()), |reason| Err(GpuError::Refused { reason }))
    }
}

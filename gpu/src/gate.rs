//! The one place that creates buffers. It counts what is asked for against the lease, holds the driver's own count
//! against the lease as well, and turns each refusal into a typed error.

use crate::device::now;
use crate::error::{GpuError, Health, RefusedBy};
use crate::ledger::{Ledger, Report};
use crate::pipelines::BUFFER_BYTES_MIN;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// The gate's numbers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateNumbers {
    /// What may be reserved in all.
    pub lease: u64,
    /// What the device had reserved before anything was asked for: its own buffers, and those of the staging ring.
    pub headroom: u64,
    /// Handed out, the headroom included.
    pub used: u64,
    /// The most that was handed out at one time.
    pub peak: u64,
    /// What the driver says that it reserved.
    pub reserved: u64,
    /// How much of that it says is in buffers.
    pub allocated: u64,
}

/// What the gate itself counts, in bytes; nobody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// As in [`GateNumbers`].
    pub used: u64,
    /// As in [`GateNumbers`].
    pub peak: u64,
}

/// A buffer that was counted.
#[derive(Debug)]
pub(crate) struct Buffer {
    raw: Option<wgpu::Buffer>,
    counted: u64,
    ledger: Rc<RefCell<Ledger<wgpu::Buffer>>>,
}

impl Buffer {
    pub(crate) fn raw(&self) -> &wgpu::Buffer {
        self.raw.as_ref().expect("taken in drop only")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let raw = self.raw.take().expect("dropped once");
        self.ledger.borrow_mut().release(raw, self.counted);
    }
}

/// Creates buffers under a lease.
#[derive(Debug)]
pub(crate) struct Gate {
    device: wgpu::Device,
    health: Arc<Health>,
    ledger: Rc<RefCell<Ledger<wgpu::Buffer>>>,
}

impl Gate {
    pub(crate) fn new(device: wgpu::Device, health: Arc<Health>, lease: u64) -> Self {
        Self { device, health, ledger: Rc::new(RefCell::new(Ledger::new(lease))) }
    }

    /// From now on what the driver has reserved so far is headroom; buffers that were made before belong to it.
    ///
    /// Everything reserved counts, not only what is allocated: an empty block of a memory type stays reserved.
    pub(crate) fn measure_headroom(&self) -> u64 {
        self.ledger.borrow_mut().measure_headroom(self.report())
    }

    fn report(&self) -> Report {
        let report = self.device.generate_allocator_report();
        let report = report.expect("Vulkan's allocator reports");
        Report { allocated: report.total_allocated_bytes, reserved: report.total_reserved_bytes }
    }

    pub(crate) fn numbers(&self) -> GateNumbers {
        let Report { allocated, reserved } = self.report();
        let Counted { used, peak } = self.counted();
        let ledger = self.ledger.borrow();
        GateNumbers { lease: ledger.lease(), headroom: ledger.headroom(), used, peak, reserved, allocated }
    }

    pub(crate) fn counted(&self) -> Counted {
        let ledger = self.ledger.borrow();
        Counted { used: ledger.used(), peak: ledger.peak() }
    }

    pub(crate) fn restart_peak(&self) {
        self.ledger.borrow_mut().restart_peak();
    }

    /// Commands may use any buffer from now on, until [`Gate::idle`].
    pub(crate) fn busy(&self) {
        self.ledger.borrow_mut().busy();
    }

    /// The device has finished all commands and none is recorded.
    pub(crate) fn idle(&self) {
        self.ledger.borrow_mut().idle();
    }

    /// Whether buffers that were let go wait for the device.
    pub(crate) fn waits_for_idle(&self) -> bool {
        self.ledger.borrow().waits_for_idle()
    }

    /// Whether this much more fits by the count, as one buffer.
    pub(crate) fn check(&self, bytes: u64) -> Result<(), GpuError> {
        self.health.alive()?;
        if self.ledger.borrow().fits(bytes) { Ok(()) } else { Err(self.refusal(bytes, RefusedBy::Gate)) }
    }

    fn refusal(&self, wanted: u64, by: RefusedBy) -> GpuError {
        let ledger = self.ledger.borrow();
        GpuError::OutOfMemory { wanted, used: ledger.used(), limit: ledger.lease(), by }
    }

    /// A buffer of at least [`BUFFER_BYTES_MIN`]. Its contents are zeros until something is written: wgpu clears what a
    /// shader or a copy would otherwise read uninitialised.
    pub(crate) fn create(&self, bytes: u64, usage: wgpu::BufferUsages) -> Result<Buffer, GpuError> {
        self.check(bytes)?;
        let most = self.device.limits().max_buffer_size;
        if bytes > most {
            return Err(GpuError::TooLarge { bytes, limit: most });
        }
        let before = self.report();
        let raw = self.ask_driver(bytes.next_multiple_of(4).max(BUFFER_BYTES_MIN), usage)?;
        let admitted = self.ledger.borrow_mut().admit(bytes, before, self.report());
        match admitted {
            Some(counted) => Ok(Buffer { raw: Some(raw), counted, ledger: Rc::clone(&self.ledger) }),
            None => {
                drop(raw);
                Err(self.refusal(bytes, RefusedBy::Reserved))
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn ask_driver(&self, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, GpuError> {
        let scopes = [
            self.device.push_error_scope(wgpu::ErrorFilter::Validation),
            self.device.push_error_scope(wgpu::ErrorFilter::Internal),
            self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory),
        ];
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let raw = self.device.create_buffer(&descriptor);
        // Scopes end in the reverse order, and each has to.
        let errors: Vec<wgpu::Error> =
            scopes.into_iter().rev().filter_map(|scope| now(scope.pop())).collect();
        self.health.alive()?;
        match errors.into_iter().next() {
            None => Ok(raw),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(self.refusal(size, RefusedBy::Driver)),
            Some(error) => Err(GpuError::Refused { reason: error.to_string() }),
        }
    }
}

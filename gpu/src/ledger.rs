//! The gate's arithmetic: what was handed out, what waits to be freed, and what may still be asked for. It knows no driver;
//! what the driver says comes in as numbers, so that it can be tried against any driver.

/// Requests are counted in multiples of this, the largest alignment of buffers that Vulkan drivers ask for in practice.
/// A driver that takes more is counted by what it took.
pub const GRAIN_BYTES: u64 = 256;

/// What a driver says, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// In buffers.
    pub(crate) allocated: u64,
    /// Taken in blocks, for these and later buffers.
    pub(crate) reserved: u64,
}

/// Counts under a lease. `T` is a buffer, or what stands for one.
#[derive(Debug)]
pub(crate) struct Ledger<T> {
    lease: u64,
    /// Reserved before any work; none until it is measured.
    headroom: Option<u64>,
    used: u64,
    peak: u64,
    /// Commands were recorded or submitted that may use any buffer.
    busy: bool,
    /// Let go while the device was busy: still the driver's, so still counted.
    dead: Vec<(T, u64)>,
}

impl<T> Ledger<T> {
    pub(crate) fn new(lease: u64) -> Self {
        Self { lease, headroom: None, used: 0, peak: 0, busy: false, dead: Vec::new() }
    }

    pub(crate) fn lease(&self) -> u64 {
        self.lease
    }

    pub(crate) fn headroom(&self) -> u64 {
        self.headroom.unwrap_or(0)
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak
    }

    pub(crate) fn restart_peak(&mut self) {
        self.peak = self.used;
    }

    /// From now on what the driver has reserved so far is headroom; buffers that were made before belong to it.
    pub(crate) fn measure_headroom(&mut self, report: Report) -> u64 {
        self.headroom = Some(report.reserved);
        self.used = report.reserved;
        self.restart_peak();
        report.reserved
    }

    /// Whether this much more fits by the count, before the driver is asked.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        grains(bytes) <= self.lease.saturating_sub(self.used)
    }

    /// Counts a buffer that the driver has made, by what it said before and says now; what it is counted for, or nothing if
    /// the driver had to take more than the lease: then it has to be given back.
    pub(crate) fn admit(&mut self, bytes: u64, before: Report, report: Report) -> Option<u64> {
        // A driver that rounds up further than our grain is counted by what it took for this very buffer: what others were
        // rounded up by goes with them.
        let counted = grains(bytes).max(report.allocated.saturating_sub(before.allocated));
        let counted =
            counted.saturating_add(report.allocated.saturating_sub(self.used.saturating_add(counted)));
        let used = self.used.saturating_add(counted);
        // The ring comes before the headroom is known; it is held against the lease as part of that.
        if self.headroom.is_some_and(|headroom| headroom > 0)
            && (report.reserved > self.lease || used > self.lease)
        {
            return None;
        }
        self.used = used;
        self.peak = self.peak.max(used);
        Some(counted)
    }

    /// A buffer is let go: freed now, or when the device is idle.
    pub(crate) fn release(&mut self, buffer: T, counted: u64) {
        if self.busy {
            self.dead.push((buffer, counted));
        } else {
            drop(buffer);
            self.used -= counted;
        }
    }

    /// Commands may use any buffer from now on, until [`Ledger::idle`].
    pub(crate) fn busy(&mut self) {
        self.busy = true;
    }

    /// The device has finished all commands and none is recorded.
    pub(crate) fn idle(&mut self) {
        self.busy = false;
        let freed: u64 = self.dead.drain(..).map(|(_, counted)| counted).sum();
        self.used -= freed;
    }

    /// Whether buffers that were let go wait for the device.
    pub(crate) fn waits_for_idle(&self) -> bool {
        !self.dead.is_empty()
    }
}

fn grains(bytes: u64) -> u64 {
    bytes.max(1).checked_next_multiple_of(GRAIN_BYTES).unwrap_or(u64::MAX)
}

//! The global allocator that counts bytes, refuses above the lease and says so on the status page.

use crate::Denial;
use std::alloc::{GlobalAlloc, Layout, System};

/// Counts what it hands out (requested sizes in bytes, without the system allocator's own overhead). At the lease it
/// writes the denial to the status page and returns null; infallible allocations then abort the process, and the
/// server tells this from other deaths by the page. Install it with `#[global_allocator]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// Sets the most bytes that may be in use at a time. Without a call there is no cap.
    pub fn set_lease(bytes: u64) {
        let _ = bytes;
        todo!()
    }
    /// Bytes handed out and not taken back.
    pub fn used() -> u64 {
        todo!()
    }
    /// The most that [`Self::used`] has been.
    pub fn peak() -> u64 {
        todo!()
    }
    /// The cap in bytes, `u64::MAX` where none is set.
    pub fn lease() -> u64 {
        todo!()
    }
}

// SAFETY: every call is passed on to `System` unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Whether this many more bytes fit in the lease now: the typed refusal before anything is allocated.
/// Leaves nothing on the status page.
pub fn check_headroom(bytes: u64) -> Result<(), Denial> {
    let _ = bytes;
    todo!()
}

/// Takes a denial off the status page: for code whose `try_reserve` failed, that answers for it and goes on.
pub fn clear_denial() -> Option<Denial> {
    todo!()
}

/// Tells glibc's malloc to keep freed memory instead of giving it back to the kernel and faulting it in again. Once,
/// early in `main`.
pub fn keep_freed_memory() {
    todo!()
}

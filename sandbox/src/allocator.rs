//! The global allocator that counts bytes, refuses above the lease and says so on the status page.

use crate::Denial;
use crate::status_page::{DeniedBy, ProgramPage};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Counts what it hands out (requested sizes in bytes, without the system allocator's own overhead). At the lease it
/// writes the denial to the status page and returns null, as it does where the kernel gives no more; infallible
/// allocations then abort the process, and the server tells this from other deaths by the page. Install it with `#[global_allocator]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingAllocator;

/// Where the counts are before the program has a status page, and for programs that get none.
static OWN_PAGE: ProgramPage = ProgramPage::new();
/// The page in use; both it can point to live for ever.
static PAGE: AtomicPtr<ProgramPage> = AtomicPtr::new((&raw const OWN_PAGE).cast_mut());
/// The most bytes in use at a time.
static LEASE: AtomicU64 = AtomicU64::new(u64::MAX);

impl CountingAllocator {
    /// Sets the most bytes that may be in use at a time. Without a call there is no cap.
    pub fn set_lease(bytes: u64) {
        LEASE.store(bytes, Ordering::Relaxed);
    }

    /// Bytes handed out and not taken back.
    pub fn used() -> u64 {
        page().used.load(Ordering::Relaxed)
    }

    /// The most that [`Self::used`] has been.
    pub fn peak() -> u64 {
        page().peak.load(Ordering::Relaxed)
    }

    /// Counts [`Self::peak`] anew from what is in use now. Exact where no other thread allocates meanwhile.
    pub fn restart_peak() {
        page().peak.store(Self::used(), Ordering::Relaxed);
    }

    /// The cap in bytes, `u64::MAX` where none is set.
    pub fn lease() -> u64 {
        LEASE.load(Ordering::Relaxed)
    }
}

/// Whether this many more bytes fit in the lease now: the typed refusal before anything is allocated.
/// Leaves nothing on the status page.
pub fn check_headroom(bytes: u64) -> Result<(), Denial> {
    let (used, limit) = (CountingAllocator::used(), CountingAllocator::lease());
    if used.saturating_add(bytes) > limit { Err(Denial { wanted: bytes, used, limit }) } else { Ok(()) }
}

/// Takes a denial off the status page: for code whose `try_reserve` failed, that answers for it and goes on.
pub fn clear_denial() -> Option<Denial> {
    page().clear_denial()
}

/// What freed memory glibc keeps, and how much it takes at a time, in bytes.
const KEEP_BYTES: i32 = 1 << 30;
const GROW_BYTES: i32 = 16 << 20;

/// Tells glibc's malloc to keep freed memory instead of giving it back to the kernel and faulting it in again. Once,
/// early in `main`.
pub fn keep_freed_memory() {
    for (option, bytes) in [
        (libc::M_MMAP_THRESHOLD, KEEP_BYTES),
        (libc::M_TRIM_THRESHOLD, KEEP_BYTES),
        (libc::M_TOP_PAD, GROW_BYTES),
    ] {
        // SAFETY: mallopt takes two numbers and locks what it changes. An option that this glibc refuses leaves its
        // default in place, which is correct, only slower.
        unsafe { libc::mallopt(option, bytes) };
    }
}

/// Moves the counts to the status page. The process has one thread, so no count is lost between the pages.
pub(crate) fn count_on(shared: &'static ProgramPage) {
    let own = page();
    shared.used.store(own.used.load(Ordering::Relaxed), Ordering::Relaxed);
    shared.peak.store(own.peak.load(Ordering::Relaxed), Ordering::Relaxed);
    PAGE.store((&raw const *shared).cast_mut(), Ordering::Release);
}

fn page() -> &'static ProgramPage {
    // SAFETY: `PAGE` only ever holds pointers made from `&'static ProgramPage`.
    unsafe { &*PAGE.load(Ordering::Relaxed) }
}

// SAFETY: every block comes from `System` and goes back to it with the same layout; counting allocates nothing and
// does not unwind.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        counted(layout.size(), || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        counted(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise that `block` has this layout is passed on.
        unsafe { System.dealloc(block, layout) };
        give_back(layout.size());
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise about block, layout and size is passed on.
        let resize = || unsafe { System.realloc(block, layout, new_size) };
        if new_size > layout.size() {
            return counted(new_size - layout.size(), resize);
        }
        let resized = resize();
        if !resized.is_null() {
            give_back(layout.size() - new_size);
        }
        resized
    }
}

/// Allocates after taking the bytes from the lease.
fn counted(bytes: usize, allocate: impl FnOnce() -> *mut u8) -> *mut u8 {
    if !take(bytes as u64) {
        return std::ptr::null_mut();
    }
    let block = allocate();
    if block.is_null() {
        give_back(bytes);
        deny_by_kernel(bytes as u64);
    }
    block
}

/// Takes bytes from the lease. A request that can't fit is never added, not even for a moment: another thread's small
/// one must not be refused because of it.
fn take(bytes: u64) -> bool {
    let page = page();
    let limit = LEASE.load(Ordering::Relaxed);
    let before = page.used.load(Ordering::Relaxed);
    if before.saturating_add(bytes) > limit {
        return deny(page, bytes, before, limit);
    }
    let before = page.used.fetch_add(bytes, Ordering::Relaxed);
    let used = before.saturating_add(bytes);
    if used > limit {
        page.used.fetch_sub(bytes, Ordering::Relaxed);
        return deny(page, bytes, before, limit);
    }
    if used > page.peak.load(Ordering::Relaxed) {
        page.peak.fetch_max(used, Ordering::Relaxed);
    }
    true
}

#[cold]
fn deny(page: &ProgramPage, wanted: u64, used: u64, limit: u64) -> bool {
    page.record(Denial { wanted, used, limit }, DeniedBy::Lease);
    false
}

/// Leaves word that the kernel had no more, though the lease had.
#[cold]
pub(crate) fn deny_by_kernel(wanted: u64) {
    let (used, limit) = (CountingAllocator::used(), CountingAllocator::lease());
    page().record(Denial { wanted, used, limit }, DeniedBy::Kernel);
}

fn give_back(bytes: usize) {
    page().used.fetch_sub(bytes as u64, Ordering::Relaxed);
}

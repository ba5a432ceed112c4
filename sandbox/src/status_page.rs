//! The pages that a program shares with the server, where it leaves word of why it ended.
//!
//! The first page is the program's own word. The second is the shim's: the program unmaps it before it reads a byte
//! from anyone, and has no descriptor left to map it again.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

/// Bytes of one page.
const PAGE_BYTES: usize = 4096;
const PAGES: usize = 2;
/// The size is fixed, so that no side can make the other fault; the bytes stay writable.
const SEALS: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// An allocation that did not fit in the lease. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory: {wanted} bytes wanted, {used} of {limit} in use")]
pub struct Denial {
    /// The request that was refused.
    pub wanted: u64,
    /// In use at that moment.
    pub used: u64,
    /// The lease.
    pub limit: u64,
}

/// Who had no more memory to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeniedBy {
    /// The counting allocator, at the lease.
    Lease,
    /// The kernel, at a limit of the process or of the machine.
    Kernel,
}

/// What the pages say. All but `wait_status` is the program's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The first denial that was not handled. With the program's death it means out of memory, whatever the signal.
    pub denial: Option<Denial>,
    /// The denial is the kernel's, which had no more for the process, and not that of the lease.
    pub denied_by_kernel: bool,
    /// How the program ended, as `waitpid` gave it to the shim; SIGKILL where the shim was killed with it. The
    /// program itself can't write this.
    pub wait_status: Option<i32>,
    /// Bytes that the counting allocator has handed out and not taken back.
    pub used_bytes: u64,
    /// The most that `used_bytes` has been.
    pub peak_bytes: u64,
}

/// The server's side: made before [`crate::spawn`], read at any time.
#[derive(Debug)]
pub struct StatusPage {
    memfd: OwnedFd,
    pages: Arc<Pages>,
}

impl StatusPage {
    /// Fresh pages: a memfd of fixed size, mapped here.
    pub fn create() -> Result<StatusPage, Errno> {
        let memfd = memfd_create("ringfence-status", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memfd, (PAGES * PAGE_BYTES) as u64)?;
        fcntl_add_seals(&memfd, SEALS)?;
        let pages = Arc::new(Pages::map(memfd.as_fd())?);
        Ok(StatusPage { memfd, pages })
    }

    /// What it says now.
    pub fn read(&self) -> Status {
        self.pages.read()
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    pub(crate) fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }
}

/// The program's page. Every field is shared with another process, so each is an atomic.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ProgramPage {
    pub(crate) used: AtomicU64,
    pub(crate) peak: AtomicU64,
    denial: AtomicU32,
    wanted: AtomicU64,
    used_then: AtomicU64,
    limit: AtomicU64,
    by_kernel: AtomicU32,
}

/// States of [`ProgramPage::denial`].
const DENIAL_NONE: u32 = 0;
const DENIAL_BEING_WRITTEN: u32 = 1;
const DENIAL_WRITTEN: u32 = 2;

/// How often a second denied thread looks whether the first has written: it must not abort the process before that.
const DENIAL_LOOKS_MAX: u32 = 1 << 20;

impl ProgramPage {
    pub(crate) const fn new() -> Self {
        Self {
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            denial: AtomicU32::new(DENIAL_NONE),
            wanted: AtomicU64::new(0),
            used_then: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            by_kernel: AtomicU32::new(0),
        }
    }

    /// Records the first denial; later ones only wait until it is written.
    pub(crate) fn record(&self, denial: Denial, by: DeniedBy) {
        let claim = self.denial.compare_exchange(
            DENIAL_NONE,
            DENIAL_BEING_WRITTEN,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        if claim.is_ok() {
            self.wanted.store(denial.wanted, Ordering::Relaxed);
            self.used_then.store(denial.used, Ordering::Relaxed);
            self.limit.store(denial.limit, Ordering::Relaxed);
            self.by_kernel.store(u32::from(by == DeniedBy::Kernel), Ordering::Relaxed);
            self.denial.store(DENIAL_WRITTEN, Ordering::Release);
            return;
        }
        for _ in 0..DENIAL_LOOKS_MAX {
            if self.denial.load(Ordering::Acquire) != DENIAL_BEING_WRITTEN {
                return;
            }
            std::hint::spin_loop();
        }
    }

    pub(crate) fn denial(&self) -> Option<Denial> {
        (self.denial.load(Ordering::Acquire) == DENIAL_WRITTEN).then(|| Denial {
            wanted: self.wanted.load(Ordering::Relaxed),
            used: self.used_then.load(Ordering::Relaxed),
            limit: self.limit.load(Ordering::Relaxed),
        })
    }

    pub(crate) fn clear_denial(&self) -> Option<Denial> {
        let denial = self.denial()?;
        self.denial.store(DENIAL_NONE, Ordering::Release);
        Some(denial)
    }
}

/// The shim's page.
#[derive(Debug)]
#[repr(C)]
struct ShimPage {
    ended: AtomicU32,
    wait_status: AtomicI32,
    in_cgroup: AtomicU32,
}

/// A map of both pages.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
}

// SAFETY: the map is only read and written through atomics.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps the pages of a memfd whose size is sealed.
    pub(crate) fn map(memfd: BorrowedFd<'_>) -> Result<Pages, Errno> {
        if !fcntl_get_seals(memfd)?.contains(SEALS)
            || rustix::fs::fstat(memfd)?.st_size != (PAGES * PAGE_BYTES) as i64
        {
            return Err(Errno::INVAL);
        }
        // SAFETY: a new map at an address of the kernel's choice; no Rust object lies there.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGES * PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memfd,
                0,
            )
        }?;
        Ok(Pages { start: NonNull::new(start.cast()).expect("mmap never returns null") })
    }

    pub(crate) fn program(&self) -> &ProgramPage {
        // SAFETY: the first page is mapped while `self` lives, is aligned, and any bytes are valid atomics.
        unsafe { self.start.cast::<ProgramPage>().as_ref() }
    }

    fn shim(&self) -> &ShimPage {
        // SAFETY: the second page is mapped while `self` lives, is aligned, and any bytes are valid atomics.
        unsafe { self.start.add(PAGE_BYTES).cast::<ShimPage>().as_ref() }
    }

    /// Unmaps the shim's page and keeps the program's for the life of the process.
    pub(crate) fn into_program_page(self) -> Result<&'static ProgramPage, Errno> {
        let start = self.start;
        std::mem::forget(self);
        // SAFETY: the second page was mapped by `map` and nothing refers to it: `self` was the only owner.
        unsafe { munmap(start.add(PAGE_BYTES).as_ptr().cast(), PAGE_BYTES) }?;
        // SAFETY: the first page stays mapped for ever, since nothing is left that would unmap it.
        Ok(unsafe { start.cast::<ProgramPage>().as_ref() })
    }

    /// Writes how the program ended. The first word stands: the shim's comes before the outer process's.
    pub(crate) fn write_wait_status(&self, status: i32) {
        let page = self.shim();
        if page.ended.load(Ordering::Acquire) == 0 {
            page.wait_status.store(status, Ordering::Relaxed);
            page.ended.store(1, Ordering::Release);
        }
    }

    pub(crate) fn wait_status(&self) -> Option<i32> {
        let page = self.shim();
        (page.ended.load(Ordering::Acquire) != 0).then(|| page.wait_status.load(Ordering::Relaxed))
    }

    /// The server's note to the program: you are started in a cgroup.
    pub(crate) fn write_in_cgroup(&self) {
        self.shim().in_cgroup.store(1, Ordering::Release);
    }

    pub(crate) fn in_cgroup(&self) -> bool {
        self.shim().in_cgroup.load(Ordering::Acquire) != 0
    }

    fn read(&self) -> Status {
        let program = self.program();
        Status {
            denial: program.denial(),
            denied_by_kernel: program.by_kernel.load(Ordering::Relaxed) != 0,
            wait_status: self.wait_status(),
            used_bytes: program.used.load(Ordering::Relaxed),
            peak_bytes: program.peak.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly this, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), PAGES * PAGE_BYTES) };
        debug_assert!(unmapped.is_ok(), "a map of ours can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Denial = Denial { wanted: 3, used: 2, limit: 4 };

    #[test]
    fn a_fresh_page_says_nothing() {
        let page = StatusPage::create().unwrap();
        let nothing =
            Status { denial: None, denied_by_kernel: false, wait_status: None, used_bytes: 0, peak_bytes: 0 };
        assert_eq!(page.read(), nothing);
    }

    #[test]
    fn only_the_first_denial_is_recorded_until_it_is_cleared() {
        let page = StatusPage::create().unwrap();
        let program = page.pages().program();
        program.record(FIRST, DeniedBy::Lease);
        program.record(Denial { wanted: 9, ..FIRST }, DeniedBy::Kernel);
        assert_eq!((page.read().denial, page.read().denied_by_kernel), (Some(FIRST), false));
        assert_eq!(program.clear_denial(), Some(FIRST));
        assert_eq!(page.read().denial, None);
        program.record(Denial { wanted: 9, ..FIRST }, DeniedBy::Kernel);
        assert_eq!(page.read().denial, Some(Denial { wanted: 9, ..FIRST }));
        assert!(page.read().denied_by_kernel);
    }

    #[test]
    fn only_the_first_wait_status_is_recorded() {
        let page = StatusPage::create().unwrap();
        page.pages().write_wait_status(31);
        page.pages().write_wait_status(9);
        assert_eq!(page.read().wait_status, Some(31));
    }

    #[test]
    fn the_size_of_the_page_is_sealed() {
        let page = StatusPage::create().unwrap();
        assert_eq!(ftruncate(page.descriptor(), 0), Err(Errno::PERM));
        assert_eq!(ftruncate(page.descriptor(), 1 << 20), Err(Errno::PERM));
    }

    #[test]
    fn a_memfd_of_another_size_or_without_seals_is_no_page() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let unsealed = memfd_create("page", flags).unwrap();
        ftruncate(&unsealed, (PAGES * PAGE_BYTES) as u64).unwrap();
        assert_eq!(Pages::map(unsealed.as_fd()).unwrap_err(), Errno::INVAL);
        let short = memfd_create("page", flags).unwrap();
        fcntl_add_seals(&short, SEALS).unwrap();
        assert_eq!(Pages::map(short.as_fd()).unwrap_err(), Errno::INVAL);
    }
}

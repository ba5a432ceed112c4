//! Memory taken as a compromised program would take it: past the counting allocator, straight from the kernel. For
//! drills, which show what stops that.

use crate::allocator::deny_by_kernel;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::slice;

/// Bytes that are mapped at a time.
const PIECE_BYTES: usize = 4 << 20;

/// Bytes of the smallest page.
const PAGE_BYTES: usize = 4096;

/// Takes this much and touches every page of it. It is never given back. Where the kernel has no more, that is left on
/// the status page and the process ends, as it does for any allocation that can't fail.
pub fn hoard(bytes: u64) {
    let mut taken = 0;
    while taken < bytes {
        let flags = MapFlags::PRIVATE;
        // SAFETY: a new map at an address of the kernel's choice; no Rust object lies there.
        let piece = unsafe {
            mmap_anonymous(std::ptr::null_mut(), PIECE_BYTES, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        let Ok(piece) = piece else {
            deny_by_kernel(bytes - taken);
            std::process::abort();
        };
        // SAFETY: the piece was just mapped for reading and writing, holds zeros, and nobody else knows of it.
        let piece = unsafe { slice::from_raw_parts_mut(piece.cast::<u8>(), PIECE_BYTES) };
        piece.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        taken += PIECE_BYTES as u64;
    }
}

//! An allocator that zeroes what is given back, for a program whose memory holds what must not stay.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with zeroes over every block that is freed or outgrown.
#[derive(Debug)]
pub struct WipingAllocator;

// SAFETY: every block comes from and goes back to the system's allocator with the layout that it was made by.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives a block of this layout that nobody uses any more.
        unsafe {
            libc::explicit_bzero(block.cast(), layout.size());
            System.dealloc(block, layout);
        }
    }

    /// Never in place: the system might move the block and leave its old bytes.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size` with this alignment is a layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: a layout of that size, which is not zero; both blocks hold what is copied and don't overlap, and the old
        // one is given back once.
        unsafe {
            let moved = self.alloc(wanted);
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_bytes_when_they_grow_and_shrink() {
        let layout = Layout::from_size_align(16, 8).unwrap();
        // SAFETY: each block is used within its size and freed by the layout that it has.
        unsafe {
            let block = WipingAllocator.alloc(layout);
            block.write_bytes(7, 16);
            let block = WipingAllocator.realloc(block, layout, 4096);
            assert_eq!(std::slice::from_raw_parts(block, 16), [7; 16]);
            let block = WipingAllocator.realloc(block, Layout::from_size_align(4096, 8).unwrap(), 8);
            assert_eq!(std::slice::from_raw_parts(block, 8), [7; 8]);
            WipingAllocator.dealloc(block, Layout::from_size_align(8, 8).unwrap());
        }
    }
}

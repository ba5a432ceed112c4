//! Memory that never reaches a disk: locked, left out of core files, zeroed when it is given back.

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A kind of number of which every pattern of bits is one.
pub trait Plain: Copy + Send + Sync + sealed::Sealed + 'static {}

impl Plain for u8 {}
impl Plain for f32 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for f32 {}
}

/// So many numbers, zero at first, in pages of their own.
pub struct Locked<T: Plain> {
    start: NonNull<T>,
    len: usize,
}

/// Why memory could not be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} of {bytes} bytes failed ({error}): RLIMIT_MEMLOCK may be too low")]
pub struct LockError {
    /// Which system call.
    pub call: &'static str,
    /// How many were asked for.
    pub bytes: usize,
    /// Its error.
    pub error: Errno,
}

// SAFETY: it owns its memory alone, and plain numbers may be used from any thread.
unsafe impl<T: Plain> Send for Locked<T> {}
// SAFETY: shared references only read.
unsafe impl<T: Plain> Sync for Locked<T> {}

impl<T: Plain> Locked<T> {
    /// Takes room for `len` numbers, at least one. Not inside a filter that lets no memory be locked.
    ///
    /// # Errors
    /// The host has not as much, or not to be locked.
    pub fn new(len: usize) -> Result<Self, LockError> {
        assert!(len > 0 && len <= isize::MAX as usize / size_of::<T>(), "a buffer has a length");
        let bytes = len * size_of::<T>();
        let failed = |call| move |error| LockError { call, bytes, error };
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new map at an address of the kernel's choice; no Rust object lies there.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, rights, MapFlags::PRIVATE) };
        let start = start.map_err(failed("mmap"))?;
        let locked = Self { start: NonNull::new(start.cast()).expect("mmap never returns null"), len };
        // SAFETY: exactly the map made above, which `locked` owns.
        unsafe { mlock(start, bytes) }.map_err(failed("mlock"))?;
        // SAFETY: as above; the advice changes no byte.
        unsafe { madvise(start, bytes, Advice::LinuxDontDump) }.map_err(failed("madvise"))?;
        Ok(locked)
    }

    /// Makes every number zero, for sure.
    pub fn wipe(&mut self) {
        // SAFETY: `len` numbers at `start` are this object's own.
        unsafe { libc::explicit_bzero(self.start.as_ptr().cast(), self.bytes()) };
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Plain> Deref for Locked<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` numbers are mapped at `start`, page-aligned, while `self` lives; zero bytes are numbers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Locked<T> {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: `new` mapped exactly this, and no slice of it outlives `self`. Unmapping unlocks.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes()) };
        debug_assert!(unmapped.is_ok(), "a map of ours can be unmapped");
    }
}

impl<T: Plain> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags of the map that holds this address, as the kernel has them.
    fn flags_of(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let ends = range.and_then(|(start, end)| {
                Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
            });
            match ends {
                Some(range) => inside = range.contains(&address),
                None if inside && line.starts_with("VmFlags:") => return line.to_owned(),
                None => {}
            }
        }
        panic!("no map holds it");
    }

    #[test]
    fn it_is_locked_and_left_out_of_core_files() {
        let mut locked = Locked::<f32>::new(1000).unwrap();
        assert!(locked.iter().all(|number| *number == 0.0));
        locked[999] = 0.5;
        let flags = flags_of(locked.as_ptr() as usize);
        assert!(flags.contains(" lo") && flags.contains(" dd"), "{flags}");
        locked.wipe();
        assert!(locked.iter().all(|number| *number == 0.0));
    }

    #[test]
    fn what_can_t_be_locked_is_an_error() {
        let error = Locked::<u8>::new(1 << 46).unwrap_err();
        assert_eq!(error.bytes, 1 << 46);
    }
}

//! Frames that wait for the reader, in locked memory. Full means that the oldest goes.

use ringfence_protocol::{AUDIO_RING_FRAMES_MAX, FRAME_BYTES};
use ringfence_sandbox::{LockError, Locked};

/// So many frames at most.
#[derive(Debug)]
pub struct FrameRing {
    bytes: Locked<u8>,
    room: usize,
    first: usize,
    len: usize,
    dropped: u64,
}

impl FrameRing {
    /// Room for the most that may ever be asked for. Not inside the filter.
    ///
    /// # Errors
    /// The memory can't be locked.
    pub fn new() -> Result<Self, LockError> {
        let room = usize::from(AUDIO_RING_FRAMES_MAX);
        Ok(Self { bytes: Locked::new(room * FRAME_BYTES)?, room, first: 0, len: 0, dropped: 0 })
    }

    /// How many may wait from now on; none does yet.
    pub fn set_room(&mut self, frames: u16) {
        assert!(
            (1..=AUDIO_RING_FRAMES_MAX).contains(&frames) && self.len == 0,
            "checked by who reads messages"
        );
        self.room = usize::from(frames);
    }

    /// The place of a new last frame, to be written by the caller.
    pub fn push(&mut self) -> &mut [u8; FRAME_BYTES] {
        if self.len == self.room {
            self.pop();
            self.dropped += 1;
        }
        let at = (self.first + self.len) % self.room;
        self.len += 1;
        self.frame(at)
    }

    /// The oldest.
    pub fn front(&mut self) -> Option<&mut [u8; FRAME_BYTES]> {
        if self.len == 0 { None } else { Some(self.frame(self.first)) }
    }

    /// Forgets the oldest.
    pub fn pop(&mut self) {
        if self.len > 0 {
            let first = self.first;
            self.frame(first).fill(0);
            self.first = (first + 1) % self.room;
            self.len -= 1;
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many more fit before one is dropped.
    pub fn room(&self) -> usize {
        self.room - self.len
    }

    /// How many were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Forgets all, and leaves no byte of it.
    pub fn wipe(&mut self) {
        self.bytes.wipe();
        (self.first, self.len) = (0, 0);
    }

    fn frame(&mut self, at: usize) -> &mut [u8; FRAME_BYTES] {
        let frame = &mut self.bytes[at * FRAME_BYTES..][..FRAME_BYTES];
        frame.try_into().expect("exactly that many bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(frames: u16) -> FrameRing {
        let mut ring = FrameRing::new().unwrap();
        ring.set_room(frames);
        ring
    }

    #[test]
    fn the_oldest_goes_first_and_is_dropped_first() {
        let mut ring = ring(3);
        for number in 0..5 {
            ring.push()[0] = number;
        }
        assert_eq!((ring.len(), ring.room(), ring.dropped()), (3, 0, 2));
        for number in 2..5 {
            assert_eq!(ring.front().unwrap()[0], number);
            ring.pop();
        }
        assert!(ring.front().is_none() && ring.is_empty());
        ring.pop();
        assert_eq!((ring.len(), ring.dropped()), (0, 2));
    }

    #[test]
    fn nothing_stays_behind() {
        let mut ring = ring(2);
        ring.push().fill(7);
        ring.push().fill(7);
        ring.pop();
        assert_eq!(ring.bytes.iter().filter(|byte| **byte == 7).count(), FRAME_BYTES);
        ring.wipe();
        assert!(ring.is_empty() && ring.bytes.iter().all(|byte| *byte == 0));
    }
}

//! The socket of a pushed stream, read into locked memory a frame's worth at a time.

use crate::capture::Shared;
use crate::clock::boot_us;
use crate::framing::Unwrap;
use crate::pushed::Feed;
use ringfence_protocol::{AudioError, Pace, Pushed, SampleEncoding};
use ringfence_sandbox::{LockError, Locked};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most bytes of one step.
const STEP_BYTES_MAX: usize = 4096;
/// Steps before others have their turn.
const STEPS_MAX: usize = 64;
/// The most frames that one step can become: at 11,025 Hz a chunk is two.
const STEP_FRAMES_MAX: usize = 3;

/// Where a step's bytes and samples lie.
#[derive(Debug)]
pub struct StepSpace {
    bytes: Locked<u8>,
    samples: Locked<f32>,
}

impl StepSpace {
    /// Not inside the filter.
    ///
    /// # Errors
    /// The memory can't be locked.
    pub fn new() -> Result<Self, LockError> {
        Ok(Self { bytes: Locked::new(STEP_BYTES_MAX)?, samples: Locked::new(STEP_BYTES_MAX)? })
    }
}

/// A pushed stream.
#[derive(Debug)]
pub struct Inlet {
    socket: OwnedFd,
    unwrap: Unwrap,
    feed: Feed,
    /// What the server had read already, and how much of that is taken.
    head: Vec<u8>,
    taken: usize,
    space: StepSpace,
    step_bytes: usize,
}

/// What became of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// More may come.
    Open,
    /// It came to its end.
    End,
}

impl Inlet {
    /// On a socket that does not block.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`].
    pub fn new(socket: OwnedFd, pushed: Pushed, space: StepSpace) -> Result<Self, AudioError> {
        let feed = Feed::new(&pushed)?;
        let sample_bytes = match pushed.encoding {
            SampleEncoding::S16Le => 2,
            SampleEncoding::F32Le => 4,
        };
        let frame = pushed.rate as usize / 50 * usize::from(pushed.channels) * sample_bytes;
        let (unwrap, step_bytes) = (Unwrap::new(pushed.framing), frame.min(STEP_BYTES_MAX));
        Ok(Self { socket, unwrap, feed, head: pushed.head.0, taken: 0, space, step_bytes })
    }

    /// Its numbers.
    pub fn feed(&mut self) -> &mut Feed {
        &mut self.feed
    }

    /// Whether it is to be read: a buffered stream waits for room.
    pub fn wants(&self, shared: &Shared) -> bool {
        match self.feed.pace {
            Pace::RealTime => true,
            Pace::Buffered => shared.lock().ring().room() >= STEP_FRAMES_MAX,
        }
    }

    /// Whether bytes are here already.
    pub fn has_head(&self) -> bool {
        self.taken < self.head.len()
    }

    /// Takes what is there, some steps of it.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`], [`AudioError::Truncated`], [`AudioError::TooFast`].
    pub fn turn(&mut self, shared: &Shared) -> Result<Fed, AudioError> {
        for _ in 0..STEPS_MAX {
            if !self.wants(shared) {
                break;
            }
            let length = match self.step() {
                Ok(0) => return self.finish(),
                Ok(length) => length,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => return Err(AudioError::Truncated),
            };
            let StepSpace { bytes, samples } = &mut self.space;
            let kept = self.unwrap.take(&mut bytes[..length]);
            let count = kept.and_then(|kept| self.feed.decoder.decode(&bytes[..kept], samples));
            bytes[..length].fill(0);
            let count = count?;
            self.feed.check_pace(boot_us())?;
            shared.arrived(samples[..count].iter().copied(), 0);
            samples[..count].fill(0.0);
            if self.unwrap.is_ended() {
                return self.finish();
            }
        }
        Ok(Fed::Open)
    }

    fn finish(&self) -> Result<Fed, AudioError> {
        self.unwrap.finish()?;
        self.feed.decoder.finish().map(|()| Fed::End)
    }

    /// Bytes of one step; none at the end.
    fn step(&mut self) -> Result<usize, Errno> {
        let room = &mut self.space.bytes[..self.step_bytes];
        let head = &mut self.head[self.taken..];
        if head.is_empty() {
            return rustix::io::read(&self.socket, room);
        }
        let length = head.len().min(room.len());
        room[..length].copy_from_slice(&head[..length]);
        head[..length].fill(0);
        self.taken += length;
        Ok(length)
    }
}

impl AsFd for Inlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

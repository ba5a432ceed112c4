//! What the interface's thread and the main thread share: the sound on its way, behind one lock.

use crate::clock::boot_us;
use crate::format::Format;
use crate::losses::Losses;
use crate::meter::Meter;
use crate::pipeline::{Outgoing, Pipeline, Workspace};
use crate::ring::FrameRing;
use ringfence_protocol::{AudioError, FRAME_US, Jitter, Transform};
use ringfence_sandbox::LockError;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Both threads' view of a capture.
#[derive(Debug)]
pub struct Shared {
    capture: Mutex<Capture>,
    /// Written when frames or a failure wait for the main thread.
    wake: OwnedFd,
}

/// Why the shared state can't be made.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// No locked memory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No descriptor to wake by.
    #[error("eventfd failed: {0}")]
    Wake(#[from] Errno),
}

/// A capture that runs, or does not.
#[derive(Debug)]
pub struct Capture {
    space: Workspace,
    ring: FrameRing,
    running: Option<Running>,
    sequence: u64,
    until_us: u64,
    meter: Meter,
    losses: Losses,
    jitter: Jitter,
    /// Sound that came since it was started or resumed, in microseconds.
    arrived_us: u64,
    jitter_us: u32,
    failure: Option<AudioError>,
}

#[derive(Debug)]
struct Running {
    pipeline: Pipeline,
    format: Format,
}

impl Shared {
    /// A capture that does not run. Not inside the filter.
    ///
    /// # Errors
    /// The host refuses.
    pub fn new() -> Result<Self, SharedError> {
        let capture = Capture {
            space: Workspace::new()?,
            ring: FrameRing::new()?,
            running: None,
            sequence: 0,
            until_us: 0,
            meter: Meter::new(0),
            losses: Losses::new(FRAME_US),
            jitter: Jitter::default(),
            arrived_us: 0,
            jitter_us: 0,
            failure: None,
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { capture: Mutex::new(capture), wake })
    }

    /// The capture, for this thread alone.
    pub fn lock(&self) -> MutexGuard<'_, Capture> {
        // A thread that panicked has left numbers and samples, all of which are still legal.
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when the main thread has something to do.
    pub fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Takes what the interface gives: interleaved samples, the last captured `delay_us` ago.
    pub fn arrived(&self, samples: impl ExactSizeIterator<Item = f32>, delay_us: u64) {
        if self.lock().take(samples, delay_us, boot_us()) {
            self.wake_up();
        }
    }

    /// The interface has failed. Only the first time counts, and nothing is taken after it.
    pub fn failed(&self, error: AudioError) {
        let mut capture = self.lock();
        if capture.failure.is_none() {
            capture.failure = Some(error);
            capture.halt();
            drop(capture);
            self.wake_up();
        }
    }

    fn wake_up(&self) {
        // Full means that the main thread is to wake up already.
        let _woken = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Capture {
    /// Sets what stays the same until the end.
    pub fn prepare(&mut self, ring_frames: u16, silence_ms: u32) {
        self.ring.set_room(ring_frames);
        self.meter = Meter::new(silence_ms);
    }

    /// No sample is taken from this time of CLOCK_BOOTTIME on.
    pub fn set_until(&mut self, until_us: u64) {
        self.until_us = until_us;
    }

    /// Takes samples from now on.
    ///
    /// # Errors
    /// [`AudioError::BadFormat`].
    pub fn run(&mut self, format: Format, transforms: &[Transform], random: u64) -> Result<(), AudioError> {
        let pipeline = Pipeline::new(format, transforms, random)?;
        (self.losses, self.arrived_us) = (self.losses.resumed(), 0);
        self.jitter.forget_last();
        self.running = Some(Running { pipeline, format });
        Ok(())
    }

    /// Takes no sample from now on, and leaves none.
    pub fn halt(&mut self) {
        self.running = None;
        self.ring.wipe();
        self.space.wipe();
    }

    /// Takes no sample from now on, but for what it has.
    pub fn finish(&mut self, now_us: u64) {
        if let Some(mut running) = self.running.take() {
            let mut out =
                Outgoing { ring: &mut self.ring, sequence: &mut self.sequence, meter: &mut self.meter };
            running.pipeline.finish(now_us, &mut self.space, &mut out);
        }
    }

    /// Whether samples are taken.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Frames that wait.
    pub fn ring(&mut self) -> &mut FrameRing {
        &mut self.ring
    }

    /// How loud it was.
    pub fn meter(&mut self) -> &mut Meter {
        &mut self.meter
    }

    /// Why the interface failed, if it has.
    pub fn failure(&self) -> Option<AudioError> {
        self.failure
    }

    /// Frames made, dropped and lost, and the source's jitter in microseconds.
    pub fn counts(&self) -> (u64, u64, u64, u32) {
        (self.sequence, self.ring.dropped(), self.losses.frames(), self.jitter_us)
    }

    /// Whether any frame waits because of it.
    pub fn take(&mut self, samples: impl ExactSizeIterator<Item = f32>, delay_us: u64, now_us: u64) -> bool {
        if now_us >= self.until_us {
            return false;
        }
        let Some(running) = &mut self.running else { return false };
        let length =
            running.format.duration_us((samples.len() / usize::from(running.format.channels())) as u64);
        self.losses.arrived(length, now_us);
        self.jitter_us = self.jitter.arrived(self.arrived_us, now_us);
        self.arrived_us += length;
        let before = self.sequence;
        let mut out = Outgoing { ring: &mut self.ring, sequence: &mut self.sequence, meter: &mut self.meter };
        running.pipeline.take(samples, now_us.saturating_sub(delay_us), &mut self.space, &mut out);
        self.sequence > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Shared {
        let shared = Shared::new().unwrap();
        shared.lock().prepare(4, 0);
        shared.lock().set_until(1_000_000);
        shared.lock().run(Format::new(16_000, 1).unwrap(), &[], 0).unwrap();
        shared
    }

    fn sound(samples: usize) -> impl ExactSizeIterator<Item = f32> {
        std::iter::repeat_n(0.5, samples)
    }

    #[test]
    fn nothing_is_taken_before_the_start_after_the_end_and_while_it_is_halted() {
        let shared = running();
        assert!(shared.lock().take(sound(320), 0, 999_999));
        assert!(!shared.lock().take(sound(320), 0, 1_000_000));
        assert_eq!(shared.lock().ring().len(), 1);
        shared.lock().halt();
        assert!(!shared.lock().take(sound(320), 0, 0));
        assert!(shared.lock().ring().is_empty());
        assert_eq!(shared.lock().counts().0, 1);
    }

    #[test]
    fn only_the_first_failure_counts_and_ends_it() {
        let shared = running();
        assert!(shared.lock().take(sound(320), 0, 0));
        shared.failed(AudioError::DeviceVanished);
        (0..1_000).for_each(|_| shared.failed(AudioError::Interface));
        let mut capture = shared.lock();
        assert_eq!(capture.failure(), Some(AudioError::DeviceVanished));
        assert!(!capture.is_running() && capture.ring().is_empty());
        let mut count = [0; 8];
        rustix::io::read(shared.wake(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn a_slow_reader_loses_the_oldest_and_the_numbers_say_so() {
        let shared = running();
        for at in 0..10 {
            shared.lock().take(sound(320), 0, at * 20_000);
        }
        let mut capture = shared.lock();
        assert_eq!(capture.counts(), (10, 6, 0, 0));
        assert_eq!(u64::from_le_bytes(capture.ring().front().unwrap()[1..9].try_into().unwrap()), 6);
    }
}

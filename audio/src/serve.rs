//! The program's main thread: the server's link, the reader's stream, the clock.

use crate::capture::Shared;
use crate::clock::boot_us;
use crate::device::Device;
use crate::format::Format;
use crate::inlet::{Fed, Inlet, StepSpace};
use crate::outlet::{Close, Heard, Outlet};
use ringfence_protocol::{
    AUDIO_RING_FRAMES_MAX, AUDIO_RING_FRAMES_MIN, AudioError, AudioSideLink, AudioStatistics, CaptureEnd,
    CaptureStart, FromAudio, LEVEL_MS_MIN, LinkError, PUSHED_HEAD_BYTES_MAX, Received, STATISTICS_MS,
    STREAM_HANDSHAKE_MS_MAX, StreamKey, ToAudio, Transform,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_setfl, fstat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Messages that wait for the server to read. Levels and statistics are left out while any waits.
const OUTBOX_MAX: usize = 64;
/// No message of the server is taken while so many wait.
const OUTBOX_BUSY: usize = OUTBOX_MAX / 2;
/// Messages of the server that are obeyed before sound has its turn.
const MESSAGES_MAX: usize = 16;
/// How long the program waits for the end of its link when the capture has ended, in microseconds.
const LINGER_US_MAX: u64 = 2_000_000;
/// The longest wait; after it everything is looked at again.
const WAIT_US_MAX: u64 = 1_000_000;

/// Why the program ends, other than by its server's wish.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The server sent what does not decode, or what is not legal now.
    #[error("illegal message: {0}")]
    Illegal(&'static str),
    /// The link failed.
    #[error("the link failed: {0}")]
    Link(#[from] LinkError),
    /// The host refused.
    #[error("{call} failed: {error}")]
    Os {
        /// Which system call.
        call: &'static str,
        /// Its error.
        error: Errno,
    },
}

/// Where the sound comes from.
#[derive(Debug)]
pub enum Source {
    /// A device that is open.
    Device(Device),
    /// A socket that comes with the start, and the memory to read it into.
    Pushed(Option<StepSpace>),
}

/// A sealed program.
#[derive(Debug)]
pub struct Serving<'a> {
    link: &'a AudioSideLink,
    shared: &'a Shared,
    source: Source,
    /// Gone when the capture has ended.
    key: Option<StreamKey>,
    phase: Phase,
    stream: Option<Streaming>,
    until_us: u64,
    outbox: VecDeque<FromAudio>,
    level_us: u64,
    statistics_us: u64,
}

/// Where a capture stands. Each message of the server is legal in some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Sealed, and not started.
    Waiting,
    /// The reader has not answered the handshake yet.
    Opening { first: bool, until_us: u64 },
    /// Samples are taken.
    Running,
    /// None is, for now.
    Paused,
    /// A pushed stream has come to its end, and its last frames are on their way.
    Draining,
    /// It has ended; only the end of the link is waited for.
    Over { until_us: u64 },
}

/// What the start brought.
#[derive(Debug)]
struct Streaming {
    outlet: Outlet,
    format: Format,
    transforms: Vec<Transform>,
    random: u64,
    inlet: Option<Inlet>,
}

/// Makes a socket one that does not block. The only flags that the filter lets be set.
///
/// # Errors
/// The host refuses.
pub fn set_nonblocking(socket: impl AsFd) -> Result<(), Errno> {
    fcntl_setfl(socket, OFlags::RDWR | OFlags::NONBLOCK)
}

impl<'a> Serving<'a> {
    /// Over a link that does not block.
    pub fn new(link: &'a AudioSideLink, shared: &'a Shared, source: Source, key: StreamKey) -> Self {
        Self {
            link,
            shared,
            source,
            key: Some(key),
            phase: Phase::Waiting,
            stream: None,
            until_us: u64::MAX,
            outbox: VecDeque::new(),
            level_us: 0,
            statistics_us: 0,
        }
    }

    /// Until the capture has ended and the server has heard it, or closes the link.
    ///
    /// # Errors
    /// What the server sent is not legal, or the host refuses.
    pub fn run(mut self) -> Result<(), Fault> {
        loop {
            if !self.receive()? {
                self.shared.lock().halt();
                return Ok(());
            }
            self.look();
            self.tell();
            if !self.send()? || matches!(self.phase, Phase::Over { until_us } if boot_us() >= until_us) {
                return Ok(());
            }
            self.wait()?;
        }
    }

    /// Everything but the server's messages: the clock, failures, the reader, sound.
    fn look(&mut self) {
        let now_us = boot_us();
        if matches!(self.phase, Phase::Over { .. }) {
            self.flush();
            return;
        }
        if self.phase != Phase::Waiting && now_us >= self.until_us {
            return self.end(CaptureEnd::Expired);
        }
        let failure = self.shared.lock().failure();
        if let Some(error) = failure {
            return self.end(CaptureEnd::Failed(error));
        }
        if let Err(error) = self.stream(now_us) {
            self.end(CaptureEnd::Failed(error));
        }
    }

    fn flush(&mut self) {
        if let Some(stream) = &mut self.stream {
            // Whoever is gone misses nothing.
            let _sent = stream.outlet.flush();
        }
    }

    fn stream(&mut self, now_us: u64) -> Result<(), AudioError> {
        let gone = |_| AudioError::ReaderGone;
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let heard = stream.outlet.hear().map_err(gone)?;
        match self.phase {
            Phase::Opening { first, .. } if heard == Heard::Open => return self.go(first, now_us),
            Phase::Opening { until_us, .. } if now_us >= until_us => return Err(AudioError::ReaderGone),
            Phase::Opening { .. } | Phase::Paused => return stream.outlet.flush().map_err(gone),
            Phase::Running | Phase::Draining => {}
            Phase::Waiting | Phase::Over { .. } => return Ok(()),
        }
        if let (Phase::Running, Some(inlet)) = (self.phase, &mut stream.inlet)
            && inlet.turn(self.shared)? == Fed::End
        {
            self.shared.lock().finish(now_us);
            self.phase = Phase::Draining;
        }
        let mut capture = self.shared.lock();
        stream.outlet.send(capture.ring(), now_us).map_err(gone)?;
        let drained = capture.ring().is_empty() && !stream.outlet.is_full();
        drop(capture);
        if self.phase == Phase::Draining && drained {
            self.end(CaptureEnd::Finished);
        }
        Ok(())
    }

    /// The reader has shown its key.
    fn go(&mut self, first: bool, now_us: u64) -> Result<(), AudioError> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        self.shared.lock().run(stream.format, &stream.transforms, stream.random)?;
        if let Some(inlet) = &mut stream.inlet {
            inlet.feed().resumed(now_us);
        }
        if let Source::Device(device) = &self.source {
            device.play();
        }
        self.phase = Phase::Running;
        self.level_us = now_us + LEVEL_MS_MIN * 1_000;
        self.statistics_us = now_us + STATISTICS_MS * 1_000;
        self.say(if first { FromAudio::Started } else { FromAudio::Resumed });
        Ok(())
    }

    /// Stops the capture for good. Nothing of it is left, but for packets that are encrypted.
    fn end(&mut self, end: CaptureEnd) {
        let statistics = self.statistics();
        self.shared.lock().halt();
        self.key = None;
        if let Some(stream) = &mut self.stream {
            stream.outlet.close(Close::End);
            stream.inlet = None;
        }
        match &mut self.source {
            Source::Device(device) => device.close(),
            Source::Pushed(space) => *space = None,
        }
        if self.stream.is_some() {
            self.say(FromAudio::Statistics(statistics));
        }
        self.say(FromAudio::Ended { end });
        self.phase = Phase::Over { until_us: boot_us() + LINGER_US_MAX };
    }

    fn statistics(&self) -> AudioStatistics {
        let (captured, dropped, lost, jitter_us) = self.shared.lock().counts();
        let (sent, delay_us) = self.stream.as_ref().map_or((0, 0), |stream| stream.outlet.counts());
        let delay_us = u32::try_from(delay_us).unwrap_or(u32::MAX);
        AudioStatistics { captured, sent, dropped, lost, jitter_us, delay_us }
    }

    /// Levels, notices and statistics, as far as the server reads them.
    fn tell(&mut self) {
        if self.phase != Phase::Running || !self.outbox.is_empty() {
            return;
        }
        let now_us = boot_us();
        let notice = self.shared.lock().meter().notice();
        self.outbox.extend(notice.map(FromAudio::Notice));
        if now_us >= self.level_us {
            self.level_us = now_us + LEVEL_MS_MIN * 1_000;
            let level = self.shared.lock().meter().level();
            self.outbox.extend(level.map(FromAudio::Level));
        }
        if now_us >= self.statistics_us {
            self.statistics_us = now_us + STATISTICS_MS * 1_000;
            self.outbox.push_back(FromAudio::Statistics(self.statistics()));
        }
    }

    fn wait(&mut self) -> Result<(), Fault> {
        let timeout = self.timeout_us(boot_us());
        let timeout = Timespec {
            tv_sec: (timeout / 1_000_000).cast_signed(),
            tv_nsec: (timeout % 1_000_000 * 1_000).cast_signed(),
        };
        let mut polled =
            vec![PollFd::new(self.link, self.link_events()), PollFd::new(self.shared.wake(), PollFlags::IN)];
        if let Some(stream) = self.stream.as_ref().filter(|_| !matches!(self.phase, Phase::Over { .. })) {
            let room = if stream.outlet.is_full() { PollFlags::OUT } else { PollFlags::empty() };
            polled.push(PollFd::new(&stream.outlet, PollFlags::IN | room));
            let inlet = stream
                .inlet
                .as_ref()
                .filter(|inlet| self.phase == Phase::Running && inlet.wants(self.shared));
            polled.extend(inlet.map(|inlet| PollFd::new(inlet, PollFlags::IN)));
        }
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Fault::Os { call: "ppoll", error }),
        }
        let mut count = [0; 8];
        match rustix::io::read(self.shared.wake(), &mut count) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(Fault::Os { call: "read", error }),
        }
    }

    fn link_events(&self) -> PollFlags {
        let read = if self.outbox.len() < OUTBOX_BUSY { PollFlags::IN } else { PollFlags::empty() };
        if self.outbox.is_empty() { read } else { read | PollFlags::OUT }
    }

    /// How long nothing can become due.
    fn timeout_us(&self, now_us: u64) -> u64 {
        let due_us = match self.phase {
            Phase::Waiting => u64::MAX,
            Phase::Opening { until_us, .. } => until_us.min(self.until_us),
            Phase::Running => self.until_us.min(self.level_us).min(self.statistics_us),
            Phase::Paused | Phase::Draining => self.until_us,
            Phase::Over { until_us } => until_us,
        };
        let has_head = self.stream.as_ref().and_then(|stream| stream.inlet.as_ref()).is_some_and(|inlet| {
            self.phase == Phase::Running && inlet.has_head() && inlet.wants(self.shared)
        });
        if has_head { 0 } else { due_us.saturating_sub(now_us).min(WAIT_US_MAX) }
    }

    /// Whether the server is still there.
    fn receive(&mut self) -> Result<bool, Fault> {
        for _ in 0..MESSAGES_MAX {
            if self.outbox.len() >= OUTBOX_BUSY {
                break;
            }
            let received = match self.link.receive() {
                Ok(received) => received,
                Err(LinkError::WouldBlock) => return Ok(true),
                Err(LinkError::Closed) => return Ok(false),
                Err(LinkError::Malformed(what)) => return Err(Fault::Illegal(what)),
                Err(error) => return Err(error.into()),
            };
            self.obey(received)?;
        }
        Ok(true)
    }

    fn obey(&mut self, received: Received<ToAudio>) -> Result<(), Fault> {
        let Received { message, mut descriptors, .. } = received;
        let wanted = match (&message, &self.source) {
            (ToAudio::Start(_), Source::Device(_)) => 1,
            (ToAudio::Start(_), Source::Pushed(_)) => 2,
            (ToAudio::Pause | ToAudio::Resume | ToAudio::Renew { .. } | ToAudio::Stop, _) => 0,
        };
        if descriptors.len() != wanted {
            return Err(Fault::Illegal("descriptors that don't belong to it, or too few"));
        }
        match (message, self.phase) {
            // The end was on its way already when the server said this.
            (_, Phase::Over { .. }) => Ok(()),
            (ToAudio::Start(start), Phase::Waiting) => {
                let pushed = descriptors.split_off(1).pop();
                let stream = descriptors.pop().ok_or(Fault::Illegal("no stream"))?;
                self.start(start, stream, pushed)
            }
            (ToAudio::Stop, _) => {
                self.end(CaptureEnd::Asked);
                Ok(())
            }
            (ToAudio::Start(_), _) => Err(Fault::Illegal("a second start")),
            (_, Phase::Waiting) => Err(Fault::Illegal("a message before the start")),
            (ToAudio::Renew { until_boot_ms }, _) => {
                self.set_until(until_boot_ms);
                Ok(())
            }
            (ToAudio::Pause, Phase::Running | Phase::Draining) => {
                self.pause();
                Ok(())
            }
            (ToAudio::Resume, Phase::Paused) => {
                self.open(false);
                Ok(())
            }
            (ToAudio::Pause, _) => Err(Fault::Illegal("a pause of what does not run")),
            (ToAudio::Resume, _) => Err(Fault::Illegal("a resume of what is not paused")),
        }
    }

    fn start(&mut self, start: CaptureStart, socket: OwnedFd, pushed: Option<OwnedFd>) -> Result<(), Fault> {
        if !(AUDIO_RING_FRAMES_MIN..=AUDIO_RING_FRAMES_MAX).contains(&start.ring_frames) {
            return Err(Fault::Illegal("a ring of no length that is taken"));
        }
        nonblocking_socket(socket.as_fd())?;
        let (format, inlet) = match (&mut self.source, start.pushed, pushed) {
            (Source::Device(device), None, None) => (Ok(device.format), None),
            (Source::Pushed(space), Some(pushed), Some(from)) => {
                if pushed.head.0.len() > PUSHED_HEAD_BYTES_MAX {
                    return Err(Fault::Illegal("too many bytes of a pushed stream"));
                }
                nonblocking_socket(from.as_fd())?;
                let space = space.take().ok_or(Fault::Illegal("a second start"))?;
                let format = Format::new(pushed.rate, pushed.channels);
                (format, Some(format.and_then(|_| Inlet::new(from, pushed, space))))
            }
            _ => return Err(Fault::Illegal("a pushed stream where none is, or none where one is")),
        };
        self.set_until(start.until_boot_ms);
        self.shared.lock().prepare(start.ring_frames, start.silence_ms);
        match (format, inlet.transpose(), random()) {
            (Ok(format), Ok(inlet), Some(random)) => {
                let outlet = Outlet::new(socket, start.reader);
                self.stream = Some(Streaming { outlet, format, transforms: start.transforms, random, inlet });
                self.open(true);
            }
            (Err(error), _, _) | (_, Err(error), _) => self.end(CaptureEnd::Failed(error)),
            (_, _, None) => self.end(CaptureEnd::Failed(AudioError::Interface)),
        }
        Ok(())
    }

    fn set_until(&mut self, until_boot_ms: u64) {
        self.until_us = until_boot_ms.saturating_mul(1_000);
        self.shared.lock().set_until(self.until_us);
    }

    fn open(&mut self, first: bool) {
        self.phase = Phase::Opening { first, until_us: boot_us() + STREAM_HANDSHAKE_MS_MAX * 1_000 };
        let (Some(stream), Some(key)) = (&mut self.stream, &self.key) else { return };
        if stream.outlet.open(key).is_err() {
            self.end(CaptureEnd::Failed(AudioError::ReaderGone));
        }
    }

    fn pause(&mut self) {
        self.shared.lock().halt();
        if let Some(stream) = &mut self.stream {
            stream.outlet.close(Close::Pause);
        }
        if let Source::Device(device) = &self.source {
            device.pause();
        }
        self.phase = Phase::Paused;
        self.say(FromAudio::Paused);
    }

    fn say(&mut self, message: FromAudio) {
        assert!(
            self.outbox.len() < OUTBOX_MAX,
            "each message of the server has a few answers, and none is taken while many wait"
        );
        self.outbox.push_back(message);
    }

    /// As much as the server takes now; whether it is still there.
    fn send(&mut self) -> Result<bool, Fault> {
        while let Some(message) = self.outbox.front() {
            match self.link.send(message, &[]) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(LinkError::WouldBlock) => return Ok(true),
                // Its end is read next.
                Err(LinkError::Closed) => {
                    self.outbox.clear();
                    return Ok(!matches!(self.phase, Phase::Over { .. }));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

fn nonblocking_socket(socket: BorrowedFd<'_>) -> Result<(), Fault> {
    let facts = fstat(socket).map_err(|error| Fault::Os { call: "fstat", error })?;
    if FileType::from_raw_mode(facts.st_mode) != FileType::Socket {
        return Err(Fault::Illegal("a descriptor that is no socket"));
    }
    set_nonblocking(socket).map_err(|error| Fault::Os { call: "fcntl", error })
}

fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

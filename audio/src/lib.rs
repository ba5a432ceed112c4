//! One live capture in a process of its own: from a microphone, or a stream that somebody pushes, to encrypted frames of
//! 20 ms for one reader.
//!
//! ```text
//! main       enters the sandbox, opens the device, seals itself
//! serve      the main thread: the server's link, the reader's stream, the clock
//! device     a microphone by cpal, with its own threads      inlet, framing, pushed    a pushed one
//! capture    what those threads share, behind one lock
//! pipeline   mix down -> resample -> transform -> frames     resample, transform, meter, losses
//! ring       frames that wait, in locked memory              outlet           encrypts and sends them
//! ```
//!
//! # What ends a capture
//! Its time (CLOCK_BOOTTIME), a word of the server, the end of the server's link, the reader's end, a failure of the source.
//! Whichever it is, one lock is taken, after which no sample is; then what is left of the sound is overwritten: the ring,
//! the chunks on their way, the filters' memories and the stream's keys. What is freed is overwritten by the allocator.
//!
//! # PipeWire
//! It speaks PulseAudio's protocol (`pipewire-pulse`), and by that it is used. Its own interface is not linked: it would
//! need its library and clang to build, and its plugins in the sandbox.

pub mod capture;
pub mod clock;
pub mod device;
pub mod format;
pub mod framing;
pub mod inlet;
pub mod losses;
pub mod meter;
pub mod outlet;
pub mod pipeline;
pub mod pushed;
pub mod resample;
pub mod ring;
pub mod serve;
pub mod transform;

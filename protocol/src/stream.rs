//! The encrypted stream of sound, straight from an audio program to its reader.
//!
//! ```text
//! audio                               reader (a worker)
//!   handshake 1               ->                 Noise KK: each end knows the other's public key beforehand
//!                             <-  handshake 2
//!   Frame*                    ->                 each packet one message, encrypted
//!   Paused                    ->                 both forget the keys; what comes next is a handshake again
//!   End                       ->                 the last; a socket that closes without it was cut off
//! ```
//!
//! The socket is a pair that the server made ([`stream_pair`]); it hands an end to each and keeps none. Each end makes a
//! key after its own lock-down ([`StreamKey`]); the private half never leaves it, the public halves go through the server.
//!
//! # What this holds off, and what it does not
//! A server that only passes things on can't hear the stream, later either: each handshake makes fresh keys, which both
//! ends forget. Nor can anybody who gets hold of a copy of the socket, of the server's memory or of its log, and what such
//! a one puts in, changes, repeats or takes out ends the stream. A server that lies can hear it: it carries the public
//! keys, so it could give each end one of its own and stand between them, as it could start another program as the reader.
//! The stream protects from a server that leaks, not from one that was taken over.
//!
//! Noise: <https://noiseprotocol.org/noise.html>, `Noise_KK_25519_ChaChaPoly_SHA256` with [`crate::DIGEST`] as prologue.

use crate::DIGEST;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::{Deserialize, Serialize};
use snow::{Builder, HandshakeState, TransportState};
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Samples a second, one channel.
pub const STREAM_RATE: u32 = 16_000;
/// Samples of a frame: 20 ms.
pub const FRAME_SAMPLES: usize = 320;
/// The length of a frame in microseconds.
pub const FRAME_US: u64 = 20_000;
/// A frame before it is encrypted: its kind, number and time, and its samples as signed numbers of two bytes, little end
/// first.
pub const FRAME_BYTES: usize = FRAME_HEAD_BYTES + 2 * FRAME_SAMPLES;
/// The longest packet in bytes, handshakes included.
pub const STREAM_PACKET_BYTES_MAX: usize = 1024;
/// Bytes of each direction's socket buffer, which the kernel doubles: about half a second of frames that are neither in
/// the sender's ring nor with the reader.
const SOCKET_BYTES: usize = 16 * 1024;

const FRAME_HEAD_BYTES: usize = 17;
const PATTERN: &str = "Noise_KK_25519_ChaChaPoly_SHA256";
const FRAME: u8 = 0;
const PAUSED: u8 = 1;
const END: u8 = 2;

/// A public key of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StreamPublic(pub [u8; 32]);

/// An end's own key.
pub struct StreamKey {
    private: zeroize::Zeroizing<Vec<u8>>,
    public: StreamPublic,
}

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A packet that the peer did not make, that came twice, out of order, or after one that is missing.
    #[error("a packet was forged, changed, repeated or left out")]
    Forged,
    /// A genuine packet that says nothing legal.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// The socket closed before the end was said.
    #[error("the stream was cut off")]
    CutOff,
    /// A non-blocking socket has nothing, or no room, now.
    #[error("the stream would block")]
    WouldBlock,
    /// No key could be made, or a public key is none.
    #[error("the key is none")]
    Key,
    /// The host refused.
    #[error("the stream's socket failed")]
    Os(#[from] Errno),
}

/// The two ends of a stream's socket: for the audio program, and for the reader. Both close-on-exec and not blocking, with
/// small buffers, so that a slow reader is noticed soon.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&pair.0, &pair.1] {
        sockopt::set_socket_send_buffer_size(end, SOCKET_BYTES)?;
    }
    Ok(pair)
}

impl StreamKey {
    /// A fresh one, by the kernel's random numbers.
    ///
    /// # Errors
    /// [`StreamError::Key`] where there are none.
    pub fn generate() -> Result<Self, StreamError> {
        let pair = builder()?.generate_keypair().map_err(|_| StreamError::Key)?;
        let public = pair.public.try_into().map_err(|_| StreamError::Key)?;
        Ok(Self { private: pair.private.into(), public: StreamPublic(public) })
    }

    /// The half that the other end is told.
    pub fn public(&self) -> StreamPublic {
        self.public
    }
}

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamKey").field("public", &self.public).finish_non_exhaustive()
    }
}

fn builder<'a>() -> Result<Builder<'a>, StreamError> {
    Ok(Builder::new(PATTERN.parse().map_err(|_| StreamError::Key)?))
}

/// The state of one end's handshake.
fn handshake(key: &StreamKey, peer: StreamPublic, initiator: bool) -> Result<HandshakeState, StreamError> {
    let wrong = |_| StreamError::Key;
    let builder = builder()?.prologue(DIGEST.as_bytes()).map_err(wrong)?;
    let builder = builder.local_private_key(&key.private).map_err(wrong)?;
    let builder = builder.remote_public_key(&peer.0).map_err(wrong)?;
    if initiator { builder.build_initiator() } else { builder.build_responder() }.map_err(wrong)
}

/// The sender's handshake, half done.
pub struct StreamOpening(HandshakeState);

impl StreamOpening {
    /// Begins it, with the packet that goes to the reader.
    ///
    /// # Errors
    /// [`StreamError::Key`].
    pub fn begin(key: &StreamKey, reader: StreamPublic) -> Result<(Self, Vec<u8>), StreamError> {
        let mut state = handshake(key, reader, true)?;
        let mut packet = vec![0; STREAM_PACKET_BYTES_MAX];
        let length = state.write_message(&[], &mut packet).map_err(|_| StreamError::Key)?;
        packet.truncate(length);
        Ok((Self(state), packet))
    }

    /// Ends it with the reader's answer.
    ///
    /// # Errors
    /// [`StreamError::Forged`]: whoever answered has not the reader's key.
    pub fn finish(mut self, answer: &[u8]) -> Result<StreamSender, StreamError> {
        let mut payload = [0; STREAM_PACKET_BYTES_MAX];
        self.0.read_message(answer, &mut payload).map_err(|_| StreamError::Forged)?;
        Ok(StreamSender(self.0.into_transport_mode().map_err(|_| StreamError::Forged)?))
    }
}

impl fmt::Debug for StreamOpening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamOpening")
    }
}

/// The sender's end of an open stream.
pub struct StreamSender(TransportState);

impl fmt::Debug for StreamSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamSender")
    }
}

/// Writes what a frame says before its samples. `sequence` counts frames since the first, with those that were dropped;
/// `captured_us` is when its last sample was captured, on CLOCK_BOOTTIME.
pub fn write_frame_head(frame: &mut [u8; FRAME_BYTES], sequence: u64, captured_us: u64) {
    frame[0] = FRAME;
    frame[1..9].copy_from_slice(&sequence.to_le_bytes());
    frame[9..FRAME_HEAD_BYTES].copy_from_slice(&captured_us.to_le_bytes());
}

/// Where a frame's samples lie: two bytes each.
pub fn frame_samples(frame: &mut [u8; FRAME_BYTES]) -> &mut [u8] {
    &mut frame[FRAME_HEAD_BYTES..]
}

/// When a frame's last sample was captured.
pub fn frame_captured_us(frame: &[u8; FRAME_BYTES]) -> u64 {
    u64::from_le_bytes(frame[9..FRAME_HEAD_BYTES].try_into().expect("eight bytes"))
}

impl StreamSender {
    /// Encrypts a frame into a packet; how many bytes of it.
    ///
    /// # Panics
    /// After 2^64 frames.
    pub fn seal_frame(
        &mut self,
        frame: &[u8; FRAME_BYTES],
        packet: &mut [u8; STREAM_PACKET_BYTES_MAX],
    ) -> usize {
        self.seal(frame, packet)
    }

    /// The last packet before the sender forgets its keys.
    pub fn seal_pause(&mut self, packet: &mut [u8; STREAM_PACKET_BYTES_MAX]) -> usize {
        self.seal(&[PAUSED], packet)
    }

    /// The last packet.
    pub fn seal_end(&mut self, packet: &mut [u8; STREAM_PACKET_BYTES_MAX]) -> usize {
        self.seal(&[END], packet)
    }

    fn seal(&mut self, plain: &[u8], packet: &mut [u8; STREAM_PACKET_BYTES_MAX]) -> usize {
        self.0.write_message(plain, packet).expect("a packet holds a frame, and there are nonces for ages")
    }
}

/// What a packet says.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// A handshake; the answer goes back.
    Opened {
        /// The packet for the sender.
        answer: Vec<u8>,
    },
    /// A frame.
    Frame(StreamFrame),
    /// Nothing comes until it is opened again.
    Paused,
    /// Nothing comes any more.
    Ended,
}

/// 20 ms of sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFrame {
    /// Counted from 0, with those that were dropped before they were sent.
    pub sequence: u64,
    /// When its last sample was captured: CLOCK_BOOTTIME in microseconds.
    pub captured_us: u64,
    /// Frames that are missing between the one before and this one.
    pub gap: u64,
    /// The samples.
    pub samples: Box<[i16; FRAME_SAMPLES]>,
}

/// What a reader has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStatistics {
    /// Frames that came.
    pub frames: u64,
    /// Frames that did not, by their numbers.
    pub missing: u64,
    /// How unevenly they came, in microseconds.
    pub jitter_us: u32,
    /// From the capture of a frame's last sample until the frame was here: of the last one, in microseconds.
    pub delay_us: u32,
}

/// The reader's end: packets in, events out. It reads no socket and no clock.
pub struct StreamReceiver {
    key: StreamKey,
    sender: StreamPublic,
    state: Receiving,
    next: u64,
    statistics: StreamStatistics,
    jitter: Jitter,
}

enum Receiving {
    Closed,
    Open(Box<TransportState>),
    Ended,
}

impl fmt::Debug for StreamReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReceiver").field("statistics", &self.statistics).finish_non_exhaustive()
    }
}

impl StreamReceiver {
    /// Waits for the handshake of who has this public key.
    pub fn new(key: StreamKey, sender: StreamPublic) -> Self {
        let (statistics, jitter) = (StreamStatistics::default(), Jitter::default());
        Self { key, sender, state: Receiving::Closed, next: 0, statistics, jitter }
    }

    /// What a packet says that came at `now_us`. After an error nothing of the stream is to be believed any more.
    ///
    /// # Errors
    /// [`StreamError::Forged`], [`StreamError::Malformed`], [`StreamError::Key`].
    pub fn take(&mut self, packet: &[u8], now_us: u64) -> Result<StreamEvent, StreamError> {
        match std::mem::replace(&mut self.state, Receiving::Ended) {
            Receiving::Closed => self.open(packet),
            Receiving::Open(mut keys) => {
                let mut plain = zeroize::Zeroizing::new([0; STREAM_PACKET_BYTES_MAX]);
                let length = keys.read_message(packet, plain.as_mut()).map_err(|_| StreamError::Forged)?;
                self.obey(&plain[..length], keys, now_us)
            }
            Receiving::Ended => Err(StreamError::Malformed("a packet after the end")),
        }
    }

    /// What was seen so far.
    pub fn statistics(&self) -> StreamStatistics {
        self.statistics
    }

    fn open(&mut self, packet: &[u8]) -> Result<StreamEvent, StreamError> {
        let mut state = handshake(&self.key, self.sender, false)?;
        let mut answer = vec![0; STREAM_PACKET_BYTES_MAX];
        state.read_message(packet, &mut answer).map_err(|_| StreamError::Forged)?;
        let length = state.write_message(&[], &mut answer).map_err(|_| StreamError::Key)?;
        answer.truncate(length);
        let keys = state.into_transport_mode().map_err(|_| StreamError::Forged)?;
        self.state = Receiving::Open(Box::new(keys));
        self.jitter.forget_last();
        Ok(StreamEvent::Opened { answer })
    }

    fn obey(
        &mut self,
        plain: &[u8],
        keys: Box<TransportState>,
        now_us: u64,
    ) -> Result<StreamEvent, StreamError> {
        match plain {
            [PAUSED] => {
                self.state = Receiving::Closed;
                Ok(StreamEvent::Paused)
            }
            [END] => Ok(StreamEvent::Ended),
            [FRAME, rest @ ..] => {
                let frame = self.frame(rest, now_us)?;
                self.state = Receiving::Open(keys);
                Ok(StreamEvent::Frame(frame))
            }
            _ => Err(StreamError::Malformed("an unknown kind")),
        }
    }

    fn frame(&mut self, rest: &[u8], now_us: u64) -> Result<StreamFrame, StreamError> {
        let (sequence, rest) = number(rest)?;
        let (captured_us, rest) = number(rest)?;
        if rest.len() != 2 * FRAME_SAMPLES {
            return Err(StreamError::Malformed("a frame of another length"));
        }
        let gap =
            sequence.checked_sub(self.next).ok_or(StreamError::Malformed("a number that was before"))?;
        self.next = sequence.checked_add(1).ok_or(StreamError::Malformed("no number after this one"))?;
        let mut samples = Box::new([0; FRAME_SAMPLES]);
        for (sample, bytes) in samples.iter_mut().zip(rest.chunks_exact(2)) {
            *sample = i16::from_le_bytes([bytes[0], bytes[1]]);
        }
        self.statistics.frames += 1;
        self.statistics.missing += gap;
        self.statistics.jitter_us = self.jitter.arrived(captured_us, now_us);
        self.statistics.delay_us = u32::try_from(now_us.saturating_sub(captured_us)).unwrap_or(u32::MAX);
        Ok(StreamFrame { sequence, captured_us, gap, samples })
    }
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8]), StreamError> {
    let (number, rest) =
        bytes.split_first_chunk::<8>().ok_or(StreamError::Malformed("a frame of another length"))?;
    Ok((u64::from_le_bytes(*number), rest))
}

/// How unevenly things arrive: the smoothed difference of transit times, as RFC 3550, section 6.4.1, has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jitter {
    last_transit_us: Option<i64>,
    /// Times 16.
    scaled_us: i64,
}

impl Jitter {
    /// Something that was due at one time came at another, both by any clock in microseconds; the jitter now.
    pub fn arrived(&mut self, due_us: u64, now_us: u64) -> u32 {
        let transit = now_us.wrapping_sub(due_us).cast_signed();
        if let Some(last) = self.last_transit_us.replace(transit) {
            let difference = transit.wrapping_sub(last).saturating_abs().min(i64::from(u32::MAX));
            self.scaled_us += difference - (self.scaled_us + 8) / 16;
        }
        u32::try_from(self.scaled_us / 16).unwrap_or(u32::MAX)
    }

    /// What comes next is not compared with what came last.
    pub fn forget_last(&mut self) {
        self.last_transit_us = None;
    }
}

/// The reader's end of a stream with its socket.
#[derive(Debug)]
pub struct StreamReader {
    socket: OwnedFd,
    receiver: StreamReceiver,
}

impl AsFd for StreamReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl StreamReader {
    /// Takes the reader's end of [`stream_pair`].
    pub fn new(socket: OwnedFd, key: StreamKey, sender: StreamPublic) -> Self {
        Self { socket, receiver: StreamReceiver::new(key, sender) }
    }

    /// The next event, at `now_us` of CLOCK_BOOTTIME; a handshake is answered. After an error, close it.
    ///
    /// # Errors
    /// Any [`StreamError`]; [`StreamError::WouldBlock`] alone ends nothing.
    pub fn receive(&mut self, now_us: u64) -> Result<StreamEvent, StreamError> {
        let mut packet = [0; STREAM_PACKET_BYTES_MAX];
        let length = receive_packet(&self.socket, &mut packet)?;
        let event = self.receiver.take(&packet[..length], now_us)?;
        if let StreamEvent::Opened { answer } = &event {
            send_packet(&self.socket, answer)?;
        }
        Ok(event)
    }

    /// What was seen so far.
    pub fn statistics(&self) -> StreamStatistics {
        self.receiver.statistics()
    }
}

/// Sends one packet, whole or not at all.
///
/// # Errors
/// [`StreamError::WouldBlock`], [`StreamError::CutOff`], [`StreamError::Os`].
pub fn send_packet(socket: impl AsFd, packet: &[u8]) -> Result<(), StreamError> {
    loop {
        let none = &mut SendAncillaryBuffer::default();
        match sendmsg(&socket, &[IoSlice::new(packet)], none, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(StreamError::WouldBlock),
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(StreamError::CutOff),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one packet; how long it is. Descriptors with it are closed.
///
/// # Errors
/// [`StreamError::WouldBlock`], [`StreamError::CutOff`], [`StreamError::Malformed`], [`StreamError::Os`].
pub fn receive_packet(
    socket: impl AsFd,
    packet: &mut [u8; STREAM_PACKET_BYTES_MAX],
) -> Result<usize, StreamError> {
    loop {
        let none = &mut RecvAncillaryBuffer::default();
        let parts = &mut [IoSliceMut::new(packet)];
        match recvmsg(&socket, parts, none, RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC) {
            Ok(got) if got.flags.contains(ReturnFlags::TRUNC) => {
                return Err(StreamError::Malformed("a packet that is too long"));
            }
            Ok(got) if got.bytes == 0 => return Err(StreamError::CutOff),
            Ok(got) => return Ok(got.bytes),
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(Errno::AGAIN) => return Err(StreamError::WouldBlock),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (StreamSender, StreamReceiver) {
        let (ours, theirs) = (StreamKey::generate().unwrap(), StreamKey::generate().unwrap());
        let (opening, packet) = StreamOpening::begin(&ours, theirs.public()).unwrap();
        let mut receiver = StreamReceiver::new(theirs, ours.public());
        let StreamEvent::Opened { answer } = receiver.take(&packet, 0).unwrap() else {
            panic!("a handshake")
        };
        (opening.finish(&answer).unwrap(), receiver)
    }

    fn frame(sequence: u64, captured_us: u64, sample: i16) -> [u8; FRAME_BYTES] {
        let mut frame = [0; FRAME_BYTES];
        write_frame_head(&mut frame, sequence, captured_us);
        frame_samples(&mut frame)
            .chunks_exact_mut(2)
            .for_each(|two| two.copy_from_slice(&sample.to_le_bytes()));
        frame
    }

    fn sealed(sender: &mut StreamSender, sequence: u64) -> Vec<u8> {
        let mut packet = [0; STREAM_PACKET_BYTES_MAX];
        let length = sender.seal_frame(&frame(sequence, sequence * FRAME_US, -5), &mut packet);
        packet[..length].to_vec()
    }

    #[test]
    fn frames_arrive_as_they_were_and_gaps_are_counted() {
        let (mut sender, mut receiver) = opened();
        for (sequence, gap) in [(0, 0), (1, 0), (5, 3), (6, 0)] {
            let packet = sealed(&mut sender, sequence);
            let event = receiver.take(&packet, sequence * FRAME_US + 700).unwrap();
            let StreamEvent::Frame(frame) = event else { panic!("{event:?}") };
            assert_eq!((frame.sequence, frame.gap, frame.captured_us), (sequence, gap, sequence * FRAME_US));
            assert_eq!(*frame.samples, [-5; FRAME_SAMPLES]);
        }
        let expected = StreamStatistics { frames: 4, missing: 3, jitter_us: 0, delay_us: 700 };
        assert_eq!(receiver.statistics(), expected);
    }

    #[test]
    fn what_was_changed_repeated_or_left_out_ends_the_stream() {
        let changes: [fn(&mut Vec<Vec<u8>>); 5] = [
            |packets| packets[1][40] ^= 1,
            |packets| packets.swap(1, 2),
            |packets| packets.insert(1, packets[0].clone()),
            |packets| drop(packets.remove(1)),
            |packets| packets[1].truncate(20),
        ];
        for change in changes {
            let (mut sender, mut receiver) = opened();
            let mut packets: Vec<_> = (0..3).map(|sequence| sealed(&mut sender, sequence)).collect();
            change(&mut packets);
            let ends: Vec<_> = packets.iter().map(|packet| receiver.take(packet, 0)).collect();
            assert!(matches!(ends[0], Ok(StreamEvent::Frame(_))));
            assert!(matches!(ends[1], Err(StreamError::Forged)), "{:?}", ends[1]);
            assert!(ends[2..].iter().all(|end| matches!(end, Err(StreamError::Malformed(_)))));
        }
    }

    #[test]
    fn a_stranger_s_handshake_is_refused_at_either_end() {
        let [ours, theirs, stranger] = [0; 3].map(|_| StreamKey::generate().unwrap());
        let (_, packet) = StreamOpening::begin(&stranger, theirs.public()).unwrap();
        let mut receiver = StreamReceiver::new(theirs, ours.public());
        assert!(matches!(receiver.take(&packet, 0), Err(StreamError::Forged)));
        let reader = StreamKey::generate().unwrap();
        let (opening, packet) = StreamOpening::begin(&ours, reader.public()).unwrap();
        let answer = packet.iter().map(|byte| !byte).collect::<Vec<_>>();
        assert!(matches!(opening.finish(&answer), Err(StreamError::Forged)));
    }

    #[test]
    fn after_a_pause_the_keys_are_others() {
        let (ours, theirs) = (StreamKey::generate().unwrap(), StreamKey::generate().unwrap());
        let reader = theirs.public();
        let mut receiver = StreamReceiver::new(theirs, ours.public());
        let mut old = Vec::new();
        for round in 0..2 {
            let (opening, packet) = StreamOpening::begin(&ours, reader).unwrap();
            let StreamEvent::Opened { answer } = receiver.take(&packet, 0).unwrap() else { panic!("closed") };
            let mut sender = opening.finish(&answer).unwrap();
            let sent = sealed(&mut sender, round);
            assert!(matches!(receiver.take(&sent, 0), Ok(StreamEvent::Frame(_))));
            assert_ne!(sent, old);
            old = sent;
            let mut packet = [0; STREAM_PACKET_BYTES_MAX];
            let length = sender.seal_pause(&mut packet);
            assert_eq!(receiver.take(&packet[..length], 0).unwrap(), StreamEvent::Paused);
        }
        assert!(receiver.take(&old, 0).is_err());
    }

    #[test]
    fn an_end_is_told_from_a_cut() {
        let (ours, theirs) = stream_pair().unwrap();
        let (key, peer) = (StreamKey::generate().unwrap(), StreamKey::generate().unwrap());
        let (opening, packet) = StreamOpening::begin(&key, peer.public()).unwrap();
        let mut reader = StreamReader::new(theirs, peer, key.public());
        assert!(matches!(reader.receive(0), Err(StreamError::WouldBlock)));
        send_packet(&ours, &packet).unwrap();
        assert!(matches!(reader.receive(0), Ok(StreamEvent::Opened { .. })));
        let mut packet = [0; STREAM_PACKET_BYTES_MAX];
        let length = receive_packet(&ours, &mut packet).unwrap();
        let mut sender = opening.finish(&packet[..length]).unwrap();
        let length = sender.seal_end(&mut packet);
        send_packet(&ours, &packet[..length]).unwrap();
        assert_eq!(reader.receive(0).unwrap(), StreamEvent::Ended);
        drop(ours);
        assert!(matches!(reader.receive(0), Err(StreamError::CutOff)));
    }

    #[test]
    fn jitter_follows_how_unevenly_things_come() {
        let mut even = Jitter::default();
        assert_eq!((0..100).map(|at| even.arrived(at * 20_000, at * 20_000 + 777)).max(), Some(0));
        let mut uneven = Jitter::default();
        let last = (0..400).map(|at| uneven.arrived(at * 20_000, at * 20_000 + at % 2 * 4_000)).last();
        assert!((3_900..=4_000).contains(&last.unwrap()), "{last:?}");
    }
}

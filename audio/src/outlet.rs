//! The sender's end of the encrypted stream: its socket, its keys, and packets that wait for room.

use crate::ring::FrameRing;
use ringfence_protocol::{
    STREAM_PACKET_BYTES_MAX, StreamError, StreamKey, StreamOpening, StreamPublic, StreamSender,
    frame_captured_us, receive_packet, send_packet,
};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Packets that wait: a frame, the pause behind it, the handshake behind that, and the end.
const PACKETS_MAX: usize = 4;

/// One stream.
#[derive(Debug)]
pub struct Outlet {
    socket: OwnedFd,
    reader: StreamPublic,
    state: State,
    /// Encrypted, so that they can't be taken back.
    waiting: VecDeque<Vec<u8>>,
    sent: u64,
    delay_us: u64,
}

#[derive(Debug)]
enum State {
    Closed,
    Opening(Box<StreamOpening>),
    Open(Box<StreamSender>),
}

/// What the reader's socket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// The stream is open: the reader has its key.
    Open,
}

/// How a stream is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// It may be opened again.
    Pause,
    /// Nothing comes any more.
    End,
}

impl Outlet {
    /// On this socket, to who has this key. It is closed yet.
    pub fn new(socket: OwnedFd, reader: StreamPublic) -> Self {
        Self { socket, reader, state: State::Closed, waiting: VecDeque::new(), sent: 0, delay_us: 0 }
    }

    /// Begins the handshake.
    ///
    /// # Errors
    /// The reader's key is none, or the socket failed.
    pub fn open(&mut self, key: &StreamKey) -> Result<(), StreamError> {
        let (opening, packet) = StreamOpening::begin(key, self.reader)?;
        self.state = State::Opening(Box::new(opening));
        self.queue(packet);
        self.flush()
    }

    /// Reads what the reader says: its half of a handshake, and nothing else.
    ///
    /// # Errors
    /// It is closed, or says anything else.
    pub fn hear(&mut self) -> Result<Heard, StreamError> {
        let mut packet = [0; STREAM_PACKET_BYTES_MAX];
        let length = match receive_packet(&self.socket, &mut packet) {
            Ok(length) => length,
            Err(StreamError::WouldBlock) => return Ok(Heard::Nothing),
            Err(error) => return Err(error),
        };
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Opening(opening) => {
                self.state = State::Open(Box::new(opening.finish(&packet[..length])?));
                Ok(Heard::Open)
            }
            State::Closed | State::Open(_) => Err(StreamError::Malformed("a reader says nothing")),
        }
    }

    /// Sends as many frames as the socket takes.
    ///
    /// # Errors
    /// The reader is gone.
    pub fn send(&mut self, ring: &mut FrameRing, now_us: u64) -> Result<(), StreamError> {
        self.flush()?;
        while self.waiting.is_empty() {
            let (State::Open(sender), Some(frame)) = (&mut self.state, ring.front()) else { break };
            let mut packet = [0; STREAM_PACKET_BYTES_MAX];
            let length = sender.seal_frame(frame, &mut packet);
            self.delay_us = now_us.saturating_sub(frame_captured_us(frame));
            ring.pop();
            self.sent += 1;
            self.queue(packet[..length].to_vec());
            self.flush()?;
        }
        Ok(())
    }

    /// Says that nothing comes for now, or any more, and forgets the keys.
    pub fn close(&mut self, how: Close) {
        if let State::Open(mut sender) = std::mem::replace(&mut self.state, State::Closed) {
            let mut packet = [0; STREAM_PACKET_BYTES_MAX];
            let length = match how {
                Close::Pause => sender.seal_pause(&mut packet),
                Close::End => sender.seal_end(&mut packet),
            };
            self.queue(packet[..length].to_vec());
            // A reader that is gone is noticed when it is heard.
            let _sent = self.flush();
        }
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// The reader is gone.
    pub fn flush(&mut self) -> Result<(), StreamError> {
        while let Some(packet) = self.waiting.front() {
            match send_packet(&self.socket, packet) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(StreamError::WouldBlock) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether a packet waits for room.
    pub fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Frames sent, and how old the last one was.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent, self.delay_us)
    }

    fn queue(&mut self, packet: Vec<u8>) {
        assert!(self.waiting.len() < PACKETS_MAX, "no frame is sealed while a packet waits");
        self.waiting.push_back(packet);
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

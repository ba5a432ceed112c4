//! A typed socket: one packet is one message, with the descriptors that belong to it.

use crate::{DESCRIPTORS_MAX, MESSAGE_BYTES_MAX};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// One end of a link: sends `S`, receives `R`.
#[derive(Debug)]
pub struct Link<S, R> {
    socket: OwnedFd,
    messages: PhantomData<fn(S) -> R>,
}

/// What arrived in one packet.
#[derive(Debug)]
pub struct Received<R> {
    /// The message.
    pub message: R,
    /// Its descriptors, all close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// The sender's pid as the kernel states it, where this end asked for credentials.
    pub pid: Option<i32>,
}

/// A message that may be followed by bytes in its packet: they are not encoded, so that nobody copies them.
pub trait CarriesBytes {
    /// How many follow.
    fn carried(&self) -> usize;
}

/// Where packets are received, again and again.
#[derive(Debug)]
pub struct Packet {
    buffer: Box<[u8]>,
    carried: Range<usize>,
}

impl Default for Packet {
    fn default() -> Self {
        Self { buffer: vec![0; MESSAGE_BYTES_MAX].into(), carried: 0..0 }
    }
}

impl Packet {
    /// The bytes that the last message carried.
    pub fn carried(&self) -> &[u8] {
        &self.buffer[self.carried.clone()]
    }
}

/// Why a message could not be sent or received. The peer's faults are told apart from the host's.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end is closed.
    #[error("the link is closed")]
    Closed,
    /// A non-blocking end has no message, or no room for one, now.
    #[error("the link would block")]
    WouldBlock,
    /// The peer's packet is too long, carries too many descriptors, or does not decode.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// Our own message is longer than `MESSAGE_BYTES_MAX` or carries more than `DESCRIPTORS_MAX`.
    #[error("a message of {bytes} bytes with {descriptors} descriptors is over the link's bounds")]
    TooLarge {
        /// Encoded length.
        bytes: usize,
        /// How many.
        descriptors: usize,
    },
    /// The host refused.
    #[error("the link's socket failed")]
    Os(#[from] Errno),
}

/// A fresh pair of sockets for a link, both close-on-exec and blocking.
pub fn connected_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

impl<S, R> AsFd for Link<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<S, R> AsRawFd for Link<S, R> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl<S: Serialize, R: DeserializeOwned> Link<S, R> {
    /// Takes one end of [`connected_pair`]. Whether calls block is the socket's own flag.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, messages: PhantomData }
    }

    /// Asks the kernel to state the sender's pid with every packet.
    pub fn receive_credentials(&self) -> Result<(), Errno> {
        sockopt::set_socket_passcred(&self.socket, true)
    }

    /// Sends one message. A full non-blocking socket is [`LinkError::WouldBlock`], with nothing sent.
    pub fn send(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        self.send_parts(message, &[], descriptors)
    }

    /// Sends one message with the bytes that it says it carries, as [`Link::send`].
    pub fn send_carrying(&self, message: &S, carried: &[u8]) -> Result<(), LinkError>
    where
        S: CarriesBytes,
    {
        assert_eq!(message.carried(), carried.len(), "a message says how many bytes it carries");
        self.send_parts(message, carried, &[])
    }

    fn send_parts(
        &self,
        message: &S,
        carried: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let message = postcard::to_stdvec(message).map_err(|_| LinkError::Malformed("our own message"))?;
        let bytes = message.len() + carried.len();
        if bytes > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(LinkError::TooLarge { bytes, descriptors: descriptors.len() });
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(
                control.push(SendAncillaryMessage::ScmRights(descriptors)),
                "the buffer holds DESCRIPTORS_MAX"
            );
        }
        loop {
            let parts = [IoSlice::new(&message), IoSlice::new(carried)];
            match sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    assert_eq!(sent, bytes, "a packet is sent whole or not at all");
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(LinkError::WouldBlock),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(error) => return Err(LinkError::Os(error)),
            }
        }
    }

    /// Receives one message. An empty non-blocking socket is [`LinkError::WouldBlock`].
    pub fn receive(&self) -> Result<Received<R>, LinkError> {
        let mut packet = Packet::default();
        let received = self.receive_packet(&mut packet)?;
        if !packet.carried().is_empty() {
            return Err(LinkError::Malformed("bytes after the message"));
        }
        Ok(received)
    }

    /// Receives one message and the bytes that it carries, which are in the packet until the next, as [`Link::receive`].
    pub fn receive_carried(&self, packet: &mut Packet) -> Result<Received<R>, LinkError>
    where
        R: CarriesBytes,
    {
        let received = self.receive_packet(packet)?;
        if packet.carried().len() != received.message.carried() {
            return Err(LinkError::Malformed("more or fewer bytes than the message says"));
        }
        Ok(received)
    }

    fn receive_packet(&self, packet: &mut Packet) -> Result<Received<R>, LinkError> {
        let Packet { buffer, carried } = packet;
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let packet = loop {
            let flags = RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
                Ok(packet) => break packet,
                // Said once where the other end closed before it had read all that we sent. What it sent itself is still
                // there, and after that its end.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => return Err(LinkError::WouldBlock),
                Err(error) => return Err(LinkError::Os(error)),
            }
        };
        let mut descriptors = Vec::new();
        let mut pid = None;
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
                RecvAncillaryMessage::ScmCredentials(credentials) => {
                    pid = Some(credentials.pid.as_raw_nonzero().get());
                }
                _ => return Err(LinkError::Malformed("an unknown control message")),
            }
        }
        if packet.flags.contains(ReturnFlags::CTRUNC) {
            return Err(LinkError::Malformed("too many descriptors"));
        }
        if packet.flags.contains(ReturnFlags::TRUNC) {
            return Err(LinkError::Malformed("longer than MESSAGE_BYTES_MAX"));
        }
        if packet.bytes == 0 {
            // A packet of no bytes and the end of the link read alike, and neither is a message.
            return Err(LinkError::Closed);
        }
        let (message, rest) = postcard::take_from_bytes(&buffer[..packet.bytes])
            .map_err(|_| LinkError::Malformed("it does not decode"))?;
        *carried = packet.bytes - rest.len()..packet.bytes;
        Ok(Received { message, descriptors, pid })
    }
}

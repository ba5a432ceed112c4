//! Memory that all open files use in turn: what is new for each step costs as much as reading it.

use ringfence_protocol::Packet;

/// What is received and what is read.
#[derive(Debug, Default)]
pub struct Buffers {
    /// The last request.
    pub packet: Packet,
    /// A step that is sent: its memory is the next one's.
    pub step: Vec<u8>,
}

//! One open file on its socket: requests in, replies out, in order, until its end.

use crate::buffers::Buffers;
use crate::clock::boot_ms;
use crate::reading::Reading;
use crate::root::Root;
use crate::writing::Writing;
use ringfence_protocol::{
    FILE_STEP_BYTES_MAX, FILE_STEPS_MAX, FileEnd, FileRefusal, FileReply, FileRequest, FileSideLink,
    LinkError, Packet,
};
use rustix::event::PollFlags;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

/// A file that is served.
#[derive(Debug)]
pub struct Served {
    socket: FileSideLink,
    work: Work,
    /// No step from this time of CLOCK_BOOTTIME on, in milliseconds.
    until_boot_ms: u64,
    /// Received and not begun, with the bytes to be written; with `reply` at most [`FILE_STEPS_MAX`].
    requests: VecDeque<(FileRequest, Vec<u8>)>,
    /// Done, and not taken by the socket yet.
    reply: Option<Reply>,
}

/// What is done with a file.
#[derive(Debug)]
pub enum Work {
    /// It is read.
    Read(Reading),
    /// New contents are written.
    Write(Writing),
}

/// A reply, and whether it is the last.
#[derive(Debug)]
struct Reply {
    message: FileReply,
    /// What the message carries.
    bytes: Vec<u8>,
    end: Option<FileEnd>,
}

impl Served {
    /// Serves on a socket that does not block.
    pub fn new(socket: FileSideLink, work: Work, until_boot_ms: u64) -> Self {
        Self { socket, work, until_boot_ms, requests: VecDeque::new(), reply: None }
    }

    /// When its time is over, on CLOCK_BOOTTIME in milliseconds.
    pub fn until_boot_ms(&self) -> u64 {
        self.until_boot_ms
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for: requests always, since too many are refused and not left waiting.
    pub fn awaited(&self) -> PollFlags {
        if self.reply.is_some() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
    }

    /// Takes what has come, then does and answers as much of it as the socket takes.
    pub fn turn(&mut self, root: &Root, buffers: &mut Buffers) -> Option<FileEnd> {
        if let Some(end) = self.receive(&mut buffers.packet) {
            return Some(end);
        }
        loop {
            if boot_ms() >= self.until_boot_ms {
                return Some(self.expire());
            }
            let reply = self.reply.take().or_else(|| self.next_reply(root, buffers))?;
            // The step itself takes time.
            if boot_ms() >= self.until_boot_ms && !is_committed(&reply) {
                return Some(self.expire());
            }
            match self.socket.send_carrying(&reply.message, &reply.bytes) {
                Ok(()) if reply.end.is_some() => return reply.end,
                Ok(()) => buffers.step = reply.bytes,
                Err(LinkError::WouldBlock) => {
                    self.reply = Some(reply);
                    return None;
                }
                Err(_) => return Some(reply.end.unwrap_or(FileEnd::HungUp)),
            }
        }
    }

    /// Says that the time is over, if the socket takes it at once.
    pub fn expire(&mut self) -> FileEnd {
        self.last_word(FileRefusal::Expired);
        FileEnd::Expired
    }

    /// What was done until now: bytes, and their digest.
    pub fn end(&self) -> (u64, [u8; 32]) {
        match &self.work {
            Work::Read(reading) => reading.end(),
            Work::Write(writing) => writing.end(),
        }
    }

    fn last_word(&self, refusal: FileRefusal) {
        // A peer that does not read is not waited for: the end of the socket says as much.
        let _ = self.socket.send(&FileReply::Refused(refusal), &[]);
    }

    fn receive(&mut self, packet: &mut Packet) -> Option<FileEnd> {
        loop {
            match self.socket.receive_carried(packet) {
                Ok(received) if !received.descriptors.is_empty() => return Some(FileEnd::Illegal),
                Ok(received) => self.requests.push_back((received.message, packet.carried().to_vec())),
                Err(LinkError::WouldBlock) => return None,
                Err(LinkError::Malformed(_)) => return Some(FileEnd::Illegal),
                Err(LinkError::Closed | LinkError::TooLarge { .. } | LinkError::Os(_)) => {
                    return Some(FileEnd::HungUp);
                }
            }
            if self.requests.len() + usize::from(self.reply.is_some()) > FILE_STEPS_MAX {
                self.last_word(FileRefusal::TooMany);
                return Some(FileEnd::Illegal);
            }
        }
    }

    fn next_reply(&mut self, root: &Root, buffers: &mut Buffers) -> Option<Reply> {
        let (request, bytes) = self.requests.pop_front()?;
        Some(match (&mut self.work, request) {
            (_, FileRequest::Read { length, .. }) if length as usize > FILE_STEP_BYTES_MAX => illegal(),
            (_, FileRequest::Write { length, .. }) if length as usize > FILE_STEP_BYTES_MAX => illegal(),
            (Work::Read(reading), FileRequest::Read { offset, length }) => {
                match reading.read(offset, length as usize, buffers) {
                    Ok((message, bytes)) => Reply { message, bytes, end: None },
                    Err(refusal) => answer(Err(refusal)),
                }
            }
            (Work::Read(_), FileRequest::Write { .. } | FileRequest::Commit) => {
                answer(Err(FileRefusal::ReadOnly))
            }
            (Work::Write(_), FileRequest::Read { .. }) => answer(Err(FileRefusal::WriteOnly)),
            (Work::Write(writing), FileRequest::Write { offset, .. }) => {
                answer(writing.write(offset, &bytes).map(|()| FileReply::Written { offset }))
            }
            (Work::Write(writing), FileRequest::Commit) => match writing.commit(root) {
                Ok(size) => Reply {
                    message: FileReply::Committed { size },
                    bytes: Vec::new(),
                    end: Some(FileEnd::Committed),
                },
                Err(refusal) => answer(Err(refusal)),
            },
        })
    }
}

fn answer(done: Result<FileReply, FileRefusal>) -> Reply {
    Reply { message: done.unwrap_or_else(FileReply::Refused), bytes: Vec::new(), end: None }
}

/// A step that is larger than any may be.
fn illegal() -> Reply {
    Reply { end: Some(FileEnd::Illegal), ..answer(Err(FileRefusal::TooLarge)) }
}

/// What has happened is said, even late.
fn is_committed(reply: &Reply) -> bool {
    reply.end == Some(FileEnd::Committed)
}

//! Files that are still being read: a job whose input is a granted file gets a socket on which the file's service answers.
//! Nothing here waits: other jobs go on meanwhile, and one that gets no bytes for too long fails.

use crate::jobs::SplitText;
use crate::lanes::Share;
use crate::memory::{Memory, job_error};
use crate::stopwatch::Stopwatch;
use ringfence_protocol::{
    EmbedInput, FILE_STEP_BYTES_MAX, FILE_STEPS_MAX, FileLink, FileReply, FileRequest, Item, JobError,
    LinkError, Packet, Received, Split,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::string::FromUtf8Error;

/// Answers that are taken of a file before somebody looks at the link again: 1 MiB.
const ANSWERS_AT_A_TIME: usize = 16;

/// How long the service may give no bytes, in microseconds.
const SILENCE_US_MAX: u64 = 10_000_000;

/// One file of one job.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The server's number for the job.
    pub(crate) slot: u32,
    /// Whose the job is.
    pub(crate) share: Share,
    link: FileLink,
    packet: Packet,
    bytes_max: usize,
    bytes: Vec<u8>,
    /// Where the next request begins.
    asked: usize,
    /// Requests without an answer yet.
    steps: usize,
    silence: Stopwatch,
}

/// How far it is.
pub(crate) enum Progress {
    /// More is awaited.
    Waits,
    /// All is there.
    Read(Vec<u8>),
    /// It can't be had.
    Failed(JobError),
}

impl Reading {
    /// Of a file of at most so many bytes. The first of its steps is asked for at [`Reading::advance`].
    pub(crate) fn new(slot: u32, share: Share, bytes_max: usize, socket: OwnedFd) -> Self {
        let (link, packet, silence) = (FileLink::new(socket), Packet::default(), Stopwatch::start());
        Self { slot, share, link, packet, bytes_max, bytes: Vec::new(), asked: 0, steps: 0, silence }
    }

    /// Takes what has come and asks for more.
    pub(crate) fn advance(&mut self, memory: &dyn Memory) -> Progress {
        match self.go_on(memory) {
            Ok(false) if self.silence.micros() > SILENCE_US_MAX => {
                Progress::Failed(JobError::InputUnavailable)
            }
            Ok(false) => Progress::Waits,
            Ok(true) => Progress::Read(std::mem::take(&mut self.bytes)),
            Err(error) => Progress::Failed(error),
        }
    }

    /// Whether all is there.
    fn go_on(&mut self, memory: &dyn Memory) -> Result<bool, JobError> {
        for _ in 0..ANSWERS_AT_A_TIME {
            while self.steps < FILE_STEPS_MAX && self.asked <= self.bytes_max {
                let request =
                    FileRequest::Read { offset: self.asked as u64, length: FILE_STEP_BYTES_MAX as u32 };
                match self.link.send(&request, &[]) {
                    Ok(()) => {
                        self.asked += FILE_STEP_BYTES_MAX;
                        self.steps += 1;
                    }
                    Err(LinkError::WouldBlock) => break,
                    // What it says before it went away may still be there.
                    Err(_) if self.steps > 0 => break,
                    Err(_) => return Err(self.last_word()),
                }
            }
            match self.link.receive_carried(&mut self.packet) {
                Ok(Received { message, descriptors, .. }) if descriptors.is_empty() => {
                    if self.take(&message, memory)? {
                        return Ok(true);
                    }
                }
                Err(LinkError::WouldBlock) => return Ok(false),
                Ok(_) | Err(_) => return Err(JobError::InputUnavailable),
            }
        }
        Ok(false)
    }

    /// The refusal that stands in the socket where it could not be written to any more.
    fn last_word(&self) -> JobError {
        match self.link.receive() {
            Ok(Received { message: FileReply::Refused(refusal), .. }) => JobError::InputRefused { refusal },
            _ => JobError::InputUnavailable,
        }
    }

    /// Whether a reply was the last one.
    fn take(&mut self, reply: &FileReply, memory: &dyn Memory) -> Result<bool, JobError> {
        self.steps -= 1;
        self.silence = Stopwatch::start();
        let FileReply::Bytes { offset, .. } = reply else {
            return Err(match reply {
                FileReply::Refused(refusal) => JobError::InputRefused { refusal: *refusal },
                _ => JobError::InputUnavailable,
            });
        };
        if *offset != self.bytes.len() as u64 {
            return Err(JobError::InputUnavailable);
        }
        let step = self.packet.carried();
        let bytes = self.bytes.len() + step.len();
        if bytes > self.bytes_max {
            return Err(JobError::InputTooLarge { limit: self.bytes_max as u64 });
        }
        // Growing may hold the old and the new bytes for a moment.
        memory.check(3 * bytes as u64).map_err(job_error)?;
        self.bytes.extend_from_slice(step);
        Ok(step.len() < FILE_STEP_BYTES_MAX)
    }
}

/// What a file's text is to a job.
pub(crate) enum Input {
    /// Its only item.
    Whole(EmbedInput),
    /// To be split into items.
    Split(SplitText),
}

/// The text that a file's bytes are, and where it begins in them: UTF-8, with or without a byte order mark.
pub(crate) fn text(bytes: Vec<u8>) -> Result<(String, usize), JobError> {
    let not_text =
        |error: FromUtf8Error| JobError::InputNotText { byte: error.utf8_error().valid_up_to() as u64 };
    let whole = String::from_utf8(bytes).map_err(not_text)?;
    let text = whole.strip_prefix('\u{feff}').map(str::to_owned);
    let offset = text.as_ref().map_or(0, |text| whole.len() - text.len());
    Ok((text.unwrap_or(whole), offset))
}

/// The input that a file's bytes are.
pub(crate) fn decode(bytes: Vec<u8>, split: Split) -> Result<Input, JobError> {
    let (text, offset) = text(bytes)?;
    Ok(match split {
        Split::Whole { truncate } => Input::Whole(EmbedInput { items: vec![Item::Text(text)], truncate }),
        Split::Passages { tokens_max } => Input::Split(SplitText { text, offset, tokens_max }),
    })
}

impl AsFd for Reading {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

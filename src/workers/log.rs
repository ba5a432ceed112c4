//! What a worker writes to its standard output and error: a bounded ring in memory, never a file.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncReadExt;

/// The last bytes of a worker that are kept.
pub(crate) const LOG_BYTES_MAX: usize = 16 * 1024;

/// A ring over the last [`LOG_BYTES_MAX`] bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<VecDeque<u8>>>);

impl Log {
    /// Reads a pipe to its end, in a task of its own.
    pub(crate) fn follow(&self, pipe: OwnedFd) {
        let log = self.clone();
        // Ours is a duplicate of the end that blocks, and that nobody else reads.
        let unblocked = rustix::io::ioctl_fionbio(&pipe, true).map_err(std::io::Error::from);
        let pipe = match unblocked.and_then(|()| tokio::net::unix::pipe::Receiver::from_owned_fd(pipe)) {
            Ok(pipe) => pipe,
            Err(error) => {
                tracing::warn!(%error, "a worker's output can't be read");
                return;
            }
        };
        tokio::spawn(log.read(pipe));
    }

    async fn read(self, mut pipe: tokio::net::unix::pipe::Receiver) {
        let mut block = [0; 4096];
        while let Ok(count) = pipe.read(&mut block).await
            && count > 0
        {
            self.push(&block[..count]);
        }
    }

    fn push(&self, bytes: &[u8]) {
        let mut ring = self.0.lock().expect("no thread panics with this lock");
        ring.extend(bytes);
        let excess = ring.len().saturating_sub(LOG_BYTES_MAX);
        ring.drain(..excess);
    }

    /// The last line, shortened, with control characters made harmless.
    pub(crate) fn last_line(&self) -> Option<String> {
        let ring = self.0.lock().expect("no thread panics with this lock");
        let bytes: Vec<u8> = ring.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.chars().filter(|c| !c.is_control()).take(300).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_end_and_the_last_line_is_harmless() {
        let log = Log::default();
        assert_eq!(log.last_line(), None);
        for _ in 0..100 {
            log.push(&[b'x'; 1000]);
        }
        assert_eq!(log.0.lock().unwrap().len(), LOG_BYTES_MAX);
        log.push(b"\nred \x1b[31m\xff alert\n\n");
        assert_eq!(log.last_line().unwrap(), "red [31m\u{fffd} alert");
    }
}

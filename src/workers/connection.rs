//! The server's end of a worker's link: never blocks, keeps what the socket has no room for.

use super::readiness::{receive, watch};
use ringfence_protocol::{FromWorker, LinkError, Received, SLOTS_MAX, ToWorker, WorkerLink};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Messages that may wait for a worker that does not read: each slot's Run and Cancel, and the few others.
const OUTBOX_MAX: usize = 2 * SLOTS_MAX as usize + 8;

/// One worker's link.
#[derive(Debug)]
pub(crate) struct Connection {
    link: AsyncFd<WorkerLink>,
    outbox: Mutex<VecDeque<Outgoing>>,
    waiting: Notify,
}

#[derive(Debug)]
struct Outgoing {
    message: ToWorker,
    descriptors: Vec<Arc<OwnedFd>>,
}

impl Connection {
    /// Takes our end, makes it non-blocking and asks for the sender's pid.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, std::io::Error> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let link = WorkerLink::new(socket);
        link.receive_credentials()?;
        Ok(Self { link: watch(link)?, outbox: Mutex::default(), waiting: Notify::new() })
    }

    /// Sends now, or keeps the message until there is room.
    pub(crate) fn send(&self, message: ToWorker, descriptors: Vec<Arc<OwnedFd>>) -> Result<(), LinkError> {
        let mut outbox = self.outbox.lock().expect("no thread panics with this lock");
        let outgoing = Outgoing { message, descriptors };
        if outbox.is_empty() {
            match self.try_send(&outgoing) {
                Err(LinkError::WouldBlock) => {}
                done => return done,
            }
        }
        if outbox.len() >= OUTBOX_MAX {
            return Err(LinkError::Os(Errno::NOBUFS));
        }
        outbox.push_back(outgoing);
        self.waiting.notify_one();
        Ok(())
    }

    /// Sends what is kept whenever there is room. Returns only when the link fails.
    pub(crate) async fn flush(&self) -> LinkError {
        loop {
            self.waiting.notified().await;
            if let Err(error) = self.drain().await {
                return error;
            }
        }
    }

    async fn drain(&self) -> Result<(), LinkError> {
        loop {
            let mut ready = self.link.writable().await.map_err(|_| LinkError::Os(Errno::BADF))?;
            let mut outbox = self.outbox.lock().expect("no thread panics with this lock");
            let Some(next) = outbox.front() else { return Ok(()) };
            match self.try_send(next) {
                Ok(()) => {
                    outbox.pop_front();
                }
                Err(LinkError::WouldBlock) => ready.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }

    fn try_send(&self, outgoing: &Outgoing) -> Result<(), LinkError> {
        let descriptors: Vec<_> = outgoing.descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        self.link.get_ref().send(&outgoing.message, &descriptors)
    }

    /// The next message.
    pub(crate) async fn receive(&self) -> Result<Received<FromWorker>, LinkError> {
        receive(&self.link).await
    }
}

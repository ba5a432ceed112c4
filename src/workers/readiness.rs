//! Descriptors of ours under tokio's eye.

use ringfence_protocol::{CarriesBytes, Link, LinkError, Packet, Received};
use rustix::io::Errno;
use serde::{Serialize, de::DeserializeOwned};
use std::os::fd::AsRawFd;
use tokio::io::unix::AsyncFd;

/// Registers a value that owns or borrows its descriptor.
pub(crate) fn watch<T: AsRawFd>(owner: T) -> std::io::Result<AsyncFd<T>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; every `T` here keeps its descriptor open while it lives"
    )]
    AsyncFd::new(owner)
}

/// The next message on a link that does not block.
pub(crate) async fn receive<S: Serialize, R: DeserializeOwned>(
    link: &AsyncFd<Link<S, R>>,
) -> Result<Received<R>, LinkError> {
    when_ready(link, Link::receive).await
}

/// The next message on such a link, and the bytes that it carries.
pub(crate) async fn receive_carried<S: Serialize, R: DeserializeOwned + CarriesBytes>(
    link: &AsyncFd<Link<S, R>>,
    packet: &mut Packet,
) -> Result<Received<R>, LinkError> {
    when_ready(link, |link| link.receive_carried(packet)).await
}

async fn when_ready<S, R>(
    link: &AsyncFd<Link<S, R>>,
    mut receive: impl FnMut(&Link<S, R>) -> Result<Received<R>, LinkError>,
) -> Result<Received<R>, LinkError> {
    loop {
        let mut ready = link.readable().await.map_err(|_| LinkError::Os(Errno::BADF))?;
        match receive(link.get_ref()) {
            Err(LinkError::WouldBlock) => ready.clear_ready(),
            done => return done,
        }
    }
}

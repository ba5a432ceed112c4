//! Descriptors of ours under tokio's eye.

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

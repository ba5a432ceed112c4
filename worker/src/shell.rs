//! What the sandbox gives the worker. In tests another shell stands in its place; in the program there is only this one.

use crate::stopwatch::Stopwatch;
use ringfence_protocol as protocol;
use ringfence_sandbox::{CountingAllocator, EnterError, Entered, Layer, Policy, Sealed, enter};
use std::os::fd::OwnedFd;

/// The sandbox around a worker, before its last layer.
pub trait Shell {
    /// The most bytes that the process may allocate from now on.
    fn set_lease(&self, bytes: u64);

    /// How long the layers so far took, in microseconds.
    fn entered_us(&self) -> u64;

    /// Turns on the system call filter.
    ///
    /// # Errors
    /// It can't be applied to every thread.
    fn seal(self) -> Result<Sealed, EnterError>;
}

/// The real one.
#[derive(Debug)]
pub struct Sandbox {
    entered: Entered,
    entered_us: u64,
}

impl Sandbox {
    /// Applies every layer but the filter; also gives the link's descriptor. The first thing that `main` does.
    ///
    /// # Errors
    /// A layer can't be applied.
    pub fn enter(policy: &Policy) -> Result<(Self, OwnedFd), EnterError> {
        let watch = Stopwatch::start();
        let mut entered = enter(policy)?;
        let link = entered.link();
        Ok((Self { entered, entered_us: watch.micros() }, link))
    }
}

impl Shell for Sandbox {
    fn set_lease(&self, bytes: u64) {
        CountingAllocator::set_lease(bytes);
    }

    fn entered_us(&self) -> u64 {
        self.entered_us
    }

    fn seal(self) -> Result<Sealed, EnterError> {
        self.entered.seal()
    }
}

/// A layer in the link's words.
pub(crate) fn layer(layer: Layer) -> protocol::Layer {
    match layer {
        Layer::Descriptors => protocol::Layer::Descriptors,
        Layer::Namespaces => protocol::Layer::Namespaces,
        Layer::Rlimits => protocol::Layer::Rlimits,
        Layer::Cgroup => protocol::Layer::Cgroup,
        Layer::Privileges => protocol::Layer::Privileges,
        Layer::Landlock => protocol::Layer::Landlock,
        Layer::Seccomp => protocol::Layer::Seccomp,
    }
}

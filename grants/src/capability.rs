//! The types that prove a decision of the table. A capability is for one use of one path; who is done gives it back with
//! [`crate::Grants::spent`].

use crate::path::RelativePath;
use crate::source::{Source, Transform};
use crate::table::GrantId;

macro_rules! capability {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, PartialEq, Eq)]
        #[must_use = "who is done gives it back, so that what was used is counted"]
        pub struct $name {
            pub(crate) grant: GrantId,
            pub(crate) root: GrantId,
            pub(crate) path: RelativePath,
            pub(crate) until_boot_ms: u64,
            pub(crate) bytes_max: u64,
            pub(crate) snapshot: bool,
        }

        impl $name {
            /// The grant that it comes from.
            pub fn grant(&self) -> GrantId {
                self.grant
            }

            /// The grant whose root the path is below: the same, or the one that it was narrowed from.
            pub fn root(&self) -> GrantId {
                self.root
            }

            /// What it is for, below the root; empty where the root is a file.
            pub fn path(&self) -> &RelativePath {
                &self.path
            }

            /// The end of the grant by the boot clock, in milliseconds.
            pub fn until_boot_ms(&self) -> u64 {
                self.until_boot_ms
            }

            /// Bytes that may be moved with it.
            pub fn bytes_max(&self) -> u64 {
                self.bytes_max
            }

            /// Whether the file may be handed over as a copy, which can't be called back.
            pub fn snapshot(&self) -> bool {
                self.snapshot
            }
        }
    };
}

capability! {
    /// One file may be read, or one folder listed, once.
    FileRead
}
capability! {
    /// One file may be written, once.
    FileWrite
}

/// Sound may be captured from one source for the workers of one model, once: from its start until its end or the grant's.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what captures sound holds it until the capture's end"]
pub struct AudioCapture {
    pub(crate) grant: GrantId,
    pub(crate) source: Source,
    pub(crate) until_boot_ms: u64,
    pub(crate) transforms: Vec<Transform>,
}

impl AudioCapture {
    /// The grant that it comes from.
    pub fn grant(&self) -> GrantId {
        self.grant
    }

    /// Where the sound comes from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The end of the grant by the boot clock, in milliseconds.
    pub fn until_boot_ms(&self) -> u64 {
        self.until_boot_ms
    }

    /// What the operator's rules want done to the sound, before anything that the client wants.
    pub fn transforms(&self) -> &[Transform] {
        &self.transforms
    }
}

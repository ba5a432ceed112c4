//! Why a command ended, sorted by who can do something about it, and the exit code that says so.

use std::io;
use std::process::ExitCode;

/// Any error below ours.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// How the program ends. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something on this machine did not work.
    Failed = 1,
    /// The command line is not one of ours.
    Usage = 2,
    /// A signature, digest or trust file did not hold.
    Verification = 3,
    /// No server answered.
    Unreachable = 4,
    /// The server answered no.
    Refused = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line can't be meant like this.
    #[error("{what}")]
    Usage {
        /// What is wrong with it.
        what: String,
        /// What to type instead; may be empty.
        advice: String,
    },
    /// A signature, a digest or the trust file did not hold: nothing was run, and nothing was written.
    #[error("{subject}: {source}")]
    Verification {
        /// The model or file.
        subject: String,
        /// Stable name of the reason, for scripts.
        code: &'static str,
        /// The reason.
        source: Source,
        /// What to do next.
        advice: String,
    },
    /// No server answered at the address.
    #[error("no server answers at {address}: {source}")]
    Unreachable {
        /// Socket path or URL.
        address: String,
        /// From the system.
        source: io::Error,
    },
    /// The server answered with 4xx or 5xx.
    #[error("the server refused {request} ({status}): {message}")]
    Refused {
        /// Method and path.
        request: String,
        /// HTTP status.
        status: u16,
        /// The server's stable code.
        code: String,
        /// The server's words.
        message: String,
        /// When it is worth trying again, in milliseconds.
        retry_after_ms: Option<u64>,
        /// What stopped a job that is over for want of memory.
        rung: Option<String>,
    },
    /// The server's answer is not what it should be: too long, cut off, or not the JSON of this version.
    #[error("the server's answer to {request} can't be read: {source}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        source: Source,
    },
    /// A server under stress did not keep what it promises.
    #[error("{} broken: {}", if promises.len() == 1 { "a promise is" } else { "promises are" }, promises.join("; "))]
    Broken {
        /// Each in words, with what was measured and its bound.
        promises: Vec<String>,
    },
    /// This machine or home lacks something that the server needs.
    #[error("missing: {}", missing.join(", "))]
    Unready {
        /// What, by area and name.
        missing: Vec<String>,
    },
    /// Something on this machine did not work.
    #[error("{subject}: {source}")]
    Failed {
        /// The file, model or client that it happened to.
        subject: String,
        /// Stable name of the reason, for scripts.
        code: &'static str,
        /// From the system or a library.
        source: Source,
        /// What to do next; may be empty.
        advice: String,
    },
}

impl CliError {
    /// A failed system call on `subject`.
    pub fn io(subject: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Failed {
            subject: subject.into(),
            code: "io_error",
            source: source.into().into(),
            advice: String::new(),
        }
    }

    /// The exit code of the program.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::Usage,
            Self::Verification { .. } => Exit::Verification,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Refused { .. } => Exit::Refused,
            Self::Answer { .. } | Self::Failed { .. } | Self::Broken { .. } | Self::Unready { .. } => {
                Exit::Failed
            }
        }
    }

    /// A stable name for scripts; the server's own where the server refused.
    pub fn code(&self) -> &str {
        match self {
            Self::Usage { .. } => "usage",
            Self::Verification { code, .. } | Self::Failed { code, .. } => code,
            Self::Unreachable { .. } => "server_unreachable",
            Self::Refused { code, .. } => code,
            Self::Answer { .. } => "answer_unreadable",
            Self::Broken { .. } => "promise_broken",
            Self::Unready { .. } => "not_ready",
        }
    }

    /// What to do next; empty where the message says it all.
    pub fn advice(&self) -> String {
        match self {
            Self::Usage { advice, .. } | Self::Verification { advice, .. } | Self::Failed { advice, .. } => {
                advice.clone()
            }
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "this socket is for another user: ask as the one who runs the server".to_owned()
            }
            Self::Unreachable { .. } => "start the server: ringfence serve".to_owned(),
            Self::Refused { retry_after_ms: Some(wait), .. } => format!("try again in {wait} ms"),
            Self::Refused { retry_after_ms: None, .. } | Self::Broken { .. } | Self::Unready { .. } => {
                String::new()
            }
            Self::Answer { .. } => "check that server and command are of one version".to_owned(),
        }
    }
}

//! What a client asks for, and what an approver is shown of it.

use crate::path::{PathRefusal, RelativePath};
use crate::source::{Source, SourceRefusal};
use crate::visible::hides;
use crate::{AUDIO_LIFETIME_MS_MAX, LIFETIME_MS_MAX, PATH_BYTES_MAX, TEXT_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file, or all below a folder, may be read.
    FileRead,
    /// A file, or all below a folder, may be written.
    FileWrite,
    /// Sound may be captured.
    AudioCapture,
}

/// Where the bytes may go to, or come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// To the workers of this model, as input of the client's jobs.
    Model(String),
    /// To the client itself.
    Client,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Who asks.
    pub client: String,
    /// The uid of the process that asks, as the kernel states it; none over TCP.
    pub uid: Option<u32>,
    /// What for.
    pub kind: Kind,
    /// The absolute path of a file or folder, without symlinks; of sound its [`Source`].
    pub path: String,
    /// Where the bytes go.
    pub audience: Audience,
    /// Why, in the client's words.
    pub reason: String,
    /// Where results go, in the client's words.
    pub results: String,
    /// From the approval on, in milliseconds.
    pub lifetime_ms: u64,
    /// How often; none is any number of times.
    pub uses_max: Option<u32>,
    /// Bytes in all; 0 for sound, whose bound is the time.
    pub bytes_max: u64,
    /// Whether copies may be handed over, which can't be called back.
    pub snapshot: bool,
}

/// Why a question is not even put.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskRefusal {
    /// The path is not absolute, or not in its shortest form.
    #[error("`path` must be absolute, without `.`, `..`, double slashes or a slash at the end: {0}")]
    Path(PathRefusal),
    /// The whole disk.
    #[error("`/` is not given: ask for a folder below it")]
    WholeDisk,
    /// The path names no source of sound.
    #[error("`path`: {0}")]
    Source(#[from] SourceRefusal),
    /// Sound goes to the workers of a model and nowhere else.
    #[error("sound is for a model: name one in `model`")]
    SoundWithoutModel,
    /// It has no meaning for sound.
    #[error("`{0}` has no meaning for sound: leave it out")]
    NotOfSound(&'static str),
    /// A text is empty, too long, or holds characters that hide or reorder others.
    #[error(
        "`{0}` must be 1 to {TEXT_BYTES_MAX} bytes of plain text in one line, without control or direction characters"
    )]
    Text(&'static str),
    /// Out of range.
    #[error("`{0}` must be from 1 to {1}")]
    Range(&'static str, u64),
    /// The client has as many questions open as it may.
    #[error("{0} questions of this client wait for an answer already")]
    TooManyPending(usize),
    /// The client asks too often.
    #[error("this client asks too often")]
    TooOften {
        /// When it may ask again, in milliseconds.
        retry_ms: u64,
    },
    /// The table or the client's part of it is full.
    #[error("there are {0} grants already; revoke some")]
    Full(usize),
    /// A rule says no.
    #[error("a rule of this machine denies it")]
    Rule,
}

impl Ask {
    /// Whether it can be put as a question at all.
    pub(crate) fn check(&self) -> Result<(), AskRefusal> {
        let lifetime_ms_max = match self.kind {
            Kind::FileRead | Kind::FileWrite => {
                check_absolute(&self.path)?;
                if self.bytes_max == 0 {
                    return Err(AskRefusal::Range("bytes_max", u64::MAX));
                }
                LIFETIME_MS_MAX
            }
            Kind::AudioCapture => {
                self.check_sound()?;
                AUDIO_LIFETIME_MS_MAX
            }
        };
        for (name, text) in [("reason", &self.reason), ("results", &self.results)] {
            if !(1..=TEXT_BYTES_MAX).contains(&text.trim().len()) || text.chars().any(hides) {
                return Err(AskRefusal::Text(name));
            }
        }
        if !(1..=lifetime_ms_max).contains(&self.lifetime_ms) {
            return Err(AskRefusal::Range("lifetime", lifetime_ms_max));
        }
        if self.uses_max == Some(0) {
            return Err(AskRefusal::Range("uses_max", u64::from(u32::MAX)));
        }
        Ok(())
    }

    fn check_sound(&self) -> Result<(), AskRefusal> {
        Source::parse(&self.path)?;
        if self.audience == Audience::Client {
            return Err(AskRefusal::SoundWithoutModel);
        }
        match (self.bytes_max, self.snapshot) {
            (0, false) => Ok(()),
            (0, true) => Err(AskRefusal::NotOfSound("snapshot")),
            (_, _) => Err(AskRefusal::NotOfSound("bytes_max")),
        }
    }
}

pub(crate) fn check_absolute(path: &str) -> Result<(), AskRefusal> {
    let below = path.strip_prefix('/').ok_or(AskRefusal::Path(PathRefusal::Absolute))?;
    if below.is_empty() {
        return Err(AskRefusal::WholeDisk);
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(AskRefusal::Path(PathRefusal::TooLong));
    }
    RelativePath::new(below).map(drop).map_err(AskRefusal::Path)
}

/// What the path turned out to be, from the opened object itself: what an approver sees and what is held open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// File or folder.
    pub kind: ShownKind,
    /// The file system's device number.
    pub device: u64,
    /// The number in it.
    pub inode: u64,
    /// Whose it is.
    pub owner: u32,
    /// Bytes of a file.
    pub size: u64,
    /// When it was changed last, in milliseconds since 1970.
    pub modified_ms: u64,
}

impl Shown {
    /// Of a source of sound nothing is known beforehand but its name.
    pub fn source() -> Self {
        Self { kind: ShownKind::Source, device: 0, inode: 0, owner: 0, size: 0, modified_ms: 0 }
    }
}

/// Which of them it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ShownKind {
    /// One file.
    File,
    /// A folder and all below it.
    Folder,
    /// A source of sound, which is opened only when it is captured: its numbers are 0.
    Source,
}

/// Less of a grant: what is not set stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrower {
    /// Below the grant's own path.
    pub path: RelativePath,
    /// From now on, in milliseconds.
    pub lifetime_ms: Option<u64>,
    /// How often.
    pub uses_max: Option<u32>,
    /// Bytes in all.
    pub bytes_max: Option<u64>,
    /// Whether copies may still be handed over.
    pub no_snapshot: bool,
}

//! A path below a granted root, as a client writes it.

use crate::PATH_BYTES_MAX;
use std::fmt;

/// A path that names something below a root: parts joined by `/`, none of them empty, `.` or `..`. Empty is the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePath(String);

/// Why a text is no such path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathRefusal {
    /// It begins with `/`.
    #[error("the path must be relative to the granted root")]
    Absolute,
    /// A part is `..`.
    #[error("the path must not hold `..`")]
    Parent,
    /// A part is empty or `.`.
    #[error("the path has an empty part or `.`")]
    EmptyPart,
    /// It holds a zero byte.
    #[error("the path holds a zero byte")]
    Zero,
    /// It is longer than the system's limit.
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
}

impl RelativePath {
    /// The path that a text is.
    ///
    /// # Errors
    /// It is none. Nothing is repaired.
    pub fn new(text: &str) -> Result<Self, PathRefusal> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > PATH_BYTES_MAX {
            return Err(PathRefusal::TooLong);
        }
        if text.contains('\0') {
            return Err(PathRefusal::Zero);
        }
        if text.starts_with('/') {
            return Err(PathRefusal::Absolute);
        }
        for part in text.split('/') {
            match part {
                ".." => return Err(PathRefusal::Parent),
                "" | "." => return Err(PathRefusal::EmptyPart),
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// This, or something below it.
    pub fn holds(&self, other: &Self) -> bool {
        self.is_root()
            || other.0.strip_prefix(&self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Another path, below this one.
    ///
    /// # Errors
    /// Together they are too long.
    pub fn join(&self, below: &Self) -> Result<Self, PathRefusal> {
        match (self.is_root(), below.is_root()) {
            (true, _) => Ok(below.clone()),
            (_, true) => Ok(self.clone()),
            (false, false) => Self::new(&format!("{}/{}", self.0, below.0)),
        }
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

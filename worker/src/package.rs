//! The files of a package, each parsed strictly and within bounds. Nothing is repaired: what is odd is refused.

pub mod chat;
pub mod config;
pub(crate) mod json;
pub mod llama;
pub mod modules;
pub mod safetensors;
pub mod silero;
pub mod tokenizer;
pub mod whisper;

use ringfence_protocol::LoadError;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

/// The bytes of one file: a map of a sealed memfd, or a vector.
pub type FileBytes = Arc<dyn Deref<Target = [u8]> + Send + Sync>;

/// The files of a package by name, relative to it, with `/`.
#[derive(Clone, Default)]
pub struct Files(BTreeMap<String, FileBytes>);

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl FromIterator<(String, FileBytes)> for Files {
    fn from_iter<I: IntoIterator<Item = (String, FileBytes)>>(files: I) -> Self {
        Self(files.into_iter().collect())
    }
}

impl Files {
    /// Reads files below a folder as they are, without any signature: for benches and tests. Files that are missing
    /// are left out.
    ///
    /// # Errors
    /// A file that is there can't be read.
    pub fn from_folder(folder: &std::path::Path) -> std::io::Result<Self> {
        let mut files = BTreeMap::new();
        for name in NAMES {
            let path = folder.join(name);
            if path.is_file() {
                files.insert((*name).to_owned(), Arc::new(std::fs::read(path)?) as FileBytes);
            }
        }
        Ok(Self(files))
    }

    /// The bytes of a file.
    pub fn get(&self, name: &str) -> Option<&FileBytes> {
        self.0.get(name)
    }

    /// The names of all files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A file that must be there, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// It is missing or too large.
    pub fn require(&self, name: &str, bytes_max: usize) -> Result<&FileBytes, LoadError> {
        let missing = || LoadError::Missing { file: name.to_owned() };
        self.find(name, bytes_max)?.ok_or_else(missing)
    }

    /// A file that may be there, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// It is too large.
    pub fn find(&self, name: &str, bytes_max: usize) -> Result<Option<&FileBytes>, LoadError> {
        match self.0.get(name) {
            Some(bytes) if bytes.len() > bytes_max => {
                Err(malformed(name, format!("it has {} bytes, at most {bytes_max} are taken", bytes.len())))
            }
            found => Ok(found),
        }
    }
}

/// The files that a sentence embedder or a speech model is made of.
const NAMES: &[&str] = &[
    config::FILE,
    modules::FILE,
    modules::POOLING_FILE,
    modules::LENGTH_FILE,
    safetensors::FILE,
    tokenizer::FILE,
    whisper::GENERATION_FILE,
];

/// A file says something that can't be.
pub(crate) fn malformed(file: &str, reason: impl Into<String>) -> LoadError {
    LoadError::Malformed { file: file.to_owned(), reason: reason.into() }
}

//! The packages of a home, through the `models` crate: what is there, and the verified bytes of one.

use crate::home::{Home, HomeError};
use ringfence_protocol::Architecture;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The folder of packages with the trust that applies to them.
#[derive(Debug)]
pub(crate) struct Packages {}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PackagesError {
    #[error(transparent)]
    Home(#[from] HomeError),
}
#[derive(Debug, thiserror::Error)]
pub(crate) enum SurveyError {
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// A package and whether it may be run.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) name: String,
    /// What its signed parts say, or why it is refused.
    pub(crate) verdict: Result<Surveyed, String>,
}

/// What is known of a package before its weights are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Surveyed {
    pub(crate) digest: String,
    pub(crate) signer: String,
    pub(crate) architecture: Architecture,
    pub(crate) max_tokens: u32,
    pub(crate) unverified_source: bool,
    pub(crate) weight_bytes: u64,
    pub(crate) package_bytes: u64,
}

/// Verified bytes in sealed memory.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) digest: String,
    files: Vec<(String, Arc<OwnedFd>)>,
}

impl Package {
    pub(crate) fn files(&self) -> (Vec<String>, Vec<Arc<OwnedFd>>) {
        self.files.iter().cloned().unzip()
    }
}

impl Packages {
    pub(crate) fn open(_home: &Home) -> Result<Self, PackagesError> {
        Ok(Self {})
    }
    pub(crate) fn survey(&self) -> Result<Vec<Survey>, SurveyError> {
        Ok(Vec::new())
    }
    pub(crate) fn load(&self, _name: &str) -> Result<Package, SurveyError> {
        Ok(Package { digest: String::new(), files: Vec::new() })
    }
}

//! `package.toml`: what a package is, in its author's words; read only after the signature held.

use crate::digest::Digest;
use crate::name::PackageName;
use serde::{Deserialize, Serialize};

/// The longest `package.toml` in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 64 * 1024;
/// The largest `max_tokens`.
pub const MAX_TOKENS_MAX: u32 = 8192;

/// The longest licence or source in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// What a package is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ManifestValues", into = "ManifestValues")]
pub struct Manifest(ManifestValues, PackageName);

/// The values of a manifest, as they stand in `package.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestValues {
    /// The package's name.
    pub name: String,
    /// What it can do.
    pub task: Task,
    /// Which network it is.
    pub architecture: Architecture,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: u32,
    /// SPDX expression, or what the author says.
    pub licence: String,
    /// Where the weights came from.
    pub source: String,
    /// SHA-256 of the archive that they came from, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sha256: Option<String>,
    /// The operator took weights whose digest nobody had pinned.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unverified_source: bool,
}

/// What a model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Text to vectors.
    Embed,
}

/// The networks that packages can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// BERT-family sentence embedders.
    Bert,
}

/// Why a text is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More than [`MANIFEST_BYTES_MAX`].
    #[error("longer than {MANIFEST_BYTES_MAX} bytes")]
    TooLong,
    /// Not TOML, or not the fields of a manifest.
    #[error("{0}")]
    NotAManifest(String),
    /// `name` breaks the grammar.
    #[error("name: {0}")]
    Name(#[from] crate::NameError),
    /// `max_tokens` out of range.
    #[error("max_tokens: must be 1 to {MAX_TOKENS_MAX}")]
    MaxTokens,
    /// `licence` or `source` is empty, too long, or has control characters.
    #[error("{0}: must be 1 to {TEXT_BYTES_MAX} bytes without control characters")]
    Text(&'static str),
    /// `source_sha256` is no digest.
    #[error("source_sha256: {0}")]
    SourceDigest(#[from] crate::DigestError),
    /// The manifest is another package's.
    #[error("name: says {0}, which is not this package")]
    OtherName(PackageName),
}

impl Manifest {
    /// Takes values that are within their bounds.
    ///
    /// # Errors
    /// [`ManifestError`], naming the field.
    pub fn new(values: ManifestValues) -> Result<Self, ManifestError> {
        let name = PackageName::new(&values.name)?;
        if !(1..=MAX_TOKENS_MAX).contains(&values.max_tokens) {
            return Err(ManifestError::MaxTokens);
        }
        text("licence", &values.licence)?;
        text("source", &values.source)?;
        values.source_sha256.as_deref().map(Digest::from_hex).transpose()?;
        Ok(Self(values, name))
    }

    /// Reads `package.toml`.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong);
        }
        let values = toml::from_slice::<ManifestValues>(bytes)
            .map_err(|error| ManifestError::NotAManifest(error.message().to_owned()))?;
        Self::new(values)
    }

    /// The text of `package.toml`.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.0).expect("plain values have a text")
    }

    /// The package's name.
    pub fn name(&self) -> &PackageName {
        &self.1
    }

    /// What it can do.
    pub fn task(&self) -> Task {
        self.0.task
    }

    /// Which network it is.
    pub fn architecture(&self) -> Architecture {
        self.0.architecture
    }

    /// Longest input in tokens, special tokens included: 1 to [`MAX_TOKENS_MAX`].
    pub fn max_tokens(&self) -> u32 {
        self.0.max_tokens
    }

    /// Whether the operator took weights whose digest nobody had pinned.
    pub fn is_unverified_source(&self) -> bool {
        self.0.unverified_source
    }

    /// All values.
    pub fn values(&self) -> &ManifestValues {
        &self.0
    }
}

impl TryFrom<ManifestValues> for Manifest {
    type Error = ManifestError;

    fn try_from(values: ManifestValues) -> Result<Self, ManifestError> {
        Self::new(values)
    }
}

impl From<Manifest> for ManifestValues {
    fn from(manifest: Manifest) -> Self {
        manifest.0
    }
}

fn text(field: &'static str, text: &str) -> Result<(), ManifestError> {
    let legal = !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control);
    if legal { Ok(()) } else { Err(ManifestError::Text(field)) }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
name = \"tiny\"
task = \"embed\"
architecture = \"bert\"
max_tokens = 64
licence = \"MIT\"
source = \"made by a test\"
";

    #[test]
    fn a_manifest_survives_its_text() {
        let manifest = Manifest::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(manifest.to_toml(), GOOD);
        assert!(!manifest.is_unverified_source());
        let marked = format!("{GOOD}source_sha256 = \"{}\"\nunverified_source = true\n", "0".repeat(64));
        let manifest = Manifest::parse(marked.as_bytes()).unwrap();
        assert_eq!(manifest.to_toml(), marked);
        assert!(manifest.is_unverified_source());
    }

    #[test]
    fn every_field_is_bounded() {
        let check = |from: &str, to: &str, expected: &str| {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from} is not in the good one");
            let error = Manifest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("\"tiny\"", "\"../tiny\"", "name:");
        check("\"embed\"", "\"sing\"", "unknown variant `sing`");
        check("\"bert\"", "\"tree\"", "unknown variant `tree`");
        check("64", "0", "max_tokens");
        check("64", "8193", "max_tokens");
        check("64", "-1", "invalid value");
        check("\"MIT\"", "\"\"", "licence");
        check("by a test", &"a".repeat(513), "source");
        check("by a test", "by\\u0007", "source");
        check("task", "name", "duplicate key");
        check("max_tokens = 64\n", "", "missing field `max_tokens`");
        check("licence", "license", "unknown field `license`");
        check("licence", "source_sha256 = \"00\"\nlicence", "source_sha256");
        check("licence", &format!("# {}\nlicence", "a".repeat(65_536)), "longer than");
    }
}

//! `package.toml`: what a package is, in its author's words; read only after the signature held.

use crate::digest::Digest;
use crate::name::PackageName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The longest `package.toml` in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 64 * 1024;
/// The largest `max_tokens`.
pub const MAX_TOKENS_MAX: u32 = 1 << 20;

/// The longest licence or source in bytes.
const TEXT_BYTES_MAX: usize = 512;
/// The most archives that a package is made of.
const ARCHIVES_MAX: usize = 16;
/// The longest name of a tensor in bytes.
const TENSOR_NAME_BYTES_MAX: usize = 256;
/// The most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 8;

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
    /// The operator took weights whose digest nobody had pinned or signed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unverified_source: bool,
    /// Id of the trusted key whose bundle vouched for the source, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_signer: Option<String>,
    /// What was fetched, each with its digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archives: Vec<SourceArchive>,
    /// Tensors that stay in quantised blocks: by type and name, the shape before they were quantised, outermost
    /// dimension first. In the weights they are U8.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<BlockType, BTreeMap<String, Vec<u64>>>,
}

/// A file that a package was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceArchive {
    /// Where it is, for people.
    pub from: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// Layouts of quantised blocks, as ggml has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BlockType {
    /// 32 weights in 20 bytes.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 32 weights in 34 bytes.
    #[serde(rename = "q8_0")]
    Q8_0,
}

/// What a model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Text to vectors.
    Embed,
    /// Text to text.
    Generate,
    /// Speech to text.
    Transcribe,
    /// Finds speech in audio.
    DetectVoice,
}

/// The networks that packages can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// BERT-family sentence embedders.
    Bert,
    /// Llama-family text generators.
    Llama,
    /// Whisper speech recognisers.
    Whisper,
    /// Silero voice activity detectors.
    SileroVad,
}

impl BlockType {
    /// As manifests have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_1 => "q4_1",
            Self::Q8_0 => "q8_0",
        }
    }
}

impl Task {
    /// As manifests have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Generate => "generate",
            Self::Transcribe => "transcribe",
            Self::DetectVoice => "detect-voice",
        }
    }
}

impl Architecture {
    /// What such a network does.
    pub fn task(self) -> Task {
        match self {
            Self::Bert => Task::Embed,
            Self::Llama => Task::Generate,
            Self::Whisper => Task::Transcribe,
            Self::SileroVad => Task::DetectVoice,
        }
    }

    /// As manifests have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Llama => "llama",
            Self::Whisper => "whisper",
            Self::SileroVad => "silero-vad",
        }
    }
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
    /// The task is not what such a network does.
    #[error("task: {} networks do not {}", .architecture.name(), .task.name())]
    Task {
        /// The network.
        architecture: Architecture,
        /// What it is said to do.
        task: Task,
    },
    /// The digest of an archive, or the id of a key, is none.
    #[error("{field}: {error}")]
    Digest {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        error: crate::DigestError,
    },
    /// More archives than [`ARCHIVES_MAX`].
    #[error("archives: at most {ARCHIVES_MAX}")]
    Archives,
    /// A tensor's name or shape breaks a bound.
    #[error("blocks: a tensor's name or shape is out of bounds")]
    Blocks,
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
        let (architecture, task) = (values.architecture, values.task);
        if architecture.task() != task {
            return Err(ManifestError::Task { architecture, task });
        }
        values.source_signer.as_deref().map(|id| digest("source_signer", id)).transpose()?;
        archives(&values.archives)?;
        values.blocks.values().flatten().try_for_each(|(name, shape)| block(name, shape))?;
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

    /// Tensors that stay in quantised blocks: by type and name, their shapes before.
    pub fn blocks(&self) -> &BTreeMap<BlockType, BTreeMap<String, Vec<u64>>> {
        &self.0.blocks
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

fn archives(archives: &[SourceArchive]) -> Result<(), ManifestError> {
    if archives.len() > ARCHIVES_MAX {
        return Err(ManifestError::Archives);
    }
    archives.iter().try_for_each(|archive| {
        text("archives.from", &archive.from)?;
        digest("archives.sha256", &archive.sha256)
    })
}

fn digest(field: &'static str, text: &str) -> Result<(), ManifestError> {
    Digest::from_hex(text).map(drop).map_err(|error| ManifestError::Digest { field, error })
}

fn block(name: &str, shape: &[u64]) -> Result<(), ManifestError> {
    let legal = (1..=TENSOR_NAME_BYTES_MAX).contains(&name.len())
        && !name.contains(char::is_control)
        && (1..=DIMENSIONS_MAX).contains(&shape.len())
        && shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size)).is_some();
    if legal { Ok(()) } else { Err(ManifestError::Blocks) }
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
        let marked = format!(
            "{GOOD}unverified_source = true\nsource_signer = \"{0}\"\n\n[[archives]]\nfrom = \"a file\"\nsha256 = \"{0}\"\n\n\
             [blocks.q4_1]\n\"a.weight\" = [2, 32]\n",
            "0".repeat(64)
        );
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
        check("64", "1048577", "max_tokens");
        check("64", "-1", "invalid value");
        check("\"MIT\"", "\"\"", "licence");
        check("by a test", &"a".repeat(513), "source");
        check("by a test", "by\\u0007", "source");
        check("task", "name", "duplicate key");
        check("max_tokens = 64\n", "", "missing field `max_tokens`");
        check("licence", "license", "unknown field `license`");
        check("licence", "source_signer = \"00\"\nlicence", "source_signer");
        check("\"embed\"", "\"generate\"", "bert networks do not generate");
        check("by a test\"", "x\"\n[[archives]]\nfrom = \"x\"\nsha256 = \"00\"", "archives.sha256");
        check(
            "by a test\"",
            &format!("x\"\narchives = [{}]", "{from=\"x\",sha256=\"\"},".repeat(17)),
            "at most 16",
        );
        check("by a test\"", "x\"\n[blocks.q4_1]\na = []", "blocks");
        check("by a test\"", "x\"\n[blocks.q4_1]\na = [8589934592, 8589934592]", "blocks");
        check("by a test\"", "x\"\n[blocks.q4_2]\na = [1]", "unknown variant `q4_2`");
        check("licence", &format!("# {}\nlicence", "a".repeat(65_536)), "longer than");
    }
}

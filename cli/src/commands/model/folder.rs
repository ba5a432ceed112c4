//! A folder in the Hugging Face layout that the operator named, as the source of a package.

use super::add::FolderArgs;
use crate::error::CliError;
use ringfence_models::{
    FileKind, FileName, MANIFEST_BYTES_MAX, Manifest, ManifestError, ManifestValues, PackageName,
};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 1024;
/// How deep folders are looked into: the files of a package lie at most one below.
const DEPTH_MAX: usize = 1;

/// What is taken from a folder.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    /// The package's manifest, which says that nobody pinned the source.
    pub(super) manifest: Manifest,
    /// The files that are taken, the manifest left out.
    pub(super) files: Vec<FileName>,
    /// What else lies there.
    pub(super) left_out: Vec<String>,
}

impl Source {
    /// Looks through the folder and makes the manifest.
    pub(super) fn read(path: &Path, args: &FolderArgs) -> Result<Self, CliError> {
        let mut source = Self {
            path: path.to_owned(),
            manifest: manifest(path, args)?,
            files: Vec::new(),
            left_out: Vec::new(),
        };
        source
            .look(Path::new(""), DEPTH_MAX)
            .map_err(|error| CliError::io(path.display().to_string(), error))?;
        source.files.sort();
        source.left_out.sort();
        Ok(source)
    }

    /// Opens a file of it. Links are followed: the operator named the folder, and caches are full of them.
    pub(super) fn open(&self, file: &FileName) -> Result<fs::File, CliError> {
        open(&self.path.join(file.as_str()))
    }

    fn look(&mut self, below: &Path, deeper: usize) -> io::Result<()> {
        for (count, entry) in fs::read_dir(self.path.join(below))?.enumerate() {
            if count == ENTRIES_MAX {
                return Err(io::Error::other("has too many files for a model"));
            }
            let name = below.join(entry?.file_name());
            if self.path.join(&name).is_dir() && deeper > 0 {
                self.look(&name, deeper - 1)?;
                continue;
            }
            match name.to_str().and_then(|name| FileName::new(name).ok()) {
                Some(file) if file.kind() == FileKind::Manifest => {}
                Some(file) => self.files.push(file),
                None => self.left_out.push(name.display().to_string()),
            }
        }
        Ok(())
    }
}

/// The folder's own manifest, or one from the options; either says where it came from and that nobody pinned it.
fn manifest(path: &Path, args: &FolderArgs) -> Result<Manifest, CliError> {
    let file = path.join("package.toml");
    let values = match (own(&file)?, args.task) {
        (Some(manifest), None) => manifest.values().clone(),
        (None, Some(_)) => from_options(path, args)?,
        (Some(_), Some(_)) => {
            return Err(usage(
                "the folder has a package.toml; --task says it twice",
                "leave one of them out",
            ));
        }
        (None, None) => {
            let what = format!("{} has no package.toml", path.display());
            return Err(usage(&what, "write one, or say: --task embed --architecture bert --max-tokens N"));
        }
    };
    let name = args.name.as_ref().map_or(values.name, PackageName::to_string);
    let values = ManifestValues { name, unverified_source: true, ..values };
    Manifest::new(values).map_err(|error| invalid(&file, error))
}

fn own(file: &Path) -> Result<Option<Manifest>, CliError> {
    if !file.exists() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = open(file)?.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|source| CliError::io(file.display().to_string(), source))?;
    Manifest::parse(&bytes).map(Some).map_err(|error| invalid(file, error))
}

fn from_options(path: &Path, args: &FolderArgs) -> Result<ManifestValues, CliError> {
    let (Some(task), Some(architecture), Some(max_tokens)) = (args.task, args.architecture, args.max_tokens)
    else {
        return Err(usage("--task, --architecture and --max-tokens belong together", "give all three"));
    };
    let full = path.canonicalize().map_err(|source| CliError::io(path.display().to_string(), source))?;
    let name = full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(ManifestValues {
        name,
        task: task.into(),
        architecture: architecture.into(),
        max_tokens,
        licence: args.licence.clone().unwrap_or_else(|| "unknown".to_owned()),
        source: format!("folder {}", full.display()),
        source_sha256: None,
        unverified_source: true,
    })
}

/// Opens a plain file; a FIFO does not make us wait.
fn open(path: &Path) -> Result<fs::File, CliError> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path).and_then(|file| {
        let is_file = file.metadata()?.is_file();
        if is_file { Ok(file) } else { Err(io::Error::other("is not a plain file")) }
    });
    opened.map_err(|source| CliError::io(path.display().to_string(), source))
}

fn invalid(file: &Path, error: ManifestError) -> CliError {
    CliError::Failed {
        subject: file.display().to_string(),
        code: "manifest_invalid",
        source: error.into(),
        advice: "mend the file, or name the model with --name".to_owned(),
    }
}

fn usage(what: &str, advice: &str) -> CliError {
    CliError::Usage { what: what.to_owned(), advice: advice.to_owned() }
}

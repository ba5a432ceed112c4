//! The repository's own documents.

use crate::programs::failed;
use ringfence_cli::error::CliError;
use ringfence_cli::passages::{Passage, of_markdown, of_rust};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];
const FOLDER: &str = "docs";
/// Those that the questions are about.
const FEW: [&str; 2] = ["ARCHITECTURE.md", "docs/security.md"];
/// A document is never this long.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The passages of the documents and of each crate's own documentation.
///
/// # Errors
/// [`CliError::Failed`] where a document can't be read, or none is there.
pub(crate) fn read(root: &Path) -> Result<Vec<Passage>, CliError> {
    passages(root, files(root).map_err(|source| CliError::io(root.display().to_string(), source))?)
}

/// The passages of the documents that the questions are about.
///
/// # Errors
/// As for [`read`].
pub(crate) fn read_few(root: &Path) -> Result<Vec<Passage>, CliError> {
    passages(root, FEW.iter().map(PathBuf::from).collect())
}

fn passages(root: &Path, files: Vec<PathBuf>) -> Result<Vec<Passage>, CliError> {
    let mut passages = Vec::new();
    for file in files {
        let text =
            text(&root.join(&file)).map_err(|source| CliError::io(file.display().to_string(), source))?;
        let is_rust = file.extension().is_some_and(|extension| extension == "rs");
        passages.extend(if is_rust { of_rust(file, &text) } else { of_markdown(file, &text) });
    }
    if passages.is_empty() {
        return Err(failed("documents", "none are here; run this from the repository's root"));
    }
    Ok(passages)
}

fn files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = DOCUMENTS.iter().map(PathBuf::from).collect();
    files.extend(names(&root.join(FOLDER))?.into_iter().map(|name| Path::new(FOLDER).join(name)));
    for name in names(root)? {
        files.extend(["lib.rs", "main.rs"].map(|file| name.join("src").join(file)));
    }
    files.extend(["lib.rs", "main.rs"].map(|file| Path::new("src").join(file)));
    files.retain(|file| is_document(file) && root.join(file).is_file());
    files.sort();
    Ok(files)
}

/// The names in a folder; none where the folder is not there.
fn names(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(PathBuf::from(entry?.file_name()))).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_document(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "md" || extension == "rs")
}

fn text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > DOCUMENT_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read_to_string(path)
}

//! The repository's own documents.

use ringfence_cli::error::CliError;
use ringfence_cli::passages::{Passage, of_markdown, of_rust};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];
const FOLDER: &str = "docs";
/// A document is never this long.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The passages of the documents and of each crate's own documentation.
///
/// # Errors
/// [`CliError::Failed`] where a document can't be read.
pub(crate) fn read(root: &Path) -> Result<Vec<Passage>, CliError> {
    let mut passages = Vec::new();
    for file in files(root).map_err(|source| CliError::io(root.display().to_string(), source))? {
        let text =
            text(&root.join(&file)).map_err(|source| CliError::io(file.display().to_string(), source))?;
        let is_rust = file.extension().is_some_and(|extension| extension == "rs");
        passages.extend(if is_rust { of_rust(file, &text) } else { of_markdown(file, &text) });
    }
    Ok(passages)
}

fn files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = DOCUMENTS.iter().map(PathBuf::from).collect();
    let in_folder = fs::read_dir(root.join(FOLDER))?.collect::<io::Result<Vec<_>>>()?;
    files.extend(in_folder.iter().map(|entry| Path::new(FOLDER).join(entry.file_name())));
    for entry in fs::read_dir(root)?.collect::<io::Result<Vec<_>>>()? {
        let name = PathBuf::from(entry.file_name());
        files.extend(["lib.rs", "main.rs"].map(|file| name.join("src").join(file)));
    }
    files.extend(["lib.rs", "main.rs"].map(|file| Path::new("src").join(file)));
    files.retain(|file| is_document(file) && root.join(file).is_file());
    files.sort();
    Ok(files)
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

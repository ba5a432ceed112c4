//! Where a model comes from: a name of the catalog, a folder, a file, or a repository of the hub. Nothing here looks into
//! a file: its bytes go, sealed, to the converter.

use super::fetch::Cache;
use crate::error::CliError;
use crate::output::{Output, progress};
use ringfence_models::{Catalog, CatalogEntry, Digest, FileKind, FileName, Hasher};
use ringfence_protocol::{Archive, SOURCES_MAX, SourceForm};
use ringfence_sandbox::{Place, SealedFile};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 1024;
/// How deep folders are looked into: the files of a package lie at most one below.
const DEPTH_MAX: usize = 1;
/// The longest source.
const SOURCE_BYTES_MAX: u64 = 1 << 40;
/// Bytes that are copied and hashed at a time.
const BLOCK_BYTES: usize = 1024 * 1024;

/// What the operator named.
#[derive(Debug)]
pub(super) enum Origin {
    /// A model of the catalog.
    Catalog(Box<CatalogEntry>),
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
    /// One file, and what it is.
    File(PathBuf, SourceForm),
    /// `hf:REPO@REV`.
    Hub {
        /// Owner and name.
        repository: String,
        /// A commit, tag or branch.
        revision: String,
    },
}

/// A source whose bytes can't change any more.
#[derive(Debug)]
pub(super) struct Part {
    /// What the conversion calls it.
    pub(super) name: String,
    /// What is taken from it, where it is an archive.
    pub(super) archive: Option<Archive>,
    /// Its bytes.
    pub(super) file: SealedFile,
    /// SHA-256 of them.
    pub(super) digest: Digest,
}

impl Origin {
    /// What a word of the command line means; `form` is what the operator says of a file.
    pub(super) fn parse(word: &str, form: Option<SourceForm>) -> Result<Self, CliError> {
        if let Some(entry) = Catalog::get(word) {
            return Ok(Self::Catalog(Box::new(entry)));
        }
        if let Some(repository) = word.strip_prefix("hf:") {
            return hub(repository);
        }
        let path = PathBuf::from(word);
        if path.is_dir() {
            return Ok(Self::Folder(path));
        }
        if path.exists() {
            let form = form.or_else(|| form_of(&path)).ok_or_else(|| unknown_form(&path))?;
            return Ok(Self::File(path, form));
        }
        let names: Vec<&str> = Catalog::names().collect();
        Err(usage(
            format!("{word} is neither in the catalog, nor a folder or file, nor hf:OWNER/NAME@REVISION"),
            format!("the catalog has: {}", names.join(", ")),
        ))
    }

    /// Whether somebody has pinned the digests of its bytes.
    pub(super) fn is_pinned(&self) -> bool {
        matches!(self, Self::Catalog(_))
    }

    /// For people, and for the manifest.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Catalog(entry) => entry.manifest().values().source.clone(),
            Self::Folder(path) => format!("folder {}", shown(path)),
            Self::File(path, _) => format!("file {}", shown(path)),
            Self::Hub { repository, revision } => format!("hf:{repository}@{revision}"),
        }
    }

    /// A name for the model where the operator gives none.
    pub(super) fn default_name(&self) -> String {
        let last = |path: &Path| {
            let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        match self {
            Self::Catalog(entry) => entry.manifest().name().to_string(),
            Self::Folder(path) => last(path),
            Self::File(path, _) => {
                path.file_stem().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default()
            }
            Self::Hub { repository, .. } => repository.rsplit('/').next().unwrap_or_default().to_lowercase(),
        }
    }
}

fn shown(path: &Path) -> String {
    path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// `OWNER/NAME@REVISION`: without a revision, what is fetched would change from day to day.
fn hub(text: &str) -> Result<Origin, CliError> {
    let legal = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.len() <= 96
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let wrong = || {
        let advice = "for example: hf:sentence-transformers/all-MiniLM-L6-v2@main, better with a commit";
        usage(format!("hf:{text} is not hf:OWNER/NAME@REVISION"), advice.to_owned())
    };
    let (repository, revision) = text.split_once('@').ok_or_else(wrong)?;
    let (owner, name) = repository.split_once('/').ok_or_else(wrong)?;
    if !legal(owner) || !legal(name) || !revision.split('/').all(legal) {
        return Err(wrong());
    }
    Ok(Origin::Hub { repository: repository.to_owned(), revision: revision.to_owned() })
}

fn form_of(path: &Path) -> Option<SourceForm> {
    match path.extension()?.to_str()? {
        "gguf" => Some(SourceForm::Gguf),
        "pt" => Some(SourceForm::WhisperPt),
        "onnx" => Some(SourceForm::SileroOnnx),
        _ => None,
    }
}

fn unknown_form(path: &Path) -> CliError {
    usage(
        format!("{} could be many things", path.display()),
        "say which: --form gguf, whisper-pt, whisper-ggml, whisper-ctranslate2 or silero-onnx".to_owned(),
    )
}

/// What a conversion of this form calls its one big file.
pub(super) fn main_name(form: SourceForm) -> &'static str {
    match form {
        SourceForm::HuggingFace => "model.safetensors",
        SourceForm::Gguf => "model.gguf",
        SourceForm::WhisperPt => "model.pt",
        SourceForm::WhisperGgml | SourceForm::WhisperCtranslate2 => "model.bin",
        SourceForm::SileroOnnx => "model.onnx",
    }
}

/// The files of a folder: those that packages can have, and what else lies there.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Relative, with `/`, sorted; a manifest left out: ours is written anew.
    pub(super) taken: Vec<String>,
    /// Sorted.
    pub(super) left_out: Vec<String>,
}

impl Listing {
    /// Looks through a folder.
    pub(super) fn read(folder: &Path) -> Result<Self, CliError> {
        let mut listing = Self::default();
        listing
            .look(folder, Path::new(""), DEPTH_MAX)
            .map_err(|error| CliError::io(folder.display().to_string(), error))?;
        listing.taken.sort();
        listing.left_out.sort();
        Ok(listing)
    }

    /// Sorts names into those that are taken and the others.
    pub(super) fn add(&mut self, name: String) {
        match FileName::new(&name) {
            Ok(file) if file.kind() != FileKind::Manifest => self.taken.push(name),
            Ok(_) | Err(_) => self.left_out.push(name),
        }
    }

    fn look(&mut self, folder: &Path, below: &Path, deeper: usize) -> io::Result<()> {
        for (count, entry) in fs::read_dir(folder.join(below))?.enumerate() {
            if count == ENTRIES_MAX {
                return Err(io::Error::other("has too many files for a model"));
            }
            let name = below.join(entry?.file_name());
            if folder.join(&name).is_dir() && deeper > 0 {
                self.look(folder, &name, deeper - 1)?;
            } else {
                self.add(name.display().to_string());
            }
        }
        Ok(())
    }
}

/// The files of a folder as parts. Links are followed: the operator named the folder, and caches are full of them.
pub(super) fn folder(path: &Path, listing: &Listing, output: &Output) -> Result<Vec<Part>, CliError> {
    if listing.taken.len() > SOURCES_MAX {
        let what = format!("{} has {} files of a model", path.display(), listing.taken.len());
        return Err(usage(what, format!("at most {SOURCES_MAX} are taken")));
    }
    listing.taken.iter().map(|name| part(name, &path.join(name), output)).collect()
}

/// The digests of all files of a folder, also of those that are not taken: a bundle lists every one. Files that were
/// taken are not read again: their digests are those of the sealed bytes. A bundle that lies in the folder is none of them.
pub(super) fn digests(
    folder: &Path,
    parts: &[Part],
    bundle: &Path,
    output: &Output,
) -> Result<BTreeMap<String, Digest>, CliError> {
    let bundle = bundle.canonicalize().unwrap_or_else(|_| bundle.to_owned());
    let mut found: BTreeMap<String, Digest> =
        parts.iter().map(|part| (part.name.clone(), part.digest)).collect();
    for name in Listing::read(folder)?.left_out {
        let path = folder.join(&name);
        if path.canonicalize().is_ok_and(|path| path == bundle) {
            continue;
        }
        let (_, digest) = sealed(&path, output)?;
        found.insert(name, digest);
    }
    Ok(found)
}

/// One file as a part.
pub(super) fn part(name: &str, path: &Path, output: &Output) -> Result<Part, CliError> {
    let (file, digest) = sealed(path, output)?;
    Ok(Part { name: name.to_owned(), archive: None, file, digest })
}

/// A file's bytes in sealed memory, with their digest: no file can change between the comparison and the conversion.
pub(super) fn sealed(path: &Path, output: &Output) -> Result<(SealedFile, Digest), CliError> {
    let failed = |source: io::Error| CliError::io(path.display().to_string(), source);
    let file = open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length > SOURCE_BYTES_MAX {
        return Err(failed(io::Error::other(format!("has more than {SOURCE_BYTES_MAX} bytes"))));
    }
    let system = |error: ringfence_sandbox::SealedFileError| failed(io::Error::other(error));
    let place = Place::create("source", length).map_err(system)?;
    let bar = progress(output, length, "reading");
    // One byte more than it had would not fit, which says that it is being written to.
    let mut source = bar.wrap_read(file.take(length + 1));
    let mut writer = fs::File::from(place.as_fd().try_clone_to_owned().map_err(failed)?);
    let (mut hasher, mut bytes, mut block) = (Hasher::default(), 0, vec![0; BLOCK_BYTES]);
    loop {
        let count = source.read(&mut block).map_err(failed)?;
        if count == 0 {
            break;
        }
        writer.write_all(&block[..count]).map_err(failed)?;
        hasher.update(&block[..count]);
        bytes += count as u64;
    }
    bar.finish_and_clear();
    Ok((place.seal(bytes).map_err(system)?, hasher.finish()))
}

/// Opens a plain file; a FIFO does not make us wait.
fn open(path: &Path) -> io::Result<fs::File> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("is not a plain file")) }
}

/// The archives of a catalog's entry as parts, each with its pinned digest.
pub(super) fn catalog(
    entry: &CatalogEntry,
    given: &[PathBuf],
    cache: &Cache,
    output: &Output,
) -> Result<Vec<Part>, CliError> {
    let mut given =
        given.iter().map(|path| super::fetch::given(path, entry, output)).collect::<Result<Vec<_>, _>>()?;
    let mut parts = Vec::new();
    for archive in &entry.archives {
        let place = given.iter().position(|(digest, _)| *digest == archive.sha256);
        let file = match place {
            Some(place) => given.swap_remove(place).1,
            None => super::fetch::fetch(archive, cache, output)?,
        };
        parts.push(Part {
            name: archive.file.clone(),
            archive: Some(super::convert::archive(archive)),
            file,
            digest: archive.sha256,
        });
    }
    Ok(parts)
}

fn usage(what: String, advice: String) -> CliError {
    CliError::Usage { what, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_of_the_hub_has_an_owner_a_name_and_a_revision() {
        let parsed = Origin::parse("hf:sentence-transformers/all-MiniLM-L6-v2@refs/pr/1", None).unwrap();
        assert_eq!(parsed.describe(), "hf:sentence-transformers/all-MiniLM-L6-v2@refs/pr/1");
        assert_eq!(parsed.default_name(), "all-minilm-l6-v2");
        for wrong in
            ["hf:a/b", "hf:a@main", "hf:a/b@", "hf:../b@main", "hf:a/b@../x", "hf:a/b/c@main", "hf:a/b?@m"]
        {
            assert_eq!(Origin::parse(wrong, None).unwrap_err().code(), "usage", "{wrong}");
        }
    }

    #[test]
    fn a_file_is_known_by_its_ending_or_by_what_is_said_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "weights").unwrap();
            path.display().to_string()
        };
        let form = |name: &str, said| match Origin::parse(&file(name), said) {
            Ok(Origin::File(_, form)) => Some(form),
            Ok(_) | Err(_) => None,
        };
        assert_eq!(form("a.gguf", None), Some(SourceForm::Gguf));
        assert_eq!(form("a.pt", None), Some(SourceForm::WhisperPt));
        assert_eq!(form("a.bin", None), None);
        assert_eq!(form("a.bin", Some(SourceForm::WhisperGgml)), Some(SourceForm::WhisperGgml));
    }

    #[test]
    fn sealed_bytes_are_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "weights").unwrap();
        let (file, digest) = sealed(&path, &Output::new(true)).unwrap();
        assert_eq!(&*file.map().unwrap(), b"weights");
        let mut hasher = Hasher::default();
        hasher.update(b"weights");
        assert_eq!(digest, hasher.finish());
        assert!(sealed(Path::new("/dev/null"), &Output::new(true)).is_err());
    }
}

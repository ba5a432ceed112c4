//! The folder of packages: which there are, and their bytes once verified.

mod folder;
mod sealed;
mod stamps;
mod writer;

pub use stamps::Stamps;
pub use writer::{Draft, DraftError};

use crate::bundle::{BUNDLE_BYTES_MAX, Bundle, Resource, Statement};
use crate::digest::Digest;
use crate::keys::KeyId;
use crate::kind::{FileKind, FileName};
use crate::manifest::{Manifest, ManifestError};
use crate::name::PackageName;
use crate::refusal::Refusal;
use crate::trust::Trust;
use folder::Folder;
use rustix::io::Errno;
use sealed::Memfd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The name of the required bundle in the bundle folder.
const BUNDLE_FILE: &str = "ed25519.sig";
/// The name of the bundle for other programs there.
const INTERCHANGE_FILE: &str = "p256.sig";
/// The most entries of the store's folder that are looked at.
const ENTRIES_MAX: usize = 4096;
/// Threads that read and hash files of one package.
const HASH_THREADS: usize = 2;

/// The folder of packages, held open: nothing outside it is reached through it.
#[derive(Debug)]
pub struct Store {
    folder: Folder,
}

/// The system failed us; it says nothing about the package.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct StoreError {
    /// The file or folder, or what was to be done.
    pub what: String,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// Why a package was not verified or loaded.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// There is none of this name.
    #[error("there is no such model")]
    Missing,
    /// It is not to be run.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing is known about it, because the system failed us.
    #[error(transparent)]
    System(#[from] StoreError),
}

/// A package whose files are, or were a moment ago, the signed ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its manifest.
    pub manifest: Manifest,
    /// What it is: SHA-256 over its files' digests, as signed.
    pub digest: Digest,
    /// Who signed it.
    pub signer: KeyId,
    /// Every file, in the order of their names.
    pub files: Vec<VerifiedFile>,
}

/// A file of a verified package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedFile {
    /// Its name and kind.
    pub name: FileName,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// A package whose bytes are held in memory, where nobody can change them.
#[derive(Debug)]
pub struct LoadedPackage {
    /// What was verified of exactly these bytes.
    pub verified: Verified,
    /// The files that a worker reads, in the order of their names.
    pub files: Vec<SealedFile>,
}

/// A file's verified bytes in a memfd sealed against writing, growing, shrinking and further seals.
#[derive(Debug)]
pub struct SealedFile {
    /// Its name and kind.
    pub name: FileName,
    /// The descriptor, at offset 0.
    pub fd: OwnedFd,
    /// Its length.
    pub bytes: u64,
}

impl Verified {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes of the weight files.
    pub fn weight_bytes(&self) -> u64 {
        let weights = self.files.iter().filter(|file| file.name.kind() == FileKind::Weights);
        weights.map(|file| file.bytes).sum()
    }

    /// Bytes of the files that a worker reads: what [`LoadedPackage::files`] takes of memory.
    pub fn worker_bytes(&self) -> u64 {
        self.files.iter().filter(|file| file.name.kind().is_for_worker()).map(|file| file.bytes).sum()
    }
}

impl Store {
    /// Opens the folder `HOME/models`.
    ///
    /// # Errors
    /// [`StoreError`] where it can't be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let folder = Folder::open(path).map_err(|source| StoreError::new(path.display(), source))?;
        Ok(Self { folder })
    }

    /// The store in a folder that is open already.
    pub fn from_fd(folder: OwnedFd) -> Self {
        Self { folder: Folder::from(folder) }
    }

    /// The names of the packages, sorted. What has no package's name is left out: it is never loaded.
    ///
    /// # Errors
    /// [`StoreError`] where the folder can't be read, or has too many entries.
    pub fn list(&self) -> Result<Vec<PackageName>, StoreError> {
        let entries = self
            .folder
            .entries(ENTRIES_MAX)
            .map_err(|source| StoreError::new("the models folder", source))?;
        let folders = entries.iter().filter(|entry| entry.is_folder);
        let mut names: Vec<_> =
            folders.filter_map(|entry| PackageName::new(entry.name.to_str()?).ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Reads every file of a package and compares it with what was signed; keeps no bytes.
    ///
    /// `now` is Unix seconds. It reads the whole package: call it from a thread that may block.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn verify(&self, name: &PackageName, trust: &Trust, now: u64) -> Result<Verified, PackageError> {
        self.read(name, trust, now, Keep::Nothing).map(|package| package.verified)
    }

    /// Reads every file of a package once, each into a memfd of its own that is sealed and then compared with what
    /// was signed.
    ///
    /// `now` is Unix seconds. It reads the whole package: call it from a thread that may block.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn load(&self, name: &PackageName, trust: &Trust, now: u64) -> Result<LoadedPackage, PackageError> {
        self.read(name, trust, now, Keep::ForWorker)
    }

    fn read(
        &self,
        name: &PackageName,
        trust: &Trust,
        now: u64,
        keep: Keep,
    ) -> Result<LoadedPackage, PackageError> {
        let folder = match self.folder.folder(name.as_str()) {
            Err(Errno::NOENT) => return Err(PackageError::Missing),
            opened => opened.map_err(|error| folder::opening(name.as_str(), error))?,
        };
        let statement = self.bundle(name, BUNDLE_FILE)?.ok_or(Refusal::Unsigned)?.verify(name, trust, now)?;
        self.check_interchange(name, trust, now, &statement)?;
        folder.refuse_unlisted(&statement.files).map_err(|error| error.named(name))?;
        let read = read_files(&folder, &statement.files, keep).map_err(|error| error.named(name))?;
        finish(name, statement, read)
    }

    /// The second bundle is for other programs: nothing rests on it here. But one that does not hold is a sign that
    /// somebody has changed one of the two, and one of a signer whom nobody here trusts can't be told from that.
    fn check_interchange(
        &self,
        name: &PackageName,
        trust: &Trust,
        now: u64,
        statement: &Statement,
    ) -> Result<(), PackageError> {
        let invalid = |refusal| PackageError::Refused(Refusal::InterchangeInvalid(Box::new(refusal)));
        let bundle = match self.bundle(name, INTERCHANGE_FILE) {
            Ok(None) => return Ok(()),
            Err(PackageError::Refused(refusal)) => return Err(invalid(refusal)),
            read => read?.expect("none was seen above"),
        };
        match bundle.verify(name, trust, now) {
            Err(refusal) => Err(invalid(refusal)),
            Ok(second) if second.files == statement.files => Ok(()),
            Ok(_) => Err(invalid(Refusal::SubjectMismatch)),
        }
    }

    fn bundle(&self, name: &PackageName, file: &str) -> Result<Option<Bundle>, PackageError> {
        let file = format!("{}/{file}", name.bundle_folder());
        let error = |source| StoreError::new(&file, source);
        let bytes = match self.folder.read_small(&file, BUNDLE_BYTES_MAX) {
            Err(Errno::NOENT) => return Ok(None),
            read => read.map_err(error)?,
        };
        Ok(Some(Bundle::parse(&bytes).map_err(Refusal::BundleMalformed)?))
    }
}

/// What is kept of the bytes that are read.
#[derive(Clone, Copy, Debug)]
enum Keep {
    Nothing,
    ForWorker,
}

/// A file that was read and is what was signed.
struct ReadFile {
    bytes: u64,
    /// The manifest's text; other files have none.
    text: Option<Vec<u8>>,
    /// Where the bytes are kept, if they are.
    memfd: Option<OwnedFd>,
}

fn finish(
    name: &PackageName,
    statement: Statement,
    read: Vec<ReadFile>,
) -> Result<LoadedPackage, PackageError> {
    let text = read.iter().find_map(|file| file.text.as_deref());
    let text = text.ok_or_else(|| Refusal::FileMissing(FileName::manifest().to_string()))?;
    let manifest = Manifest::parse(text).map_err(Refusal::ManifestInvalid)?;
    if manifest.name() != name {
        let error = ManifestError::OtherName(manifest.name().clone());
        return Err(Refusal::ManifestInvalid(error).into());
    }
    let (mut files, mut sealed) = (Vec::new(), Vec::new());
    for (Resource { name, digest }, ReadFile { bytes, memfd, .. }) in statement.files.into_iter().zip(read) {
        sealed.extend(memfd.map(|fd| SealedFile { name: name.clone(), fd, bytes }));
        files.push(VerifiedFile { name, bytes, digest });
    }
    let verified = Verified { manifest, digest: statement.digest, signer: statement.signer, files };
    Ok(LoadedPackage { verified, files: sealed })
}

/// Reads all files on a few threads; the first refusal in the order of names counts.
fn read_files(folder: &Folder, files: &[Resource], keep: Keep) -> Result<Vec<ReadFile>, PackageError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let claim = || files.get(next.fetch_add(1, Ordering::Relaxed));
        let read = |file: &Resource| (file.name.clone(), read_file(folder, file, keep));
        std::iter::from_fn(|| claim().map(read)).collect::<Vec<_>>()
    };
    let mut results = thread::scope(|scope| {
        let helpers: Vec<_> = (1..HASH_THREADS).map(|_| scope.spawn(work)).collect();
        let mut results = work();
        for helper in helpers {
            results.extend(helper.join().expect("reading a file does not panic"));
        }
        results
    });
    results.sort_by(|(a, _), (b, _)| a.cmp(b));
    results.into_iter().map(|(_, result)| result).collect()
}

fn read_file(folder: &Folder, file: &Resource, keep: Keep) -> Result<ReadFile, PackageError> {
    let kind = file.name.kind();
    let mut source = folder.open_file(&file.name)?;
    let mut memfd = match keep {
        Keep::ForWorker if kind.is_for_worker() => Some(Memfd::create(&file.name)?),
        Keep::ForWorker | Keep::Nothing => None,
    };
    let mut text = (kind == FileKind::Manifest).then(Vec::new);
    let (bytes, found) = source.digest(|block| {
        if let Some(text) = &mut text {
            text.extend_from_slice(block);
        }
        memfd.as_mut().map_or(Ok(()), |memfd| memfd.write(block))
    })?;
    // Sealed first: what is compared can't change any more.
    let memfd = memfd.map(Memfd::seal).transpose()?;
    if found != file.digest {
        let (file, signed) = (file.name.to_string(), file.digest);
        return Err(Refusal::DigestMismatch { file, signed, found }.into());
    }
    Ok(ReadFile { bytes, text, memfd })
}

impl StoreError {
    pub(crate) fn new(what: impl ToString, source: impl Into<std::io::Error>) -> Self {
        Self { what: what.to_string(), source: source.into() }
    }
}

impl PackageError {
    /// With the package's name before the file's, where the system failed us.
    fn named(self, name: &PackageName) -> Self {
        match self {
            Self::System(error) => {
                Self::System(StoreError { what: format!("{name}/{}", error.what), source: error.source })
            }
            Self::Missing | Self::Refused(_) => self,
        }
    }
}

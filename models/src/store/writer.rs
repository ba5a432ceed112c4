//! Writing packages, which only the operator's command does.
//!
//! A package is two folders, `NAME` and `NAME.oms`, and no call replaces both at once. So:
//!
//! ```text
//! state                               what a reader finds
//! 1  .NAME.new being filled           the old package, or none
//! 2  both new folders on the disk     the same
//! 3  NAME exchanged                   new files under the old bundle: refused, or none at all: unsigned
//! 4  NAME.oms exchanged               the new package
//! 5  the old folders removed          the new package
//! ```
//!
//! In no state does a mixture verify: a bundle holds only for the bytes that it was made for. A crash in state 3
//! leaves a package that is refused until it is added, signed or removed again; a crash before leaves the old one.
//! Names that begin with a dot are not packages; the next draft of that name clears them away.

use super::{BUNDLE_FILE, Folder, INTERCHANGE_FILE, PackageError, Store, StoreError, Verified, VerifiedFile};
use crate::bundle::{self, Bundle, FILES_MAX, Resource};
use crate::digest::{Digest, Hasher};
use crate::keys::P256SigningKey;
use crate::kind::{FileKind, FileName, FileNameError};
use crate::manifest::Manifest;
use crate::name::PackageName;
use crate::refusal::Refusal;
use crate::trust::Trust;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, PermissionsExt};
use ed25519_dalek::SigningKey;
use rustix::fs::{FlockOperation, RenameFlags, flock, fsync, renameat_with};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

const BLOCK_BYTES: usize = 1024 * 1024;

/// A package that is being written. Dropped without [`Draft::commit`], nothing of it stays.
#[derive(Debug)]
pub struct Draft {
    models: Models,
    name: PackageName,
    files: Vec<Resource>,
    bytes: u64,
}

/// Why a package could not be written.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// Another command writes to the store.
    #[error("another command is changing the models; try again when it is done")]
    Busy,
    /// There is no package of this name.
    #[error("there is no such model")]
    Missing,
    /// The key for other programs is not one of the trust file's.
    #[error("a second bundle of this key would be refused: {0}")]
    Untrusted(Refusal),
    /// A package has no file of this name.
    #[error("{name:?}: {error}")]
    FileName {
        /// As given.
        name: String,
        /// What is wrong with it.
        error: FileNameError,
    },
    /// The same file came twice.
    #[error("{0} comes twice")]
    Twice(FileName),
    /// A file is longer than its kind may be.
    #[error("{file} is longer than {bytes_max} bytes")]
    TooLarge {
        /// Which.
        file: FileName,
        /// The limit of its kind.
        bytes_max: u64,
    },
    /// More files than a package can have.
    #[error("a package has at most {FILES_MAX} files")]
    TooMany,
    /// No manifest, or no weights.
    #[error("{0} is missing")]
    Incomplete(&'static str),
    /// What lies in the folder can't be in a package.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk, or the source of a file.
    #[error(transparent)]
    System(#[from] StoreError),
}

impl From<PackageError> for DraftError {
    fn from(error: PackageError) -> Self {
        match error {
            PackageError::Missing => Self::Missing,
            PackageError::Refused(refusal) => Self::Refused(refusal),
            PackageError::System(error) => Self::System(error),
        }
    }
}

/// The store's folder, locked against other writers.
#[derive(Debug)]
struct Models {
    folder: Folder,
    dir: Dir,
    /// Whether everybody may read what is written, as the folder itself says.
    is_public: bool,
}

impl Store {
    /// Begins a package that takes the place of one of the same name when it is committed.
    ///
    /// # Errors
    /// [`DraftError::Busy`] and [`DraftError::System`].
    pub fn draft(&self, name: &PackageName) -> Result<Draft, DraftError> {
        let models = Models::lock(&self.folder)?;
        models.clear(&new(name.as_str()))?;
        models.clear(&new(&name.bundle_folder()))?;
        models.make_folder(&new(name.as_str()))?;
        Ok(Draft { models, name: name.clone(), files: Vec::new(), bytes: 0 })
    }

    /// Signs what lies in the folder of a package now, without judging it: the operator vouches for it.
    ///
    /// # Errors
    /// [`DraftError`]; files that packages don't have are an error.
    pub fn sign(&self, name: &PackageName, key: &SigningKey) -> Result<Digest, DraftError> {
        let models = Models::lock(&self.folder)?;
        let files = models.resources(name)?;
        complete(&files)?;
        let (bundle, digest) = bundle::sign(key, name, files);
        models.clear(&new(&name.bundle_folder()))?;
        models.write_bundle(name, &bundle)?;
        models.put(&name.bundle_folder())?;
        Ok(digest)
    }

    /// Signs with another key exactly what was verified; what lies in the folder now is not read again.
    ///
    /// # Errors
    /// [`DraftError::Busy`] and [`DraftError::System`].
    pub fn resign(&self, verified: &Verified, key: &SigningKey) -> Result<(), DraftError> {
        let models = Models::lock(&self.folder)?;
        let name = verified.manifest.name();
        let resource = |file: &VerifiedFile| Resource { name: file.name.clone(), digest: file.digest };
        let (bundle, digest) = bundle::sign(key, name, verified.files.iter().map(resource).collect());
        assert_eq!(digest, verified.digest, "the same files have the same digest");
        models.clear(&new(&name.bundle_folder()))?;
        models.write_bundle(name, &bundle)?;
        Ok(models.put(&name.bundle_folder())?)
    }

    /// Writes the bundle for other programs, `NAME.oms/p256.sig`, over exactly what was verified. Signing the package
    /// again removes it. `now` is Unix seconds.
    ///
    /// # Errors
    /// [`DraftError::Untrusted`] where the package would be refused with such a bundle, [`DraftError::Busy`] and
    /// [`DraftError::System`].
    pub fn sign_p256(
        &self,
        verified: &Verified,
        key: &P256SigningKey,
        trust: &Trust,
        now: u64,
    ) -> Result<(), DraftError> {
        let models = Models::lock(&self.folder)?;
        let name = verified.manifest.name();
        let resource = |file: &VerifiedFile| Resource { name: file.name.clone(), digest: file.digest };
        let (bundle, digest) = bundle::sign(key, name, verified.files.iter().map(resource).collect());
        assert_eq!(digest, verified.digest, "the same files have the same digest");
        let parsed = Bundle::parse(bundle.as_bytes()).expect("a bundle of our own is one");
        parsed.verify(name, trust, now).map_err(DraftError::Untrusted)?;
        Ok(models.write_interchange(name, &bundle)?)
    }

    /// Removes a package and its bundles.
    ///
    /// # Errors
    /// [`DraftError::Missing`], [`DraftError::Busy`], [`DraftError::System`].
    pub fn remove(&self, name: &PackageName) -> Result<(), DraftError> {
        let models = Models::lock(&self.folder)?;
        let old = new(name.as_str());
        models.clear(&old)?;
        // One rename ends it for every reader; a crash after it leaves nothing that is a package.
        match models.dir.rename(name.as_str(), &models.dir, &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(DraftError::Missing),
            renamed => renamed.map_err(|source| StoreError::new(name, source))?,
        }
        models.sync()?;
        models.clear(&old)?;
        models.clear(&name.bundle_folder())?;
        Ok(models.sync()?)
    }
}

impl Draft {
    /// Copies a file into the package.
    ///
    /// # Errors
    /// [`DraftError`].
    pub fn add(&mut self, name: &str, source: &mut dyn Read) -> Result<(), DraftError> {
        let illegal = |error| DraftError::FileName { name: name.to_owned(), error };
        let name = FileName::new(name).map_err(illegal)?;
        if self.files.iter().any(|file| file.name == name) {
            return Err(DraftError::Twice(name));
        }
        if self.files.len() == FILES_MAX {
            return Err(DraftError::TooMany);
        }
        let (bytes, digest) = self.copy(&name, source)?;
        self.bytes += bytes;
        self.files.push(Resource { name, digest });
        Ok(())
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// [`DraftError`].
    ///
    /// # Panics
    /// Where the manifest is another package's.
    pub fn add_manifest(&mut self, manifest: &Manifest) -> Result<(), DraftError> {
        assert_eq!(manifest.name(), &self.name, "a package's manifest has its name");
        self.add(FileName::manifest().as_str(), &mut manifest.to_toml().as_bytes())
    }

    /// The package's name.
    pub fn name(&self) -> &PackageName {
        &self.name
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Signs the package and puts it, durably, in the place of the old one.
    ///
    /// # Errors
    /// [`DraftError::Incomplete`] and [`DraftError::System`].
    pub fn commit(mut self, key: &SigningKey) -> Result<Digest, DraftError> {
        let files = std::mem::take(&mut self.files);
        complete(&files)?;
        let (bundle, digest) = bundle::sign(key, &self.name, files);
        self.models.write_bundle(&self.name, &bundle)?;
        self.models.sync()?;
        self.models.put(self.name.as_str())?;
        self.models.put(&self.name.bundle_folder())?;
        Ok(digest)
    }

    fn copy(&self, name: &FileName, source: &mut dyn Read) -> Result<(u64, Digest), DraftError> {
        let folder = new(self.name.as_str());
        let path = format!("{folder}/{name}");
        if let Some((parent, _)) = name.as_str().rsplit_once('/') {
            self.models.make_folder(&format!("{folder}/{parent}"))?;
        }
        let error = |source| StoreError::new(&path, source);
        let mut file = self.models.create(&path)?;
        let (mut block, mut hasher, mut bytes) = (vec![0; BLOCK_BYTES], Hasher::default(), 0);
        let bytes_max = name.kind().bytes_max();
        loop {
            let count = source.read(&mut block).map_err(error)?;
            if count == 0 {
                break;
            }
            bytes += count as u64;
            if bytes > bytes_max {
                return Err(DraftError::TooLarge { file: name.clone(), bytes_max });
            }
            hasher.update(&block[..count]);
            file.write_all(&block[..count]).map_err(error)?;
        }
        file.sync_all().map_err(error)?;
        self.models.sync_parent(&path)?;
        Ok((bytes, hasher.finish()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What can't be cleared away now is cleared by the next draft of this name.
        let _ = self.models.clear(&new(self.name.as_str()));
        let _ = self.models.clear(&new(&self.name.bundle_folder()));
    }
}

/// The name under which a folder is made, and under which an old one waits for its removal.
fn new(name: &str) -> String {
    format!(".{name}.new")
}

fn complete(files: &[Resource]) -> Result<(), DraftError> {
    let has = |kind| files.iter().any(|file| file.name.kind() == kind);
    if !has(FileKind::Manifest) {
        return Err(DraftError::Incomplete("package.toml"));
    }
    if !has(FileKind::Weights) {
        return Err(DraftError::Incomplete("a *.safetensors file"));
    }
    Ok(())
}

impl Models {
    fn lock(folder: &Folder) -> Result<Self, DraftError> {
        // A description of its own: the lock ends with this writer, not with the store.
        let error = |source: io::Error| StoreError::new("the models folder", source);
        let own = folder.folder(".").map_err(|errno| error(errno.into()))?;
        match flock(&own, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(DraftError::Busy),
            locked => locked.map_err(|errno| error(errno.into()))?,
        }
        let dir = Dir::from_std_file(File::from(own.as_fd().try_clone_to_owned().map_err(error)?));
        let is_public = dir.dir_metadata().map_err(error)?.permissions().mode() & 0o004 != 0;
        Ok(Self { folder: own, dir, is_public })
    }

    fn make_folder(&self, path: &str) -> Result<(), StoreError> {
        let error = |source| StoreError::new(path, source);
        match self.dir.create_dir(path) {
            Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made.map_err(error)?,
        }
        let mode = if self.is_public { 0o755 } else { 0o700 };
        self.dir.set_permissions(path, cap_std::fs::Permissions::from_mode(mode)).map_err(error)
    }

    fn create(&self, path: &str) -> Result<cap_std::fs::File, StoreError> {
        let error = |source| StoreError::new(path, source);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = self.dir.open_with(path, &options).map_err(error)?;
        let mode = if self.is_public { 0o644 } else { 0o600 };
        file.set_permissions(cap_std::fs::Permissions::from_mode(mode)).map_err(error)?;
        Ok(file)
    }

    fn write_bundle(&self, name: &PackageName, bundle: &str) -> Result<(), StoreError> {
        let folder = new(&name.bundle_folder());
        let path = format!("{folder}/{BUNDLE_FILE}");
        let error = |source| StoreError::new(&path, source);
        self.make_folder(&folder)?;
        let mut file = self.create(&path)?;
        file.write_all(bundle.as_bytes()).and_then(|()| file.sync_all()).map_err(error)?;
        self.sync_parent(&path)
    }

    /// One rename puts it there, whole.
    fn write_interchange(&self, name: &PackageName, bundle: &str) -> Result<(), StoreError> {
        let path = format!("{}/{INTERCHANGE_FILE}", name.bundle_folder());
        let new = format!("{}/.{INTERCHANGE_FILE}.new", name.bundle_folder());
        let error = |source| StoreError::new(&path, source);
        match self.dir.remove_file(&new) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(error)?,
        }
        let mut file = self.create(&new)?;
        file.write_all(bundle.as_bytes()).and_then(|()| file.sync_all()).map_err(error)?;
        self.dir.rename(&new, &self.dir, &path).map_err(error)?;
        self.sync_parent(&path)
    }

    /// Puts the new folder in the place of `name`, and removes the one that was there.
    fn put(&self, name: &str) -> Result<(), StoreError> {
        let new = new(name);
        let rename = |flags| renameat_with(&self.dir, &new, &self.dir, name, flags);
        let renamed = match rename(RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => rename(RenameFlags::NOREPLACE),
            exchanged => exchanged,
        };
        renamed.map_err(|source| StoreError::new(name, source))?;
        self.sync()?;
        self.clear(&new)
    }

    fn clear(&self, name: &str) -> Result<(), StoreError> {
        match self.dir.remove_dir_all(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| StoreError::new(name, source)),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        fsync(&self.folder).map_err(|source| StoreError::new("the models folder", source))
    }

    /// Makes the name of a file, and the name of its folder, durable.
    fn sync_parent(&self, path: &str) -> Result<(), StoreError> {
        let mut parent = path;
        while let Some((folder, _)) = parent.rsplit_once('/') {
            let synced = self.folder.folder(folder).and_then(|opened| fsync(&opened));
            synced.map_err(|source| StoreError::new(folder, source))?;
            parent = folder;
        }
        Ok(())
    }

    /// Names and digests of everything in a package's folder.
    fn resources(&self, name: &PackageName) -> Result<Vec<Resource>, DraftError> {
        let folder = match self.folder.folder(name.as_str()) {
            Err(Errno::NOENT) => return Err(DraftError::Missing),
            opened => opened.map_err(|source| StoreError::new(name, source))?,
        };
        let mut resources = Vec::new();
        for file in folder.names()? {
            let illegal = |error| DraftError::FileName { name: file.clone(), error };
            let name = FileName::new(&file).map_err(illegal)?;
            let (_, digest) = folder.open_file(&name)?.digest(|_| Ok(()))?;
            resources.push(Resource { name, digest });
        }
        Ok(resources)
    }
}

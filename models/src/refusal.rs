//! Why a package is not run. Each reason is told apart, and each has a stable code.

use crate::digest::Digest;
use crate::json::FieldError;
use crate::keys::KeyId;
use crate::manifest::ManifestError;

/// Why a package is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No bundle stands beside the package.
    #[error("it is not signed")]
    Unsigned,
    /// The bundle, or the statement in it, is not of our form.
    #[error("its bundle is malformed: {0}")]
    BundleMalformed(FieldError),
    /// The bundle asks to leave files unchecked.
    #[error("its bundle lists ignore_paths: files that nobody checks")]
    IgnorePaths,
    /// The trust file does not have the key.
    #[error("it is signed with the key {0}, which the trust file does not list")]
    UnknownSigner(KeyId),
    /// The key may not sign packages of this name.
    #[error("it is signed with the key {0}, which may not sign models of this name")]
    OutOfScope(KeyId),
    /// The key counts from a later time on.
    #[error("it is signed with the key {signer}, which is valid only from {not_before} (Unix seconds)")]
    NotYetValid {
        /// The key.
        signer: KeyId,
        /// Unix seconds.
        not_before: u64,
    },
    /// The key's time is over.
    #[error("it is signed with the key {signer}, which expired at {not_after} (Unix seconds)")]
    Expired {
        /// The key.
        signer: KeyId,
        /// Unix seconds.
        not_after: u64,
    },
    /// The trust file's own time is over: it says nothing about any key.
    #[error("the trust file expired at {0} (Unix seconds)")]
    TrustExpired(u64),
    /// The key was revoked.
    #[error("it is signed with the key {0}, which was revoked")]
    KeyRevoked(KeyId),
    /// This very content was revoked.
    #[error("its content, {0}, was revoked")]
    DigestRevoked(Digest),
    /// The signature over the statement does not hold.
    #[error("its signature does not hold")]
    SignatureInvalid,
    /// The second bundle, for other programs, does not hold: one of the two was changed, or its key is no longer
    /// trusted.
    #[error("its second bundle, p256.sig, does not hold: {0}")]
    InterchangeInvalid(Box<Self>),
    /// The statement is about a package of another name.
    #[error("its signature is for another model, {0:?}")]
    NameMismatch(String),
    /// The statement's digest is not that of the files it lists.
    #[error("its statement's digest is not that of the files it lists")]
    SubjectMismatch,
    /// A file lies in the folder that the bundle does not list.
    #[error("{0:?} lies in its folder, but is not signed")]
    FileUnlisted(String),
    /// The folder has more files, or deeper folders, than a package can have.
    #[error("its folder has more in it than a package can have")]
    FolderTooLarge,
    /// A listed file is not there.
    #[error("{0} is missing")]
    FileMissing(String),
    /// A file is not what was signed.
    #[error("{file} is not what was signed: its digest is {found}, the signed one {signed}")]
    DigestMismatch {
        /// Which.
        file: String,
        /// The signed digest.
        signed: Digest,
        /// That of the bytes on disk.
        found: Digest,
    },
    /// The bundle lists a file that packages don't have.
    #[error("{0:?} is not a kind of file that packages have")]
    FileKindUnknown(String),
    /// A file is longer than its kind may be.
    #[error("{file} is longer than {bytes_max} bytes")]
    FileTooLarge {
        /// Which.
        file: String,
        /// The limit of its kind.
        bytes_max: u64,
    },
    /// Something else stands in place of a file.
    #[error("{file} is not the plain file or folder that it must be: it is {found}")]
    NotRegular {
        /// Which.
        file: String,
        /// What it is.
        found: NotRegular,
    },
    /// `package.toml` is signed and still not usable.
    #[error("package.toml: {0}")]
    ManifestInvalid(ManifestError),
}

/// What can stand in place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRegular {
    /// A symbolic link, at the end or on the way.
    #[error("a symbolic link")]
    Symlink,
    /// A file with more than one name.
    #[error("a file with a second name (hard link)")]
    HardLink,
    /// A folder.
    #[error("a folder")]
    Folder,
    /// A FIFO.
    #[error("a FIFO")]
    Fifo,
    /// A socket or a device.
    #[error("a socket or a device")]
    Special,
    /// On another file system than its package.
    #[error("on another file system")]
    OtherFileSystem,
    /// Something else stands in place of a folder.
    #[error("no folder, or below something that is none")]
    NotAFolder,
}

impl Refusal {
    /// A stable name, for scripts and the audit log.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::BundleMalformed(_) => "bundle_malformed",
            Self::IgnorePaths => "ignore_paths",
            Self::UnknownSigner(_) => "unknown_signer",
            Self::OutOfScope(_) => "out_of_scope",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Expired { .. } => "expired",
            Self::TrustExpired(_) => "trust_expired",
            Self::KeyRevoked(_) => "key_revoked",
            Self::DigestRevoked(_) => "digest_revoked",
            Self::SignatureInvalid => "signature_invalid",
            Self::InterchangeInvalid(_) => "interchange_invalid",
            Self::NameMismatch(_) => "name_mismatch",
            Self::SubjectMismatch => "subject_mismatch",
            Self::FileUnlisted(_) => "file_unlisted",
            Self::FolderTooLarge => "folder_too_large",
            Self::FileMissing(_) => "file_missing",
            Self::DigestMismatch { .. } => "digest_mismatch",
            Self::FileKindUnknown(_) => "file_kind_unknown",
            Self::FileTooLarge { .. } => "file_too_large",
            Self::NotRegular { .. } => "not_regular",
            Self::ManifestInvalid(_) => "manifest_invalid",
        }
    }
}

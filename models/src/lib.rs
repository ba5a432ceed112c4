//! Model packages: manifest, signature bundle, trust file, catalog, digesting into sealed memfds.
//!
//! ```text
//! models/NAME/...                the package; package.toml is its manifest
//! models/NAME.oms/ed25519.sig    the bundle: every file's digest, signed
//! trust.json                     whose signature counts for which packages, signed by the root key
//! trust.floor                    the version below which no trust file counts
//! trust.next                     the next trust file, where a change of it was cut off
//! root.pub                       the root key's public half
//! ```
//!
//! [`Store::load`] turns a package into sealed descriptors whose bytes are the signed ones, or says in a [`Refusal`]
//! why it does not. Time and keys come in as values; only [`Store`] touches the disk.

mod bundle;
mod catalog;
mod digest;
mod dsse;
mod json;
mod keys;
mod kind;
mod manifest;
mod name;
mod profile;
mod refusal;
mod rollback;
mod store;
mod trust;

pub use bundle::{BUNDLE_BYTES_MAX, Bundle, FILES_MAX, Resource, Statement, sign};
pub use catalog::{ArchiveKind, Catalog, CatalogArchive, CatalogEntry, CatalogMember, Registry, SourceForm};
pub use digest::{Digest, DigestError, Hasher};
pub use ed25519_dalek::SigningKey;
pub use json::{Fault, FieldError};
pub use keys::{Algorithm, KeyError, KeyId, P256SigningKey, PublicKey, SignBytes};
pub use kind::{FileKind, FileName, FileNameError};
pub use manifest::{
    Architecture, BlockType, MANIFEST_BYTES_MAX, MAX_TOKENS_MAX, Manifest, ManifestError, ManifestValues,
    SourceArchive, Task,
};
pub use name::{NameError, PackageName};
pub use profile::{
    DEVIATION_PERCENT_MAX, LoadMeasurement, Measurement, PROFILE_BYTES_MAX, PROFILES_FOLDER, PerThread,
    Profile, ProfileDevice, ProfileError, Step,
};
pub use refusal::{NotRegular, Refusal};
pub use rollback::{FLOOR_BYTES_MAX, TrustFiles, floor_text};
pub use store::{
    Draft, DraftError, LoadedPackage, PackageError, SealedFile, Stamps, Store, StoreError, Verified,
    VerifiedFile,
};
pub use trust::{Glob, TRUST_BYTES_MAX, Trust, TrustError, TrustedKey};

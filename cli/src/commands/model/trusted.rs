//! The packages of a home together with the trust that applies to them.

use crate::clock;
use crate::error::CliError;
use crate::home::Home;
use ringfence_models::{
    PackageError, PackageName, PublicKey, Refusal, Store, TRUST_BYTES_MAX, Trust, Verified,
};
use std::fs;
use std::io::{self, Read};

/// The longest `root.pub` in bytes.
const ROOT_BYTES_MAX: usize = 4 * 1024;

/// Packages, and whose signature counts for them.
pub(super) struct Trusted {
    pub(super) store: Store,
    trust: Trust,
}

impl Trusted {
    /// Opens the packages and verifies the trust file against the pinned root key.
    pub(super) fn open(home: &Home) -> Result<Self, CliError> {
        let root = root(home)?;
        let subject = home.path().join("trust.json").display().to_string();
        let trust = Trust::verify(&read(home, "trust.json", TRUST_BYTES_MAX)?, &root);
        let trust = trust.map_err(|error| CliError::Verification {
            subject,
            code: "trust_invalid",
            source: error.into(),
            advice: "nothing is trusted without it: restore the file that `ringfence init` made".to_owned(),
        })?;
        Ok(Self { store: store(home)?, trust })
    }

    /// Reads every file of a package and compares it with what was signed.
    pub(super) fn judge(&self, name: &PackageName) -> Result<Verified, PackageError> {
        self.store.verify(name, &self.trust, clock::unix_seconds())
    }

    /// As [`Self::judge`], with an error for people.
    pub(super) fn verify(&self, name: &PackageName) -> Result<Verified, CliError> {
        self.judge(name).map_err(|error| refused(name, error))
    }
}

/// The folder of packages, for commands that judge nothing.
pub(super) fn store(home: &Home) -> Result<Store, CliError> {
    Store::open(&home.models()).map_err(|error| match error.source.kind() {
        io::ErrorKind::NotFound => not_initialised(&error.what, error.source),
        _ => CliError::io(error.what, error.source),
    })
}

/// A package that did not hold, for people.
pub(super) fn refused(name: &PackageName, error: PackageError) -> CliError {
    let subject = format!("model {name}");
    match error {
        PackageError::Missing => CliError::Failed {
            subject,
            code: "model_unknown",
            source: error.into(),
            advice: "list the models: ringfence model list".to_owned(),
        },
        PackageError::Refused(refusal) => {
            let (code, advice) = (refusal.code(), advice(name, &refusal));
            CliError::Verification { subject, code, source: refusal.into(), advice }
        }
        PackageError::System(error) => CliError::io(format!("{subject}: {}", error.what), error.source),
    }
}

fn advice(name: &PackageName, refusal: &Refusal) -> String {
    let again = format!("add it again: ringfence model add; or remove it: ringfence model remove {name}");
    match refusal {
        Refusal::Unsigned | Refusal::NameMismatch(_) => {
            format!("if you know where it came from, vouch for it: ringfence model sign {name}")
        }
        Refusal::UnknownSigner(_) | Refusal::OutOfScope(_) => {
            format!("if you trust it all the same, sign it with your own key: ringfence model sign {name}")
        }
        Refusal::NotYetValid { .. } => "look at this machine's clock".to_owned(),
        Refusal::Expired { .. } | Refusal::TrustExpired(_) => {
            "look at this machine's clock; keys that are too old must be replaced in the trust file"
                .to_owned()
        }
        Refusal::KeyRevoked(_) | Refusal::DigestRevoked(_) => {
            format!("remove it: ringfence model remove {name}")
        }
        Refusal::FileUnlisted(file) => format!("take {file:?} out of the model's folder, or {again}"),
        Refusal::BundleMalformed(_)
        | Refusal::IgnorePaths
        | Refusal::SignatureInvalid
        | Refusal::SubjectMismatch
        | Refusal::FolderTooLarge
        | Refusal::FileMissing(_)
        | Refusal::DigestMismatch { .. }
        | Refusal::FileKindUnknown(_)
        | Refusal::FileTooLarge { .. }
        | Refusal::NotRegular { .. }
        | Refusal::ManifestInvalid(_) => again,
    }
}

fn root(home: &Home) -> Result<PublicKey, CliError> {
    let bytes = read(home, "root.pub", ROOT_BYTES_MAX)?;
    PublicKey::from_pem(&String::from_utf8_lossy(&bytes)).map_err(|error| CliError::Verification {
        subject: home.path().join("root.pub").display().to_string(),
        code: "root_key_invalid",
        source: error.into(),
        advice: "restore the file that `ringfence init` made".to_owned(),
    })
}

/// A file of at most `bytes_max` bytes; longer ones are cut one byte above, which their reader refuses.
fn read(home: &Home, name: &str, bytes_max: usize) -> Result<Vec<u8>, CliError> {
    let path = home.path().join(name);
    let mut bytes = Vec::new();
    let opened = fs::OpenOptions::new().read(true).open(&path);
    let read = opened.and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(not_initialised(&path.display().to_string(), error))
        }
        Err(error) => Err(CliError::io(path.display().to_string(), error)),
    }
}

fn not_initialised(subject: &str, source: io::Error) -> CliError {
    CliError::Failed {
        subject: subject.to_owned(),
        code: "not_initialised",
        source: source.into(),
        advice: "make the home with `ringfence init`, or name another with --home".to_owned(),
    }
}

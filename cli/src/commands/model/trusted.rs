//! The packages of a home together with the trust that applies to them.

use crate::clock;
use crate::error::CliError;
use crate::home::Home;
use crate::operator::Config;
use crate::trust::{Installed, not_initialised};
use ringfence_models::{
    BUNDLE_BYTES_MAX, Bundle, Digest, KeyId, LoadedPackage, P256SigningKey, PackageError, PackageName,
    Refusal, Store, Trust, Verified,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// Packages, and whose signature counts for them.
pub(crate) struct Trusted {
    pub(crate) store: Store,
    trust: Trust,
}

impl Trusted {
    /// As [`Self::open_with`], with the operator's copy in the usual folder, if anything says where that is.
    pub(super) fn open(home: &Home) -> Result<Self, CliError> {
        match Config::resolve(None) {
            Ok(config) => Self::open_with(home, &config),
            Err(_) => Self::new(home, Installed::read(home)?.trust),
        }
    }

    /// Opens the packages, verifies the trust file against the pinned root key and compares it with the operator's
    /// copy, where that can be read.
    pub(crate) fn open_with(home: &Home, config: &Config) -> Result<Self, CliError> {
        Self::new(home, Installed::compared(home, config)?.trust)
    }

    /// The packages under this trust.
    pub(crate) fn new(home: &Home, trust: Trust) -> Result<Self, CliError> {
        Ok(Self { store: store(home)?, trust })
    }

    /// Reads every file of a package and compares it with what was signed.
    pub(crate) fn judge(&self, name: &PackageName) -> Result<Verified, PackageError> {
        self.store.verify(name, &self.trust, clock::unix_seconds())
    }

    /// The package's bytes in sealed memory, verified.
    pub(super) fn load(&self, name: &PackageName) -> Result<LoadedPackage, CliError> {
        let loaded = self.store.load(name, &self.trust, clock::unix_seconds());
        loaded.map_err(|error| refused(name, error))
    }

    /// Writes the bundle for other programs over what was verified.
    pub(super) fn sign_p256(&self, verified: &Verified, key: &P256SigningKey) -> Result<(), CliError> {
        let written = self.store.sign_p256(verified, key, &self.trust, clock::unix_seconds());
        written.map_err(|error| super::writing(verified.manifest.name(), error))
    }

    /// Which trusted key signed exactly these files, in a bundle of somebody else's.
    pub(crate) fn vouch(
        &self,
        name: &PackageName,
        bundle: &Path,
        digests: &BTreeMap<String, Digest>,
    ) -> Result<KeyId, CliError> {
        let subject = bundle.display().to_string();
        let file = fs::OpenOptions::new().read(true).open(bundle);
        let mut bytes = Vec::new();
        let read = file.and_then(|file| file.take(BUNDLE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
        read.map_err(|source| CliError::io(&subject, source))?;
        let parsed = Bundle::parse(&bytes).map_err(Refusal::BundleMalformed);
        let judged = parsed
            .and_then(|bundle| bundle.verify_foreign(name, &self.trust, clock::unix_seconds(), digests));
        judged.map_err(|refusal| CliError::Verification {
            subject,
            code: refusal.code(),
            source: refusal.into(),
            advice:
                "list whose signatures count: ringfence trust show; a supplier's key is added with ringfence \
                     trust key add"
                    .to_owned(),
        })
    }

    /// As [`Self::judge`], with an error for people.
    pub(crate) fn verify(&self, name: &PackageName) -> Result<Verified, CliError> {
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
pub(crate) fn refused(name: &PackageName, error: PackageError) -> CliError {
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
            "look at this machine's clock; if it is right: ringfence trust renew".to_owned()
        }
        Refusal::KeyRevoked(_) => {
            format!("if you know that it is good, sign it with your own key: ringfence model sign {name}")
        }
        Refusal::InterchangeInvalid(_) => {
            format!(
                "remove models/{name}.oms/p256.sig from the home: the model's own signature must hold without it"
            )
        }
        Refusal::DigestRevoked(_) => format!("remove it: ringfence model remove {name}"),
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

//! The trust file of a home, the operator's own copy of it, and changing both.
//!
//! Whoever owns the home's folder could put an old trust file and an old floor back. So the newest trust file that the
//! operator signed also lies in the configuration folder, as `trust.copy`, and every command compares the two.
//! A change writes the copy first: from then on it is the operator's will, and `ringfence trust restore` can put it into
//! the home at any time, without a passphrase. The order of the steps in the home is in `ringfence_models::TrustFiles`.

use crate::durable;
use crate::error::CliError;
use crate::home::Home;
use crate::operator::{Config, KeyFile, OperatorArgs, Passphrase};
use ringfence_models::{
    FLOOR_BYTES_MAX, PublicKey, SigningKey, TRUST_BYTES_MAX, Trust, TrustError, TrustFiles, floor_text,
};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The longest `root.pub` in bytes.
const ROOT_BYTES_MAX: usize = 4 * 1024;
/// The longest copy in bytes: the trust file, whose quotes take two bytes here, and the root key.
const COPY_BYTES_MAX: usize = 2 * TRUST_BYTES_MAX + 64 * 1024;
/// The operator's copy, in the configuration folder.
const COPY: &str = "trust.copy";

/// What the home says about trust.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Who signs the trust file.
    pub root: PublicKey,
    /// Whose signatures count.
    pub trust: Trust,
    /// The version below which no trust file counts.
    pub floor: u64,
}

/// The newest trust file that the operator signed.
#[derive(Clone, Debug)]
pub struct OwnCopy {
    home: PathBuf,
    /// Who signed it.
    pub root: PublicKey,
    /// What was signed.
    pub trust: Trust,
    text: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CopyJson {
    home: PathBuf,
    root: String,
    trust: String,
}

/// Held while the operator's files are changed; the lock ends with the descriptor.
pub struct Lock(#[expect(dead_code, reason = "the lock lives as long as its descriptor")] OwnedFd);

/// A change of trust that has begun: no other command makes one.
pub struct Change {
    home: Home,
    config: Config,
    passphrase: Passphrase,
    root: SigningKey,
    /// What was in force last.
    trust: Trust,
    lock: Lock,
}

impl Installed {
    /// Reads and verifies the home's files.
    ///
    /// # Errors
    /// [`CliError::Verification`] where they do not hold, [`CliError::Failed`] where they are not there.
    pub fn read(home: &Home) -> Result<Self, CliError> {
        // A command may have replaced one file between our reading of it and of the next one.
        Self::read_once(home).or_else(|_| Self::read_once(home))
    }

    /// As [`Self::read`], and compares them with the operator's copy where there is one that we can read.
    ///
    /// # Errors
    /// As [`Self::read`]; [`CliError::Verification`] where the home is behind the copy.
    pub fn compared(home: &Home, config: &Config) -> Result<Self, CliError> {
        let copy = OwnCopy::read(config)?;
        let installed = Self::read(home)?;
        copy.map_or(Ok(()), |copy| copy.compare(home, &installed))?;
        Ok(installed)
    }

    fn read_once(home: &Home) -> Result<Self, CliError> {
        let root = root(home)?;
        let floor = required(home, "trust.floor", FLOOR_BYTES_MAX)?;
        let current = required(home, "trust.json", TRUST_BYTES_MAX)?;
        let next = optional(home, "trust.next", TRUST_BYTES_MAX)?;
        let files = TrustFiles { floor: &floor, current: &current, next: next.as_deref() };
        let newest = files.newest(&root).map_err(|error| does_not_hold(home, error));
        newest.map(|(trust, floor)| Self { root, trust, floor })
    }
}

impl OwnCopy {
    /// The operator's copy, if there is one that we may read.
    ///
    /// # Errors
    /// [`CliError::Verification`] where it is no copy.
    pub fn read(config: &Config) -> Result<Option<Self>, CliError> {
        let path = config.path().join(COPY);
        let bytes = match durable::read(&path, COPY_BYTES_MAX) {
            Err(error) if is_for_others(&error) => return Ok(None),
            read => read.map_err(|source| CliError::io(path.display().to_string(), source))?,
        };
        let invalid = |source: crate::error::Source| CliError::Verification {
            subject: path.display().to_string(),
            code: "trust_copy_invalid",
            source,
            advice: "restore the configuration folder from the copy that you keep elsewhere".to_owned(),
        };
        let json: CopyJson = match bytes.len() {
            0..=COPY_BYTES_MAX => serde_json::from_slice(&bytes).map_err(|error| invalid(error.into()))?,
            _ => return Err(invalid(format!("longer than {COPY_BYTES_MAX} bytes").into())),
        };
        let root = PublicKey::from_pem(&json.root).map_err(|error| invalid(error.into()))?;
        let trust = Trust::verify(json.trust.as_bytes(), &root).map_err(|error| invalid(error.into()))?;
        Ok(Some(Self { home: json.home, root, trust, text: json.trust }))
    }

    /// Writes what `root` has signed into the configuration folder.
    ///
    /// # Errors
    /// [`CliError::Failed`].
    pub fn write(home: &Home, config: &Config, root: &SigningKey, trust: Trust) -> Result<Self, CliError> {
        let (text, root) = (trust.sign(root), PublicKey::of(root));
        // Bounds of the format, such as the number of keys, are looked at by its reader.
        let read = Trust::verify(text.as_bytes(), &root).map_err(|error| CliError::Failed {
            subject: "the new trust file".to_owned(),
            code: "trust_refused",
            source: error.into(),
            advice: "nothing was changed".to_owned(),
        })?;
        assert_eq!(read, trust, "what was signed is what is read");
        let copy = Self { home: canonical(home)?, root, trust, text };
        let json = CopyJson { home: copy.home.clone(), root: root.to_pem(), trust: copy.text.clone() };
        let encoded = serde_json::to_string(&json)
            .map_err(|error| CliError::io(home.path().display().to_string(), io::Error::other(error)))?;
        written(config.path(), COPY, durable::replace(config.path(), COPY, &encoded, 0o600))?;
        Ok(copy)
    }

    /// Puts it into the home: the steps of `ringfence_models::TrustFiles`. Readers are those of `mode`.
    ///
    /// # Errors
    /// [`CliError::Failed`]; done again, it finishes what was cut off.
    pub fn install(&self, home: &Home, mode: u32) -> Result<(), CliError> {
        let put =
            |name, text: &str| written(home.path(), name, durable::replace(home.path(), name, text, mode));
        let root = self.root.to_pem();
        put("trust.next", &self.text)?;
        if optional(home, "root.pub", ROOT_BYTES_MAX)?.as_deref() != Some(root.as_bytes()) {
            put("root.pub", &root)?;
        }
        put("trust.floor", &floor_text(self.trust.version))?;
        written(home.path(), "trust.json", durable::rename(home.path(), "trust.next", "trust.json"))
    }

    /// Whether the home is as new as this copy. A copy that is another home's says nothing.
    fn compare(&self, home: &Home, installed: &Installed) -> Result<(), CliError> {
        let held = self.trust.version;
        if self.root == installed.root {
            let found = installed.trust.version.min(installed.floor);
            let behind = TrustError::RolledBack { version: found, floor: held };
            return if found < held { Err(does_not_hold(home, behind)) } else { Ok(()) };
        }
        if self.home != canonical(home)? {
            return Ok(());
        }
        Err(CliError::Verification {
            subject: home.path().join("root.pub").display().to_string(),
            code: "trust_root_changed",
            source:
                "another root key than the operator's: the file was replaced, or a change of it was cut off"
                    .into(),
            advice: RESTORE.to_owned(),
        })
    }

    /// Puts it into its home, unless that is newer.
    ///
    /// # Errors
    /// [`CliError::Usage`] where it is another home's; [`CliError::Failed`] with the code `trust_copy_old`.
    pub fn restore(&self, home: &Home) -> Result<(), CliError> {
        let mode = file_mode(home)?;
        if self.home != canonical(home)? && root(home).ok() != Some(self.root) {
            return Err(CliError::Usage {
                what: format!("the operator's copy is for the home {}", self.home.display()),
                advice: "name that home with --home, or another configuration with --config".to_owned(),
            });
        }
        // What the operator's root key has signed is newer; a floor alone may have been written by anybody.
        match Installed::read(home) {
            Ok(installed) if installed.root == self.root && installed.trust.version > self.trust.version => {
                Err(CliError::Failed {
                    subject: home.path().join("trust.json").display().to_string(),
                    code: "trust_copy_old",
                    source: format!(
                        "version {} is newer than the operator's copy, version {}; nothing was changed",
                        installed.trust.version, self.trust.version
                    )
                    .into(),
                    advice: "the next change of trust brings the copy up to date: ringfence trust renew"
                        .to_owned(),
                })
            }
            Ok(_) | Err(_) => self.install(home, mode),
        }
    }
}

impl Lock {
    /// Keeps other commands from changing the operator's files; the folder is one that only the operator can open.
    ///
    /// # Errors
    /// [`CliError::Failed`] with the code `trust_busy` where another command has it.
    pub fn take(config: &Config) -> Result<Self, CliError> {
        let subject = || config.path().display().to_string();
        let folder = match OpenOptions::new().read(true).open(config.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(not_initialised(&subject(), error));
            }
            opened => OwnedFd::from(opened.map_err(|source| CliError::io(subject(), source))?),
        };
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(CliError::Failed {
                subject: subject(),
                code: "trust_busy",
                source: "another command is changing the trust file".into(),
                advice: "try again when it is done".to_owned(),
            }),
            locked => locked.map(|()| Self(folder)).map_err(|source| CliError::io(subject(), source)),
        }
    }
}

impl Change {
    /// Begins with the trust file that is in force, and opens the root key.
    ///
    /// # Errors
    /// [`CliError::Verification`] where the home does not hold or is behind the operator's copy;
    /// [`CliError::Failed`] with `trust_busy`, `not_initialised`, `passphrase_wrong`, `root_key_wrong`.
    pub fn begin(home: &Home, operator: &OperatorArgs) -> Result<Self, CliError> {
        let config = operator.config()?;
        let lock = Lock::take(&config)?;
        Self::with(home, config, lock, || operator.passphrase())
    }

    /// As [`Self::begin`], where the lock is held already.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn with(
        home: &Home,
        config: Config,
        lock: Lock,
        passphrase: impl FnOnce() -> Result<Passphrase, CliError>,
    ) -> Result<Self, CliError> {
        let installed = Installed::compared(home, &config)?;
        // A copy that is another home's says nothing about this one: no better than none.
        if own_copy(&config)?.root != installed.root {
            return Err(wrong_root(&config));
        }
        let passphrase = passphrase()?;
        let root = config.open(KeyFile::Root, &passphrase)?;
        if PublicKey::of(&root) != installed.root {
            return Err(wrong_root(&config));
        }
        let trust = installed.trust;
        Ok(Self { home: home.clone(), config, passphrase, root, trust, lock })
    }

    /// What was in force last.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// What is in force now, and the lock.
    pub fn into_parts(self) -> (Trust, Lock) {
        (self.trust, self.lock)
    }

    /// Where the operator's keys are.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What opens them.
    pub fn passphrase(&self) -> &Passphrase {
        &self.passphrase
    }

    /// Puts a new version into force.
    ///
    /// # Errors
    /// [`CliError::Failed`]; after a crash or a full disk, `ringfence trust restore` finishes it.
    pub fn commit(&mut self, trust: Trust) -> Result<(), CliError> {
        let root = self.root.clone();
        self.commit_as(trust, &root)
    }

    /// As [`Self::commit`], signed by a new root key, whose public half replaces the old one.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_as(&mut self, trust: Trust, root: &SigningKey) -> Result<(), CliError> {
        let version = self.trust.version.checked_add(1).ok_or_else(|| CliError::Failed {
            subject: "the new trust file".to_owned(),
            code: "trust_refused",
            source: "there is no higher version".into(),
            advice: String::new(),
        })?;
        let copy = OwnCopy::write(&self.home, &self.config, root, Trust { version, ..trust })?;
        copy.install(&self.home, file_mode(&self.home)?)?;
        (self.root, self.trust) = (root.clone(), copy.trust);
        Ok(())
    }
}

/// Who may read the home's trust files: those who may read its packages.
///
/// # Errors
/// [`CliError::Failed`] where there is no home.
pub fn file_mode(home: &Home) -> Result<u32, CliError> {
    let models = home.models();
    let subject = models.display().to_string();
    match fs::symlink_metadata(&models) {
        Ok(found) => Ok(if found.permissions().mode() & 0o004 == 0 { 0o600 } else { 0o644 }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_initialised(&subject, error)),
        Err(error) => Err(CliError::io(subject, error)),
    }
}

/// Every file that a change of trust writes.
pub fn files(home: &Home, config: &Config) -> impl Iterator<Item = PathBuf> {
    let home = ["trust.next", "root.pub", "trust.floor", "trust.json"].map(|name| home.path().join(name));
    home.into_iter().chain([config.path().join(COPY)])
}

/// The operator's copy, which must be there.
///
/// # Errors
/// [`CliError::Failed`] with the code `trust_copy_missing`; as [`OwnCopy::read`].
pub fn own_copy(config: &Config) -> Result<OwnCopy, CliError> {
    OwnCopy::read(config)?.ok_or_else(|| no_copy(config))
}

/// A home that `ringfence init` has not made.
pub fn not_initialised(subject: &str, source: io::Error) -> CliError {
    CliError::Failed {
        subject: subject.to_owned(),
        code: "not_initialised",
        source: source.into(),
        advice: "make the home with `ringfence init`, or name another with --home".to_owned(),
    }
}

const RESTORE: &str = "put the operator's newest trust file in force: ringfence trust restore (or `ringfence trust rotate --root` again, if that was cut off)";

fn root(home: &Home) -> Result<PublicKey, CliError> {
    let bytes = required(home, "root.pub", ROOT_BYTES_MAX)?;
    PublicKey::from_pem(&String::from_utf8_lossy(&bytes)).map_err(|error| CliError::Verification {
        subject: home.path().join("root.pub").display().to_string(),
        code: "root_key_invalid",
        source: error.into(),
        advice: RESTORE.to_owned(),
    })
}

fn does_not_hold(home: &Home, error: TrustError) -> CliError {
    let code = match &error {
        TrustError::RolledBack { .. } => "trust_rolled_back",
        TrustError::FloorInvalid => "trust_floor_invalid",
        TrustError::Malformed(_)
        | TrustError::WrongRoot
        | TrustError::SignatureInvalid
        | TrustError::Key { .. } => "trust_invalid",
    };
    let subject = home.path().join("trust.json").display().to_string();
    CliError::Verification { subject, code, source: error.into(), advice: RESTORE.to_owned() }
}

fn required(home: &Home, name: &str, bytes_max: usize) -> Result<Vec<u8>, CliError> {
    let path = home.path().join(name).display().to_string();
    let missing = || not_there(&path);
    match optional(home, name, bytes_max)? {
        Some(bytes) => Ok(bytes),
        None if home.path().join("root.pub").symlink_metadata().is_ok() => Err(missing()),
        None => Err(not_initialised(&path, io::ErrorKind::NotFound.into())),
    }
}

/// A home that lacks one of its trust files: nothing is trusted without it.
fn not_there(path: &str) -> CliError {
    CliError::Verification {
        subject: path.to_owned(),
        code: "trust_missing",
        source: "the file is not there, and nothing is trusted without it".into(),
        advice: RESTORE.to_owned(),
    }
}

fn optional(home: &Home, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, CliError> {
    let path = home.path().join(name);
    match durable::read(&path, bytes_max) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|source| CliError::io(path.display().to_string(), source)),
    }
}

fn is_for_others(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

fn canonical(home: &Home) -> Result<PathBuf, CliError> {
    fs::canonicalize(home.path()).map_err(|source| CliError::io(home.path().display().to_string(), source))
}

fn written(folder: &Path, name: &str, done: io::Result<()>) -> Result<(), CliError> {
    done.map_err(|source| CliError::io(folder.join(name).display().to_string(), source))
}

fn no_copy(config: &Config) -> CliError {
    CliError::Failed {
        subject: config.path().join(COPY).display().to_string(),
        code: "trust_copy_missing",
        source: "the operator's copy of the trust file is not there, so nobody knows whether the home's is the newest".into(),
        advice: "restore the configuration folder from the copy that you keep elsewhere, or name it with --config".to_owned(),
    }
}

fn wrong_root(config: &Config) -> CliError {
    CliError::Failed {
        subject: config.key_file(KeyFile::Root).display().to_string(),
        code: "root_key_wrong",
        source: "this is not the root key of this home, or the copy beside it is not its copy".into(),
        advice: "name the right folder with --config; if `ringfence trust rotate --root` was cut off, run it again".to_owned(),
    }
}

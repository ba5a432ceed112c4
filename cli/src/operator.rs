//! The operator's two private keys: files that only their owner can read, encrypted with a passphrase.

use crate::durable;
use crate::error::CliError;
use crate::home::xdg;
use clap::Args;
use pkcs8::rand_core::{OsRng, RngCore};
use pkcs8::spki::der::pem::LineEnding;
use pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ringfence_models::SigningKey;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The longest passphrase in bytes.
const PASSPHRASE_BYTES_MAX: usize = 1024;
/// The longest key file in bytes.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

/// Where the operator's keys are, and what opens them.
#[derive(Args, Clone, Debug)]
pub struct OperatorArgs {
    /// Folder of the operator's keys [default: /etc/ringfence as root, else $XDG_CONFIG_HOME/ringfence]
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// Read the passphrase from this file's first line instead of asking for it
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// The folder of the operator's keys.
#[derive(Clone, Debug)]
pub struct Config(PathBuf);

/// What opens the keys; wiped from memory after use.
pub struct Passphrase(Zeroizing<String>);

/// Which of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFile {
    /// Signs the trust file.
    Root,
    /// Signs models.
    Operator,
    /// Takes the place of the root key when `trust rotate --root` is done.
    NextRoot,
    /// Takes the place of the operator's key when `trust rotate` is done.
    NextOperator,
    /// The operator's key before the last `trust rotate --keep-old`.
    OldOperator,
}

impl KeyFile {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root.key",
            Self::Operator => "operator.key",
            Self::NextRoot => "root.key.new",
            Self::NextOperator => "operator.key.new",
            Self::OldOperator => "operator.key.old",
        }
    }
}

impl Config {
    /// The given folder, else `/etc/ringfence` for root, else `ringfence` in the user's XDG configuration folder.
    ///
    /// # Errors
    /// [`CliError::Usage`] where nothing says which folder is meant.
    pub fn resolve(given: Option<PathBuf>) -> Result<Self, CliError> {
        if let Some(path) = given {
            return Ok(Self(path));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self(PathBuf::from("/etc/ringfence")));
        }
        xdg("XDG_CONFIG_HOME", ".config").map(|folder| Self(folder.join("ringfence")))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file of a key.
    pub fn key_file(&self, key: KeyFile) -> PathBuf {
        self.0.join(key.name())
    }

    /// Makes a key and its file, which must not be there yet.
    ///
    /// # Errors
    /// [`CliError::Failed`] where the file can't be written.
    pub fn create(&self, key: KeyFile, passphrase: &Passphrase) -> Result<SigningKey, CliError> {
        let path = self.key_file(key);
        let failed = |source: io::Error| CliError::io(path.display().to_string(), source);
        let signing_key = random_key().map_err(failed)?;
        let text = signing_key.to_pkcs8_encrypted_pem(OsRng, &*passphrase.0, LineEnding::LF);
        let text = text.map_err(|error| failed(io::Error::other(error)))?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(failed)?;
        durable::create(&self.0, key.name(), &text, 0o600).map_err(failed)?;
        Ok(signing_key)
    }

    /// Opens a key.
    ///
    /// # Errors
    /// [`CliError::Failed`] with the code `not_initialised`, `passphrase_wrong` or `io_error`.
    pub fn open(&self, key: KeyFile, passphrase: &Passphrase) -> Result<SigningKey, CliError> {
        let path = self.key_file(key);
        let text = match read_bounded(&path, KEY_FILE_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_key(&path, error)),
            read => read.map_err(|source| CliError::io(path.display().to_string(), source))?,
        };
        SigningKey::from_pkcs8_encrypted_pem(&text, &*passphrase.0).map_err(|_| CliError::Failed {
            subject: path.display().to_string(),
            code: "passphrase_wrong",
            source: "the passphrase does not open this key, or the file was changed".into(),
            advice: "try again with the passphrase given to `ringfence init`".to_owned(),
        })
    }

    /// Opens a key, or makes it where a command that was cut off has not.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::create`].
    pub fn open_or_create(&self, key: KeyFile, passphrase: &Passphrase) -> Result<SigningKey, CliError> {
        if self.has(key) { self.open(key, passphrase) } else { self.create(key, passphrase) }
    }

    /// Whether there is such a file.
    pub fn has(&self, key: KeyFile) -> bool {
        self.key_file(key).symlink_metadata().is_ok()
    }

    /// Puts one key's file in the place of another's, as one step.
    ///
    /// # Errors
    /// [`CliError::Failed`] with the code `io_error`.
    pub fn promote(&self, from: KeyFile, to: KeyFile) -> Result<(), CliError> {
        let renamed = durable::rename(&self.0, from.name(), to.name());
        renamed.map_err(|source| CliError::io(self.key_file(to).display().to_string(), source))
    }

    /// Gives a key's file a second name, which is no other key's.
    ///
    /// # Errors
    /// [`CliError::Failed`] with the code `io_error`.
    pub fn keep(&self, key: KeyFile, under: KeyFile) -> Result<(), CliError> {
        if self.is_same(key, under) {
            return Ok(());
        }
        let kept = fs::hard_link(self.key_file(key), self.key_file(under));
        kept.and_then(|()| durable::sync(&self.0))
            .map_err(|source| CliError::io(self.key_file(under).display().to_string(), source))
    }

    /// Whether two names are those of one file.
    pub fn is_same(&self, one: KeyFile, other: KeyFile) -> bool {
        let file = |key| self.key_file(key).symlink_metadata().map(|file| (file.dev(), file.ino()));
        matches!((file(one), file(other)), (Ok(one), Ok(other)) if one == other)
    }
}

impl OperatorArgs {
    /// The folder of the keys.
    ///
    /// # Errors
    /// As [`Config::resolve`].
    pub fn config(&self) -> Result<Config, CliError> {
        Config::resolve(self.config.clone())
    }

    /// The passphrase of keys that exist.
    ///
    /// # Errors
    /// [`CliError::Usage`] where there is neither a file nor a terminal, or the passphrase is empty or too long;
    /// [`CliError::Failed`] where the file can't be read.
    pub fn passphrase(&self) -> Result<Passphrase, CliError> {
        self.ask(|| prompt("Passphrase of the operator's key: "))
    }

    /// The passphrase of keys that are to be made: typed twice where it is typed.
    ///
    /// # Errors
    /// As [`Self::passphrase`], and where the two differ.
    pub fn new_passphrase(&self) -> Result<Passphrase, CliError> {
        self.ask(|| {
            let first = prompt("New passphrase for the root and operator keys: ")?;
            let second = prompt("The same once more: ")?;
            if *first == *second { Ok(first) } else { Err(usage("the two passphrases differ", "try again")) }
        })
    }

    fn ask(
        &self,
        typed: impl FnOnce() -> Result<Zeroizing<String>, CliError>,
    ) -> Result<Passphrase, CliError> {
        let text = match &self.passphrase_file {
            Some(path) => first_line(path)?,
            None if io::stdin().is_terminal() => typed()?,
            None => return Err(usage("no passphrase", "give it in a file: --passphrase-file FILE")),
        };
        if text.is_empty() || text.len() > PASSPHRASE_BYTES_MAX {
            let advice = format!("give one of 1 to {PASSPHRASE_BYTES_MAX} bytes");
            return Err(usage("an empty or too long passphrase", &advice));
        }
        Ok(Passphrase(text))
    }
}

fn random_key() -> io::Result<SigningKey> {
    let mut secret = Zeroizing::new([0; 32]);
    OsRng.try_fill_bytes(&mut *secret).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(SigningKey::from_bytes(&secret))
}

fn first_line(path: &Path) -> Result<Zeroizing<String>, CliError> {
    let read = read_bounded(path, PASSPHRASE_BYTES_MAX as u64 + 2);
    let text = read.map_err(|source| CliError::io(path.display().to_string(), source))?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

/// At most `bytes_max` bytes of a file that holds text.
fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Zeroizing<String>> {
    let file = fs::OpenOptions::new().read(true).open(path)?;
    let mut text = Zeroizing::new(String::new());
    file.take(bytes_max).read_to_string(&mut text)?;
    Ok(text)
}

fn prompt(text: &str) -> Result<Zeroizing<String>, CliError> {
    rpassword::prompt_password(text)
        .map(Zeroizing::new)
        .map_err(|source| CliError::io("the terminal", source))
}

fn no_key(path: &Path, source: io::Error) -> CliError {
    CliError::Failed {
        subject: path.display().to_string(),
        code: "not_initialised",
        source: source.into(),
        advice: "make the keys with `ringfence init`, or name their folder with --config".to_owned(),
    }
}

fn usage(what: &str, advice: &str) -> CliError {
    CliError::Usage { what: what.to_owned(), advice: advice.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase(Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn a_key_opens_with_its_passphrase_only_and_is_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config(folder.path().join("config"));
        let made = config.create(KeyFile::Operator, &passphrase("one")).unwrap();
        assert_eq!(config.open(KeyFile::Operator, &passphrase("one")).unwrap(), made);
        let wrong = config.open(KeyFile::Operator, &passphrase("two")).unwrap_err();
        assert_eq!(wrong.code(), "passphrase_wrong");
        assert_eq!(config.open(KeyFile::Root, &passphrase("one")).unwrap_err().code(), "not_initialised");
        assert!(config.create(KeyFile::Operator, &passphrase("one")).is_err(), "overwritten");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(config.path()), mode(&config.key_file(KeyFile::Operator))), (0o700, 0o600));
        let text = fs::read_to_string(config.key_file(KeyFile::Operator)).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"), "{text}");
    }

    #[test]
    fn a_passphrase_file_is_read_to_the_end_of_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        let args = OperatorArgs { config: None, passphrase_file: Some(path.clone()) };
        for (content, expected) in [("secret", "secret"), ("se cret \r\nmore", "se cret "), (" s\n", " s")] {
            fs::write(&path, content).unwrap();
            assert_eq!(*args.passphrase().unwrap().0, expected);
        }
        for wrong in ["", "\nsecret", &"a".repeat(1025)] {
            fs::write(&path, wrong).unwrap();
            assert_eq!(args.new_passphrase().err().unwrap().code(), "usage", "{wrong}");
        }
    }
}

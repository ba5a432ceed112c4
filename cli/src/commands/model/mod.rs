//! `ringfence model`: adds, lists, verifies, signs and removes packages.

mod add;
mod calibrate;
mod convert;
mod fetch;
pub(crate) mod sandboxed;
mod show;
mod source;
pub(crate) mod trusted;

use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::operator::{KeyFile, OperatorArgs};
use crate::output::Output;
use clap::{Args, Subcommand};
use hyper::Method;
use ringfence_models::{DraftError, P256SigningKey, PackageName, SignBytes};
use serde::Serialize;
use std::io::{self, Read};
use std::path::Path;
use trusted::Trusted;

/// The longest file of a P-256 key in bytes.
const KEY_BYTES_MAX: u64 = 16 * 1024;

/// Add, list, verify and sign models
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence model add minilm
  ringfence model list
  ringfence model verify minilm")]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Add models: by name from the catalog, from folders and files, or from the hub
    Add(Box<add::AddArgs>),
    /// List the models, each with what its signature says now
    #[command(after_help = "Examples:\n  ringfence model list\n  ringfence model list --json")]
    List,
    /// Show a model's manifest, signer and files
    #[command(after_help = "Examples:\n  ringfence model show minilm")]
    Show {
        /// The model
        name: PackageName,
    },
    /// Read every file of one or all models and compare them with what was signed; exit code 3 if one does not hold
    #[command(after_help = "Examples:\n  ringfence model verify\n  ringfence model verify minilm --json")]
    Verify {
        /// The model [default: all]
        name: Option<PackageName>,
    },
    /// Measure what models take of memory, for their leases; again after an update of ringfence
    Calibrate(calibrate::CalibrateArgs),
    /// Sign what lies in a model's folder now with the operator's key: you vouch for it
    #[command(after_help = "Examples:
  ringfence model sign minilm --passphrase-file pass.txt
  ringfence model sign minilm --p256-key p256.pem

With --p256-key the model must hold already; HOME/models/NAME.oms/p256.sig is then a bundle that other verifiers of
OpenSSF Model Signing read, until the model is signed again.")]
    Sign {
        /// The model
        name: PackageName,
        /// Write a second bundle for other programs with this P-256 key (PEM, PKCS#8 or SEC 1, no passphrase)
        #[arg(long, value_name = "FILE")]
        p256_key: Option<std::path::PathBuf>,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Remove a model and its signature
    #[command(after_help = "Examples:\n  ringfence model remove minilm")]
    Remove {
        /// The model
        name: PackageName,
    },
}

/// Runs it.
///
/// # Errors
/// [`CliError::Verification`] where a signature, digest or the trust file does not hold; others as they are named.
pub fn run(args: ModelArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    match args.command {
        ModelCommand::Add(args) => add::run(*args, home, output),
        ModelCommand::List => show::list(&Trusted::open(home)?, output),
        ModelCommand::Show { name } => show::show(&Trusted::open(home)?, &name, output),
        ModelCommand::Verify { name } => show::verify(&Trusted::open(home)?, name, output),
        ModelCommand::Calibrate(args) => calibrate::run(args, home, output),
        ModelCommand::Sign { name, p256_key: Some(key), operator } => {
            export(home, &name, &key, &operator, output)
        }
        ModelCommand::Sign { name, p256_key: None, operator } => sign(home, &name, &operator, output),
        ModelCommand::Remove { name } => remove(home, &name, output),
    }
}

fn sign(home: &Home, name: &PackageName, operator: &OperatorArgs, output: &Output) -> Result<(), CliError> {
    let trusted = Trusted::open_with(home, &operator.config()?)?;
    let key = operator.config()?.open(KeyFile::Operator, &operator.passphrase()?)?;
    trusted.store.sign(name, &key).map_err(|error| writing(name, error))?;
    let verified = trusted.verify(name)?;
    let server = tell_server(home);
    let signed = show::Line::new(name, &Ok(verified));
    output.answer(&signed, |_| format!("{} ({})", signed.summary(), describe(&server)))?;
    server.map(drop)
}

/// Writes the bundle for other programs over what holds now.
fn export(
    home: &Home,
    name: &PackageName,
    key: &Path,
    operator: &OperatorArgs,
    output: &Output,
) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Exported {
        model: String,
        signer: String,
        bundle: String,
    }
    let failed = |source: crate::error::Source| CliError::Failed {
        subject: key.display().to_string(),
        code: "key_invalid",
        source,
        advice: "a P-256 key: openssl ecparam -name prime256v1 -genkey -noout -out p256.pem".to_owned(),
    };
    let file = std::fs::OpenOptions::new().read(true).open(key).map_err(|error| failed(error.into()))?;
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(KEY_BYTES_MAX).read_to_string(&mut text).map_err(|error| failed(error.into()))?;
    let key = P256SigningKey::from_pem(&text).map_err(|error| failed(error.into()))?;
    let trusted = Trusted::open_with(home, &operator.config()?)?;
    let verified = trusted.verify(name)?;
    trusted.sign_p256(&verified, &key)?;
    let exported = Exported {
        model: name.to_string(),
        signer: key.public().id().to_string(),
        bundle: home.models().join(name.bundle_folder()).join("p256.sig").display().to_string(),
    };
    output.answer(&exported, |_| format!("wrote {} ({})", exported.bundle, exported.signer))
}

fn remove(home: &Home, name: &PackageName, output: &Output) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Removed<'a> {
        removed: &'a str,
    }
    trusted::store(home)?.remove(name).map_err(|error| writing(name, error))?;
    let server = tell_server(home);
    output
        .answer(&Removed { removed: name.as_str() }, |_| format!("removed {name} ({})", describe(&server)))?;
    server.map(drop)
}

/// What a change of the packages meant to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    /// It has read the packages again.
    Reloaded,
    /// None runs on this home.
    NotRunning,
}

/// Has a running server read the packages again.
pub(super) fn tell_server(home: &Home) -> Result<Told, CliError> {
    match ask_once(&Address::Unix(home.admin_socket()), &Ask::plain(Method::POST, "/models/reload")) {
        Ok(_) => Ok(Told::Reloaded),
        Err(CliError::Unreachable { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            Ok(Told::NotRunning)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn describe(server: &Result<Told, CliError>) -> &'static str {
    match server {
        Ok(Told::Reloaded) => "the server has read it",
        Ok(Told::NotRunning) => "no server is running; it reads the models when it starts",
        Err(_) => "the server could not be told",
    }
}

/// What could not be written, for people.
pub(super) fn writing(name: &PackageName, error: DraftError) -> CliError {
    let subject = format!("model {name}");
    let (code, advice) = match &error {
        DraftError::Busy => ("models_busy", ""),
        DraftError::Missing => ("model_unknown", "list the models: ringfence model list"),
        DraftError::Untrusted(_) => (
            "signer_untrusted",
            "trust its public half first: ringfence trust key add --help; openssl ec -in KEY -pubout writes it",
        ),
        DraftError::FileName { .. } => ("file_refused", "take the file out of the folder"),
        DraftError::Refused(_) => ("file_refused", "put a plain file of its own there"),
        DraftError::Twice(_) | DraftError::TooLarge { .. } | DraftError::TooMany => ("file_refused", ""),
        DraftError::Incomplete(_) => ("package_incomplete", "a model needs its manifest and its weights"),
        DraftError::System(error) => {
            return CliError::io(format!("{subject}: {}", error.what), clone(&error.source));
        }
    };
    CliError::Failed { subject, code, source: error.into(), advice: advice.to_owned() }
}

/// The same error once more: the original stays where it is borrowed from.
fn clone(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

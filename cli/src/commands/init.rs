//! `ringfence init`: the home folder, the operator's keys, and the trust file that names them.

use crate::clock;
use crate::durable;
use crate::error::CliError;
use crate::home::Home;
use crate::operator::{Config, KeyFile, OperatorArgs};
use crate::output::Output;
use crate::trust::{self, OwnCopy};
use clap::Args;
use nix::unistd::User;
use ringfence_models::{Glob, PublicKey, SigningKey, Trust, TrustedKey};
use ringfence_scheduler::quotas;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How long the first trust file and the operator's key hold, in days: ten years.
pub(super) const VALID_DAYS: u64 = 10 * 365;

/// Make the home folder, the operator's keys and the trust file
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence init
  ringfence init --home /srv/ringfence --config /root/ringfence --user ringfence
  ringfence init --passphrase-file pass.txt

Keep a copy of the configuration folder elsewhere: without root.key, trust can't be changed; with an old \
trust.copy, an old trust file is not noticed.")]
pub struct InitArgs {
    #[command(flatten)]
    operator: OperatorArgs,
    /// As root: the user that the server will run as [default: ringfence]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

/// What was made.
#[derive(Serialize)]
struct Made {
    home: PathBuf,
    config: PathBuf,
    user: Option<String>,
    root: String,
    operator: String,
}

/// To whom the parts of the home belong.
struct Owners {
    /// Whom the server runs as, where that is not us: the folders that it writes are theirs.
    server: Option<(Uid, Gid)>,
}

/// Runs it.
///
/// # Errors
/// [`CliError::Failed`] where there is an installation already or something can't be written;
/// [`CliError::Usage`] without a passphrase.
pub fn run(args: InitArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let config = args.operator.config()?;
    let user = server_user(args.user)?;
    let owners = Owners { server: user.as_ref().map(|user| (user.uid, user.gid)) };
    refuse_existing(home, &config)?;
    let passphrase = args.operator.new_passphrase()?;
    make_folders(home, &owners)?;
    make_quotas(home, &owners)?;
    let root = config.create(KeyFile::Root, &passphrase)?;
    let written = config.create(KeyFile::Operator, &passphrase).and_then(|operator| {
        write_trust(home, &config, &root, &operator)?;
        Ok(operator)
    });
    // Keys that no trust file names are of no use, and would be in the way of the next try.
    let operator = written.inspect_err(|_| remove_written(home, &config))?;
    let made = Made {
        home: home.path().to_owned(),
        config: config.path().to_owned(),
        user: user.map(|user| user.name),
        root: PublicKey::of(&root).id().to_string(),
        operator: PublicKey::of(&operator).id().to_string(),
    };
    output.answer(&made, |_| describe(&made))
}

struct ServerUser {
    name: String,
    uid: Uid,
    gid: Gid,
}

/// As root, the server's user; an ordinary user's server runs as that user.
fn server_user(given: Option<String>) -> Result<Option<ServerUser>, CliError> {
    if !rustix::process::geteuid().is_root() {
        return match given {
            None => Ok(None),
            Some(_) => Err(CliError::Usage {
                what: "--user is for root: your server runs as you".to_owned(),
                advice: "leave --user out".to_owned(),
            }),
        };
    }
    let name = given.unwrap_or_else(|| "ringfence".to_owned());
    let failed = |source: io::Error, advice: String| CliError::Failed {
        subject: format!("user {name}"),
        code: "user_unknown",
        source: source.into(),
        advice,
    };
    let found = User::from_name(&name).map_err(|errno| failed(errno.into(), String::new()))?;
    let Some(found) = found else {
        let advice = format!("make it: useradd --system {name}; or name another: --user NAME");
        return Err(failed(io::Error::other("there is no such user"), advice));
    };
    if found.uid.is_root() {
        let advice = "the server never serves as root: name another user".to_owned();
        return Err(failed(io::Error::other("is root"), advice));
    }
    let (uid, gid) = (Uid::from_raw(found.uid.as_raw()), Gid::from_raw(found.gid.as_raw()));
    Ok(Some(ServerUser { name, uid, gid }))
}

fn refuse_existing(home: &Home, config: &Config) -> Result<(), CliError> {
    let keys = [KeyFile::Root, KeyFile::Operator].map(|key| config.key_file(key));
    let own = [home.path().join("root.pub"), home.path().join("trust.json")];
    match keys.iter().chain(&own).find(|path| path.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(path) => Err(CliError::Failed {
            subject: path.display().to_string(),
            code: "already_initialised",
            source: "there is an installation already; nothing was changed".into(),
            advice: "name other folders with --home and --config, or remove the old ones yourself".to_owned(),
        }),
    }
}

fn make_folders(home: &Home, owners: &Owners) -> Result<(), CliError> {
    // Packages are public in system mode: the server's user reads what only root writes. It does not own the home
    // either: who owns a folder can replace the files in it, the trust file and its floor among them.
    let (home_mode, models_mode) = if owners.server.is_some() { (0o751, 0o755) } else { (0o711, 0o700) };
    let for_reading = owners.server.map(|(_, gid)| (Uid::ROOT, gid));
    // Clients pass through the home to the sockets. The operator may have put it behind a link.
    make_folder(home.path(), home_mode, for_reading, OFlags::empty())?;
    make_folder(&home.models(), models_mode, None, OFlags::NOFOLLOW)?;
    make_folder(&home.path().join("clients"), 0o711, owners.server, OFlags::NOFOLLOW)?;
    make_folder(&home.path().join("keys"), 0o700, owners.server, OFlags::NOFOLLOW)?;
    make_folder(&home.audit(), 0o700, owners.server, OFlags::NOFOLLOW)?;
    make_folder(&home.path().join("run"), 0o755, owners.server, OFlags::NOFOLLOW)
}

/// The server writes it in place, as it may not own the folder. One that is there already is the operator's.
fn make_quotas(home: &Home, owners: &Owners) -> Result<(), CliError> {
    let path = home.quotas();
    let make = || -> io::Result<()> {
        match durable::create(home.path(), "quotas.toml", &quotas::documented(), 0o644) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made?,
        }
        if let Some((uid, gid)) = owners.server {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::empty())?;
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(())
    };
    make().map_err(|source| CliError::io(path.display().to_string(), source))
}

fn make_folder(path: &Path, mode: u32, owner: Option<(Uid, Gid)>, flags: OFlags) -> Result<(), CliError> {
    let make = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        // Through one descriptor: root gives away no folder that a link in an old home leads to.
        let folder = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | flags, Mode::empty())?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(&folder, Some(uid), Some(gid))?;
        }
        Ok(())
    };
    make().map_err(|source| CliError::io(path.display().to_string(), source))
}

/// The operator's copy first, as with every change; `root.pub`, which makes the home an installation, comes with it.
fn write_trust(
    home: &Home,
    config: &Config,
    root: &SigningKey,
    operator: &SigningKey,
) -> Result<(), CliError> {
    let copy = OwnCopy::write(home, config, root, first_trust(operator, clock::unix_seconds()))?;
    copy.install(home, trust::file_mode(home)?)
}

/// Version 1: the operator's key may sign every model.
fn first_trust(operator: &SigningKey, now: u64) -> Trust {
    let expires = now + VALID_DAYS * super::DAY_SECONDS;
    let key = TrustedKey {
        public: PublicKey::of(operator),
        models: vec![Glob::new("*").expect("a star is a legal pattern")],
        not_before: now,
        not_after: expires,
    };
    Trust { version: 1, expires, keys: vec![key], revoked_keys: Vec::new(), revoked_digests: Vec::new() }
}

fn remove_written(home: &Home, config: &Config) {
    let keys = [KeyFile::Root, KeyFile::Operator].map(|key| config.key_file(key));
    // There were none of them before: `refuse_existing` has looked.
    for path in keys.into_iter().chain(trust::files(home, config)) {
        // The error that brought us here is the one to report.
        let _ = fs::remove_file(path);
    }
}

fn describe(made: &Made) -> String {
    let user = made.user.as_ref().map(|user| format!(", served by the user {user}")).unwrap_or_default();
    format!(
        "home      {}{user}\nkeys      {} (keep a copy elsewhere)\nroot      {}\noperator  {}\nnext: ringfence model add minilm",
        made.home.display(),
        made.config.display(),
        made.root,
        made.operator,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_trust_file_lets_the_operator_sign_everything_from_now_on() {
        let (root, operator) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let trust = first_trust(&operator, 1_000);
        assert_eq!(
            (trust.version, trust.keys[0].not_before, trust.keys[0].not_after),
            (1, 1_000, trust.expires)
        );
        assert!(trust.keys[0].models[0].matches("anything"));
        assert_eq!(Trust::verify(trust.sign(&root).as_bytes(), &PublicKey::of(&root)), Ok(trust));
    }
}

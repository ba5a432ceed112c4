//! New keys in the place of old ones, in an order in which a crash leaves nothing that does not verify.
//!
//! ```text
//! operator's key                        what a crash after it leaves
//! 1  operator.key.new                   a key that nobody trusts yet
//! 2  trust file: it may sign as well    both keys count
//! 3  each package is signed with it     each package holds, under one key or the other
//! 4  trust file: the old is revoked     all packages hold; the next rotate does step 5 only
//! 5  operator.key.new -> operator.key   done
//!
//! root key
//! 1  root.key.new                       a key that nobody trusts yet
//! 2  trust.copy, signed by it           the home still has the old root; the next rotate puts the copy into it
//! 3  the home's files                   the new root counts
//! 4  root.key.new -> root.key           done
//! ```

use super::{RotateArgs, change, finish, refused, short};
use crate::clock;
use crate::commands::DAY_SECONDS;
use crate::commands::init::VALID_DAYS;
use crate::commands::model::trusted::Trusted;
use crate::commands::model::writing;
use crate::error::CliError;
use crate::home::Home;
use crate::operator::{KeyFile, OperatorArgs};
use crate::output::Output;
use crate::trust::{Change, Lock, own_copy};
use ringfence_models::{KeyId, PackageError, PublicKey, SigningKey, Trust, TrustedKey};
use serde::Serialize;

#[derive(Serialize)]
struct Rotated {
    old_key: String,
    new_key: String,
    old_key_revoked: bool,
    /// Packages that are signed with the new key now.
    resigned: Vec<String>,
    /// Packages that were refused before, and are as they were.
    left: Vec<Left>,
}

#[derive(Serialize)]
struct Left {
    name: String,
    reason: String,
}

/// `ringfence trust rotate`.
pub(super) fn operator(args: &RotateArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let mut change = Change::begin(home, &args.operator)?;
    let config = change.config().clone();
    if args.keep_old
        && config.has(KeyFile::OldOperator)
        && !config.is_same(KeyFile::Operator, KeyFile::OldOperator)
    {
        let kept = config.key_file(KeyFile::OldOperator).display().to_string();
        return Err(refused(kept, "key_kept", "an older key is kept there", "move it away first"));
    }
    let old = PublicKey::of(&config.open(KeyFile::Operator, change.passphrase())?).id();
    let new = config.open_or_create(KeyFile::NextOperator, change.passphrase())?;
    let new_id = PublicKey::of(&new).id();
    if let Some(trust) = with_successor(change.trust(), old, PublicKey::of(&new))? {
        change.commit(trust)?;
    }
    let (resigned, left) = resign_all(home, change.trust(), old, &new)?;
    for left in &left {
        output.note(&format!("left as it was: {}: {}", left.name, left.reason));
    }
    if args.keep_old {
        config.keep(KeyFile::Operator, KeyFile::OldOperator)?;
    } else if !change.trust().revoked_keys.contains(&old) {
        change.commit(change::revoked(change.trust(), old)?)?;
    }
    config.promote(KeyFile::NextOperator, KeyFile::Operator)?;
    let done = format!(
        "operator's key {} in the place of {}; {} models signed with it",
        short(&new_id),
        short(&old),
        resigned.len()
    );
    let rotated = Rotated {
        old_key: old.to_string(),
        new_key: new_id.to_string(),
        old_key_revoked: !args.keep_old,
        resigned,
        left,
    };
    finish(home, change.trust(), rotated, &done, output)
}

/// `ringfence trust rotate --root`.
pub(super) fn root(operator: &OperatorArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Rotated {
        new_root: String,
    }
    let config = operator.config()?;
    let lock = Lock::take(&config)?;
    let passphrase = operator.passphrase()?;
    let next = config.open_or_create(KeyFile::NextRoot, &passphrase)?;
    let new_root = PublicKey::of(&next);
    let copy = own_copy(&config)?;
    // The lock is held until the key has its name.
    let (trust, _lock) = if copy.root == new_root {
        // Cut off after the copy was signed: the home may have the old root, the new one, or both.
        copy.restore(home)?;
        (copy.trust, lock)
    } else {
        let mut change = Change::with(home, config.clone(), lock, || Ok(passphrase))?;
        change.commit_as(change.trust().clone(), &next)?;
        change.into_parts()
    };
    config.promote(KeyFile::NextRoot, KeyFile::Root)?;
    let (new_root, done) = (
        new_root.id().to_string(),
        "a new root key signs; keep a copy of the configuration folder elsewhere",
    );
    finish(home, &trust, Rotated { new_root }, done, output)
}

/// The trust file with a new key that may sign what the old one may; none where it says so already.
fn with_successor(trust: &Trust, old: KeyId, new: PublicKey) -> Result<Option<Trust>, CliError> {
    if trust.keys.iter().any(|key| key.public == new) {
        return Ok(None);
    }
    let Some(key) = trust.keys.iter().find(|key| key.public.id() == old) else {
        let advice = "add it: ringfence trust key add; see the keys: ringfence trust show";
        return Err(refused(
            format!("key {old}"),
            "key_unknown",
            "the operator's key is not in the trust file",
            advice,
        ));
    };
    let now = clock::unix_seconds();
    let successor = TrustedKey {
        public: new,
        models: key.models.clone(),
        not_before: now,
        not_after: now + VALID_DAYS * DAY_SECONDS,
    };
    let mut trust = trust.clone();
    trust.keys.push(successor);
    Ok(Some(trust))
}

/// Signs every package that holds under the old key with the new one; what is signed is what was verified.
fn resign_all(
    home: &Home,
    trust: &Trust,
    old: KeyId,
    new: &SigningKey,
) -> Result<(Vec<String>, Vec<Left>), CliError> {
    let trusted = Trusted::new(home, trust.clone())?;
    let (mut resigned, mut left) = (Vec::new(), Vec::new());
    for name in trusted.store.list().map_err(|error| CliError::io(error.what, error.source))? {
        match trusted.judge(&name) {
            Ok(verified) if verified.signer == old => {
                trusted.store.resign(&verified, new).map_err(|error| writing(&name, error))?;
                trusted.verify(&name)?;
                resigned.push(name.to_string());
            }
            Ok(_) => {}
            Err(PackageError::System(error)) => return Err(CliError::io(error.what, error.source)),
            Err(error @ (PackageError::Missing | PackageError::Refused(_))) => {
                left.push(Left { name: name.to_string(), reason: error.to_string() });
            }
        }
    }
    Ok((resigned, left))
}

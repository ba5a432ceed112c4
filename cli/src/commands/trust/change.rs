//! Changes of the trust file that touch nothing else.

use super::show::Key;
use super::{AddArgs, finish, refused, short};
use crate::clock;
use crate::commands::DAY_SECONDS;
use crate::commands::model::trusted::{Trusted, refused as refused_package};
use crate::durable;
use crate::error::CliError;
use crate::home::Home;
use crate::operator::{KeyFile, OperatorArgs};
use crate::output::Output;
use crate::trust::Change;
use ringfence_models::{Digest, KeyId, PackageError, PackageName, PublicKey, Refusal, Trust, TrustedKey};
use serde::Serialize;
use std::path::Path;

/// The longest file of a public key in bytes.
const KEY_BYTES_MAX: usize = 16 * 1024;

/// `ringfence trust key add`.
pub(super) fn add_key(args: AddArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Added {
        added: Key,
    }
    let public = read_key(&args.file)?;
    let key = trusted_key(args.models, public, (args.not_before, args.not_after, args.days))?;
    let mut change = Change::begin(home, &args.operator)?;
    refuse_known(change.trust(), public.id())?;
    let mut trust = change.trust().clone();
    trust.keys.push(key.clone());
    change.commit(trust)?;
    let added = Key::new(&key, change.trust(), clock::unix_seconds());
    let done = format!("added {}", added.summary());
    finish(home, change.trust(), Added { added }, &done, output)
}

/// `ringfence trust key revoke`.
pub(super) fn revoke_key(
    id: &str,
    operator: &OperatorArgs,
    home: &Home,
    output: &Output,
) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Revoked {
        revoked_key: String,
    }
    let mut change = Change::begin(home, operator)?;
    let id = find(change.trust(), id)?;
    change.commit(revoked(change.trust(), id)?)?;
    let done = format!("revoked key {}", short(&id));
    finish(home, change.trust(), Revoked { revoked_key: id.to_string() }, &done, output)
}

/// `ringfence trust digest revoke`.
pub(super) fn revoke_digest(
    package: &str,
    operator: &OperatorArgs,
    home: &Home,
    output: &Output,
) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Revoked {
        revoked_digest: String,
    }
    let mut change = Change::begin(home, operator)?;
    let digest = digest_of(package, home, change.trust())?;
    if change.trust().revoked_digests.contains(&digest) {
        return Err(refused(digest, "digest_revoked", "this package is revoked already", ""));
    }
    let mut trust = change.trust().clone();
    trust.revoked_digests.push(digest);
    change.commit(trust)?;
    let done = format!("revoked package {digest}");
    finish(home, change.trust(), Revoked { revoked_digest: digest.to_string() }, &done, output)
}

/// `ringfence trust renew`.
pub(super) fn renew(
    days: u64,
    operator: &OperatorArgs,
    home: &Home,
    output: &Output,
) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Renewed {
        expires: u64,
        /// The operator's key, if it may still sign.
        renewed_key: Option<String>,
    }
    let mut change = Change::begin(home, operator)?;
    let id = PublicKey::of(&change.config().open(KeyFile::Operator, change.passphrase())?).id();
    let expires = clock::unix_seconds() + days * DAY_SECONDS;
    let mut trust = Trust { expires, ..change.trust().clone() };
    let is_revoked = trust.revoked_keys.contains(&id);
    let key = trust.keys.iter_mut().find(|key| key.public.id() == id && !is_revoked);
    let renewed_key = key.map(|key| {
        key.not_after = expires;
        id.to_string()
    });
    change.commit(trust)?;
    let done = match &renewed_key {
        Some(_) => format!("trust file and operator's key hold until {}", crate::output::utc(expires)),
        None => format!(
            "trust file holds until {}; the operator's key may not sign (ringfence trust rotate)",
            crate::output::utc(expires)
        ),
    };
    finish(home, change.trust(), Renewed { expires, renewed_key }, &done, output)
}

/// The trust file with one more key revoked.
///
/// # Errors
/// [`CliError::Failed`] with the code `key_revoked` where it is already.
pub(super) fn revoked(trust: &Trust, id: KeyId) -> Result<Trust, CliError> {
    if trust.revoked_keys.contains(&id) {
        return Err(refused(format!("key {id}"), "key_revoked", "this key is revoked already", ""));
    }
    let mut trust = trust.clone();
    trust.revoked_keys.push(id);
    Ok(trust)
}

fn read_key(path: &Path) -> Result<PublicKey, CliError> {
    let subject = path.display().to_string();
    let bytes = durable::read(path, KEY_BYTES_MAX).map_err(|source| CliError::io(subject.clone(), source))?;
    PublicKey::from_pem(&String::from_utf8_lossy(&bytes)).map_err(|error| CliError::Failed {
        subject,
        code: "key_refused",
        source: error.into(),
        advice: "give a public key in PEM, for example of: openssl pkey -in private.pem -pubout".to_owned(),
    })
}

fn trusted_key(
    models: Vec<ringfence_models::Glob>,
    public: PublicKey,
    (not_before, not_after, days): (Option<u64>, Option<u64>, u64),
) -> Result<TrustedKey, CliError> {
    let now = clock::unix_seconds();
    let not_before = not_before.unwrap_or(now);
    let not_after = not_after.unwrap_or(not_before + days * DAY_SECONDS);
    if not_after <= not_before.max(now) {
        return Err(CliError::Usage {
            what: "the key would never be valid".to_owned(),
            advice: "give an end that is after the begin and after today".to_owned(),
        });
    }
    Ok(TrustedKey { public, models, not_before, not_after })
}

fn refuse_known(trust: &Trust, id: KeyId) -> Result<(), CliError> {
    let subject = format!("key {id}");
    if trust.revoked_keys.contains(&id) {
        let advice = "a revoked key stays revoked; ask its owner for a new one";
        return Err(refused(subject, "key_revoked", "this key was revoked", advice));
    }
    if trust.keys.iter().any(|key| key.public.id() == id) {
        let advice = "see its scope: ringfence trust show";
        return Err(refused(subject, "key_exists", "this key may sign already", advice));
    }
    Ok(())
}

/// The key that the digits stand for: one of those listed, or any whose id is given in full.
fn find(trust: &Trust, prefix: &str) -> Result<KeyId, CliError> {
    let subject = format!("key {prefix}");
    let ids = trust.keys.iter().map(|key| key.public.id());
    let found: Vec<KeyId> = ids.filter(|id| id.to_string().starts_with(prefix)).collect();
    match (&found[..], KeyId::from_hex(prefix)) {
        ([id], _) => Ok(*id),
        ([], Ok(id)) => Ok(id),
        ([], Err(_)) => {
            Err(refused(subject, "key_unknown", "no key begins like this", "see them: ringfence trust show"))
        }
        ([_, _, ..], _) => {
            Err(refused(subject, "key_ambiguous", "several keys begin like this", "give more digits"))
        }
    }
}

fn digest_of(package: &str, home: &Home, trust: &Trust) -> Result<Digest, CliError> {
    if let Ok(digest) = Digest::from_hex(package) {
        return Ok(digest);
    }
    let name = PackageName::new(package).map_err(|_| CliError::Usage {
        what: format!("{package:?} is neither a digest nor the name of a model"),
        advice: "list both: ringfence model list".to_owned(),
    })?;
    match Trusted::new(home, trust.clone())?.judge(&name) {
        Ok(verified) => Ok(verified.digest),
        Err(PackageError::Refused(Refusal::DigestRevoked(digest))) => Ok(digest),
        Err(error) => Err(refused_package(&name, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_models::SigningKey;

    /// A trust file with the public halves of these keys, all of which may sign everything.
    fn trust(keys: impl Iterator<Item = u16>) -> Trust {
        let public = |number: u16| {
            let mut secret = [1; 32];
            secret[..2].copy_from_slice(&number.to_le_bytes());
            PublicKey::of(&SigningKey::from_bytes(&secret))
        };
        let key =
            |number| TrustedKey { public: public(number), models: Vec::new(), not_before: 0, not_after: 1 };
        let keys = keys.map(key).collect();
        Trust { version: 1, expires: 1, keys, revoked_keys: Vec::new(), revoked_digests: Vec::new() }
    }

    #[test]
    fn a_prefix_that_several_keys_begin_with_names_none() {
        let trust = trust(0..300);
        let ids: Vec<String> = trust.keys.iter().map(|key| key.public.id().to_string()).collect();
        // Among so many keys two begin with the same two digits.
        let shared =
            ids.iter().enumerate().find(|(at, id)| ids[..*at].iter().any(|other| other[..2] == id[..2]));
        let shared = &shared.unwrap().1[..2];
        assert_eq!(find(&trust, shared).unwrap_err().code(), "key_ambiguous");
        assert_eq!(find(&trust, &ids[7]).unwrap().to_string(), ids[7]);
        assert_eq!(find(&trust, &ids[7][..12]).unwrap().to_string(), ids[7]);
    }

    #[test]
    fn a_key_that_is_not_listed_is_named_by_its_whole_id() {
        let trust = trust(0..1);
        let other = "ab".repeat(32);
        assert_eq!(find(&trust, &other).unwrap().to_string(), other);
        assert_eq!(find(&trust, &other[..63]).unwrap_err().code(), "key_unknown");
    }
}

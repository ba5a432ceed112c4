//! API keys: made here, shown once, kept as a hash.

use crate::clients::ClientName;
use crate::home::{Home, HomeError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;

/// The most keys that a home holds, revoked ones included.
pub(crate) const KEYS_MAX: usize = 10_000;

const FILE_BYTES_MAX: usize = 8 * 1024 * 1024;
const FOLDER: &str = "keys";
const FILE: &str = "keys.json";
const PREFIX: &str = "rf_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// The public routes, as its client.
    Infer,
    /// `GET /metrics` over TCP, nothing else.
    Metrics,
}

/// A key as it is kept: everything but the key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyRecord {
    /// The part of the key that names it.
    pub(crate) id: String,
    /// Whom it stands for.
    pub(crate) client: ClientName,
    /// What it opens.
    pub(crate) scope: Scope,
    /// SHA-256 of the whole key, in hex.
    sha256: String,
    /// Unix seconds.
    pub(crate) created_at: u64,
    /// Unix seconds; without it the key stays valid until it is revoked.
    pub(crate) expires_at: Option<u64>,
    /// Unix seconds.
    pub(crate) revoked_at: Option<u64>,
}

/// All keys of a home.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Keys {
    keys: Vec<KeyRecord>,
}

/// Why a key is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyRefusal {
    /// Not one of ours, or not known here.
    #[error("the API key is not valid; `ringfence key add CLIENT` makes one")]
    Unknown,
    /// Its time is over.
    #[error("the API key has expired; `ringfence key add CLIENT` makes a new one")]
    Expired,
    /// It was revoked.
    #[error("the API key has been revoked")]
    Revoked,
}

/// Why the keys could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// The file in the home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// What is in it.
    #[error("keys/keys.json does not parse: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Full.
    #[error("there are {KEYS_MAX} keys already")]
    Full,
    /// No key of that id.
    #[error("there is no key {id:?}; `ringfence key list` shows them")]
    Missing {
        /// As asked.
        id: String,
    },
    /// The kernel gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl Keys {
    /// Reads them; a home without keys has none.
    pub(crate) fn load(home: &Home) -> Result<Self, KeysError> {
        home.folder(FOLDER, 0o700)?;
        match home.read(&format!("{FOLDER}/{FILE}"), FILE_BYTES_MAX)? {
            Some(bytes) => Ok(serde_json::from_slice(&bytes)?),
            None => Ok(Self::default()),
        }
    }

    /// Every key, in order of making.
    pub(crate) fn all(&self) -> &[KeyRecord] {
        &self.keys
    }

    /// Makes a key and returns it with its record; this is the only time that it is seen.
    pub(crate) fn add(
        &mut self,
        home: &Home,
        client: ClientName,
        scope: Scope,
        now: u64,
        expires_in: Option<u64>,
    ) -> Result<(String, KeyRecord), KeysError> {
        if self.keys.len() >= KEYS_MAX {
            return Err(KeysError::Full);
        }
        let id = hex(&random::<ID_BYTES>()?);
        let key = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?));
        let expires_at = expires_in.map(|seconds| now.saturating_add(seconds));
        let record = KeyRecord {
            id,
            client,
            scope,
            sha256: hash(&key),
            created_at: now,
            expires_at,
            revoked_at: None,
        };
        self.keys.push(record.clone());
        if let Err(error) = self.save(home) {
            self.keys.pop();
            return Err(error);
        }
        Ok((key, record))
    }

    /// Revokes a key; doing it twice keeps the first time.
    pub(crate) fn revoke(&mut self, home: &Home, id: &str, now: u64) -> Result<KeyRecord, KeysError> {
        let position = self.keys.iter().position(|key| key.id == id);
        let position = position.ok_or_else(|| KeysError::Missing { id: id.chars().take(64).collect() })?;
        let before = self.keys[position].revoked_at;
        self.keys[position].revoked_at = before.or(Some(now));
        if let Err(error) = self.save(home) {
            self.keys[position].revoked_at = before;
            return Err(error);
        }
        Ok(self.keys[position].clone())
    }

    /// Revokes every key of a client, as one change of the file; how many that were still valid.
    pub(crate) fn revoke_all_of(
        &mut self,
        home: &Home,
        client: &ClientName,
        now: u64,
    ) -> Result<usize, KeysError> {
        let own = |key: &KeyRecord| key.client == *client && key.revoked_at.is_none();
        let positions: Vec<usize> =
            self.keys.iter().enumerate().filter(|(_, key)| own(key)).map(|(at, _)| at).collect();
        if positions.is_empty() {
            return Ok(0);
        }
        positions.iter().for_each(|at| self.keys[*at].revoked_at = Some(now));
        if let Err(error) = self.save(home) {
            positions.iter().for_each(|at| self.keys[*at].revoked_at = None);
            return Err(error);
        }
        Ok(positions.len())
    }

    /// Whom this key stands for.
    pub(crate) fn check(&self, key: &str, now: u64) -> Result<(&ClientName, Scope), KeyRefusal> {
        let id = key.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).map(|(id, _)| id);
        let id = id.ok_or(KeyRefusal::Unknown)?;
        let record = self.keys.iter().find(|record| record.id == id).ok_or(KeyRefusal::Unknown)?;
        if !bool::from(record.sha256.as_bytes().ct_eq(hash(key).as_bytes())) {
            return Err(KeyRefusal::Unknown);
        }
        if record.revoked_at.is_some() {
            return Err(KeyRefusal::Revoked);
        }
        if record.expires_at.is_some_and(|expires| now >= expires) {
            return Err(KeyRefusal::Expired);
        }
        Ok((&record.client, record.scope))
    }

    fn save(&self, home: &Home) -> Result<(), KeysError> {
        Ok(home.replace(FOLDER, FILE, &serde_json::to_vec_pretty(self)?, 0o600)?)
    }
}

/// Whether a value of the Authorization header has the form of our keys.
pub(crate) fn is_ours(key: &str) -> bool {
    key.starts_with(PREFIX)
}

fn hash(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        (folder, home)
    }

    fn client() -> ClientName {
        ClientName::new("notes").unwrap()
    }

    #[test]
    fn a_key_is_accepted_until_it_expires_or_is_revoked_and_survives_a_restart() {
        let (_folder, home) = home();
        let mut keys = Keys::load(&home).unwrap();
        let (key, record) = keys.add(&home, client(), Scope::Infer, 100, Some(50)).unwrap();
        let reread = Keys::load(&home).unwrap();
        assert_eq!(reread.check(&key, 149), Ok((&client(), Scope::Infer)));
        assert_eq!(reread.check(&key, 150), Err(KeyRefusal::Expired));
        keys.revoke(&home, &record.id, 120).unwrap();
        assert_eq!(Keys::load(&home).unwrap().check(&key, 130), Err(KeyRefusal::Revoked));
    }

    #[test]
    fn all_keys_of_a_client_are_revoked_and_no_others() {
        let (_folder, home) = home();
        let mut keys = Keys::load(&home).unwrap();
        let other = ClientName::new("other").unwrap();
        let mut add = |client| keys.add(&home, client, Scope::Infer, 100, None).unwrap().0;
        let (own, strange) = ([add(client()), add(client())], add(other));
        assert_eq!(keys.revoke_all_of(&home, &client(), 120).unwrap(), 2);
        assert_eq!(keys.revoke_all_of(&home, &client(), 130).unwrap(), 0);
        let reread = Keys::load(&home).unwrap();
        assert_eq!(own.map(|key| reread.check(&key, 130).unwrap_err()), [KeyRefusal::Revoked; 2]);
        assert!(reread.check(&strange, 130).is_ok());
    }

    #[test]
    fn a_key_with_any_changed_character_is_unknown() {
        let (_folder, home) = home();
        let mut keys = Keys::load(&home).unwrap();
        let (key, _) = keys.add(&home, client(), Scope::Infer, 100, None).unwrap();
        for position in 0..key.len() {
            let mut changed = key.clone().into_bytes();
            changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(keys.check(&changed, 100), Err(KeyRefusal::Unknown), "position {position}");
        }
    }

    #[test]
    fn the_file_holds_no_key() {
        let (folder, home) = home();
        let mut keys = Keys::load(&home).unwrap();
        let (key, _) = keys.add(&home, client(), Scope::Metrics, 100, None).unwrap();
        let text = std::fs::read_to_string(folder.path().join("keys/keys.json")).unwrap();
        // It may have the separator in it.
        let secret = key.splitn(3, '_').nth(2).unwrap();
        assert!(!text.contains(secret));
    }
}

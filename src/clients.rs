//! Clients: their names, and the folder with a socket that each of them has.

use crate::home::{Home, HomeError};
use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// The most clients with a folder.
pub(crate) const CLIENTS_MAX: usize = 1_000;

const FOLDER: &str = "clients";
const UID_FILE: &str = "uid";

/// A client's name: 1 to 64 of `a-z 0-9 . _ -`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ClientName(String);

/// A name that no client can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no client name: 1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit, and not `system`"
)]
pub(crate) struct ClientNameError(String);

/// A client that has a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    /// Its name and its folder's.
    pub(crate) name: ClientName,
    /// The uid that may reach the socket beside the server's own.
    pub(crate) uid: Option<u32>,
}

/// Why a client could not be added or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientsError {
    /// The folder.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// It is there already, perhaps for another uid.
    #[error("client {name:?} exists already")]
    Exists {
        /// Which.
        name: String,
    },
    /// Nobody has this name.
    #[error("there is no client {name:?}; `ringfence client list` shows them")]
    Missing {
        /// As asked.
        name: String,
    },
    /// Full.
    #[error("there are {CLIENTS_MAX} clients already")]
    Full,
    /// The file system keeps no access control lists.
    #[error(
        "can't let uid {uid} into the folder of client {name:?}: {source}; the home's file system must keep POSIX access control lists"
    )]
    Access {
        /// Whom.
        uid: u32,
        /// Where.
        name: String,
        /// What the kernel said.
        source: rustix::io::Errno,
    },
    /// A folder that is not one of ours.
    #[error("clients/{name}: {reason}")]
    Malformed {
        /// Which.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl ClientName {
    /// The one client that no folder and no key can name: canaries are charged to it.
    pub(crate) const SYSTEM: &'static str = "system";

    /// Checks the grammar.
    pub(crate) fn new(name: &str) -> Result<Self, ClientNameError> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let first =
            name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if first && name.len() <= 64 && name.bytes().all(legal) && name != Self::SYSTEM {
            Ok(Self(name.to_owned()))
        } else {
            Err(ClientNameError(name.chars().take(80).collect()))
        }
    }

    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClientName {
    type Error = ClientNameError;
    fn try_from(name: String) -> Result<Self, ClientNameError> {
        Self::new(&name)
    }
}

impl From<ClientName> for String {
    fn from(name: ClientName) -> Self {
        name.0
    }
}

impl std::fmt::Display for ClientName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The clients of a home, by name.
pub(crate) fn load(home: &Home) -> Result<Vec<Client>, ClientsError> {
    home.folder(FOLDER, 0o711)?;
    home.names(FOLDER)?.iter().map(|name| load_one(home, name)).collect()
}

fn load_one(home: &Home, folder: &str) -> Result<Client, ClientsError> {
    let malformed = |reason| ClientsError::Malformed { name: folder.to_owned(), reason };
    let name = ClientName::new(folder).map_err(|_| malformed("not a client's name; remove it"))?;
    let uid = match home.read(&format!("{FOLDER}/{folder}/{UID_FILE}"), 32)? {
        None => None,
        Some(bytes) => {
            let text = String::from_utf8(bytes).map_err(|_| malformed("`uid` is not a number"))?;
            Some(text.trim().parse().map_err(|_| malformed("`uid` is not a number"))?)
        }
    };
    Ok(Client { name, uid })
}

/// Makes a client's folder, reachable for nobody but the server's uid and, if given, `uid`.
pub(crate) fn add(home: &Home, existing: usize, client: &Client) -> Result<(), ClientsError> {
    let name = client.name.as_str();
    if existing >= CLIENTS_MAX {
        return Err(ClientsError::Full);
    }
    if home.names(FOLDER)?.iter().any(|other| other == name) {
        return Err(ClientsError::Exists { name: name.to_owned() });
    }
    let path = format!("{FOLDER}/{name}");
    let folder = home.folder(&path, 0o700)?;
    if let Some(uid) = client.uid {
        home.replace(&path, UID_FILE, uid.to_string().as_bytes(), 0o600)?;
        let list = access_list(uid);
        rustix::fs::fsetxattr(&folder, "system.posix_acl_access", &list, XattrFlags::empty())
            .map_err(|source| ClientsError::Access { uid, name: name.to_owned(), source })?;
    }
    Ok(())
}

/// Removes a client's folder with what the server has put there. What somebody else has put there keeps it, and is an error.
pub(crate) fn remove(home: &Home, name: &ClientName) -> Result<(), ClientsError> {
    let path = format!("{FOLDER}/{name}");
    let folder = home.existing_folder(&path)?;
    clear_socket(home, &folder)?;
    home.remove(folder.as_fd(), UID_FILE)?;
    Ok(home.remove_folder(FOLDER, name.as_str())?)
}

/// Whether this names a client that nobody has added: the server's own, and local users without a name.
pub(crate) fn is_built_in(name: &str) -> bool {
    name == ClientName::SYSTEM || name.strip_prefix("uid:").is_some_and(|uid| uid.parse::<u32>().is_ok())
}

/// A client's folder, for its socket.
pub(crate) fn folder(home: &Home, name: &ClientName) -> Result<OwnedFd, ClientsError> {
    Ok(home.existing_folder(&format!("{FOLDER}/{name}"))?)
}

/// Where a client finds its socket, for messages.
pub(crate) fn socket_path(home: &Home, name: &ClientName) -> std::path::PathBuf {
    home.path().join(FOLDER).join(name.as_str()).join("api.sock")
}

/// Removes the socket of a former server from a client's folder.
pub(crate) fn clear_socket(home: &Home, folder: &OwnedFd) -> Result<(), ClientsError> {
    Ok(home.remove(folder.as_fd(), "api.sock")?)
}

/// The kernel's form of `user::rwx, user:UID:r-x, group::---, mask::r-x, other::---` (acl(5), `posix_acl_xattr.h`).
fn access_list(uid: u32) -> Vec<u8> {
    const VERSION: u32 = 2;
    const NO_ID: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(0x01, 7, NO_ID), (0x02, 5, uid), (0x04, 0, NO_ID), (0x10, 5, NO_ID), (0x20, 0, NO_ID)];
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn names_outside_the_grammar_are_refused() {
        for name in ["", ".", "..", "-a", "A", "a/b", "a b", "ä", "system", &"a".repeat(65), "a\0"] {
            assert!(ClientName::new(name).is_err(), "{name:?}");
        }
        for name in ["a", "0", "notes.app", "a-b_c.d", &"a".repeat(64)] {
            assert!(ClientName::new(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_client_is_found_again_with_its_uid_and_its_folder_is_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        assert_eq!(load(&home).unwrap(), []);
        let plain = Client { name: ClientName::new("notes").unwrap(), uid: None };
        let other = Client { name: ClientName::new("other").unwrap(), uid: Some(65534) };
        add(&home, 0, &plain).unwrap();
        add(&home, 1, &other).unwrap();
        assert_eq!(load(&home).unwrap(), [plain.clone(), other]);
        assert!(matches!(add(&home, 2, &plain), Err(ClientsError::Exists { .. })));
        let mode = std::fs::metadata(folder.path().join("clients/notes")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        remove(&home, &ClientName::new("other").unwrap()).unwrap();
        assert_eq!(load(&home).unwrap(), [plain]);
        assert!(!folder.path().join("clients/other").exists());
    }

    #[test]
    fn the_server_and_users_without_a_name_are_built_in() {
        for name in ["system", "uid:0", "uid:1000"] {
            assert!(is_built_in(name), "{name}");
        }
        for name in ["notes", "uid", "uid:", "uid:x", "uid:-1", ""] {
            assert!(!is_built_in(name), "{name}");
        }
    }
}

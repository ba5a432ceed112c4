//! The home folder: where models, clients, keys and sockets lie.

use crate::error::CliError;
use std::env;
use std::path::{Path, PathBuf};

/// The home folder and the names in it.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    /// The given folder, else `/var/lib/ringfence` for root, else `ringfence` in the user's XDG data folder.
    ///
    /// # Errors
    /// [`CliError::Usage`] where nothing says which folder is meant.
    pub fn resolve(given: Option<PathBuf>) -> Result<Self, CliError> {
        if let Some(path) = given {
            return Ok(Self(path));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self(PathBuf::from("/var/lib/ringfence")));
        }
        xdg("XDG_DATA_HOME", ".local/share").map(|folder| Self(folder.join("ringfence")))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Packages and the trust file; written by this program only.
    pub fn models(&self) -> PathBuf {
        self.0.join("models")
    }

    /// What devices, models and clients may take; written by the server.
    pub fn quotas(&self) -> PathBuf {
        self.0.join("quotas.toml")
    }

    /// What is granted without a question; written by the operator.
    pub fn grant_rules(&self) -> PathBuf {
        self.0.join("grants.toml")
    }

    /// The text that the server is about to write to [`Home::quotas`], or was when it ended.
    pub fn quotas_next(&self) -> PathBuf {
        self.0.join("run/quotas.next")
    }

    /// The audit log, its keys and its names; written by the server.
    pub fn audit(&self) -> PathBuf {
        self.0.join("audit")
    }

    /// The socket of the operator's requests.
    pub fn admin_socket(&self) -> PathBuf {
        self.0.join("run/admin.sock")
    }

    /// The socket that serves every local uid.
    pub fn api_socket(&self) -> PathBuf {
        self.0.join("run/api.sock")
    }

    /// The socket that identifies a client.
    pub fn client_socket(&self, name: &str) -> PathBuf {
        self.0.join("clients").join(name).join("api.sock")
    }
}

/// The XDG folder that `variable` names, else `fallback` below the user's home.
///
/// # Errors
/// [`CliError::Usage`] where neither the variable nor `HOME` is set.
pub fn xdg(variable: &str, fallback: &str) -> Result<PathBuf, CliError> {
    // The XDG specification says that a relative path there is to be ignored.
    let set = env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let below_home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(fallback));
    set.or_else(below_home).ok_or_else(|| CliError::Usage {
        what: format!("neither {variable} nor HOME is set"),
        advice: "name the folder: --home DIR".to_owned(),
    })
}

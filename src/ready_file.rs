//! `--ready-file`: says where the server listens once it does.
//!
//! A server started as root has dropped its privileges by then and may not be able to write where root asked it to.
//! So a child of the same executable, started before the drop, waits on a pipe for the text, writes it and ends; it
//! reads nothing else and serves nobody.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

/// The longest text that the child takes.
const TEXT_BYTES_MAX: u64 = 16 * 1024;

/// Where the text will go.
#[derive(Debug)]
pub(crate) enum ReadyFile {
    /// Written by this process.
    Direct(PathBuf),
    /// Written by the child.
    ByChild(Child),
}

impl ReadyFile {
    /// The child's first argument.
    pub(crate) const SUBCOMMAND: &'static str = "write-ready-file";

    /// Removes a former file and prepares the way to write a new one. Call it before privileges are dropped.
    pub(crate) fn prepare(path: &Path, as_root: bool) -> std::io::Result<Self> {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if !as_root {
            return Ok(Self::Direct(path.to_owned()));
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg(Self::SUBCOMMAND).arg(path).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        Ok(Self::ByChild(command.spawn()?))
    }

    /// Writes it whole: nobody sees a part of it.
    pub(crate) fn write(self, text: &str) -> std::io::Result<()> {
        match self {
            Self::Direct(path) => replace(&path, text.as_bytes()),
            Self::ByChild(mut child) => {
                let mut pipe = child.stdin.take().expect("the child was given a pipe");
                pipe.write_all(text.as_bytes())?;
                drop(pipe);
                match child.wait()?.success() {
                    true => Ok(()),
                    false => Err(std::io::Error::other("its writer failed")),
                }
            }
        }
    }

    /// What the child does.
    pub(crate) fn subcommand() -> ExitCode {
        let Some(path) = std::env::args_os().nth(2) else { return ExitCode::FAILURE };
        let mut text = Vec::new();
        let read = std::io::stdin().take(TEXT_BYTES_MAX).read_to_end(&mut text);
        // The server ended before it was ready: there is nothing to say.
        if read.is_ok() && text.is_empty() {
            return ExitCode::SUCCESS;
        }
        match read.and_then(|_| replace(Path::new(&path), &text)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("ringfence-server: {}: {error}", Path::new(&path).display());
                ExitCode::FAILURE
            }
        }
    }
}

fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

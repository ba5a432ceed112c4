//! What a language model makes of it: summaries of some of the repository's own texts and of the spoken note, through a grant and
//! under a lease; then a grant that is revoked while a summary is being written.

use super::programs::{Programs, failed};
use ringfence_cli::error::CliError;
use ringfence_cli::home::Home;
use ringfence_cli::http::{Address, Ask, ask_once};
use ringfence_cli::output::bytes;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

/// The model.
pub(crate) const MODEL: &str = "smollm2-135m";
/// What is summed up beside the note, of the repository: its shortest texts.
const TEXTS: [&str; 2] = ["packaging/README.md", "docs/gpu.md"];
/// What takes so long to be read that a revocation comes before the end.
const LONG: &str = "docs/security.md";
/// Where the note is put, below the repository.
const NOTE: &str = "meeting.md";

/// Writes the note down as a file of whom the repository belongs to.
///
/// # Errors
/// [`CliError::Failed`].
pub(crate) fn keep_note(repository: &Path, text: &str) -> Result<(), CliError> {
    let path = repository.join(NOTE);
    let write = || {
        let owner = fs::metadata(repository)?;
        fs::write(&path, text)?;
        chown(&path, Some(owner.uid()), Some(owner.gid()))
    };
    write().map_err(|source| CliError::io(path.display().to_string(), source))
}

/// Has texts and note summed up, and shows what that took.
///
/// # Errors
/// [`CliError::Failed`] where a summary is empty, and those of the commands.
pub(crate) fn sum_up(
    programs: &Programs,
    home: &Home,
    (repository, passphrase): (&Path, &Path),
) -> Result<(), CliError> {
    let wanted = [NOTE].iter().chain(&TEXTS).map(|name| repository.join(name));
    let files: Vec<PathBuf> = wanted.filter(|file| file.exists()).collect();
    let printed = programs.summarize(home, &files, passphrase)?;
    let report: Value =
        serde_json::from_str(&printed).map_err(|error| failed("ringfence summarize", error.to_string()))?;
    for summary in report["files"].as_array().into_iter().flatten() {
        let file = Path::new(summary["file"].as_str().unwrap_or_default());
        show(&file.strip_prefix(repository).unwrap_or(file).display().to_string(), summary)?;
    }
    show("together", &report["together"])?;
    show_lease(home)
}

fn show(name: &str, summary: &Value) -> Result<(), CliError> {
    let text = summary["text"].as_str().unwrap_or_default().trim();
    if text.is_empty() {
        return Err(failed(name, "its summary is empty"));
    }
    let count = |field: &str| summary["usage"][field].as_u64().unwrap_or(0);
    println!(
        "{name}: {} tokens read, first word after {:.1} s, {} tokens written at {:.1} tokens/s\n  {}",
        count("prompt_tokens"),
        summary["first_token_ms"].as_f64().unwrap_or(0.0) / 1e3,
        count("completion_tokens"),
        summary["tokens_per_s"].as_f64().unwrap_or(0.0),
        text.replace('\n', "\n  "),
    );
    Ok(())
}

/// What the model was given of the machine's memory, and what holds it to that.
fn show_lease(home: &Home) -> Result<(), CliError> {
    let worker = worker(home)?.ok_or_else(|| failed(MODEL, "it has no worker"))?;
    let size = |field: &str| worker[field].as_u64().map_or("-".to_owned(), bytes);
    println!(
        "{MODEL} ran in worker {} under a lease of {} (tier {}), of which it used at most {}",
        worker["id"],
        size("lease_bytes"),
        worker["tier"].as_str().unwrap_or("-"),
        size("peak_bytes"),
    );
    Ok(())
}

/// The model's worker, where there is one.
fn worker(home: &Home) -> Result<Option<Value>, CliError> {
    let status = ask_once(&Address::Unix(home.admin_socket()), &Ask::plain(hyper::Method::GET, "/status"))?;
    let mut workers = status["workers"].as_array().cloned().unwrap_or_default();
    workers.retain(|worker| worker["model"] == MODEL);
    Ok(workers.pop())
}

/// Whether a job is in it.
pub(crate) fn is_at_work(home: &Home) -> Result<bool, CliError> {
    Ok(worker(home)?.is_some_and(|worker| worker["running"].as_u64() > Some(0)))
}

/// Revokes the grant of a summary that is being written.
///
/// # Errors
/// [`CliError::Failed`] where it is written nevertheless.
pub(crate) fn revoke(
    programs: &Programs,
    home: &Home,
    (repository, passphrase): (&Path, &Path),
) -> Result<(), CliError> {
    let printed = programs.summarize_and_revoke(home, &repository.join(LONG), passphrase)?;
    let answer: Value = serde_json::from_str(&printed).unwrap_or_default();
    println!("{}", printed.trim_end());
    if answer["error"]["code"] == "grant_revoked" {
        return Ok(());
    }
    Err(failed("ringfence summarize", "it was not refused as grant_revoked"))
}

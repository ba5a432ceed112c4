//! `ringfence audit`: the log of what was asked, decided and used, read from its files; no server is needed.

use super::{DAY_SECONDS, client_name, time};
use crate::clock;
use crate::durable;
use crate::error::CliError;
use crate::home::Home;
use crate::output::{Output, utc};
use clap::{Args, Subcommand};
use ringfence_audit::{
    CHECKPOINT_BYTES_MAX, CheckpointError, Entry, ExportError, Exported, Fault, Filter, Folder, Keys,
    KeysError, Log, LogError, NameMap, OpenError, PUBLIC_KEY_BYTES_MAX, PublicKey, Reader, Verified, Word,
    export, line, newest_checkpoint, verify,
};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the files are looked at with `--follow`.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// The most days that prune can keep: a century.
const DAYS_MAX: u64 = 36_500;

/// Check, read, export and prune the log of what was asked, decided and used
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  ringfence audit verify --checkpoint kept-elsewhere\n  ringfence audit tail\n  ringfence audit export notes-in-may --client notes"
)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check every entry, hash and signature
    #[command(after_help = "\
Examples:
  ringfence audit verify
  ringfence audit verify --checkpoint kept-elsewhere
  ringfence audit verify --log notes-in-may --checkpoint kept-elsewhere

Without a checkpoint that was kept elsewhere, whoever has the log's key can have written all of it anew: keep what
`ringfence audit checkpoint` prints on another machine.")]
    Verify {
        /// A checkpoint that was kept elsewhere
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// An export, or another audit folder [default: the home's]
        #[arg(long, value_name = "DIR")]
        log: Option<PathBuf>,
        /// The log's public key as it was kept elsewhere [default: the one in the folder]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Show one entry, or those of a client or a grant, in plain words
    #[command(
        after_help = "Examples:\n  ringfence audit show 17\n  ringfence audit show --client notes\n  ringfence audit show --grant 7 --json"
    )]
    Show {
        /// Its index
        #[arg(required_unless_present_any = ["client", "grant"], conflicts_with_all = ["client", "grant"])]
        index: Option<u64>,
        /// All of this client
        #[arg(long, value_name = "NAME", value_parser = client_name)]
        client: Option<String>,
        /// All of the grant with this number; each run of the server counts from 1
        #[arg(long, value_name = "N")]
        grant: Option<u64>,
    },
    /// Show the last entries
    #[command(
        after_help = "Examples:\n  ringfence audit tail\n  ringfence audit tail -n 100\n  ringfence audit tail --follow --json"
    )]
    Tail {
        /// How many
        #[arg(short = 'n', value_name = "N", default_value_t = 20)]
        count: u64,
        /// And those that come, until ctrl-c
        #[arg(long)]
        follow: bool,
    },
    /// Copy the log into a new folder, with a report in plain words
    #[command(after_help = "\
Examples:
  ringfence audit export everything
  ringfence audit export notes-in-may --client notes --since 30d

The folder gets report.txt, report.html, public-key, and the whole log in the forms that third-party tools verify, in
which the names of clients, paths and reasons are masked. The report has them in clear.")]
    Export {
        /// The new folder
        dir: PathBuf,
        /// Report this client only
        #[arg(long, value_name = "NAME", value_parser = client_name)]
        client: Option<String>,
        /// Report what is not older
        #[arg(long, value_name = "TIME", value_parser = time)]
        since: Option<Duration>,
    },
    /// Remove old entries for good, while no server runs; their hashes stay
    #[command(after_help = "\
Examples:
  ringfence audit prune --keep-days 90

Entries go in bundles of 256, the oldest first; that they went is an entry itself. What is left verifies as before.")]
    Prune {
        /// Keep what is not older
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=DAYS_MAX))]
        keep_days: u64,
    },
    /// Print the newest checkpoint, to be kept elsewhere
    #[command(after_help = "Examples:\n  ringfence audit checkpoint > kept-elsewhere")]
    Checkpoint,
    /// Print the digest that the log has of such a file, if it was served whole
    #[command(after_help = "\
Examples:
  ringfence audit digest notes/a.md
  ringfence audit digest notes/a.md --json

It is BLAKE3 under a key of this home, so that nobody else can guess what was served; look for it in what `ringfence audit
show` prints.")]
    Digest {
        /// The file
        file: PathBuf,
    },
}

/// Runs it.
///
/// # Errors
/// [`CliError::Verification`] where the log does not hold; [`CliError::Failed`] where there is none.
pub fn run(args: AuditArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let place = Place::open(home.audit());
    match args.command {
        AuditCommand::Verify { checkpoint, log, key } => {
            let place = log.map_or(place, Place::open)?;
            verified(&place, checkpoint.as_deref(), key.as_deref(), output)
        }
        AuditCommand::Show { index: Some(index), .. } => show(&place?, index, output),
        AuditCommand::Show { index: None, client, grant } => {
            let place = place?;
            let filter = Filter { grant, ..place.filter(client.as_deref())? };
            place.lines(0, &filter, output).map(drop)
        }
        AuditCommand::Tail { count, follow } => tail(&place?, count, follow, output),
        AuditCommand::Export { dir, client, since } => {
            let from_ms = since.map(|since| now_ms().saturating_sub(since.as_secs() * 1_000));
            exported(&place?, &dir, client.as_deref(), from_ms, output)
        }
        AuditCommand::Prune { keep_days } => prune(place?, keep_days, output),
        AuditCommand::Checkpoint => {
            let place = place?;
            let read = newest_checkpoint(&place.files, &place.public(None)?);
            let (note, checkpoint) = read.map_err(|fault| place.broken(fault))?;
            let body = json!({"size": checkpoint.size, "root": hex(&checkpoint.root), "note": note});
            output.answer(&body, |_| note)
        }
        AuditCommand::Digest { file } => {
            let keys = place?.keys()?;
            let opened = fs::OpenOptions::new().read(true).open(&file);
            let digest = opened.and_then(|bytes| keys.masks().digest(bytes));
            let digest = digest.map_err(|source| CliError::io(file.display().to_string(), source))?;
            output.answer(&json!({"digest": digest}), |_| digest.to_string())
        }
    }
}

/// A folder with a log in it.
struct Place {
    path: PathBuf,
    files: Folder,
}

impl Place {
    fn open(path: PathBuf) -> Result<Self, CliError> {
        let there = path.join("log").symlink_metadata().and_then(|_| Folder::open(&path));
        match there {
            Ok(files) => Ok(Self { path, files }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CliError::Failed {
                subject: path.display().to_string(),
                code: "no_audit_log",
                source: "there is no audit log here".into(),
                advice: "a server makes it when it starts: ringfence serve; name another home with --home"
                    .to_owned(),
            }),
            Err(error) => Err(CliError::io(path.display().to_string(), error)),
        }
    }

    fn public(&self, kept: Option<&Path>) -> Result<PublicKey, CliError> {
        let path = kept.map_or_else(|| self.path.join("public-key"), Path::to_owned);
        let text = file(&path, PUBLIC_KEY_BYTES_MAX)?;
        let key = std::str::from_utf8(&text).ok().and_then(|text| PublicKey::parse(text).ok());
        key.ok_or_else(|| broken(&path, CheckpointError::Key.into()))
    }

    fn keys(&self) -> Result<Keys, CliError> {
        Keys::read(&self.files).map_err(|error| self.keyless(error))
    }

    /// What the masks stand for, where this folder has the keys; an export has none.
    fn names(&self) -> Result<NameMap, CliError> {
        match Keys::read(&self.files) {
            Ok(keys) => NameMap::read(&self.files, &keys)
                .map_err(|source| CliError::io(self.path.join("names").display().to_string(), source)),
            Err(KeysError::Missing(_)) => Ok(NameMap::default()),
            Err(error) => Err(self.keyless(error)),
        }
    }

    fn filter(&self, client: Option<&str>) -> Result<Filter, CliError> {
        let client = client.map(|name| Ok::<_, CliError>(self.keys()?.masks().mask(name))).transpose()?;
        Ok(Filter { client, ..Filter::default() })
    }

    /// Prints the entries from an index on that a filter takes, and says how many entries there are.
    fn lines(&self, from: u64, filter: &Filter, output: &Output) -> Result<u64, CliError> {
        let names = self.names()?;
        let reader = Reader::open(&self.files, None).map_err(|fault| self.broken(fault))?;
        for entry in reader.entries(from) {
            let (index, bytes) = entry.map_err(|fault| self.broken(fault))?;
            print(index, &bytes, filter, &names, output)?;
        }
        Ok(reader.size())
    }

    fn broken(&self, fault: Fault) -> CliError {
        broken(&self.path, fault.into())
    }

    fn keyless(&self, error: KeysError) -> CliError {
        let advice = "the keys lie in the home's audit/keys; an export has none".to_owned();
        failed(&self.path, "audit_keys", error.into(), &advice)
    }
}

/// One entry: in words, or with `--json` as the log has it, on one line.
fn print(
    index: u64,
    bytes: &[u8],
    filter: &Filter,
    names: &NameMap,
    output: &Output,
) -> Result<(), CliError> {
    let entry = Entry::decode(bytes).ok();
    let unfiltered = filter.client.is_none() && filter.grant.is_none();
    match &entry {
        // Of another version: shown where all are.
        None if !unfiltered => return Ok(()),
        Some(entry) if !filter.takes(entry) => return Ok(()),
        None | Some(_) => {}
    }
    let words = entry.map(|entry| line(index, &entry, names));
    if output.is_json() {
        let entry: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
        return output.line(&json!({"index": index, "entry": entry, "words": words}).to_string());
    }
    let raw = || format!("#{index}  {}", String::from_utf8_lossy(bytes).escape_debug());
    output.line(&words.unwrap_or_else(raw))
}

fn show(place: &Place, index: u64, output: &Output) -> Result<(), CliError> {
    let names = place.names()?;
    let reader = Reader::open(&place.files, None).map_err(|fault| place.broken(fault))?;
    let first = reader.entries(index).next().transpose().map_err(|fault| place.broken(fault))?;
    match first {
        Some((found, bytes)) if found == index => print(index, &bytes, &Filter::default(), &names, output),
        Some(_) => Err(failed(&place.path, "entry_pruned", format!("entry {index} was pruned").into(), "")),
        None => {
            let why = format!("there are {} entries, counted from 0", reader.size());
            Err(failed(&place.path, "no_such_entry", why.into(), ""))
        }
    }
}

fn tail(place: &Place, count: u64, follow: bool, output: &Output) -> Result<(), CliError> {
    let size = Reader::open(&place.files, None).map_err(|fault| place.broken(fault))?.size();
    let mut next = place.lines(size.saturating_sub(count), &Filter::default(), output)?;
    loop {
        if !follow {
            return Ok(());
        }
        std::thread::sleep(FOLLOW_EVERY);
        next = place.lines(next, &Filter::default(), output)?;
    }
}

fn verified(
    place: &Place,
    checkpoint: Option<&Path>,
    key: Option<&Path>,
    output: &Output,
) -> Result<(), CliError> {
    let outside = checkpoint.map(|path| file(path, CHECKPOINT_BYTES_MAX)).transpose()?;
    let holds =
        verify(&place.files, &place.public(key)?, outside.as_deref()).map_err(|fault| place.broken(fault))?;
    let body = json!({"size": holds.checkpoint.size, "root": hex(&holds.checkpoint.root), "present": holds.present,
                      "pruned": holds.pruned, "newer": holds.newer, "torn_bytes": holds.torn_bytes,
                      "outside": holds.outside});
    output.answer(&body, |style| style.green("holds") + &in_words(&holds))
}

fn in_words(holds: &Verified) -> String {
    let mut text = format!(": {} entries, root {}", holds.checkpoint.size, hex(&holds.checkpoint.root));
    if holds.pruned > 0 {
        text += &format!("\n{} of them pruned, hashes hold", holds.pruned);
    }
    if holds.newer > 0 {
        text += &format!("\n{} newer ones, in no checkpoint yet", holds.newer);
    }
    if holds.torn_bytes > 0 {
        text += &format!("\n{} bytes of a write that goes on or was cut off", holds.torn_bytes);
    }
    text + &match holds.outside {
        Some(size) => format!("\nthe outside checkpoint of {size} entries holds"),
        None => {
            "\nno outside checkpoint: whoever has the log's key can have written all of it anew".to_owned()
        }
    }
}

fn exported(
    place: &Place,
    dir: &Path,
    client: Option<&str>,
    from_ms: Option<u64>,
    output: &Output,
) -> Result<(), CliError> {
    let filter = Filter { from_ms, ..place.filter(client)? };
    let (public, names) = (place.public(None)?, place.names()?);
    let made = fs::DirBuilder::new().mode(0o700).create(dir);
    let to = made
        .and_then(|()| Folder::open(dir))
        .map_err(|source| CliError::io(dir.display().to_string(), source));
    let done = export(&place.files, &public, &names, &filter, &mut to?).map_err(|error| match error {
        ExportError::Fault(fault) => place.broken(fault),
        ExportError::Io { file, source } => CliError::io(dir.join(file).display().to_string(), source),
    })?;
    let Exported { checkpoint, present, reported } = done;
    let body = json!({"folder": dir, "size": checkpoint.size, "present": present, "reported": reported});
    output.answer(&body, |_| {
        let (size, pruned, dir) = (checkpoint.size, checkpoint.size - present, dir.display());
        format!("{dir}: {size} entries ({pruned} pruned), {reported} in report.txt and report.html")
    })
}

fn prune(place: Place, keep_days: u64, output: &Output) -> Result<(), CliError> {
    owned(&place.path)?;
    let Place { path, files } = place;
    let keys = Keys::read(&files).map_err(|error| failed(&path, "audit_keys", error.into(), ""))?;
    let (mut log, _) = Log::open(files, keys, None).map_err(|error| match error {
        OpenError::Locked => {
            let advice = "stop the server first";
            failed(&path, "audit_locked", OpenError::Locked.into(), advice)
        }
        OpenError::Fault(fault) => broken(&path, fault.into()),
        OpenError::Io { .. } => failed(&path, "io_error", error.into(), ""),
    })?;
    let before_ms = now_ms().saturating_sub(keep_days * DAY_SECONDS * 1_000);
    let run = Word::new("prune").expect("it is a word");
    let failed = |error: LogError| failed(&path, "io_error", error.into(), "");
    let before = log.older_than(before_ms).map_err(|fault| broken(&path, fault.into()))?;
    let pruned = log.prune(before, now_ms(), run).map_err(failed)?;
    output.answer(&json!({"pruned": pruned, "before_ms": before_ms}), |_| {
        format!("{pruned} entries from before {} pruned, hashes stay", utc(before_ms / 1_000))
    })
}

/// Files that another user makes here could not be written by the server.
fn owned(path: &Path) -> Result<(), CliError> {
    let owner = fs::metadata(path).map_err(|source| CliError::io(path.display().to_string(), source))?.uid();
    if owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(failed(
        path,
        "not_owner",
        format!("belongs to uid {owner}").into(),
        "run this as that user, who is the server's: setpriv --reuid or runuser",
    ))
}

fn file(path: &Path, bytes_max: usize) -> Result<Vec<u8>, CliError> {
    durable::read(path, bytes_max).map_err(|source| CliError::io(path.display().to_string(), source))
}

fn broken(path: &Path, source: crate::error::Source) -> CliError {
    CliError::Verification {
        subject: path.display().to_string(),
        code: "audit_broken",
        source,
        advice: "keep the folder as it is, and compare with an export or a checkpoint from elsewhere"
            .to_owned(),
    }
}

fn failed(path: &Path, code: &'static str, source: crate::error::Source, advice: &str) -> CliError {
    CliError::Failed { subject: path.display().to_string(), code, source, advice: advice.to_owned() }
}

fn now_ms() -> u64 {
    clock::unix_seconds() * 1_000
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! `ringfence index`: makes a folder searchable by meaning, through grants.

use super::client_name;
use crate::clock;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{self, Address, Ask, Connection};
use crate::index::grants::{Held, HeldGrants, Wanted};
use crate::index::store::{Counts, Made, Store};
use crate::index::walk::{Choice, Found, walk};
use crate::index::{FILE, FOLDER, embed};
use crate::output::{Output, bytes, progress};
use clap::Args;
use hyper::Method;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long may be lost where the command is stopped.
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// The largest index that is read back, in bytes: two million passages of MiniLM.
const INDEX_BYTES_MAX: usize = 4 << 30;

/// Make a folder searchable by meaning
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence index ~/notes
  ringfence index ~/notes --glob '*.md' --glob '!drafts' --minutes 10

It asks for three grants: that the model may read the folder, that this command may read it (its .gitignore files and the
former index), and that it may write the folder's .ringfence, which holds the index. The operator answers them
(ringfence grant approve). They are given back at the end. Only
files that are new or have changed are read. Hidden files and what .gitignore files name are left out.")]
pub struct IndexArgs {
    /// The folder; it must belong to the user that the server runs as
    folder: PathBuf,
    #[command(flatten)]
    asker: Asker,
    /// The model to embed with
    #[arg(long, default_value = "minilm")]
    model: String,
    /// Only files like this, or with ! not those; may be repeated
    #[arg(long = "glob", value_name = "GLOB")]
    globs: Vec<String>,
    /// Leave out files that are larger
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=16 << 20))]
    file_bytes_max: u64,
    /// The most tokens of a passage
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=8_192))]
    passage_tokens: u32,
    /// How long the grants are asked for
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
    /// Forget what an earlier index has
    #[arg(long)]
    anew: bool,
}

/// As whom a command asks.
#[derive(Args, Debug)]
pub struct Asker {
    /// Ask on this client's socket [default: the socket for all, HOME/run/api.sock]
    #[arg(long, value_name = "NAME", value_parser = client_name)]
    client: Option<String>,
}

impl Asker {
    /// The socket.
    pub fn address(&self, home: &Home) -> Address {
        Address::Unix(self.client.as_ref().map_or_else(|| home.api_socket(), |name| home.client_socket(name)))
    }
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    folder: String,
    model: String,
    /// Files that were read.
    read: u64,
    /// Files that were as the index had them.
    unchanged: u64,
    /// Files that the index had and that are gone.
    forgotten: u64,
    /// Files that were read and have no passages, by the server's code.
    skipped: BTreeMap<String, u64>,
    /// What is in the index now.
    index: Counts,
    index_bytes: u64,
    seconds: f64,
}

/// Runs it.
///
/// # Errors
/// Refusals of the server, a grant that is not given, a folder that can't be had.
pub fn run(args: IndexArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let folder = absolute(&args.folder)?;
    let choice = Choice::new(&args.globs, args.file_bytes_max)?;
    make_place(&folder)?;
    let report =
        http::runtime()?.block_on(index(&args, &args.asker.address(home), &folder, &choice, output))?;
    output.answer(&report, |_| page(&report))
}

/// Without links in it, which a grant's path must not have.
pub fn absolute(folder: &Path) -> Result<String, CliError> {
    let name = folder.display().to_string();
    let path = std::fs::canonicalize(folder).map_err(|source| CliError::io(&*name, source))?;
    path.into_os_string().into_string().map_err(|_| CliError::Usage {
        what: format!("{name} is no UTF-8"),
        advice: "rename the folder".to_owned(),
    })
}

/// The folder of the index, since a grant is for what is there; it belongs to whom the folder belongs to.
fn make_place(folder: &str) -> Result<(), CliError> {
    let place = Path::new(folder).join(FOLDER);
    let make = || -> io::Result<()> {
        std::fs::create_dir(&place)?;
        if rustix::process::geteuid().is_root() {
            let owner = std::fs::metadata(folder)?;
            chown(&place, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    };
    match make() {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CliError::Failed {
            subject: place.display().to_string(),
            code: "io_error",
            source: error.into(),
            advice: "make this folder as the user that the server runs as".to_owned(),
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn index(
    args: &IndexArgs,
    address: &Address,
    folder: &str,
    choice: &Choice,
    output: &Output,
) -> Result<Report, CliError> {
    let mut connection = Connection::open(address).await?;
    let made = Made {
        model: args.model.clone(),
        digest: digest_of(&mut connection, &args.model).await?,
        passage_tokens: args.passage_tokens,
    };
    let held = HeldGrants::ask(address, &wanted(args, folder), output).await?;
    let mut work = Work {
        folder,
        address,
        connection,
        for_model: held.get(0).clone(),
        reads: held.get(1).clone(),
        writes: held.get(2).clone(),
        saved: clock::now(),
    };
    let report = tokio::select! {
        report = work.run(made, args.anew, choice, output) => report,
        // What was saved stays; the grants are given back.
        _ = tokio::signal::ctrl_c() => Err(CliError::Failed {
            subject: folder.to_owned(),
            code: "interrupted",
            source: "stopped by ctrl-c".into(),
            advice: "the next run goes on from what was saved".to_owned(),
        }),
    };
    held.give_back().await;
    report
}

fn wanted(args: &IndexArgs, folder: &str) -> [Wanted; 3] {
    let wanted = |kind, path: String, model: Option<&str>, reason: &str, bytes_max| Wanted {
        kind,
        path,
        model: model.map(str::to_owned),
        reason: reason.to_owned(),
        results: format!("places and vectors of passages in {FOLDER}/{FILE} of that folder"),
        lifetime_ms: args.minutes * 60_000,
        bytes_max,
    };
    let place = format!("{folder}/{FOLDER}");
    [
        wanted(
            "file_read",
            folder.to_owned(),
            Some(&args.model),
            "index: the model reads the files",
            1 << 40,
        ),
        wanted("file_read", folder.to_owned(), None, "index: names, .gitignore, the former index", 8 << 30),
        wanted("file_write", place, None, "index: the new index is written", 1 << 40),
    ]
}

async fn digest_of(connection: &mut Connection, model: &str) -> Result<String, CliError> {
    let answer = connection.send(&Ask::plain(Method::GET, format!("/v1/models/{model}"))).await?.json()?;
    Ok(answer["digest"].as_str().unwrap_or_default().to_owned())
}

/// A run with its grants.
struct Work<'a> {
    folder: &'a str,
    address: &'a Address,
    connection: Connection,
    for_model: Held,
    reads: Held,
    writes: Held,
    saved: Instant,
}

impl Work<'_> {
    async fn run(
        &mut self,
        made: Made,
        anew: bool,
        choice: &Choice,
        output: &Output,
    ) -> Result<Report, CliError> {
        let begun = clock::now();
        let former = if anew { None } else { self.former(&made, output).await? };
        let mut store = former.map_or_else(|| Store::new(&made), Ok)?;
        let found = walk(&mut self.connection, &self.for_model, &self.reads, choice).await?;
        let forgotten = store.keep_only(&found)?;
        let mut todo = Vec::new();
        for file in &found {
            if !store.has(file)? {
                todo.push(file.clone());
            }
        }
        let (read, unchanged) = (todo.len() as u64, (found.len() - todo.len()) as u64);
        let skipped = self.embed(&mut store, &made, todo, output).await?;
        let index_bytes =
            if read + forgotten > 0 { self.save(&store).await? } else { store.bytes()?.len() as u64 };
        Ok(Report {
            folder: self.folder.to_owned(),
            model: made.model,
            read,
            unchanged,
            forgotten,
            skipped,
            index: store.counts()?,
            index_bytes,
            seconds: clock::now().saturating_duration_since(begun).as_secs_f64(),
        })
    }

    /// What an earlier run left, if it was made by the same model in the same way.
    async fn former(&mut self, made: &Made, output: &Output) -> Result<Option<Store>, CliError> {
        let store = read_store(&mut self.connection, &self.reads).await?;
        let Some(store) = store else { return Ok(None) };
        if store.made()? == *made {
            return Ok(Some(store));
        }
        output.note("the index is of another model or other passages, and is made anew");
        Ok(None)
    }

    async fn embed(
        &mut self,
        store: &mut Store,
        made: &Made,
        todo: Vec<Found>,
        output: &Output,
    ) -> Result<BTreeMap<String, u64>, CliError> {
        let bar = progress(output, todo.iter().map(|file| file.size).sum(), "indexing");
        let mut skipped: BTreeMap<String, u64> = BTreeMap::new();
        let (address, for_model) = (self.address, self.for_model.clone());
        let embedded =
            embed::files(address, &for_model, made.passage_tokens, todo, async |(file, passages)| {
                match &passages {
                    Ok(passages) => store.put(&file, Ok(passages))?,
                    Err(code) => {
                        *skipped.entry(code.clone()).or_default() += 1;
                        store.put(&file, Err(code))?;
                    }
                }
                bar.inc(file.size);
                if clock::now().saturating_duration_since(self.saved) > SAVE_EVERY {
                    self.save(store).await?;
                }
                Ok(())
            });
        let embedded = embedded.await;
        bar.finish_and_clear();
        if let Err(error) = embedded {
            // What is done need not be done again. The first error is the one to tell.
            drop(self.save(store).await);
            return Err(error);
        }
        Ok(skipped)
    }

    async fn save(&mut self, store: &Store) -> Result<u64, CliError> {
        let bytes = store.bytes()?;
        let length = bytes.len() as u64;
        self.writes.write(&mut self.connection, FILE, bytes).await?;
        self.saved = clock::now();
        Ok(length)
    }
}

/// The folder's index; none where there is none of this version.
///
/// # Errors
/// Refusals of the server, and an index that is damaged.
pub async fn read_store(connection: &mut Connection, reads: &Held) -> Result<Option<Store>, CliError> {
    match reads.read_whole(connection, &format!("{FOLDER}/{FILE}"), INDEX_BYTES_MAX).await {
        Ok(bytes) => Store::from_bytes(&bytes),
        // There is none yet; whatever else is wrong with it, the writing says.
        Err(CliError::Refused { code, .. }) if code == "file_refused" => Ok(None),
        Err(error) => Err(error),
    }
}

fn page(report: &Report) -> String {
    let Report { read, unchanged, forgotten, skipped, index, index_bytes, seconds, .. } = report;
    let mut page = format!(
        "{read} files read, {unchanged} unchanged, {forgotten} forgotten in {seconds:.1} s\n\
         the index has {} passages of {} files in {}",
        index.passages,
        index.files - index.skipped,
        bytes(*index_bytes)
    );
    for (code, files) in skipped {
        page.push_str(&format!("\n{files} left out: {code}"));
    }
    page
}

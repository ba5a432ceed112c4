//! `ringfence search`: the passages of an indexed folder that are nearest to a question.

use super::index::{Asker, absolute, read_store};
use crate::error::CliError;
use crate::home::Home;
use crate::http::{self, Address, Ask, Connection};
use crate::index::grants::{Held, HeldGrants, Wanted};
use crate::index::store::Hit;
use crate::output::{Output, Style};
use clap::Args;
use ringfence_grants::visible;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// How long the grant is asked for, in milliseconds.
const LIFETIME_MS: u64 = 5 * 60_000;
/// Bytes that it may read: the index, and the files that are found.
const BYTES_MAX: u64 = 5 << 30;
/// As much of a passage as is shown.
const SHOWN_CHARACTERS: usize = 200;

/// Find passages of an indexed folder by what they mean
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence search ~/notes what did we decide about the roof
  ringfence search ~/notes the roof --most 3 --json

It asks for one grant: that this command may read the folder, which holds the index (ringfence index) and the passages that
are shown. A rule in grants.toml answers it beforehand: docs/grants.md.")]
pub struct SearchArgs {
    /// The folder, as it was indexed
    folder: PathBuf,
    /// What is looked for, in words
    #[arg(required = true, value_name = "WORDS")]
    question: Vec<String>,
    #[command(flatten)]
    asker: Asker,
    /// So many passages at most
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    most: u64,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Report {
    question: String,
    model: String,
    hits: Vec<Shown>,
}

/// A passage that was found.
#[derive(Debug, Serialize)]
struct Shown {
    score: f32,
    path: String,
    start: u64,
    end: u64,
    /// From 1; none where the file is not there any more as it was.
    line: Option<usize>,
    text: Option<String>,
}

/// Runs it.
///
/// # Errors
/// Refusals of the server, a grant that is not given, a folder without an index.
pub fn run(args: SearchArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let folder = absolute(&args.folder)?;
    let address = args.asker.address(home);
    let report = http::runtime()?.block_on(async {
        let held = HeldGrants::ask(&address, &[wanted(&folder)], output).await?;
        let report = search(&args, &address, &folder, held.get(0)).await;
        held.give_back().await;
        report
    })?;
    output.answer(&report, |style| page(&report, style))
}

fn wanted(folder: &str) -> Wanted {
    Wanted {
        kind: "file_read",
        path: folder.to_owned(),
        model: None,
        reason: "search: the index and the passages that are found".to_owned(),
        results: "the asker's screen".to_owned(),
        lifetime_ms: LIFETIME_MS,
        bytes_max: BYTES_MAX,
    }
}

async fn search(
    args: &SearchArgs,
    address: &Address,
    folder: &str,
    reads: &Held,
) -> Result<Report, CliError> {
    let mut connection = Connection::open(address).await?;
    let store = read_store(&mut connection, reads).await?.ok_or_else(|| CliError::Failed {
        subject: folder.to_owned(),
        code: "no_index",
        source: "it has no index of this version".into(),
        advice: format!("make one: ringfence index {folder}"),
    })?;
    let model = store.made()?.model;
    let question = args.question.join(" ");
    let vector = embed(&mut connection, &model, &question).await?;
    let most = usize::try_from(args.most).unwrap_or(usize::MAX);
    let mut hits = Vec::new();
    for hit in store.nearest(&vector, most)? {
        hits.push(show(&mut connection, reads, hit).await?);
    }
    Ok(Report { question, model, hits })
}

async fn embed(connection: &mut Connection, model: &str, question: &str) -> Result<Vec<f32>, CliError> {
    let ask = Ask::post("/v1/embeddings", &json!({"model": model, "input": question, "truncate": true}));
    let answer = connection.send(&ask).await?.json()?;
    let numbers = answer["data"][0]["embedding"].as_array().into_iter().flatten();
    Ok(numbers.filter_map(Value::as_f64).map(|number| number as f32).collect())
}

/// Reads the file up to the passage's end: its line is a matter of what stands before it.
async fn show(connection: &mut Connection, reads: &Held, hit: Hit) -> Result<Shown, CliError> {
    let read = reads.read(connection, &hit.path, Some(0..hit.bytes.end)).await;
    let place = match read {
        Ok(answer) => place(&answer.body, &hit),
        // Gone, or shorter than it was.
        Err(CliError::Refused { status: 416 | 422, .. }) => None,
        Err(error) => return Err(error),
    };
    let Hit { score, path, bytes } = hit;
    let (line, text) = place.unzip();
    Ok(Shown { score, path, start: bytes.start, end: bytes.end, line, text })
}

/// The line and the text of a passage, where it still can be one.
fn place(file: &[u8], hit: &Hit) -> Option<(usize, String)> {
    let (start, end) = (usize::try_from(hit.bytes.start).ok()?, usize::try_from(hit.bytes.end).ok()?);
    let text = std::str::from_utf8(file.get(start..end)?).ok()?;
    let line = 1 + file[..start].iter().filter(|byte| **byte == b'\n').count();
    Some((line, text.to_owned()))
}

fn page(report: &Report, style: Style) -> String {
    let shown = |hit: &Shown| {
        let place = hit.line.map_or(String::new(), |line| format!(":{line}"));
        let text =
            hit.text.as_deref().map_or("(the file has changed since it was indexed)".to_owned(), in_short);
        format!("{:.3}  {}\n       {text}", hit.score, style.bold(&format!("{}{place}", visible(&hit.path))))
    };
    if report.hits.is_empty() {
        return "the index has no passages".to_owned();
    }
    report.hits.iter().map(shown).collect::<Vec<_>>().join("\n")
}

/// On one line, and nothing in it that a terminal would take for an order.
fn in_short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(SHOWN_CHARACTERS).collect();
    visible(&if short.len() < line.len() { format!("{short}..") } else { short })
}

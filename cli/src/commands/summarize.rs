//! `ringfence summarize`: what is in text files, each read by the model's worker through a grant.

use super::index::{Asker, absolute};
use crate::clock;
use crate::error::CliError;
use crate::generate::answer::{self, Answer, shown};
use crate::generate::options::Fields;
use crate::generate::{MODEL, unless_interrupted};
use crate::home::Home;
use crate::http::{self, Address, Ask};
use crate::index::grants::{Held, HeldGrants, Wanted};
use crate::output::{Output, Style, progress_of};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Files of one call.
const FILES_MAX: usize = 64;
/// How often a file may be read: a worker that dies costs another reading.
const READINGS_MAX: u64 = 3;
/// What the model is told, in words that models of this family were trained with.
const INSTRUCTION: &str = "Provide a concise, objective summary of the input text in up to three sentences, focusing on key \
                           actions and intentions without using second or third person pronouns.";
/// What it is told of several summaries.
const TOGETHER: &str = "The input text has the summaries of several texts. Provide a concise, objective summary of all of them \
                        together in up to three sentences.";

/// Sum up text files
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence summarize minutes.md
  ringfence summarize notes/may.md notes/june.md --json
  ringfence summarize letter.txt --language German --max-tokens 200 --minutes 5

The operator is asked for the file, or of several for the one folder that has them all, and sees which, for which model and until
when. The model's sandboxed process reads them itself; they pass through nothing else. The grant is given back at the end.
Several files are summed up one by one, then together. A file that is longer than the model takes is refused, with how many
tokens it has; the answer is always the same for the same file.

JSON of --json: {\"model\", \"seconds\", \"files\":[{\"file\", and as of `ringfence run --json`}], \"together\": the same or null}.")]
pub struct SummarizeArgs {
    /// The files; they must belong to the user that the server runs as
    #[arg(required = true, value_name = "FILE", num_args = 1..=FILES_MAX)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    asker: Asker,
    /// The model
    #[arg(long, value_name = "MODEL", default_value = MODEL)]
    model: String,
    /// In which language it is to write, such as German
    #[arg(long, value_name = "NAME")]
    language: Option<String>,
    /// The most tokens of each summary
    #[arg(long, value_name = "N", default_value_t = 160, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// What the operator reads as the reason
    #[arg(long, value_name = "TEXT", default_value = "summarize: to sum up what is in it")]
    reason: String,
    /// How long the grant is asked for
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    files: Vec<Summary>,
    /// Of all files, where there are several.
    together: Option<Answer>,
    seconds: f64,
}

/// One file's.
#[derive(Debug, Serialize)]
struct Summary {
    /// As it was named.
    file: String,
    #[serde(flatten)]
    answer: Answer,
}

/// A file to be summed up.
#[derive(Debug)]
struct File {
    /// As it was named.
    name: String,
    /// Absolute and without links.
    path: PathBuf,
    bytes: u64,
}

/// Runs it.
///
/// # Errors
/// Refusals of the server, a grant that is not given, a file that is not there or too long.
pub fn run(args: SummarizeArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let files = args.files.iter().map(|file| File::find(file)).collect::<Result<Vec<_>, _>>()?;
    let root = root(&files);
    let address = args.asker.address(home);
    let report = http::runtime()?.block_on(async {
        let held = HeldGrants::ask(&address, &[wanted(&args, &root, &files)?], output).await?;
        let work = Work { args: &args, address: &address, root: &root, held: held.get(0) };
        let report = unless_interrupted(work.summarize(&files, output)).await;
        held.give_back().await;
        report
    })?;
    output.answer(&report, |style| page(&report, style))
}

impl File {
    fn find(file: &Path) -> Result<Self, CliError> {
        let name = file.display().to_string();
        let path = PathBuf::from(absolute(file)?);
        let facts = fs::metadata(&path).map_err(|source| CliError::io(&*name, source))?;
        if facts.is_dir() {
            return Err(CliError::Usage {
                what: format!("{name} is a folder"),
                advice: "name its files; `ringfence index` makes a folder searchable".to_owned(),
            });
        }
        Ok(Self { name, path, bytes: facts.len() })
    }
}

/// What is asked for: the only file, or the innermost folder that has all of them.
fn root(files: &[File]) -> PathBuf {
    let [first, rest @ ..] = files else { return PathBuf::new() };
    if rest.iter().all(|file| file.path == first.path) {
        return first.path.clone();
    }
    let mut root = first.path.parent().unwrap_or(Path::new("/"));
    while !rest.iter().all(|file| file.path.starts_with(root)) {
        root = root.parent().unwrap_or(Path::new("/"));
    }
    root.to_owned()
}

fn wanted(args: &SummarizeArgs, root: &Path, files: &[File]) -> Result<Wanted, CliError> {
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    Ok(Wanted {
        kind: "file_read",
        path: text_of(root)?.to_owned(),
        model: Some(args.model.clone()),
        reason: args.reason.clone(),
        results: "the asker's screen".to_owned(),
        lifetime_ms: args.minutes * 60_000,
        bytes_max: bytes.saturating_mul(READINGS_MAX).max(1),
    })
}

fn text_of(path: &Path) -> Result<&str, CliError> {
    path.to_str().ok_or_else(|| CliError::Usage {
        what: format!("{} is no UTF-8", path.display()),
        advice: "rename it".to_owned(),
    })
}

/// A run with its grant.
struct Work<'a> {
    args: &'a SummarizeArgs,
    address: &'a Address,
    root: &'a Path,
    held: &'a Held,
}

impl Work<'_> {
    async fn summarize(&self, files: &[File], output: &Output) -> Result<Report, CliError> {
        let since = clock::now();
        let bar = progress_of(output, files.len() as u64, "summed up");
        let mut summaries = Vec::new();
        for file in files {
            let answer = self.of_file(file).await?;
            summaries.push(Summary { file: file.name.clone(), answer });
            bar.inc(1);
        }
        let together = match &summaries[..] {
            [_] => None,
            several => Some(self.of_summaries(several).await?),
        };
        bar.finish_and_clear();
        let seconds = clock::now().duration_since(since).as_secs_f64();
        Ok(Report { model: self.args.model.clone(), files: summaries, together, seconds })
    }

    async fn of_file(&self, file: &File) -> Result<Answer, CliError> {
        // Empty where the file is what was granted.
        let path = text_of(file.path.strip_prefix(self.root).unwrap_or(&file.path))?;
        let granted = json!([{"type": "file", "file": {"grant": self.held.capability, "path": path}}]);
        self.ask(INSTRUCTION, granted).await.map_err(|error| too_long(file, error))
    }

    async fn of_summaries(&self, summaries: &[Summary]) -> Result<Answer, CliError> {
        let texts: Vec<&str> = summaries.iter().map(|summary| summary.answer.text.trim()).collect();
        self.ask(TOGETHER, texts.join("\n\n").into()).await
    }

    async fn ask(&self, instruction: &str, content: Value) -> Result<Answer, CliError> {
        let ask = self.request(instruction, content);
        answer::ask(self.address, &ask, &mut |_| Ok(())).await
    }

    fn request(&self, instruction: &str, content: Value) -> Ask {
        let language =
            self.args.language.as_ref().map(|name| format!(" Write in {name}.")).unwrap_or_default();
        let messages = json!([{"role": "system", "content": format!("{instruction}{language}")},
                              {"role": "user", "content": content}]);
        let fields: Fields = [("max_tokens", self.args.max_tokens.into()), ("temperature", 0.into())]
            .map(|(name, value): (&str, Value)| (name.to_owned(), value))
            .into_iter()
            .collect();
        answer::chat(&self.args.model, messages, &fields)
    }
}

/// Says which file it is; the server says how many tokens it has and how many there may be, or that the lease has no room.
fn too_long(file: &File, error: CliError) -> CliError {
    match error {
        CliError::Refused { request, status, code, message, retry_after_ms, rung }
            if code == "context_length_exceeded" || code == "out_of_memory" =>
        {
            let message =
                format!("{} ({} bytes) is too long to be summed up whole: {message}", file.name, file.bytes);
            CliError::Refused { request, status, code, message, retry_after_ms, rung }
        }
        error => error,
    }
}

fn page(report: &Report, style: Style) -> String {
    let text = |answer: &Answer| shown(answer.text.trim());
    let one = |summary: &Summary| format!("{}\n{}", style.bold(&summary.file), text(&summary.answer));
    match &report.together {
        None => report.files.iter().map(|summary| text(&summary.answer)).collect(),
        Some(together) => {
            let parts = report.files.iter().map(one).chain([format!(
                "{}\n{}",
                style.bold("together"),
                text(together)
            )]);
            parts.collect::<Vec<_>>().join("\n\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_of(paths: &[&str]) -> String {
        let file = |path: &&str| File { name: (*path).to_owned(), path: PathBuf::from(path), bytes: 1 };
        let files: Vec<File> = paths.iter().map(file).collect();
        root(&files).display().to_string()
    }

    #[test]
    fn one_file_is_asked_for_itself_and_several_in_their_innermost_folder() {
        assert_eq!(root_of(&["/a/b/c.md"]), "/a/b/c.md");
        assert_eq!(root_of(&["/a/b/c.md", "/a/b/c.md"]), "/a/b/c.md");
        assert_eq!(root_of(&["/a/b/c.md", "/a/b/d.md"]), "/a/b");
        assert_eq!(root_of(&["/a/b/c.md", "/a/bc/d.md"]), "/a");
        assert_eq!(root_of(&["/a/b/c/d.md", "/a/b/e.md", "/a/b/c/f/g.md"]), "/a/b");
        assert_eq!(root_of(&["/a/b.md", "/c/d.md"]), "/");
    }

    #[test]
    fn a_file_that_is_too_long_is_named_and_other_refusals_stay() {
        let file = File { name: "a.md".to_owned(), path: PathBuf::from("/a.md"), bytes: 40_000 };
        let refused = |code: &str| CliError::Refused {
            request: "POST /".to_owned(),
            status: 400,
            code: code.to_owned(),
            message: "the prompt has 9000 tokens".to_owned(),
            retry_after_ms: None,
            rung: None,
        };
        let long = too_long(&file, refused("context_length_exceeded")).to_string();
        assert!(long.contains("a.md (40000 bytes)") && long.contains("9000 tokens"), "{long}");
        assert!(!too_long(&file, refused("grant_revoked")).to_string().contains("a.md"));
    }
}

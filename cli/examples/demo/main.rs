//! The whole way on real input: keys, a signed model, a sandboxed worker, and answers from this repository itself, which is
//! read through grants; a note that is spoken into a microphone; a summary of both by a language model, and a grant that is revoked
//! while it reads. Run it from the repository's root, after `cargo build --release`, as `make demo` does; with the word `wgpu`,
//! as `make demo DEVICE=wgpu` does, the model runs on Vulkan.

mod meeting;
mod programs;
mod summary;

use ignore::WalkBuilder;
use meeting::Meeting;
use programs::{Programs, RunningServer};
use ringfence_cli::clock;
use ringfence_cli::commands::status;
use ringfence_cli::error::{CliError, Exit};
use ringfence_cli::home::Home;
use ringfence_cli::http::{Address, ApiKey, Ask, ask_once};
use ringfence_cli::output::{Output, bytes, table};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const QUESTIONS: [&str; 3] = [
    "What happens to a worker that sends an illegal message?",
    "How does the server make sure that the weights it runs are the ones that were signed?",
    "How much memory may a model use?",
];

/// What the demonstration runs: texts, and speech with what cuts it into phrases.
const MODELS: [&str; 3] = ["minilm", "whisper-tiny.en", "silero-vad"];
/// The best passage must be at least this similar, or the demonstration has failed.
const SCORE_MIN: f64 = 0.35;
/// What is indexed: on a CPU the documents and the sources of grants and their file service, on a driver in software, which
/// takes half a second for a passage, what the questions are about.
const GLOBS: [&str; 3] = ["*.md", "src/grants/*.rs", "fileguard/src/*.rs"];
const FEW_GLOBS: [&str; 2] = ["ARCHITECTURE.md", "docs/security.md"];

/// Where the model runs.
#[derive(Clone, Copy, PartialEq)]
enum Device {
    Cpu,
    Wgpu,
}

impl Device {
    fn from_arguments() -> Result<Self, CliError> {
        match std::env::args().nth(1).as_deref() {
            None | Some("" | "cpu") => Ok(Self::Cpu),
            Some("wgpu") => Ok(Self::Wgpu),
            Some(other) => Err(CliError::Usage {
                what: format!("there is no device {other:?}"),
                advice: "make demo DEVICE=cpu, or DEVICE=wgpu".to_owned(),
            }),
        }
    }
}

fn main() -> ExitCode {
    let output = Output::new(false);
    match Device::from_arguments().and_then(|device| demonstrate(device, &output)) {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            output.error(&error);
            Exit::Failed.into()
        }
    }
}

fn demonstrate(device: Device, output: &Output) -> Result<(), CliError> {
    let mut stages = Stages::new();
    let programs = Programs::find()?;
    let folder = folder()?;
    let home = Home::resolve(Some(folder.path().join("home")))?;
    let passphrase = programs::write_passphrase(folder.path())?;
    stages.ended("find the programs");

    programs.init(&home, folder.path(), &passphrase)?;
    stages.ended("make keys and trust file");
    let meeting = Meeting::prepare(folder.path())?;
    let models = if meeting.is_some() { &MODELS[..] } else { &MODELS[..1] };
    programs.add_models(&home, folder.path(), &passphrase, models)?;
    stages.ended("fetch, check and sign the models");

    let sound_server = meeting.as_ref().map(Meeting::socket);
    let server = programs.serve(&home, folder.path(), sound_server.as_deref())?;
    stages.ended("start the server (sandbox probes included)");
    let repository = copy_repository(&folder.path().join("repository"), &home)?;
    use_server((&programs, device), &home, &server, (&repository, &passphrase), &mut stages, output)
        .inspect_err(|_| println!("\nthe end of the server's log:\n{}", server.log_tail()))?;
    if let Some(meeting) = &meeting {
        let note = meeting
            .hold(&programs, &home, &passphrase)
            .inspect_err(|_| println!("\nthe end of the server's log:\n{}", server.log_tail()))?;
        summary::keep_note(&repository, &note)?;
        stages.ended("write down a note while it is spoken");
    }
    programs.add_models(&home, folder.path(), &passphrase, &[summary::MODEL])?;
    stages.ended("add a language model to the running server");
    summarize(&programs, &home, (&repository, &passphrase), &mut stages)
        .inspect_err(|_| println!("\nthe end of the server's log:\n{}", server.log_tail()))?;
    server.stop()?;
    stages.ended("stop the server");
    show_accesses(&programs.audit(&home, folder.path())?);
    stages.ended("check the audit log and export what was accessed");
    println!("\n{}", stages.page(output));
    Ok(())
}

/// Everything of a run, removed at its end. Readable for the user that the server becomes when started as root.
fn folder() -> Result<TempDir, CliError> {
    let target = Path::new("target/demo");
    let made = fs::create_dir_all(target).and_then(|()| {
        let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        let target = fs::canonicalize(target)?;
        tempfile::Builder::new().prefix("run-").permissions(mode).tempdir_in(target)
    });
    made.map_err(|source| CliError::io(target.display().to_string(), source))
}

/// This repository without what git leaves out, as files of the server's user: it gives only what is its own.
fn copy_repository(to: &Path, home: &Home) -> Result<PathBuf, CliError> {
    let copy = || {
        let owner = fs::metadata(home.path().join("run"))?;
        for entry in WalkBuilder::new(".").build() {
            let entry = entry.map_err(std::io::Error::other)?;
            let place = to.join(entry.path().strip_prefix(".").unwrap_or(entry.path()));
            match entry.file_type() {
                Some(kind) if kind.is_dir() => fs::create_dir_all(&place)?,
                Some(kind) if kind.is_file() => fs::copy(entry.path(), &place).map(drop)?,
                Some(_) | None => continue,
            }
            chown(&place, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(to.to_owned())
    };
    copy().map_err(|source: std::io::Error| CliError::io("the repository", source))
}

fn use_server(
    (programs, device): (&Programs, Device),
    home: &Home,
    server: &RunningServer,
    (repository, passphrase): (&Path, &Path),
    stages: &mut Stages,
    output: &Output,
) -> Result<(), CliError> {
    programs.add_client(home)?;
    let key = programs.add_key(home)?;
    list_models(&server.url, key)?;
    stages.ended("add a client and a key");

    if device == Device::Wgpu {
        programs.use_gpu(home)?;
        stages.ended("give the model a GPU (its sandbox proven first)");
    }
    let globs = match device {
        Device::Cpu => &GLOBS[..],
        Device::Wgpu => &FEW_GLOBS,
    };
    programs.index(home, repository, globs, passphrase)?;
    stages.ended("index the repository through grants (first worker start included)");

    for question in QUESTIONS {
        let answer = programs.search(home, repository, question, passphrase)?;
        show_answer(question, &answer, output)?;
    }
    stages.ended("answer three questions");
    show_status(home, output)?;
    stages.ended("ask for the status");
    Ok(())
}

fn summarize(
    programs: &Programs,
    home: &Home,
    paths: (&Path, &Path),
    stages: &mut Stages,
) -> Result<(), CliError> {
    summary::sum_up(programs, home, paths)?;
    stages.ended("sum up texts and note under a lease (first worker start included)");
    summary::revoke(programs, home, paths)?;
    stages.ended("revoke a grant while a summary is written");
    Ok(())
}

/// The key opens the same routes over TCP.
fn list_models(url: &str, key: ApiKey) -> Result<(), CliError> {
    let address = Address::from_url(url, Some(key))?;
    let models = ask_once(&address, &Ask::plain(hyper::Method::GET, "/v1/models"))?;
    let names = models["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str());
    println!("GET {url}/v1/models with that key: {}", names.collect::<Vec<_>>().join(", "));
    Ok(())
}

fn show_answer(question: &str, answer: &str, output: &Output) -> Result<(), CliError> {
    const SHOWN_MAX: usize = 110;
    let answer: Value =
        serde_json::from_str(answer).map_err(|error| programs::failed(question, error.to_string()))?;
    println!("\n{}", output.style().bold(question));
    for hit in answer["hits"].as_array().into_iter().flatten() {
        let words: Vec<&str> = hit["text"].as_str().unwrap_or_default().split_whitespace().collect();
        let text: String = words.join(" ").chars().take(SHOWN_MAX).collect();
        let (score, path) = (hit["score"].as_f64().unwrap_or(0.0), hit["path"].as_str().unwrap_or_default());
        println!("  {score:.3}  {path}:{}\n         {text}", hit["line"]);
    }
    let best = answer["hits"][0]["score"].as_f64().unwrap_or(0.0);
    if best < SCORE_MIN {
        return Err(programs::failed(
            question,
            format!("the best passage has {best:.3}, less than {SCORE_MIN}"),
        ));
    }
    Ok(())
}

/// The export in plain words; that folders were listed, once for each, is left out here.
fn show_accesses(report: &str) {
    let (listed, others): (Vec<&str>, Vec<&str>) =
        report.lines().partition(|line| line.contains(": listed ["));
    println!("\n{}\n({} listings of folders are in it too)", others.join("\n").trim_end(), listed.len());
}

fn show_status(home: &Home, output: &Output) -> Result<(), CliError> {
    let ask = Ask::plain(hyper::Method::GET, "/status");
    let answer = ask_once(&Address::Unix(home.admin_socket()), &ask)?;
    println!("\n$ ringfence status\n{}", status::page(&answer, output.style()));
    let workers = answer["workers"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let worker = workers.first().ok_or_else(|| programs::failed("status", "no worker is left"))?;
    let size = |field: &str| worker[field].as_u64().map_or("-".to_owned(), bytes);
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    println!(
        "\nthe worker's lease is {} (tier {}), of which it used at most {}; it is behind {} layers; {} probes passed",
        size("lease_bytes"),
        worker["tier"].as_str().unwrap_or("-"),
        size("peak_bytes"),
        count(&worker["layers"]),
        count(&answer["sandbox"]["probes"]),
    );
    Ok(())
}

/// What each part of the demonstration took.
struct Stages {
    since: Instant,
    ended: Vec<(&'static str, Duration)>,
}

impl Stages {
    fn new() -> Self {
        Self { since: clock::now(), ended: Vec::new() }
    }

    fn ended(&mut self, name: &'static str) {
        let now = clock::now();
        self.ended.push((name, now.saturating_duration_since(self.since)));
        self.since = now;
    }

    fn page(&self, output: &Output) -> String {
        let total: Duration = self.ended.iter().map(|(_, time)| *time).sum();
        let row =
            |(name, time): &(&str, Duration)| vec![(*name).to_owned(), format!("{:.3}", time.as_secs_f64())];
        let rows: Vec<_> = self.ended.iter().chain([&("together", total)]).map(row).collect();
        table(output.style(), &["STAGE", "SECONDS"], &rows)
    }
}

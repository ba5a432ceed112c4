//! The whole way on real input: keys, a signed model, a sandboxed worker, and answers about this repository's own
//! documents. Run it from the repository's root, after `cargo build --release`, as `make demo` does; with the word `wgpu`,
//! as `make demo DEVICE=wgpu` does, the model runs on Vulkan.

mod answers;
mod documents;
mod programs;

use answers::Embedded;
use indicatif::{ProgressBar, ProgressStyle};
use programs::{Programs, RunningServer};
use ringfence_cli::clock;
use ringfence_cli::commands::status;
use ringfence_cli::error::{CliError, Exit};
use ringfence_cli::home::Home;
use ringfence_cli::http::{self, Address, ApiKey, Ask, ask_once};
use ringfence_cli::output::{Output, bytes, table};
use ringfence_cli::passages::Passage;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const QUESTIONS: [&str; 3] = [
    "What happens to a worker that sends an illegal message?",
    "How does the server make sure that the weights it runs are the ones that were signed?",
    "How much memory may a model use?",
];

/// The best passage must be at least this similar, or the demonstration has failed.
const SCORE_MIN: f32 = 0.4;
/// Passages that are shown for a question.
const SHOWN: usize = 3;

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
    programs.add_model(&home, folder.path(), &passphrase)?;
    stages.ended("fetch, check and sign the model");

    let server = programs.serve(&home, folder.path())?;
    stages.ended("start the server (sandbox probes included)");
    use_server((&programs, device), &home, &server, &mut stages, output)
        .inspect_err(|_| println!("\nthe end of the server's log:\n{}", server.log_tail()))?;
    server.stop()?;
    stages.ended("stop the server");
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

fn use_server(
    (programs, device): (&Programs, Device),
    home: &Home,
    server: &RunningServer,
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
    // A driver in software takes half a second for a passage.
    let passages = match device {
        Device::Cpu => documents::read(Path::new("."))?,
        Device::Wgpu => documents::read_few(Path::new("."))?,
    };
    let socket = Address::Unix(home.client_socket(programs::CLIENT));
    let (embedded, batches, tokens) = embed(&socket, passages, output)?;
    println!("\nembedded {} passages, {tokens} tokens, in {batches} requests", embedded.len());
    stages.ended("embed the documents (first worker start included)");

    answer_questions(&socket, &embedded, output)?;
    stages.ended("answer three questions");
    show_status(home, output)?;
    stages.ended("ask for the status");
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

fn embed(
    socket: &Address,
    passages: Vec<Passage>,
    output: &Output,
) -> Result<(Embedded, usize, u64), CliError> {
    let bar =
        if output.shows_progress() { ProgressBar::new(passages.len() as u64) } else { ProgressBar::hidden() };
    let template = ProgressStyle::with_template("embedding {wide_bar} {pos}/{len}");
    bar.set_style(template.expect("the template is a constant"));
    let embedded = http::runtime()?.block_on(answers::embed(socket, passages, |done| bar.set_position(done)));
    bar.finish_and_clear();
    embedded
}

fn answer_questions(socket: &Address, embedded: &Embedded, output: &Output) -> Result<(), CliError> {
    let questions = QUESTIONS.map(str::to_owned).to_vec();
    let vectors = http::runtime()?.block_on(answers::embed_texts(socket, &questions))?;
    for (question, vector) in QUESTIONS.iter().zip(vectors) {
        println!("\n{}", output.style().bold(question));
        let nearest = embedded.nearest(&vector, SHOWN);
        for (score, passage) in &nearest {
            println!("  {score:.3}  {}:{}", passage.file.display(), passage.line);
            println!("         {}", first_words(passage));
        }
        let best = nearest.first().map_or(0.0, |(score, _)| *score);
        if best < SCORE_MIN {
            return Err(programs::failed(
                question,
                format!("the best passage has {best:.3}, less than {SCORE_MIN}"),
            ));
        }
    }
    Ok(())
}

fn first_words(passage: &Passage) -> String {
    const SHOWN_MAX: usize = 110;
    let text: String = passage.text.chars().take(SHOWN_MAX).collect();
    if text.len() < passage.text.len() { format!("{text}..") } else { text }
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

//! `ringfence bench`: measures a running server.

use super::client_name;
use crate::bench::chat;
use crate::bench::load::{self, Pace, Plan, Progress, Until};
use crate::bench::report::{Machine, Report, RunReport, SCHEMA};
use crate::bench::words;
use crate::error::CliError;
use crate::generate::MODEL;
use crate::home::Home;
use crate::http::{self, Address, ApiKey, Ask, Connection};
use crate::output::{Output, progress_of};
use clap::{Args, Subcommand};
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Connections of a closed loop where none are given.
const CLOSED_CONNECTIONS: [usize; 2] = [1, 16];
/// Connections of an open loop where none are given.
const OPEN_CONNECTIONS: usize = 32;
/// How often the progress bar moves.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

const PATH: &str = "/v1/embeddings";

/// Measure a running server
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  ringfence bench embed\n  ringfence bench embed --json > before.json\n  ringfence bench chat --clients 8"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Load of embedding requests: latency, throughput, and what the server spent beside the model
    #[command(after_help = examples())]
    Embed(EmbedArgs),
    /// Load of chats: time to the first token, and tokens a second of each stream and in all
    #[command(after_help = chat_examples())]
    Chat(ChatArgs),
}

fn examples() -> String {
    format!(
        "\
Examples:
  ringfence bench embed
  ringfence bench embed --connections 1,4,16 --duration 30s --tokens 64 --batch 8
  ringfence bench embed --rate 50 --duration 30s
  ringfence bench embed --url http://127.0.0.1:8080 --key-file notes.key --requests 1000 --json

Exit code 1 and no report where no request was answered; errors beside answers are in it.

{SCHEMA}"
    )
}

fn chat_examples() -> String {
    format!(
        "\
Examples:
  ringfence bench chat
  ringfence bench chat --clients 8 --requests 64 --prompt-tokens 512 --max-tokens 64
  ringfence bench chat --model smollm2-135m --json

Prompts differ from each other and are the same in every run, as are seeds; answers go on to their last token.
Exit code 1 and no report where no request was answered; errors beside answers are in it.

{}",
        chat::SCHEMA
    )
}

/// Whom to ask, and as whom.
#[derive(Args, Debug)]
struct Target {
    /// Ask on this client's socket [default: the socket for all, HOME/run/api.sock]
    #[arg(long, value_name = "NAME", value_parser = client_name)]
    client: Option<String>,
    /// Ask over TCP
    #[arg(long, conflicts_with = "client", requires = "key_file")]
    url: Option<String>,
    /// The file with the API key
    #[arg(long, value_name = "FILE", requires = "url")]
    key_file: Option<PathBuf>,
}

impl Target {
    fn address(&self, home: &Home) -> Result<Address, CliError> {
        match (&self.url, &self.key_file, &self.client) {
            (Some(url), Some(file), _) => {
                let key = fs::read_to_string(file);
                let key = key.map_err(|source| CliError::io(file.display().to_string(), source))?;
                Address::from_url(url, Some(ApiKey::new(&key)))
            }
            (Some(_), None, _) | (None, _, None) => Ok(Address::Unix(home.api_socket())),
            (None, _, Some(client)) => Ok(Address::Unix(home.client_socket(client))),
        }
    }
}

/// Options of `ringfence bench chat`.
#[derive(Args, Debug)]
struct ChatArgs {
    /// The model to ask
    #[arg(long, default_value = MODEL)]
    model: String,
    #[command(flatten)]
    target: Target,
    /// Streams at a time, each on a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = connections)]
    clients: usize,
    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    requests: u64,
    /// Tokens of each prompt, less those of the model's template
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    prompt_tokens: u32,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_tokens: u32,
    /// Requests beforehand that are not counted
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u64,
}

/// Options of `ringfence bench embed`.
#[derive(Args, Debug)]
struct EmbedArgs {
    /// The model to ask
    #[arg(long, default_value = "minilm")]
    model: String,
    #[command(flatten)]
    target: Target,
    /// Connections, each with one request at a time; a run for each number [default: 1,16, or 32 with --rate]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = connections)]
    connections: Vec<usize>,
    /// Open loop: requests a second, sent whether or not the earlier ones are answered [default: closed loop]
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Time of each run, for example 30s or 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = super::time)]
    duration: Duration,
    /// Stop each run after this many requests instead
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Tokens of each text, the two special ones included
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(3..=100_000))]
    tokens: u32,
    /// Texts in a request
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=2_048))]
    batch: u32,
    /// Requests before each run that are not counted
    #[arg(long, value_name = "N", default_value_t = 10)]
    warm_up: u64,
}

/// Runs it.
///
/// # Errors
/// Those of [`Connection`], and [`CliError::Failed`] where nothing was answered.
pub fn run(args: BenchArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    match args.command {
        BenchCommand::Embed(args) => run_embed(&args, home, output),
        BenchCommand::Chat(args) => run_chat(&args, home, output),
    }
}

fn run_embed(args: &EmbedArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let report = http::runtime()?.block_on(embed(args, args.target.address(home)?, output))?;
    if report.answered() == 0 {
        return Err(nothing_answered(&report.model, &report.errors()));
    }
    output.answer(&report, |style| report.page(style))
}

fn run_chat(args: &ChatArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let ChatArgs { model, clients, requests, prompt_tokens, max_tokens, .. } = args;
    let plan = chat::Plan {
        address: args.target.address(home)?,
        model: model.clone(),
        clients: *clients,
        requests: *requests,
        prompt_tokens: *prompt_tokens,
        max_tokens: *max_tokens,
    };
    let bar = progress_of(output, *requests, "requests");
    let ended = {
        let bar = bar.clone();
        move || bar.inc(1)
    };
    let report = http::runtime()?.block_on(async {
        let warm_up = chat::Plan { clients: 1, requests: args.warm_up, ..plan.clone() };
        chat::run(warm_up, || {}).await?;
        chat::run(plan, ended).await
    })?;
    bar.finish_and_clear();
    if report.answered() == 0 {
        return Err(nothing_answered(model, &report.errors()));
    }
    output.answer(&report, |style| report.page(style))
}

fn nothing_answered(model: &str, errors: &str) -> CliError {
    CliError::Failed {
        subject: model.to_owned(),
        code: "nothing_answered",
        source: format!("no request was answered: {errors}").into(),
        advice: "look at: ringfence status".to_owned(),
    }
}

async fn embed(args: &EmbedArgs, address: Address, output: &Output) -> Result<Report, CliError> {
    let plan = Plan {
        address,
        path: PATH,
        bodies: words::bodies(&args.model, args.batch, args.tokens),
        pace: args.rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second }),
        connections: 1,
        until: args.requests.map_or(Until::Elapsed(args.duration), Until::Requests),
    };
    let tokens = try_out(&plan, args.batch).await?;
    let mut report = Report {
        bench: "embed",
        model: args.model.clone(),
        target: plan.address.to_string(),
        batch: args.batch,
        tokens: args.tokens,
        tokens_per_input: tokens / f64::from(args.batch),
        runs: Vec::new(),
    };
    for connections in wanted_connections(args) {
        let plan = Plan { connections, ..plan.clone() };
        warm_up(&plan, args.warm_up).await?;
        let machine = Machine::now();
        let pace = (plan.pace, connections);
        let outcome = measure(plan, output).await?;
        report.runs.push(RunReport::new(machine, pace, (args.batch, tokens), &outcome));
    }
    Ok(report)
}

fn wanted_connections(args: &EmbedArgs) -> Vec<usize> {
    match (args.connections.is_empty(), args.rate) {
        (false, _) => args.connections.clone(),
        (true, Some(_)) => vec![OPEN_CONNECTIONS],
        (true, None) => CLOSED_CONNECTIONS.to_vec(),
    }
}

/// One request whose answer is read and checked, so that a run does not measure nonsense; gives its tokens.
async fn try_out(plan: &Plan, batch: u32) -> Result<f64, CliError> {
    let ask = Ask { body: plan.bodies[0].clone(), ..Ask::plain(Method::POST, plan.path) };
    let answer = Connection::open(&plan.address).await?.send(&ask).await?;
    let body = answer.json()?;
    let items = body["data"].as_array().map_or(0, Vec::len);
    match body["usage"]["prompt_tokens"].as_f64() {
        Some(tokens) if items == batch as usize => Ok(tokens),
        Some(_) | None => Err(CliError::Answer {
            request: answer.request,
            source: format!("{items} embeddings for {batch} texts, or no token count").into(),
        }),
    }
}

/// Requests that are not counted; what they are refused for, the run is refused for as well.
async fn warm_up(plan: &Plan, requests: u64) -> Result<(), CliError> {
    let plan = Plan { pace: Pace::Closed, until: Until::Requests(requests), ..plan.clone() };
    load::run(plan, Arc::default()).await.map(drop)
}

async fn measure(plan: Plan, output: &Output) -> Result<load::Outcome, CliError> {
    let progress = Arc::new(Progress::default());
    if !output.shows_progress() {
        return load::run(plan, progress).await;
    }
    let bar = progress_bar(&plan);
    let moving = tokio::spawn(move_bar(bar.clone(), plan.until, Arc::clone(&progress)));
    let outcome = load::run(plan, progress).await;
    moving.abort();
    bar.finish_and_clear();
    outcome
}

fn progress_bar(plan: &Plan) -> ProgressBar {
    let length = match plan.until {
        Until::Elapsed(time) => u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        Until::Requests(count) => count,
    };
    let template = ProgressStyle::with_template("{prefix} {wide_bar} {msg}");
    let bar = ProgressBar::new(length).with_style(template.expect("the template is a constant"));
    bar.with_prefix(format!("connections: {}", plan.connections))
}

async fn move_bar(bar: ProgressBar, until: Until, progress: Arc<Progress>) {
    let mut every = tokio::time::interval(PROGRESS_EVERY);
    loop {
        every.tick().await;
        let position = match until {
            Until::Elapsed(_) => u64::try_from(bar.elapsed().as_millis()).unwrap_or(u64::MAX),
            Until::Requests(_) => progress.ended(),
        };
        bar.set_position(position);
        bar.set_message(format!("{} requests", progress.ended()));
    }
}

/// Each connection is a descriptor here and in the server.
fn connections(text: &str) -> Result<usize, &'static str> {
    const MAX: usize = 512;
    match text.parse() {
        Ok(count @ 1..=MAX) => Ok(count),
        Ok(_) | Err(_) => Err("give 1 to 512"),
    }
}

fn rate(text: &str) -> Result<f64, &'static str> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=100_000.0).contains(&rate) => Ok(rate),
        Ok(_) | Err(_) => Err("give 0.1 to 100000 requests a second"),
    }
}

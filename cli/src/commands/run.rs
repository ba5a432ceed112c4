//! `ringfence run`: one answer of a model.

use super::index::Asker;
use crate::error::CliError;
use crate::generate::answer::{self, Answer};
use crate::generate::options::Sampling;
use crate::generate::unless_interrupted;
use crate::home::Home;
use crate::http::{self, Ask};
use crate::output::Output;
use clap::Args;
use serde_json::{Value, json};
use std::io::{self, Read};

/// The longest prompt that is read from standard input; the server takes a little less.
const PROMPT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Ask a model once
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence run smollm2-135m What is a roof for?
  ringfence run smollm2-135m --system 'Answer in one word.' --temperature 0 What is the capital of France?
  ringfence run smollm2-135m --raw --max-tokens 20 --seed 7 'The roof was'
  ringfence run smollm2-135m --schema person.json --json - < letter.txt

The answer is written as it comes. Ctrl-c ends it and takes the job back. With --raw the model goes on from the prompt as it is,
without the frame of a chat, and by at most 16 tokens if --max-tokens does not say otherwise.

JSON of --json: {\"model\", \"text\", \"finish_reason\", \"usage\":{\"prompt_tokens\",\"completion_tokens\",\"total_tokens\"},
\"first_token_ms\", \"tokens_per_s\"}.")]
pub struct RunArgs {
    /// The model
    model: String,
    /// What it is asked; `-` or nothing: standard input
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,
    #[command(flatten)]
    asker: Asker,
    /// What it is told beforehand
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Go on from the prompt instead of answering it
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    sampling: Sampling,
}

/// Runs it.
///
/// # Errors
/// Refusals of the server, a prompt or schema that can't be read, `interrupted`.
pub fn run(args: RunArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let ask = request(&args)?;
    let address = args.asker.address(home);
    let mut begun = false;
    let mut show = |text: &str| {
        if output.is_json() {
            return Ok(());
        }
        begun = true;
        output.piece(text)
    };
    let answered = http::runtime()?.block_on(unless_interrupted(answer::ask(&address, &ask, &mut show)));
    if begun {
        output.piece("\n")?;
    }
    let answer: Answer = answered?;
    if output.is_json() {
        return output.answer(&answer, |_| String::new());
    }
    if answer.finish_reason == "length" {
        output.note(&format!("(cut off after {} tokens: --max-tokens)", answer.usage.completion_tokens));
    }
    Ok(())
}

fn request(args: &RunArgs) -> Result<Ask, CliError> {
    let fields = args.sampling.fields()?;
    let prompt = prompt(&args.prompt)?;
    if args.raw {
        return Ok(answer::raw(&args.model, &prompt, &fields));
    }
    let system = args.system.iter().map(|text| json!({"role": "system", "content": text}));
    let messages: Value = system.chain([json!({"role": "user", "content": prompt})]).collect();
    Ok(answer::chat(&args.model, messages, &fields))
}

/// The words of the command line, or what standard input has.
fn prompt(words: &[String]) -> Result<String, CliError> {
    let prompt = match words {
        [] => from_stdin()?,
        [dash] if dash == "-" => from_stdin()?,
        words => words.join(" "),
    };
    if prompt.trim().is_empty() {
        return Err(CliError::Usage {
            what: "the prompt is empty".to_owned(),
            advice: "give it behind the model's name, or on standard input".to_owned(),
        });
    }
    Ok(prompt)
}

/// Without the last line's end, which is the editor's and not the writer's.
fn from_stdin() -> Result<String, CliError> {
    let mut text = String::new();
    let read = io::stdin().lock().take(PROMPT_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| CliError::io("standard input", error))?;
    if text.len() as u64 > PROMPT_BYTES_MAX {
        return Err(CliError::Usage {
            what: format!("the prompt has more than {PROMPT_BYTES_MAX} bytes"),
            advice: "ringfence summarize takes files".to_owned(),
        });
    }
    Ok(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
}

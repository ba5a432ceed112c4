//! `ringfence chat`: turns with a model, kept in this process and nowhere else.

use super::index::Asker;
use crate::error::CliError;
use crate::generate::answer::{self, Answer};
use crate::generate::history::History;
use crate::generate::options::{Fields, Sampling};
use crate::generate::unless_interrupted;
use crate::home::Home;
use crate::http::{self, Address};
use crate::output::Output;
use clap::Args;
use std::io::{self, BufRead, IsTerminal, Read};
use std::thread;
use tokio::sync::mpsc;

/// The longest line.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// Talk with a model
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence chat smollm2-135m
  ringfence chat smollm2-135m --system 'You are a carpenter.' --temperature 0.3

Each line is a turn; so it is in a pipe, where the first error ends it. Nothing of it is written to a disk. What is longer than
the model takes loses its oldest turns. Ctrl-c ends an answer, and at the prompt the chat.

  /clear        forget what was said
  /system TEXT  what the model is told beforehand, from now on; without TEXT nothing
  /exit         end

With --json each turn is a line as of `ringfence run --json`.")]
pub struct ChatArgs {
    /// The model
    model: String,
    #[command(flatten)]
    asker: Asker,
    /// What it is told beforehand
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
}

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    System(&'a str),
    Clear,
    Exit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => Self::Nothing,
            "/exit" => Self::Exit,
            "/clear" => Self::Clear,
            "/system" => Self::System(rest.trim()),
            _ if word.starts_with('/') => Self::Unknown(word),
            _ => Self::Say(line),
        }
    }
}

/// Runs it.
///
/// # Errors
/// In a pipe the first that comes; on a terminal only a server that is gone.
pub fn run(args: ChatArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let mut chat = Chat {
        address: args.asker.address(home),
        fields: args.sampling.fields()?,
        model: args.model,
        history: History::new(args.system),
        has_forgotten: false,
        is_live: io::stdin().is_terminal(),
        output,
    };
    http::runtime()?.block_on(chat.hold(lines()))
}

/// Lines as they are typed. The thread that waits for the next is left behind at the end: nothing can wake it.
fn lines() -> mpsc::Receiver<Result<String, CliError>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let line = read_line(&mut input);
            if matches!(line, Ok(None)) {
                return;
            }
            let is_last = line.is_err();
            let line = line.map(Option::unwrap_or_default);
            if sender.blocking_send(line).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// `None` at the end.
fn read_line(input: &mut impl BufRead) -> Result<Option<String>, CliError> {
    let mut line = String::new();
    let read = input.take(LINE_BYTES_MAX + 1).read_line(&mut line);
    let count = read.map_err(|error| CliError::io("standard input", error))?;
    if count as u64 > LINE_BYTES_MAX {
        return Err(CliError::Usage {
            what: format!("a line has more than {LINE_BYTES_MAX} bytes"),
            advice: "ringfence summarize takes files".to_owned(),
        });
    }
    Ok((count > 0).then_some(line))
}

/// A chat that goes on.
struct Chat<'a> {
    address: Address,
    model: String,
    fields: Fields,
    history: History,
    /// Whether it was said that turns are forgotten.
    has_forgotten: bool,
    /// Whether somebody types.
    is_live: bool,
    output: &'a Output,
}

impl Chat<'_> {
    async fn hold(&mut self, mut lines: mpsc::Receiver<Result<String, CliError>>) -> Result<(), CliError> {
        loop {
            if self.is_live && !self.output.is_json() {
                self.output.piece("> ")?;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(line) = line else { return Ok(()) };
            match Line::read(&line?) {
                Line::Nothing => {}
                Line::Exit => return Ok(()),
                Line::Clear => self.history.clear(),
                Line::System(text) => self.history.set_system(text),
                Line::Unknown(word) => {
                    self.output.note(&format!("there is no {word}: /clear, /system TEXT, /exit"));
                }
                Line::Say(text) => self.turn(text).await?,
            }
        }
    }

    /// One turn; an error ends the chat only where nobody is there who could try again.
    async fn turn(&mut self, text: &str) -> Result<(), CliError> {
        let forgotten = self.history.say(text.to_owned());
        self.say_forgotten(forgotten);
        let mut written = String::new();
        let answered = self.answered(&mut written).await;
        if !written.is_empty() && !self.output.is_json() {
            self.output.piece("\n")?;
        }
        match answered {
            Ok(answer) => {
                self.history.answer(&answer.text);
                if self.output.is_json() {
                    let line = serde_json::to_string(&answer).expect("an answer has string keys only");
                    self.output.line(&line)?;
                }
                Ok(())
            }
            Err(error) if !self.is_live || matches!(error, CliError::Unreachable { .. }) => Err(error),
            Err(error) => {
                // What was read of it was said.
                if written.is_empty() {
                    self.history.take_back()
                } else {
                    self.history.answer(&written)
                }
                self.output.error(&error);
                Ok(())
            }
        }
    }

    /// Asks, with fewer of the oldest turns until the model takes them.
    async fn answered(&mut self, written: &mut String) -> Result<Answer, CliError> {
        loop {
            let ask = answer::chat(&self.model, self.history.messages(), &self.fields);
            let mut show = |text: &str| {
                written.push_str(text);
                if self.output.is_json() { Ok(()) } else { self.output.piece(text) }
            };
            let answered = unless_interrupted(answer::ask(&self.address, &ask, &mut show)).await;
            match answered {
                Err(error) if is_too_long(&error) && self.history.forget_oldest() => self.say_forgotten(1),
                answered => return answered,
            }
        }
    }

    fn say_forgotten(&mut self, turns: usize) {
        if turns > 0 && !std::mem::replace(&mut self.has_forgotten, true) {
            self.output.note(
                "(the chat is longer than the model takes: its oldest turns are forgotten from now on)",
            );
        }
    }
}

/// Whether fewer turns could help: they are more than the model takes, its lease has room for, or a request may have.
fn is_too_long(error: &CliError) -> bool {
    const CODES: [&str; 4] =
        ["context_length_exceeded", "out_of_memory", "body_too_large", "messages_too_many"];
    CODES.contains(&error.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_or_an_order() {
        let check = |line, expected| assert_eq!(Line::read(line), expected, "{line:?}");
        check(" \n", Line::Nothing);
        check("What is a/b?\n", Line::Say("What is a/b?"));
        check("/system  Be brief. \n", Line::System("Be brief."));
        check("/system\n", Line::System(""));
        check("/clear", Line::Clear);
        check("/exit now", Line::Exit);
        check("/quit", Line::Unknown("/quit"));
    }

    #[test]
    fn lines_have_an_end() {
        let mut long = io::Cursor::new(vec![b'a'; LINE_BYTES_MAX as usize + 1]);
        assert_eq!(read_line(&mut long).unwrap_err().code(), "usage");
        let mut two = io::Cursor::new("a\nb");
        let mut read = || read_line(&mut two).unwrap();
        assert_eq!((read(), read(), read()), (Some("a\n".to_owned()), Some("b".to_owned()), None));
    }
}

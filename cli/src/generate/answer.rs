//! A request for text, and its answer as it is written.

use super::options::Fields;
use crate::clock;
use crate::error::CliError;
use crate::http::{self, Address, Ask, Connection};
use crate::listen::events::Events;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long an answer may take to be written.
const LASTS_MAX: Duration = Duration::from_secs(3_600);
/// The longest text that is kept.
const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Answer {
    /// The model that wrote it.
    pub model: String,
    /// What it wrote.
    pub text: String,
    /// `stop`, or `length` where it was cut off.
    pub finish_reason: String,
    /// What was used.
    pub usage: Usage,
    /// Milliseconds from the request to the first of the text; none where there is no text.
    pub first_token_ms: Option<f64>,
    /// Tokens a second, from the first to the last; none where there are fewer than two.
    pub tokens_per_s: Option<f64>,
}

/// Tokens of a request, as the server counts them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Usage {
    /// Of all that the model was given.
    pub prompt_tokens: u64,
    /// Of its answer.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}

/// A request to a chat's model; `messages` as OpenAI has them.
pub fn chat(model: &str, messages: Value, fields: &Fields) -> Ask {
    post("/v1/chat/completions", model, ("messages", messages), fields)
}

/// A request to go on from a text, without a chat's template.
pub fn raw(model: &str, prompt: &str, fields: &Fields) -> Ask {
    post("/v1/completions", model, ("prompt", prompt.into()), fields)
}

fn post(path: &str, model: &str, (name, input): (&str, Value), fields: &Fields) -> Ask {
    let mut body = json!({"model": model, "stream": true, "stream_options": {"include_usage": true}});
    body[name] = input;
    for (name, value) in fields {
        body[name] = value.clone();
    }
    Ask::post(path, &body)
}

/// Sends it, and gives each piece of the answer to `show` as it comes.
///
/// # Errors
/// Those of [`Connection::stream`] and of `show`; [`CliError::Answer`] where the answer has no end.
pub async fn ask(
    address: &Address,
    ask: &Ask,
    show: &mut impl FnMut(&str) -> Result<(), CliError>,
) -> Result<Answer, CliError> {
    // A connection of its own: one whose answer was not read to its end can't be used again.
    let mut connection = Connection::open(address).await?;
    let mut pieces = Pieces::new(ask.name(), clock::now());
    connection.stream(ask, LASTS_MAX, &mut |bytes: &[u8]| pieces.take(bytes, clock::now(), show)).await?;
    pieces.end()
}

/// An answer that is being written.
struct Pieces {
    request: String,
    since: Instant,
    events: Events,
    answer: Answer,
    /// When the first and the last of the text came.
    told: Option<(Instant, Instant)>,
}

impl Pieces {
    fn new(request: String, since: Instant) -> Self {
        Self { request, since, events: Events::default(), answer: Answer::default(), told: None }
    }

    fn take(
        &mut self,
        bytes: &[u8],
        now: Instant,
        show: &mut impl FnMut(&str) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        for event in self.events.take(bytes) {
            if event["error"].is_object() {
                return Err(http::refusal_in_event(&self.request, &event));
            }
            let choice = &event["choices"][0];
            let text = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str());
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                self.told = Some((self.told.map_or(now, |(first, _)| first), now));
                show(text)?;
                self.add(text)?;
            }
            for (field, value) in [
                (&mut self.answer.model, &event["model"]),
                (&mut self.answer.finish_reason, &choice["finish_reason"]),
            ] {
                if let Some(value) = value.as_str() {
                    value.clone_into(field);
                }
            }
            if event["usage"].is_object() {
                let usage = Usage::deserialize(&event["usage"]);
                self.answer.usage = usage.map_err(|error| self.unreadable(error))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, text: &str) -> Result<(), CliError> {
        if self.answer.text.len() + text.len() > TEXT_BYTES_MAX {
            return Err(self.unreadable("it is too long"));
        }
        self.answer.text.push_str(text);
        Ok(())
    }

    fn unreadable(&self, source: impl Into<crate::error::Source>) -> CliError {
        CliError::Answer { request: self.request.clone(), source: source.into() }
    }

    fn end(mut self) -> Result<Answer, CliError> {
        if self.answer.finish_reason.is_empty() {
            return Err(self.unreadable("it broke off before its end"));
        }
        let Some((first, last)) = self.told else { return Ok(self.answer) };
        self.answer.first_token_ms = Some(first.duration_since(self.since).as_secs_f64() * 1e3);
        let seconds = last.duration_since(first).as_secs_f64();
        let tokens = self.answer.usage.completion_tokens;
        self.answer.tokens_per_s = (tokens > 1 && seconds > 0.0).then(|| (tokens - 1) as f64 / seconds);
        Ok(self.answer)
    }
}

/// A model's words as a terminal may have them: lines and tabs stay, whatever else it would take for an order, or would write
/// from right to left, is written out.
pub fn shown(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && c != '\t' && (c.is_control() || turns(c)) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n\
        data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"Hel\"},\"finish_reason\":null}]}\n\n\
        data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"lo\"},\"finish_reason\":null}]}\n\n\
        data: {\"model\":\"m\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3,\"total_tokens\":8}}\n\n\
        data: [DONE]\n\n";

    fn read(text: &str) -> (String, Result<Answer, CliError>) {
        let since = clock::now();
        let (mut pieces, mut heard) = (Pieces::new("POST /".to_owned(), since), String::new());
        for (number, line) in text.split_inclusive("\n\n").enumerate() {
            let now = since + Duration::from_millis(100 * number as u64);
            let taken = pieces.take(line.as_bytes(), now, &mut |text: &str| {
                heard.push_str(text);
                Ok(())
            });
            if let Err(error) = taken {
                return (heard, Err(error));
            }
        }
        (heard, pieces.end())
    }

    #[test]
    fn an_answer_is_its_pieces_with_what_was_used_and_how_fast() {
        let (heard, answer) = read(WHOLE);
        let answer = answer.unwrap();
        assert_eq!((heard.as_str(), answer.text.as_str()), ("Hello", "Hello"));
        assert_eq!((answer.model.as_str(), answer.finish_reason.as_str()), ("m", "stop"));
        let usage = Usage { prompt_tokens: 5, completion_tokens: 3, total_tokens: 8 };
        assert_eq!((answer.usage, answer.first_token_ms), (usage, Some(100.0)));
        assert!((answer.tokens_per_s.unwrap() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn an_answer_without_an_end_or_with_an_error_is_none() {
        let (cut, _) =
            WHOLE.split_at(WHOLE.find("data: {\"model\":\"m\",\"choices\":[{\"delta\":{},").unwrap());
        assert_eq!(read(cut).1.unwrap_err().code(), "answer_unreadable");
        let error = "data: {\"error\":{\"code\":\"grant_revoked\",\"message\":\"gone\"},\"status\":403}\n\n";
        let (heard, failed) = read(&format!("{cut}{error}"));
        assert_eq!((heard.as_str(), failed.unwrap_err().code()), ("Hello", "grant_revoked"));
    }

    #[test]
    fn a_terminal_gets_words_and_no_orders() {
        assert_eq!(shown("a\n\tb \\ ❤\u{fe0f}"), "a\n\tb \\ ❤\u{fe0f}");
        assert_eq!(shown("a\u{1b}[2J\r\u{202e}"), "a\\u{1b}[2J\\u{d}\\u{202e}");
    }
}

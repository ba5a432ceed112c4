//! Load of chats: streams at a time, each of which asks again when its answer has ended.

use super::report::Machine;
use super::tally::{Micros, Tally, as_micros, micros};
use super::words;
use crate::clock;
use crate::error::CliError;
use crate::generate::answer::{self, Answer};
use crate::generate::options::Fields;
use crate::http::{Address, Ask};
use crate::output::{Style, table};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The JSON that `--json` prints, as shown by `--help`.
pub const SCHEMA: &str = "\
JSON of --json, times in milliseconds:
  {\"bench\":\"chat\", \"model\", \"target\", \"clients\", \"prompt_tokens\" (wanted), \"max_tokens\",
   \"prompt_tokens_per_request\" (the server's count), \"machine\" and \"machine_after\":{\"cores\",\"load_1m\",\"load_5m\"},
   \"answered\", \"errors\":{CODE:COUNT}, \"elapsed_s\",
   \"first_token_ms\" and \"answer_ms\":{\"p50\",\"p95\",\"max\"}|null,
   \"stream_tokens_per_s\":{\"p50\", \"p5\" (all but one in twenty are faster), \"min\"}|null,
   \"tokens_per_s\" (of all answers together, from the first request to the last answer)}";

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub address: Address,
    /// The model.
    pub model: String,
    /// Streams at a time, each on a connection of its own.
    pub clients: usize,
    /// Requests in all.
    pub requests: u64,
    /// Tokens of each prompt, less those of the model's template.
    pub prompt_tokens: u32,
    /// Tokens of each answer.
    pub max_tokens: u32,
}

/// What a run, or one stream of it, counted.
#[derive(Debug)]
struct Counted {
    /// Whole answers, and errors.
    tally: Tally,
    first: Micros,
    per_token: Micros,
    prompt_tokens: u64,
    tokens: u64,
}

impl Default for Counted {
    fn default() -> Self {
        Self { tally: Tally::default(), first: micros(), per_token: micros(), prompt_tokens: 0, tokens: 0 }
    }
}

impl Counted {
    fn answer(&mut self, latency: Duration, answer: &Answer) {
        self.tally.answer(latency, None);
        self.prompt_tokens += answer.usage.prompt_tokens;
        self.tokens += answer.usage.completion_tokens;
        if let Some(ms) = answer.first_token_ms {
            self.first.saturating_record((ms * 1e3) as u64);
        }
        if let Some(rate) = answer.tokens_per_s {
            self.per_token.saturating_record((1e6 / rate) as u64);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.tally.merge(&other.tally);
        for (own, other) in [(&mut self.first, &other.first), (&mut self.per_token, &other.per_token)] {
            own.add(other).expect("all histograms have the same bounds");
        }
        self.prompt_tokens += other.prompt_tokens;
        self.tokens += other.tokens;
    }
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: &'static str,
    model: String,
    target: String,
    clients: usize,
    prompt_tokens: u32,
    prompt_tokens_per_request: f64,
    max_tokens: u32,
    machine: Machine,
    machine_after: Machine,
    answered: u64,
    errors: BTreeMap<String, u64>,
    elapsed_s: f64,
    first_token_ms: Option<Times>,
    answer_ms: Option<Times>,
    stream_tokens_per_s: Option<Rates>,
    tokens_per_s: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Times {
    p50: f64,
    p95: f64,
    max: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Rates {
    p50: f64,
    p5: f64,
    min: f64,
}

impl Times {
    fn of(histogram: &Micros) -> Option<Self> {
        let millis = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        (!histogram.is_empty()).then(|| Self { p50: millis(0.5), p95: millis(0.95), max: millis(1.0) })
    }
}

impl Rates {
    /// From times of a token: the slowest rate is the longest time.
    fn of(histogram: &Micros) -> Option<Self> {
        let rate = |quantile| 1e6 / histogram.value_at_quantile(quantile).max(1) as f64;
        (!histogram.is_empty()).then(|| Self { p50: rate(0.5), p5: rate(0.95), min: rate(1.0) })
    }
}

/// Runs the plan; `ended` is told of each request.
///
/// # Errors
/// [`CliError::Unreachable`] where the server is or goes away. All other errors are counted.
pub async fn run(plan: Plan, ended: impl Fn() + Clone + Send + 'static) -> Result<Report, CliError> {
    let (machine, since, plan) = (Machine::now(), clock::now(), Arc::new(plan));
    let (taken, mut streams) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    for _ in 0..plan.clients {
        streams.spawn(stream(Arc::clone(&plan), Arc::clone(&taken), ended.clone()));
    }
    let mut counted = Counted::default();
    while let Some(stream) = streams.join_next().await {
        counted.merge(&stream.expect("a stream does not panic")?);
    }
    Ok(report(&plan, (machine, since), &counted))
}

async fn stream(plan: Arc<Plan>, taken: Arc<AtomicU64>, ended: impl Fn()) -> Result<Counted, CliError> {
    let mut counted = Counted::default();
    loop {
        let number = taken.fetch_add(1, Ordering::Relaxed);
        if number >= plan.requests {
            return Ok(counted);
        }
        let since = clock::now();
        match answer::ask(&plan.address, &plan.ask(number), &mut |_| Ok(())).await {
            Ok(answer) => counted.answer(clock::now().duration_since(since), &answer),
            Err(gone @ CliError::Unreachable { .. }) => return Err(gone),
            Err(error) => counted.tally.error(&error),
        }
        ended();
    }
}

impl Plan {
    /// Every request of a run differs, so that nothing but the template's beginning is known from another; every run is the
    /// same. Answers have all tokens that they may have, whatever the model would say.
    fn ask(&self, number: u64) -> Ask {
        let text = words::plain(self.prompt_tokens, number as u32);
        let fields: Fields =
            [("max_tokens", json!(self.max_tokens)), ("seed", json!(number)), ("ignore_eos", json!(true))]
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect();
        let messages: Value = json!([{"role": "user", "content": text}]);
        answer::chat(&self.model, messages, &fields)
    }
}

fn report(plan: &Plan, (machine, since): (Machine, Instant), counted: &Counted) -> Report {
    let answered = counted.tally.answered();
    let elapsed = clock::now().duration_since(since);
    Report {
        bench: "chat",
        model: plan.model.clone(),
        target: plan.address.to_string(),
        clients: plan.clients,
        prompt_tokens: plan.prompt_tokens,
        prompt_tokens_per_request: counted.prompt_tokens as f64 / answered.max(1) as f64,
        max_tokens: plan.max_tokens,
        machine,
        machine_after: Machine::now(),
        answered,
        errors: counted.tally.errors.clone(),
        elapsed_s: elapsed.as_secs_f64(),
        first_token_ms: Times::of(&counted.first),
        answer_ms: Times::of(&counted.tally.latency),
        stream_tokens_per_s: Rates::of(&counted.per_token),
        tokens_per_s: counted.tokens as f64 * 1e6 / as_micros(elapsed).max(1) as f64,
    }
}

impl Report {
    /// Requests that were answered.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Errors by code.
    pub fn errors(&self) -> String {
        self.errors.iter().map(|(code, count)| format!("{count} {code}")).collect::<Vec<_>>().join(", ")
    }

    /// For people.
    pub fn page(&self, style: Style) -> String {
        let errors = match self.errors.is_empty() {
            true => "errors: none".to_owned(),
            false => style.red(&format!("errors: {}", self.errors())),
        };
        let lines = [
            format!(
                "{} on {}: prompts of {:.0} tokens, answers of {}",
                style.bold(&self.model),
                self.target,
                self.prompt_tokens_per_request,
                self.max_tokens
            ),
            style.dim(&self.loads()),
            format!(
                "{} answered in {:.1} s by streams at a time: {}; {:.1} tokens/s together",
                self.answered, self.elapsed_s, self.clients, self.tokens_per_s
            ),
            errors,
            table(style, &["", "p50", "p95", "worst"], &self.rows()),
        ];
        lines.join("\n")
    }

    fn loads(&self) -> String {
        let (before, after) = (self.machine, self.machine_after);
        format!("{} cores, load {} before and {} after", before.cores, before.load_1m, after.load_1m)
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |name: &str, cells: [f64; 3]| {
            std::iter::once(name.to_owned()).chain(cells.map(|cell| format!("{cell:.1}"))).collect()
        };
        let times =
            |name, times: Option<Times>| times.map(|times| row(name, [times.p50, times.p95, times.max]));
        let rates = self
            .stream_tokens_per_s
            .map(|rates| row("tokens/s of a stream", [rates.p50, rates.p5, rates.min]));
        [times("first token ms", self.first_token_ms), times("answer ms", self.answer_ms), rates]
            .into_iter()
            .flatten()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::answer::Usage;

    fn plan() -> Plan {
        let address = Address::Unix("/none".into());
        Plan { address, model: "m".to_owned(), clients: 2, requests: 10, prompt_tokens: 16, max_tokens: 8 }
    }

    #[test]
    fn every_request_differs_and_is_the_same_in_every_run() {
        let (one, other) = (plan().ask(1), plan().ask(2));
        assert_ne!(one.body, other.body);
        assert_eq!(one.body, plan().ask(1).body);
        let body: Value = serde_json::from_slice(&one.body).unwrap();
        assert_eq!(
            (&body["ignore_eos"], &body["seed"], &body["max_tokens"]),
            (&json!(true), &json!(1), &json!(8))
        );
        let text = body["messages"][0]["content"].as_str().unwrap();
        assert_eq!(text.split(' ').count(), 16);
    }

    #[test]
    fn rates_are_told_from_the_slow_end_and_times_too() {
        let mut counted = Counted::default();
        for rate in 1..=100_u32 {
            let usage = Usage { prompt_tokens: 20, completion_tokens: 8, total_tokens: 28 };
            let (first, rate) = (Some(f64::from(rate)), Some(f64::from(rate)));
            let answer = Answer { usage, first_token_ms: first, tokens_per_s: rate, ..Answer::default() };
            counted.answer(Duration::from_millis(5), &answer);
        }
        let mut whole = Counted::default();
        whole.merge(&counted);
        let report = report(&plan(), (Machine::now(), clock::now()), &whole);
        let (times, rates) = (report.first_token_ms.unwrap(), report.stream_tokens_per_s.unwrap());
        let near =
            |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.02, "{found} {expected}");
        near(times.p50, 50.0);
        near(times.p95, 95.0);
        near(rates.p50, 51.0);
        near(rates.p5, 6.0);
        near(rates.min, 1.0);
        assert_eq!((report.answered, report.prompt_tokens_per_request), (100, 20.0));
    }
}

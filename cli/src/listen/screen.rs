//! How events look: on a terminal a meter and what is being said, which what was said replaces; else lines.

use crate::error::CliError;
use crate::output::Output;
use ratatui::crossterm::terminal;
use ringfence_grants::visible;
use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// Cells of the meter.
const METER: usize = 10;
/// Where the size of the terminal is not known.
const COLUMNS: usize = 80;

/// What is shown.
#[derive(Debug)]
pub struct Screen<'a> {
    output: &'a Output,
    text_only: bool,
    is_live: bool,
    peak: u64,
    partial: String,
}

impl<'a> Screen<'a> {
    /// For this process's own streams.
    pub fn new(output: &'a Output, text_only: bool) -> Self {
        let is_live = !output.is_json() && !text_only && io::stdout().is_terminal();
        Self { output, text_only, is_live, peak: 0, partial: String::new() }
    }

    /// Shows one event.
    ///
    /// # Errors
    /// [`CliError::Failed`] where standard output can't be written.
    pub fn show(&mut self, event: &Value) -> Result<(), CliError> {
        if self.output.is_json() {
            return self.output.line(&event.to_string());
        }
        match event["event"].as_str().unwrap_or_default() {
            "level" => self.peak = event["peak"].as_u64().unwrap_or(0),
            "partial" => self.partial = visible(event["text"].as_str().unwrap_or_default().trim()),
            "final" => {
                self.partial.clear();
                self.clear()?;
                self.output.line(&final_line(event, self.text_only))?;
            }
            "started" => self.remark(&started(event))?,
            "notice" => self.remark(&notice(event))?,
            "paused" => self.remark("paused")?,
            "resumed" => self.remark("it goes on")?,
            "renewed" => self.remark("renewed")?,
            "ended" => self.clear()?,
            _ => {}
        }
        self.draw()
    }

    fn remark(&self, text: &str) -> Result<(), CliError> {
        self.clear()?;
        if !self.text_only {
            self.output.note(text);
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), CliError> {
        self.write("\r\x1b[2K")
    }

    /// The line that is written over again.
    fn draw(&self) -> Result<(), CliError> {
        let columns = terminal::size().map_or(COLUMNS, |(columns, _)| usize::from(columns));
        let line = format!("{} {}", meter(self.peak), tail(&self.partial, columns.saturating_sub(METER + 4)));
        self.write(&format!("\r\x1b[2K{}", self.output.style().dim(&line)))
    }

    fn write(&self, text: &str) -> Result<(), CliError> {
        if !self.is_live {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| CliError::io("standard output", error))
    }
}

fn started(event: &Value) -> String {
    let device = event["device"].as_str().map_or("a pushed stream".to_owned(), visible);
    format!("listening to {device}; ctrl-c ends it")
}

fn notice(event: &Value) -> String {
    match event["code"].as_str() {
        Some("only_silence") => {
            format!(
                "only silence for {} s: is the right microphone on?",
                event["ms"].as_u64().unwrap_or(0) / 1_000
            )
        }
        _ => "there is sound again".to_owned(),
    }
}

fn final_line(event: &Value, text_only: bool) -> String {
    let text = visible(event["text"].as_str().unwrap_or_default().trim());
    if text_only {
        return text;
    }
    let ms = event["start_ms"].as_u64().unwrap_or(0);
    format!("[{:02}:{:04.1}] {text}", ms / 60_000, (ms % 60_000) as f64 / 1e3)
}

/// How loud it is, from -50 dB to full scale.
fn meter(peak: u64) -> String {
    let decibels = 20.0 * (peak.max(1) as f64 / 32_767.0).log10();
    let lit = ((decibels + 50.0) / 50.0 * METER as f64).round().clamp(0.0, METER as f64) as usize;
    format!("{}{}", "▮".repeat(lit), "▯".repeat(METER - lit))
}

/// The end of a text, as much as there is room for.
fn tail(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most { text.to_owned() } else { text.chars().skip(count - most).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_meter_goes_from_silence_to_full_scale_and_a_long_text_shows_its_end() {
        assert_eq!((meter(0), meter(32_767)), ("▯".repeat(10), "▮".repeat(10)));
        assert_eq!(meter(1_000).matches('▮').count(), 4);
        assert_eq!((tail("abcdef", 3), tail("ab", 3)), ("def".to_owned(), "ab".to_owned()));
    }

    #[test]
    fn what_was_said_is_one_line_that_hides_nothing() {
        let event = json!({"event": "final", "start_ms": 63_250, "text": " And so\u{1b}[2K "});
        assert_eq!(final_line(&event, false), "[01:03.2] And so\\u{1b}[2K");
        assert_eq!(final_line(&event, true), "And so\\u{1b}[2K");
        let silent = notice(&json!({"code": "only_silence", "ms": 10_000}));
        assert!(silent.contains("10 s"), "{silent}");
    }
}

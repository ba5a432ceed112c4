//! What is printed where: answers to standard output, notes and errors to standard error, JSON on request.

use crate::error::CliError;
use crate::generate::answer::shown;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, Write};

/// How this run prints.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    stdout: Style,
    stderr: Style,
}

/// Colours of one stream; plain unless it is a terminal and `NO_COLOR` is not set.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colour: bool,
}

impl Style {
    fn of(stream: &impl IsTerminal) -> Self {
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: stream.is_terminal() && !no_colour }
    }

    /// No colours.
    pub fn plain() -> Self {
        Self { colour: false }
    }

    /// Whether there are any.
    pub fn has_colours(self) -> bool {
        self.colour
    }

    /// For headings.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// For what is wrong.
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// For what holds.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For what is less important.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Output {
    /// For this process's own streams.
    pub fn new(json: bool) -> Self {
        Self { json, stdout: Style::of(&io::stdout()), stderr: Style::of(&io::stderr()) }
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a progress bar makes sense: somebody watches standard error and no machine reads us.
    pub fn shows_progress(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Colours of standard output.
    pub fn style(&self) -> Style {
        self.stdout
    }

    /// The command's answer: `value` with `--json`, else `text`.
    ///
    /// # Errors
    /// [`CliError::Failed`] where standard output can't be written; a closed pipe is no error.
    pub fn answer<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(Style) -> String,
    ) -> Result<(), CliError> {
        if !self.json {
            return self.line(&text(self.stdout));
        }
        let encoded = serde_json::to_string_pretty(value).expect("our answers have string keys only");
        self.line(&encoded)
    }

    /// A line (or several) on standard output.
    ///
    /// # Errors
    /// [`CliError::Failed`] where standard output can't be written; a closed pipe is no error.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        match writeln!(io::stdout().lock(), "{}", text.trim_end_matches('\n')) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(CliError::io("standard output", error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A piece of what a model writes, on standard output at once; a terminal gets it without what it would take for an order.
    ///
    /// # Errors
    /// [`CliError::Failed`] where standard output can't be written; so is a closed pipe, as nobody reads what is still to come.
    pub fn piece(&self, text: &str) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        let text = if out.is_terminal() { Cow::from(shown(text)) } else { Cow::from(text) };
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| CliError::io("standard output", error))
    }

    /// A remark for people, on standard error; silent with `--json`.
    pub fn note(&self, text: &str) {
        if !self.json {
            self.complain(text);
        }
    }

    /// The error that ends the program.
    pub fn error(&self, error: &CliError) {
        if self.json {
            let (code, message) = (error.code(), error.to_string());
            let body = json!({"error": {"code": code, "message": message, "advice": error.advice()}});
            // Nobody is left to tell when standard output has gone.
            let _ = self.line(&body.to_string());
            return;
        }
        self.complain(&format!("{} {error}", self.stderr.red("ringfence:")));
        let advice = error.advice();
        if !advice.is_empty() {
            self.complain(&format!("  {advice}"));
        }
    }

    fn complain(&self, text: &str) {
        // Nobody is left to tell when standard error has gone.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// Rows under a heading, in columns as wide as their widest cell.
pub fn table(style: Style, heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].len()]).max().expect("the heading is there")
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    let mut lines = vec![style.bold(&aligned(&heading, &widths))];
    lines.extend(rows.iter().map(|row| aligned(row, &widths)));
    lines.join("\n")
}

fn aligned(cells: &[String], widths: &[usize]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

/// Bytes with a binary unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// Unix seconds as a date and time in UTC.
pub fn utc(seconds: u64) -> String {
    ringfence_audit::utc(seconds.saturating_mul(1_000))
}

/// A bar of bytes on a terminal, else one that nobody sees.
pub fn progress(output: &Output, total_bytes: u64, what: &'static str) -> ProgressBar {
    bar(output, total_bytes, what, "{msg:>10} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec}")
}

/// A bar of things done on a terminal, else one that nobody sees.
pub fn progress_of(output: &Output, total: u64, what: &'static str) -> ProgressBar {
    bar(output, total, what, "{msg:>10} [{bar:32}] {pos}/{len}")
}

/// A bar over a recording, in seconds; how many there are is known later.
pub fn seconds_of(output: &Output, what: &str) -> ProgressBar {
    bar(output, 0, what.to_owned(), "{msg:>10} [{bar:32}] {pos}/{len} s")
}

fn bar(output: &Output, total: u64, what: impl Into<Cow<'static, str>>, template: &str) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).expect("the template is legal");
    ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_largest_unit_below_them() {
        let check = |count, expected| assert_eq!(bytes(count), expected);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(1536 * 1024, "1.5 MiB");
        check(3 << 40, "3.0 TiB");
        check(u64::MAX, "16777216.0 TiB");
    }

    #[test]
    fn unix_seconds_are_shown_as_a_date() {
        let check = |seconds, expected| assert_eq!(utc(seconds), expected);
        check(0, "1970-01-01 00:00:00Z");
        check(951_782_399, "2000-02-28 23:59:59Z");
        check(951_782_400, "2000-02-29 00:00:00Z");
        check(1_709_251_200, "2024-03-01 00:00:00Z");
        check(4_102_444_800, "2100-01-01 00:00:00Z");
    }

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = [vec!["minilm".to_owned(), "1".to_owned()], vec!["a".to_owned(), "22".to_owned()]];
        assert_eq!(table(Style::plain(), &["NAME", "N"], &rows), "NAME    N\nminilm  1\na       22");
    }

    #[test]
    fn colours_are_escape_codes_around_the_text() {
        assert_eq!(Style { colour: true }.red("no"), "\x1b[31mno\x1b[0m");
        assert_eq!(Style::plain().red("no"), "no");
    }
}

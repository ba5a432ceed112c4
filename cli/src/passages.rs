//! Documents cut into passages, each with the file and line where it stands: what the demonstration embeds.

use std::path::PathBuf;

/// Shorter passages say nothing that could be found again.
pub const WORDS_MIN: usize = 6;

/// A paragraph, list item or table row, with the heading above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The document.
    pub file: PathBuf,
    /// Where the passage begins, from 1.
    pub line: usize,
    /// The heading above it; empty before the first one.
    pub heading: String,
    /// Its text in one line, without markup of lists, quotes and tables.
    pub text: String,
}

impl Passage {
    /// What is embedded: the heading says what the paragraph is about.
    pub fn with_heading(&self) -> String {
        if self.heading.is_empty() { self.text.clone() } else { format!("{}. {}", self.heading, self.text) }
    }
}

/// The passages of a Markdown document. Code blocks are skipped.
pub fn of_markdown(file: impl Into<PathBuf>, text: &str) -> Vec<Passage> {
    of_lines(file.into(), text.lines())
}

/// The passages of a Rust file's own documentation: its `//!` lines.
pub fn of_rust(file: impl Into<PathBuf>, text: &str) -> Vec<Passage> {
    let documentation =
        |line| str::strip_prefix(line, "//!").map_or("", |text| text.strip_prefix(' ').unwrap_or(text));
    of_lines(file.into(), text.lines().map(documentation))
}

/// Line numbers are those of `lines`, so that skipped ones must be there, empty.
fn of_lines<'a>(file: PathBuf, lines: impl Iterator<Item = &'a str>) -> Vec<Passage> {
    let mut cutter = Cutter { file, heading: String::new(), open: None, done: Vec::new() };
    let mut fence = None;
    for (number, line) in (1..).zip(lines) {
        let line = line.trim_start();
        match (fence, fence_of(line)) {
            (None, None) => cutter.line(number, line),
            (None, opening @ Some(_)) => {
                cutter.close();
                fence = opening;
            }
            // A fence ends with its own kind.
            (Some(open), closing) if closing == Some(open) => fence = None,
            (Some(_), _) => {}
        }
    }
    cutter.close();
    cutter.done
}

fn fence_of(line: &str) -> Option<&'static str> {
    ["```", "~~~"].into_iter().find(|fence| line.starts_with(fence))
}

struct Cutter {
    file: PathBuf,
    heading: String,
    open: Option<(usize, String)>,
    done: Vec<Passage>,
}

impl Cutter {
    fn line(&mut self, number: usize, line: &str) {
        match Kind::of(line) {
            Kind::Empty => self.close(),
            Kind::Heading(text) => {
                self.close();
                self.heading = text.to_owned();
            }
            Kind::Begins(text) => {
                self.close();
                self.open = Some((number, text.to_owned()));
            }
            Kind::Whole(text) => {
                self.close();
                self.open = Some((number, text));
                self.close();
            }
            Kind::Continues(text) => self.add(number, text),
        }
    }

    fn add(&mut self, number: usize, text: &str) {
        match &mut self.open {
            Some((_, open)) => {
                open.push(' ');
                open.push_str(text);
            }
            closed @ None => *closed = Some((number, text.to_owned())),
        }
    }

    fn close(&mut self) {
        let Some((line, text)) = self.open.take() else { return };
        if text.split_whitespace().count() >= WORDS_MIN {
            self.done.push(Passage { file: self.file.clone(), line, heading: self.heading.clone(), text });
        }
    }
}

/// What a line does to the passage that is open.
enum Kind<'a> {
    Empty,
    Heading(&'a str),
    /// The first line of a list item.
    Begins(&'a str),
    /// A table row.
    Whole(String),
    Continues(&'a str),
}

impl<'a> Kind<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim_end();
        if line.is_empty() {
            Self::Empty
        } else if let Some(text) = heading(line) {
            Self::Heading(text)
        } else if let Some(row) = line.strip_prefix('|') {
            table_row(row)
        } else if let Some(item) = list_item(line) {
            Self::Begins(item)
        } else {
            Self::Continues(line.strip_prefix("> ").unwrap_or(line))
        }
    }
}

fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    (1..=6).contains(&(line.len() - text.len())).then(|| text.strip_prefix(' ')).flatten().map(str::trim)
}

/// The line of dashes under a table's head ends the head and is nothing itself.
fn table_row<'a>(row: &str) -> Kind<'a> {
    if row.chars().all(|character| "|-: ".contains(character)) {
        return Kind::Empty;
    }
    let cells = row.trim_end_matches('|').split('|').map(str::trim).filter(|cell| !cell.is_empty());
    Kind::Whole(cells.collect::<Vec<_>>().join("; "))
}

/// After `- `, `* `, `+ ` or `12. `.
fn list_item(line: &str) -> Option<&str> {
    let number = line.trim_start_matches(|character: char| character.is_ascii_digit());
    let marked = if number.len() < line.len() { number.strip_prefix(". ") } else { None };
    marked.or_else(|| ["- ", "* ", "+ "].iter().find_map(|marker| line.strip_prefix(marker)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(passages: &[Passage], expected: &[(usize, &str)]) {
        let found: Vec<(usize, String)> =
            passages.iter().map(|passage| (passage.line, passage.with_heading())).collect();
        let expected: Vec<(usize, String)> =
            expected.iter().map(|(line, text)| (*line, (*text).to_owned())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_paragraph_is_one_line_under_its_heading() {
        let text = "Before any heading there is text.\n\n# The *top*\nOne two three\nfour five six.\n\n\
                    ## Below\n\nSeven eight nine ten eleven twelve.\n";
        check(
            &of_markdown("a.md", text),
            &[
                (1, "Before any heading there is text."),
                (4, "The *top*. One two three four five six."),
                (9, "Below. Seven eight nine ten eleven twelve."),
            ],
        );
    }

    #[test]
    fn code_blocks_and_short_lines_are_skipped() {
        let text = "Words before the block of code:\n```sh\n# no heading, one two three\n~~~\n\n```\n\
                    Words after the block of code.\n\nToo short.\n\n~~~\none two three four five six\n```\n";
        check(
            &of_markdown("a.md", text),
            &[(1, "Words before the block of code:"), (7, "Words after the block of code.")],
        );
    }

    #[test]
    fn list_items_and_table_rows_are_passages_of_their_own() {
        let text = "# Rules\n1. The first rule is about\n   workers and servers.\n12. The second rule is about more.\n\
                    - A third one without a number.\n\n| name | meaning |\n| --- | :-: |\n| lease | a right to device memory |\n\
                    > A quotation has words as well.\n";
        check(
            &of_markdown("a.md", text),
            &[
                (2, "Rules. The first rule is about workers and servers."),
                (4, "Rules. The second rule is about more."),
                (5, "Rules. A third one without a number."),
                (9, "Rules. lease; a right to device memory"),
                (10, "Rules. A quotation has words as well."),
            ],
        );
    }

    #[test]
    fn what_looks_like_markup_but_is_not_stays_text() {
        let text = "#no heading without the space, one two\n\n2026 was a year of many words.\n\n-1 is a number and no item.\n";
        check(
            &of_markdown("a.md", text),
            &[
                (1, "#no heading without the space, one two"),
                (3, "2026 was a year of many words."),
                (5, "-1 is a number and no item."),
            ],
        );
    }

    #[test]
    fn a_rust_file_gives_its_own_documentation_with_its_line_numbers() {
        let text = "#![allow(unsafe_code)]\n//! The link between server and worker.\n//!\n//! ```text\n//! a b c d e f g\n\
                    //! ```\n//! Whatever is not legal kills it.\n\n/// Not this one, as it is below.\npub fn f() {}\n";
        check(
            &of_rust("lib.rs", text),
            &[(2, "The link between server and worker."), (7, "Whatever is not legal kills it.")],
        );
    }
}

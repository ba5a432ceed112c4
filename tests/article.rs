//! What docs/article.md names is there: files and folders, other pages, and the test of each row.

use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Fewer rows than that are not the whole article.
const ROWS_MIN: usize = 60;

#[test]
fn the_files_and_pages_that_it_names_are_there() {
    let page = read("docs/article.md");
    for line in page.lines() {
        for path in quoted(line).filter(|word| is_path(word)) {
            assert!(Path::new(ROOT).join(path).exists(), "{path}");
        }
        for link in line.split("](").skip(1) {
            let file = link.split([')', '#']).next().expect("a split has a first part");
            assert!(Path::new(ROOT).join("docs").join(file).exists(), "{link}");
        }
    }
}

#[test]
fn every_row_has_tests_that_are_there_or_says_why_not() {
    let page = read("docs/article.md");
    let rows: Vec<[&str; 3]> = page.lines().filter_map(row).collect();
    assert!(rows.len() >= ROWS_MIN, "{} rows", rows.len());
    for [asked, _, shown_by] in rows {
        let tests = tests(shown_by);
        let why_not = shown_by == "GENERATION" || shown_by.starts_with("out of scope: ");
        assert_eq!(tests.is_empty(), why_not, "{asked}: {shown_by}");
        for (file, name) in tests {
            assert!(is_test(&read(file), name), "{asked}: {file} has no test {name}");
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// What stands in backquotes in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    assert!(line.split('`').count() % 2 == 1, "a backquote is missing: {line}");
    line.split('`').skip(1).step_by(2)
}

/// Routes begin with a slash, and commands have spaces.
fn is_path(word: &str) -> bool {
    word.contains('/') && !word.starts_with(['/', '.']) && !word.contains(' ')
}

/// What is asked, what is here and the tests; nothing of a table's head.
fn row(line: &str) -> Option<[&str; 3]> {
    let cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect::<Vec<_>>();
    let row: [&str; 3] = cells.try_into().unwrap_or_else(|_| panic!("three cells: {line}"));
    (row[2] != "test" && row[2] != "---").then_some(row)
}

/// The names of tests in a cell, each with the file that was named last before it.
fn tests(cell: &str) -> Vec<(&str, &str)> {
    let mut file = "";
    let mut tests = Vec::new();
    for word in quoted(cell) {
        if is_path(word) {
            file = word;
        } else {
            tests.push((file, word));
        }
    }
    tests
}

fn is_test(source: &str, name: &str) -> bool {
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else { return false };
    let before = before.trim_end();
    let before = before.strip_suffix("async").unwrap_or(before).trim_end();
    before.ends_with("#[test]") || before.ends_with("#[tokio::test]")
}

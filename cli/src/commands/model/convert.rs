//! Runs `ringfence-worker convert` in its sandbox: sealed sources in, sealed files out. Nothing of what a stranger wrote
//! is read on this side; the digests that are signed are those of the memory that comes out.

use super::fetch::tail;
use super::source::Part;
use crate::error::{CliError, Source};
use crate::home::Home;
use crate::output::{Output, progress};
use ringfence_models::{self as models, CatalogArchive};
use ringfence_protocol::{
    Archive, ArchiveKind, BLOCK_TENSORS_MAX, BlockType, Content, ConvertError, ConverterLink, DIGEST, Facts,
    FromConverter, LinkError, Member, OUTPUTS_MAX, SourceForm, ToConverter, connected_pair,
};
use ringfence_sandbox::{
    Child, Environment, Exit, Place, SealedFile, SpawnRequest, StatusPage, User, process_facts, spawn,
};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the converter may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Places for large files; the others are for what stands beside them.
const LARGE_PLACES: usize = 8;
/// Bytes of a small place.
const SMALL_BYTES: u64 = 64 * 1024 * 1024;
/// Weights become at most this many times as large as all sources: four-bit blocks to floats.
const GROWTH_MAX: u64 = 9;
/// Memory that the converter may take beside its sources' unpacked bytes.
const LEASE_BYTES: u64 = 1024 * 1024 * 1024;
/// Memory beside the lease that the kernel's limit (RLIMIT_DATA) leaves it: its stack, the allocator's slack.
const BACKSTOP_SLACK_BYTES: u64 = 64 * 1024 * 1024;
/// The most of its output that is kept.
const PRINTED_BYTES_MAX: u64 = 64 * 1024;

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

/// The user that a program for strangers' files runs as: the one who owns what the server owns in this home, where this
/// command runs as root; its own otherwise.
pub(super) fn user(home: &Home) -> Result<Option<User>, CliError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let run = home.path().join("run");
    let owner = std::fs::metadata(&run).map_err(|source| CliError::io(run.display().to_string(), source))?;
    if owner.uid() == 0 || owner.gid() == 0 {
        return Err(CliError::Failed {
            subject: run.display().to_string(),
            code: "user_is_root",
            source: "it belongs to root, and nothing that reads strangers' files runs as root".into(),
            advice: "make the home for another user: ringfence init --user NAME".to_owned(),
        });
    }
    Ok(Some(User { uid: owner.uid(), gid: owner.gid() }))
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
    let mut converter = Converter::start(subject, user, lease_bytes)?;
    let outcome = converter.talk(form, parts, lease_bytes, output);
    converter.end(outcome)
}

struct Converter<'a> {
    subject: &'a str,
    child: Child,
    page: StatusPage,
    link: ConverterLink,
    printed: Option<JoinHandle<Vec<u8>>>,
}

/// Why a conversation ended without a package.
enum Over {
    /// The sources are no package.
    Refused(ConvertError),
    /// Something on this machine did not work.
    System(&'static str, Source),
    /// The converter said something that it may not say now, or that can't be.
    Illegal(&'static str),
    /// It closed the link, or was silent for too long.
    Link(LinkError),
}

impl From<LinkError> for Over {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

fn system<E: Into<Source>>(what: &'static str) -> impl Fn(E) -> Over {
    move |error| Over::System(what, error.into())
}

impl<'a> Converter<'a> {
    fn start(subject: &'a str, user: Option<User>, lease_bytes: u64) -> Result<Self, CliError> {
        let own = std::env::current_exe().map_err(|source| CliError::io("own executable", source))?;
        let path = own.with_file_name("ringfence-worker");
        let failed = |source: Source| CliError::Failed {
            subject: path.display().to_string(),
            code: "converter_not_started",
            source,
            advice: "install ringfence-worker in the same folder as ringfence, of the same build".to_owned(),
        };
        let program = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let program = program.map_err(|errno| failed(io::Error::from(errno).into()))?;
        let (ours, theirs) = connected_pair().map_err(|errno| failed(errno.into()))?;
        let link = ConverterLink::new(ours);
        // Before it can say anything: credentials are attached when a message is sent.
        link.receive_credentials().map_err(|errno| failed(errno.into()))?;
        let page = StatusPage::create().map_err(|errno| failed(errno.into()))?;
        let child = spawn(SpawnRequest {
            program: program.as_fd(),
            arguments: &["convert"],
            environment: Environment { threads: None },
            link: theirs,
            status_page: &page,
            cgroup: None,
            user,
            data_bytes_max: Some(lease_bytes.saturating_add(BACKSTOP_SLACK_BYTES)),
        });
        let child = child.map_err(|error| failed(error.into()))?;
        let printed = Some(follow(child.stderr.try_clone().map_err(|error| failed(error.into()))?));
        drop(follow(child.stdout.try_clone().map_err(|error| failed(error.into()))?));
        Ok(Self { subject, child, page, link, printed })
    }

    /// From its hello to its answer.
    fn talk(&self, form: SourceForm, parts: &[Part], lease_bytes: u64, output: &Output) -> Result<Raw, Over> {
        set_socket_timeout(&self.link, Timeout::Recv, Some(SILENCE_MAX)).map_err(system("its link"))?;
        set_socket_timeout(&self.link, Timeout::Send, Some(SILENCE_MAX)).map_err(system("its link"))?;
        self.shake_hands(lease_bytes)?;
        let places = places(parts).map_err(system("memory for its files"))?;
        self.order(form, parts, &places)?;
        self.answers(parts.len(), places, output)
    }

    /// No byte of a stranger's before the kernel itself says that the sandbox is on.
    fn shake_hands(&self, lease_bytes: u64) -> Result<(), Over> {
        let hello = self.link.receive()?;
        match hello.message {
            FromConverter::Hello { digest } if digest == DIGEST => {}
            FromConverter::Hello { .. } => return Err(Over::Illegal("it is of another build")),
            other => return Err(unexpected(&other)),
        }
        let pid = hello.pid.ok_or(Over::Illegal("the kernel does not say who it is"))?;
        self.link.send(&ToConverter::Start { lease_bytes }, &[])?;
        match self.link.receive()?.message {
            FromConverter::Sealed { .. } => {}
            other => return Err(unexpected(&other)),
        }
        let facts = process_facts(pid).map_err(system("its sandbox"))?;
        facts.check_sealed().map_err(system("its sandbox"))
    }

    fn order(&self, form: SourceForm, parts: &[Part], places: &[Place]) -> Result<(), Over> {
        for part in parts {
            let message = ToConverter::Source { name: part.name.clone(), archive: part.archive.clone() };
            self.send(&message, &[part.file.as_fd()])?;
        }
        for place in places {
            self.send(&ToConverter::Output, &[place.as_fd()])?;
        }
        self.send(&ToConverter::Convert { form }, &[])
    }

    fn send(&self, message: &ToConverter, descriptors: &[BorrowedFd<'_>]) -> Result<(), Over> {
        Ok(self.link.send(message, descriptors)?)
    }

    fn answers(&self, sources: usize, places: Vec<Place>, output: &Output) -> Result<Raw, Over> {
        let bar = progress(output, 0, "converting");
        let (mut files, mut blocks) = (Vec::new(), Vec::new());
        loop {
            match self.link.receive()?.message {
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

    /// Ends the process, and only then takes what it made: nobody else holds it any more.
    fn end(&mut self, outcome: Result<Raw, Over>) -> Result<Converted, CliError> {
        let exit = match &outcome {
            // It has closed the link, so it is ending by itself: how says why.
            Err(Over::Link(LinkError::Closed)) => self.child.wait(),
            Ok(_) | Err(_) => self.child.kill().and_then(|()| self.child.wait()),
        };
        let exit = exit.map_err(|errno| CliError::io("the converter's end", errno))?;
        match outcome {
            Ok(raw) => raw.take().map_err(|(code, source)| self.failed(code, source, "")),
            Err(over) => Err(self.explain(over, exit)),
        }
    }

    fn explain(&mut self, over: Over, exit: Exit) -> CliError {
        match over {
            Over::Refused(error) => {
                let advice = advice(&error);
                self.failed(code(&error), error.into(), advice)
            }
            Over::System(what, error) => self.failed("io_error", format!("{what}: {error}").into(), ""),
            Over::Illegal(what) => self.failed(
                "converter_illegal",
                format!("the converter was stopped: {what}").into(),
                "the source may be an attack on it: do not use it; report it",
            ),
            Over::Link(LinkError::WouldBlock) => self.failed(
                "converter_silent",
                format!("the converter said nothing for {} s and was stopped", SILENCE_MAX.as_secs()).into(),
                "try again on a machine that is less busy",
            ),
            Over::Link(error) => self.died(&error, exit),
        }
    }

    fn died(&mut self, error: &LinkError, exit: Exit) -> CliError {
        if let Some(denial) = self.page.read().denial {
            let advice = "it needs more memory than a conversion of files of this size may take; report it";
            return self.failed("out_of_memory", denial.into(), advice);
        }
        let printed = self.printed.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let how = match exit {
            Exit::Code(code) => format!("the converter ended with code {code}"),
            Exit::Signal(signal) => format!("the converter was killed by signal {signal}"),
        };
        let text = match tail(&printed) {
            text if text.is_empty() => format!("{how} ({error})"),
            text => format!("{how}: {text}"),
        };
        self.failed("converter_died", text.into(), "the source may be an attack on it; report it")
    }

    fn failed(&self, code: &'static str, source: Source, advice: &str) -> CliError {
        CliError::Failed { subject: self.subject.to_owned(), code, source, advice: advice.to_owned() }
    }
}

/// A message that is not legal now.
fn unexpected(message: &FromConverter) -> Over {
    Over::Illegal(match message {
        FromConverter::Hello { .. } => "a second hello",
        FromConverter::Sealed { .. } => "a second seal",
        FromConverter::Progress { .. } => "progress before anything was asked",
        FromConverter::File { .. } => "a file before anything was asked",
        FromConverter::Block { .. } => "a tensor too many, or before anything was asked",
        FromConverter::Done(_) | FromConverter::Failed(_) => "an answer before anything was asked",
    })
}

/// Reads what the program prints, so that it never waits for us, and keeps the first of it.
fn follow(pipe: OwnedFd) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let (mut pipe, mut kept) = (File::from(pipe), Vec::new());
        let read = pipe.by_ref().take(PRINTED_BYTES_MAX).read_to_end(&mut kept);
        drop(read.and_then(|_| io::copy(&mut pipe, &mut io::sink())));
        kept
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

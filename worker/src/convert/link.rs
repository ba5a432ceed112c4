//! The converter's side of its link: what it takes in which order. Anything else ends it.

use super::output::Output;
use super::unpack::unpack;
use super::{Work, convert};
use crate::memory::Memory;
use crate::package::{FileBytes, Files};
use crate::shell::{Shell, layer};
use ringfence_protocol::{
    Archive, BLOCK_TENSORS_MAX, BlockType, CONVERT_NAME_BYTES_MAX, Content, ConvertError, ConverterSideLink,
    DIGEST, FromConverter, LinkError, MEMBERS_MAX, OUTPUTS_MAX, Received, SOURCES_MAX, SourceForm,
    ToConverter,
};
use ringfence_sandbox::{EnterError, SealedFile};
use rustix::io::retry_on_intr;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Progress is told when this much more has been done.
const PROGRESS_BYTES: u64 = 4 * 1024 * 1024;

/// Why a converter ends otherwise than with an answer.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The link is closed, or what came over it is no message.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// A message that is not legal now.
    #[error("illegal message: {0}")]
    Illegal(&'static str),
    /// The filter can't be applied.
    #[error("{0}")]
    Seal(#[from] EnterError),
}

/// Converts what one link brings. A refusal of the sources is an answer and no error.
///
/// # Errors
/// [`End`].
pub fn run(link: &ConverterSideLink, shell: impl Shell, memory: &dyn Memory) -> Result<(), End> {
    send(link, FromConverter::Hello { digest: DIGEST.to_owned() })?;
    shell.set_lease(receive_start(link)?);
    warm_up();
    let sealed = shell.seal()?;
    send(link, FromConverter::Sealed { layers: sealed.layers.into_iter().map(layer).collect() })?;
    let order = receive_order(link)?;
    let outcome = match work(link, order, memory) {
        Ok(facts) => FromConverter::Done(facts),
        Err(Failure::Refused(error)) => FromConverter::Failed(error),
        Err(Failure::Link(error)) => return Err(error.into()),
    };
    send(link, outcome)
}

/// Keys of hash maps and the like are made once, before the filter.
fn warm_up() {
    drop(std::collections::HashMap::from([(1, 2)]));
}

fn send(link: &ConverterSideLink, message: FromConverter) -> Result<(), End> {
    Ok(link.send(&message, &[])?)
}

fn receive_start(link: &ConverterSideLink) -> Result<u64, End> {
    let Received { message, descriptors, .. } = link.receive()?;
    match message {
        ToConverter::Start { lease_bytes } if descriptors.is_empty() => Ok(lease_bytes),
        ToConverter::Start { .. } => Err(End::Illegal("descriptors with a start")),
        ToConverter::Source { .. } | ToConverter::Output | ToConverter::Convert { .. } => {
            Err(End::Illegal("something before the start"))
        }
    }
}

/// Everything that is to be converted.
struct Order {
    form: SourceForm,
    sources: Vec<Source>,
    places: Vec<Place>,
}

struct Source {
    name: String,
    archive: Option<Archive>,
    descriptor: OwnedFd,
}

fn receive_order(link: &ConverterSideLink) -> Result<Order, End> {
    let (mut sources, mut places) = (Vec::new(), Vec::new());
    loop {
        let Received { message, descriptors, .. } = link.receive()?;
        match message {
            ToConverter::Start { .. } => return Err(End::Illegal("a second start")),
            ToConverter::Source { name, archive } => {
                if sources.len() == SOURCES_MAX || !is_legal(&name, archive.as_ref()) {
                    return Err(End::Illegal("too many sources, or one out of bounds"));
                }
                sources.push(Source { name, archive, descriptor: single(descriptors)? });
            }
            ToConverter::Output if places.len() < OUTPUTS_MAX => {
                places.push(place(places.len(), single(descriptors)?)?);
            }
            ToConverter::Output => return Err(End::Illegal("too many places")),
            ToConverter::Convert { form } if descriptors.is_empty() => {
                return Ok(Order { form, sources, places });
            }
            ToConverter::Convert { .. } => return Err(End::Illegal("descriptors with the last message")),
        }
    }
}

fn single(descriptors: Vec<OwnedFd>) -> Result<OwnedFd, End> {
    let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors)
        .map_err(|_| End::Illegal("a source or place without one descriptor"))?;
    Ok(descriptor)
}

fn place(number: usize, descriptor: OwnedFd) -> Result<Place, End> {
    let number = u32::try_from(number).expect("places are bounded");
    let length = rustix::fs::fstat(&descriptor).map_err(|_| End::Illegal("a place that is no file"))?.st_size;
    let bytes_max = u64::try_from(length).map_err(|_| End::Illegal("a place of negative length"))?;
    Ok(Place { number, descriptor, bytes_max })
}

fn is_legal(name: &str, archive: Option<&Archive>) -> bool {
    let bounded = |name: &str| (1..=CONVERT_NAME_BYTES_MAX).contains(&name.len());
    let members = |archive: &Archive| {
        archive.members.len() <= MEMBERS_MAX
            && archive.members.iter().all(|member| bounded(&member.name) && bounded(&member.path))
    };
    bounded(name) && archive.is_none_or(members)
}

/// Why a conversion ends early.
enum Failure {
    Refused(ConvertError),
    Link(LinkError),
}

impl From<ConvertError> for Failure {
    fn from(error: ConvertError) -> Self {
        Self::Refused(error)
    }
}

fn work(
    link: &ConverterSideLink,
    order: Order,
    memory: &dyn Memory,
) -> Result<ringfence_protocol::Facts, Failure> {
    let (files, kept) = open(order.sources, memory)?;
    let mut places = Places::new(link, &files, kept, order.places);
    let mut task = Work { files: &files, output: &mut places, memory };
    // Parsers are made not to panic; one that does all the same refuses the source.
    let converted = catch_unwind(AssertUnwindSafe(|| convert(order.form, &mut task)));
    let converted = converted.unwrap_or_else(|_| {
        Err(ConvertError::Decoder { file: files.names().next().unwrap_or("source").to_owned() })
    });
    if let Some(error) = places.broken.take() {
        return Err(Failure::Link(error));
    }
    let facts = converted?;
    places.end().map_err(Failure::Link)?;
    Ok(facts)
}

/// Files by name, and the numbers of those sources that are no archives.
type Opened = (Files, BTreeMap<String, u32>);

fn open(sources: Vec<Source>, memory: &dyn Memory) -> Result<Opened, ConvertError> {
    let (mut files, mut kept) = (BTreeMap::<String, FileBytes>::new(), BTreeMap::new());
    let mut joined = BTreeMap::<String, Vec<u8>>::new();
    for (number, source) in (0..).zip(sources) {
        let Source { name, archive, descriptor } = source;
        let not_sealed = || ConvertError::NotSealed { file: name.clone() };
        let file = SealedFile::from_descriptor(descriptor).map_err(|_| not_sealed())?;
        let bytes: FileBytes = Arc::new(file.map().map_err(|_| not_sealed())?);
        match archive {
            Some(archive) => unpack(&name, &bytes, &archive, &mut joined, memory)?,
            None => {
                kept.insert(name.clone(), number);
                if files.insert(name.clone(), bytes).is_some() {
                    return Err(ConvertError::Twice { file: name });
                }
            }
        }
    }
    for (name, bytes) in joined {
        if files.insert(name.clone(), Arc::new(bytes)).is_some() {
            return Err(ConvertError::Twice { file: name });
        }
    }
    Ok((files.into_iter().collect(), kept))
}

/// The places that came with the order, filled one after another.
struct Places<'a> {
    link: &'a ConverterSideLink,
    files: &'a Files,
    kept: BTreeMap<String, u32>,
    /// From the smallest to the largest.
    free: VecDeque<Place>,
    places: u32,
    names: BTreeSet<String>,
    current: Option<Current>,
    blocks: usize,
    told: u64,
    /// The link broke; whoever waits for an answer is gone.
    broken: Option<LinkError>,
}

struct Current {
    name: String,
    place: Place,
    bytes: u64,
}

/// Where a file can go.
struct Place {
    number: u32,
    descriptor: OwnedFd,
    bytes_max: u64,
}

impl<'a> Places<'a> {
    fn new(
        link: &'a ConverterSideLink,
        files: &'a Files,
        kept: BTreeMap<String, u32>,
        mut places: Vec<Place>,
    ) -> Self {
        places.sort_by_key(|place| place.bytes_max);
        Self {
            link,
            files,
            kept,
            places: u32::try_from(places.len()).expect("places are bounded"),
            free: places.into(),
            names: BTreeSet::new(),
            current: None,
            blocks: 0,
            told: 0,
            broken: None,
        }
    }

    fn tell(&mut self, message: FromConverter) {
        if self.broken.is_none() {
            self.broken = self.link.send(&message, &[]).err();
        }
    }

    fn file(&mut self, name: String, content: Content) {
        self.tell(FromConverter::File { name, content });
    }

    /// Names the file that was filled last.
    fn finish(&mut self) {
        if let Some(Current { name, place, bytes }) = self.current.take() {
            self.file(name, Content::Output { number: place.number, bytes });
        }
    }

    fn end(mut self) -> Result<(), LinkError> {
        self.finish();
        self.broken.map_or(Ok(()), Err)
    }

    fn claim(&mut self, name: &str) -> Result<(), ConvertError> {
        if self.names.insert(name.to_owned()) {
            Ok(())
        } else {
            Err(ConvertError::Twice { file: name.to_owned() })
        }
    }
}

impl Output for Places<'_> {
    fn keep(&mut self, name: &str, source: &str) -> Result<(), ConvertError> {
        let missing = || ConvertError::Missing { file: source.to_owned() };
        let bytes = self.files.get(source).ok_or_else(missing)?.clone();
        let Some(number) = self.kept.get(source).copied() else {
            return super::output::write(self, name, &bytes);
        };
        self.finish();
        self.claim(name)?;
        self.file(name.to_owned(), Content::Source { number });
        Ok(())
    }

    fn begin(&mut self, name: &str) -> Result<(), ConvertError> {
        self.finish();
        self.claim(name)?;
        // Weights take the largest place that is left, everything else the smallest.
        let place = if name.ends_with(".safetensors") { self.free.pop_back() } else { self.free.pop_front() };
        let place = place.ok_or(ConvertError::TooManyFiles { files_max: self.places })?;
        self.current = Some(Current { name: name.to_owned(), place, bytes: 0 });
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), ConvertError> {
        let current = self.current.as_mut().expect("a file was begun");
        let too_large =
            || ConvertError::TooLarge { file: current.name.clone(), bytes_max: current.place.bytes_max };
        if bytes.len() as u64 > current.place.bytes_max - current.bytes {
            return Err(too_large());
        }
        while !bytes.is_empty() {
            // The host has no memory for it, or the place is sealed at its length.
            let count = retry_on_intr(|| rustix::io::write(&current.place.descriptor, bytes))
                .map_err(|_| too_large())?;
            current.bytes += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn block(&mut self, tensor: &str, block: BlockType, shape: &[u64]) -> Result<(), ConvertError> {
        if self.blocks == BLOCK_TENSORS_MAX {
            return Err(super::malformed(tensor, "too many tensors stay in blocks"));
        }
        self.blocks += 1;
        self.tell(FromConverter::Block { tensor: tensor.to_owned(), block, shape: shape.to_vec() });
        Ok(())
    }

    fn progress(&mut self, done: u64, total: u64) {
        if done >= self.told + PROGRESS_BYTES || done == total {
            self.told = done;
            self.tell(FromConverter::Progress { done, total });
        }
    }
}

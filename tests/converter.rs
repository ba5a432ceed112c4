//! `ringfence-worker convert` as whoever spawns it meets it: every forbidden act is stopped, every message out of order
//! ends it, every bound of its files holds.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use ringfence_protocol::{
    Archive, ArchiveKind, Content, ConvertError, ConverterLink, DIGEST, FromConverter, LinkError, Member,
    ModelArchitecture, SourceForm, ToConverter, connected_pair,
};
use ringfence_sandbox::{
    Act, Child, Environment, Exit, Place, Policy, SealedFile, SpawnRequest, StatusPage, User, judge,
    process_facts, spawn,
};
use rustix::fs::{Mode, OFlags, open};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const LEASE_BYTES: u64 = 256 * 1024 * 1024;
/// Who it runs as where the test runs as root, as no sandboxed program may.
const ORDINARY: User = User { uid: 65_534, gid: 65_534 };

fn program() -> OwnedFd {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join("ringfence-worker");
    open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn start(arguments: &[&str]) -> (Child, StatusPage, OwnedFd) {
    let (ours, theirs) = connected_pair().unwrap();
    ConverterLink::new(ours.try_clone().unwrap()).receive_credentials().unwrap();
    let page = StatusPage::create().unwrap();
    let child = spawn(SpawnRequest {
        program: program().as_fd(),
        arguments,
        environment: Environment { threads: None },
        link: theirs,
        status_page: &page,
        cgroup: None,
        user: rustix::process::geteuid().is_root().then_some(ORDINARY),
        data_bytes_max: Some(2 * LEASE_BYTES),
    });
    (child.unwrap(), page, ours)
}

#[test]
fn every_forbidden_act_is_stopped() {
    let policy = Policy::converter();
    for &act in Act::ALL {
        let (child, _page, _link) = start(&["probe", "convert", act.name()]);
        judge(&policy, act, child.wait().unwrap()).unwrap();
    }
}

/// A converter that is sealed and waits for its order.
struct Converter {
    child: Child,
    _page: StatusPage,
    link: ConverterLink,
}

impl Converter {
    fn new() -> Self {
        let (child, page, link) = start(&["convert"]);
        let link = ConverterLink::new(link);
        let hello = link.receive().unwrap();
        assert_eq!(hello.message, FromConverter::Hello { digest: DIGEST.to_owned() });
        link.send(&ToConverter::Start { lease_bytes: LEASE_BYTES }, &[]).unwrap();
        let sealed = link.receive().unwrap().message;
        assert!(matches!(sealed, FromConverter::Sealed { .. }), "{sealed:?}");
        process_facts(hello.pid.unwrap()).unwrap().check_sealed().unwrap();
        Self { child, _page: page, link }
    }

    fn source(&self, name: &str, bytes: &[u8]) {
        let file = SealedFile::from_bytes(name, bytes).unwrap();
        self.send(ToConverter::Source { name: name.to_owned(), archive: None }, &[file.as_fd()]);
    }

    fn places(&self, count: usize, bytes_max: u64) -> Vec<Place> {
        let places: Vec<Place> = (0..count).map(|_| Place::create("place", bytes_max).unwrap()).collect();
        places.iter().for_each(|place| self.send(ToConverter::Output, &[place.as_fd()]));
        places
    }

    fn send(&self, message: ToConverter, descriptors: &[BorrowedFd<'_>]) {
        self.link.send(&message, descriptors).unwrap();
    }

    /// All that it says of this order, up to its answer.
    fn answer(&self, form: SourceForm) -> Vec<FromConverter> {
        self.send(ToConverter::Convert { form }, &[]);
        let mut said = Vec::new();
        loop {
            let message = self.link.receive().unwrap().message;
            let is_last = matches!(message, FromConverter::Done(_) | FromConverter::Failed(_));
            said.push(message);
            if is_last {
                return said;
            }
        }
    }

    fn refusal(&self, form: SourceForm) -> ConvertError {
        match self.answer(form).pop() {
            Some(FromConverter::Failed(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    /// It has ended by itself, without an answer.
    fn ends(self) {
        loop {
            match self.link.receive() {
                Ok(received) => assert!(
                    !matches!(received.message, FromConverter::Done(_) | FromConverter::Failed(_)),
                    "it answered {:?}",
                    received.message
                ),
                Err(LinkError::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(self.child.wait().unwrap(), Exit::Code(1));
    }
}

fn tiny() -> Vec<(&'static str, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
    ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]
        .map(|name| (name, fs::read(folder.join(name)).unwrap()))
        .to_vec()
}

#[test]
fn a_folder_becomes_a_package_of_its_own_unchanged_sources() {
    let converter = Converter::new();
    tiny().iter().for_each(|(name, bytes)| converter.source(name, bytes));
    let mut said = converter.answer(SourceForm::HuggingFace);
    let Some(FromConverter::Done(facts)) = said.pop() else { panic!("{said:?}") };
    assert_eq!((facts.architecture, facts.licence), (ModelArchitecture::Bert, None));
    let mut kept: Vec<_> = said
        .into_iter()
        .map(|message| match message {
            FromConverter::File { name, content: Content::Source { number } } => (number, name),
            other => panic!("{other:?}"),
        })
        .collect();
    kept.sort();
    let expected: Vec<_> = (0..).zip(tiny()).map(|(number, (name, _))| (number, name.to_owned())).collect();
    assert_eq!(kept, expected);
}

#[test]
fn what_comes_out_of_an_archive_has_places_of_its_own() {
    let converter = Converter::new();
    let file = |(name, bytes): &(&str, Vec<u8>)| {
        let mut header = vec![0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let padded = bytes.len().next_multiple_of(512);
        header.extend(bytes);
        header.resize(512 + padded, 0);
        header
    };
    let mut tar: Vec<u8> = tiny().iter().flat_map(file).collect();
    tar.resize(tar.len() + 1024, 0);
    let member = |(name, bytes): &(&str, Vec<u8>)| Member {
        path: (*name).to_owned(),
        name: (*name).to_owned(),
        bytes: Some(bytes.len() as u64),
    };
    let members = tiny().iter().map(member).collect();
    let sealed = SealedFile::from_bytes("tar", &gzip(&tar)).unwrap();
    let archive = Some(Archive { kind: ArchiveKind::TarGz, members });
    converter.send(ToConverter::Source { name: "a.tgz".to_owned(), archive }, &[sealed.as_fd()]);
    let places = converter.places(5, 1024 * 1024);
    let said = converter.answer(SourceForm::HuggingFace);
    assert!(matches!(said.last(), Some(FromConverter::Done(_))), "{said:?}");
    converter.child.wait().unwrap();
    let mut places: Vec<Option<Place>> = places.into_iter().map(Some).collect();
    for message in said {
        let FromConverter::File { name, content: Content::Output { number, bytes } } = message else {
            continue;
        };
        let made = places[number as usize].take().unwrap().seal(bytes).unwrap();
        let (_, expected) = tiny().into_iter().find(|(tiny, _)| *tiny == name).unwrap();
        assert_eq!(&*made.map().unwrap(), expected, "{name}");
    }
    assert!(places.iter().all(Option::is_none));
}

/// gzip without compression: stored blocks.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let blocks = bytes.chunks(65_535).count();
    for (number, block) in bytes.chunks(65_535).enumerate() {
        let length = u16::try_from(block.len()).unwrap();
        out.push(u8::from(number + 1 == blocks));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(block);
    }
    let crc = bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    out.extend((!crc).to_le_bytes());
    out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}

#[test]
fn a_source_that_could_still_change_is_refused() {
    let converter = Converter::new();
    let open = rustix::fs::memfd_create("open", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    converter.send(ToConverter::Source { name: "model.gguf".to_owned(), archive: None }, &[open.as_fd()]);
    let refusal = converter.refusal(SourceForm::Gguf);
    assert_eq!(refusal, ConvertError::NotSealed { file: "model.gguf".to_owned() });
}

#[test]
fn two_sources_of_one_name_are_refused() {
    let converter = Converter::new();
    converter.source("model.gguf", b"GGUF");
    converter.source("model.gguf", b"GGUF");
    assert_eq!(converter.refusal(SourceForm::Gguf), ConvertError::Twice { file: "model.gguf".to_owned() });
}

#[test]
fn without_sources_something_is_missing() {
    for form in [SourceForm::HuggingFace, SourceForm::Gguf, SourceForm::WhisperPt, SourceForm::SileroOnnx] {
        let refusal = Converter::new().refusal(form);
        assert!(matches!(refusal, ConvertError::Missing { .. }), "{form:?}: {refusal}");
    }
}

#[test]
fn a_message_out_of_order_ends_it() {
    let converter = Converter::new();
    converter.send(ToConverter::Start { lease_bytes: LEASE_BYTES }, &[]);
    converter.ends();
    let converter = Converter::new();
    converter.send(ToConverter::Output, &[]);
    converter.ends();
    let converter = Converter::new();
    converter.send(ToConverter::Source { name: String::new(), archive: None }, &[program().as_fd()]);
    converter.ends();
    let converter = Converter::new();
    converter.send(ToConverter::Convert { form: SourceForm::Gguf }, &[program().as_fd()]);
    converter.ends();
    let (child, _page, link) = start(&["convert"]);
    let link = ConverterLink::new(link);
    link.send(&ToConverter::Convert { form: SourceForm::Gguf }, &[]).unwrap();
    assert!(matches!(link.receive().unwrap().message, FromConverter::Hello { .. }));
    assert_eq!(child.wait().unwrap(), Exit::Code(1));
}

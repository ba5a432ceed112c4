//! Others read what we write: crates that are not ours check a checkpoint, every entry's inclusion, and an export.

use crate::{entry, keys, word};
use ringfence_audit::{
    Entry, Event, Filter, Folder, Log, NameMap, PublicKey, Reader, decode_bundle, export, verify,
};
use signed_note::{Note, StandardVerifier, VerifierList};
use std::fs;
use std::path::{Path, PathBuf};
use tlog_tiles::{
    Checkpoint, Error, Hash, Tile, TileHashReader, TileReader, check_record, prove_record, record_hash,
    tree_hash,
};

struct Export(PathBuf);

impl TileReader for Export {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        // Their path names the height, which the specification fixes.
        let path = |tile: &Tile| self.0.join(tile.path().replacen("tile/8/", "log/tile/", 1));
        Ok(tiles
            .iter()
            .map(|tile| fs::read(path(tile)).unwrap_or_else(|_| panic!("{}", tile.path())))
            .collect())
    }

    fn save_tiles(&self, _tiles: &[Tile], _data: &[Vec<u8>]) {}
}

/// Size and root by others' word alone.
fn checkpoint(export: &Path) -> (u64, Hash) {
    let key = fs::read_to_string(export.join("public-key")).unwrap();
    let note = Note::from_bytes(&fs::read(export.join("log/checkpoint")).unwrap()).unwrap();
    let verifier = StandardVerifier::new(key.trim_end()).unwrap();
    let (verified, unknown) = note.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
    assert_eq!((verified.len(), unknown.len()), (1, 0));
    let checkpoint = Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!(checkpoint.origin(), PublicKey::parse(&key).unwrap().origin());
    (checkpoint.size(), *checkpoint.hash())
}

fn check(entries: u64) {
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = || Folder::open(home.path()).unwrap();
    let (mut log, _) = Log::open(files(), keys(), None).unwrap();
    for number in 0..entries {
        log.append(entry(number)).unwrap();
        if number % 1_000 == 999 {
            log.commit().unwrap();
            log.checkpoint().unwrap();
        }
    }
    log.commit().unwrap();
    log.checkpoint().unwrap();
    let mut to = Folder::open(out.path()).unwrap();
    let exported = export(&files(), &log.public(), &NameMap::default(), &Filter::default(), &mut to).unwrap();
    assert_eq!((exported.present, exported.reported), (entries, entries));
    let (size, root) = checkpoint(out.path());
    assert_eq!(size, entries);
    let export = Export(out.path().to_owned());
    let reader = TileHashReader::new(size, root, &export);
    assert_eq!(tree_hash(size, &reader).unwrap(), root);
    for index in (0..entries).step_by(usize::try_from(entries / 97 + 1).unwrap()) {
        let width = usize::try_from((entries - index / 256 * 256).min(256)).unwrap();
        let suffix = if width < 256 { format!(".p/{width}") } else { String::new() };
        let bundle =
            fs::read(out.path().join(format!("log/tile/entries/{:03}{suffix}", index / 256))).unwrap();
        let written = decode_bundle(&bundle, width).unwrap()[usize::try_from(index % 256).unwrap()];
        assert_eq!(written, entry(index).encode().unwrap());
        let proof = prove_record(size, index, &reader).unwrap();
        check_record(&proof, size, root, index, record_hash(written)).unwrap();
    }
    // Ours says the same, of the log and of the export, by files and key alone.
    for folder in [home.path(), out.path()] {
        let files = Folder::open(folder).unwrap();
        let key = PublicKey::parse(&fs::read_to_string(folder.join("public-key")).unwrap()).unwrap();
        let verified = verify(&files, &key, None).unwrap();
        assert_eq!((verified.present, verified.checkpoint.root), (entries, root.0));
        let reader = Reader::open(&files, Some(&verified.checkpoint)).unwrap();
        assert_eq!(reader.entries(0).filter(Result::is_ok).count() as u64, entries);
    }
}

#[test]
fn other_crates_verify_checkpoint_inclusion_and_export() {
    for entries in [1, 255, 256, 257, 500, 512, 1_000] {
        check(entries);
    }
}

#[test]
fn a_log_of_three_levels_is_verified_too() {
    check(66_000);
}

#[test]
fn a_report_says_one_clients_entries_in_plain_words() {
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut log, _) = Log::open(Folder::open(home.path()).unwrap(), keys(), None).unwrap();
    for (client, path) in [("notes", "/home/anna/<b>diary</b>.txt"), ("mail", "/home/anna/inbox")] {
        let (client, path) = (log.mask(client), log.mask(path));
        let event = Event::GrantUsed { grant: 7, path };
        let request = Some(word("q1"));
        let entry = Entry {
            client: Some(client),
            request,
            uid: Some(1000),
            ..Entry::of_server(0, word("r1"), event)
        };
        log.append(entry).unwrap();
    }
    log.commit().unwrap();
    log.checkpoint().unwrap();
    let files = Folder::open(home.path()).unwrap();
    let names = NameMap::read(&files, &keys()).unwrap();
    let filter = Filter { client: Some(keys().masks().mask("notes")), ..Filter::default() };
    let mut to = Folder::open(out.path()).unwrap();
    let exported = export(&files, &keys().public(), &names, &filter, &mut to).unwrap();
    assert_eq!((exported.present, exported.reported), (2, 1));
    let text = fs::read_to_string(out.path().join("report.txt")).unwrap();
    let line = "1970-01-01 00:00:00Z  #0  notes (uid 1000)  first used it: /home/anna/<b>diary</b>.txt \
                [grant 7, request q1, run r1]";
    assert!(text.contains(line), "{text}");
    let page = fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.contains("/home/anna/&lt;b&gt;diary&lt;/b&gt;.txt") && !page.contains("<b>"), "{page}");
    for tag in ["<script", "<link", "src=", "href=", "url("] {
        assert!(!page.contains(tag), "{tag}");
    }
    for file in ["log/checkpoint", "log/tile/entries/000.p/2", "report.txt", "report.html"] {
        let bytes = fs::read(out.path().join(file)).unwrap();
        let inbox = bytes.windows(5).any(|bytes| bytes == b"inbox");
        assert!(!inbox, "{file} names what is another client's");
    }
}

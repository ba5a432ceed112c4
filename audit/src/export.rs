//! A copy of the log for others: tiles, checkpoint and public key as third-party tools read them, and what it says in
//! plain words, as text and as one HTML page. It is verified first.

use crate::checkpoint::{Checkpoint, PublicKey};
use crate::entry::Entry;
use crate::files::{Files, Folder};
use crate::log::{CHECKPOINT, PUBLIC_KEY};
use crate::mask::Masked;
use crate::names::NameMap;
use crate::read::{self, Fault, LOG, Stored};
use crate::tiles::{bundle_name, encode_entry, tile_name};
use crate::tree::{Hash, TILE_WIDTH, hex};
use crate::verify::walk;
use crate::words::{cells, line};
use std::fs::File;
use std::io::{self, BufWriter, Write};

const WIDTH: u64 = TILE_WIDTH as u64;
/// The report, as text and as a page.
const REPORT_TEXT: &str = "report.txt";
const REPORT_PAGE: &str = "report.html";

/// Which entries are put in words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Of this client only.
    pub client: Option<Masked>,
    /// Of this grant only.
    pub grant: Option<u64>,
    /// From this time on.
    pub from_ms: Option<u64>,
    /// Before this time.
    pub until_ms: Option<u64>,
}

impl Filter {
    /// Whether an entry is one of them.
    pub fn takes(&self, entry: &Entry) -> bool {
        self.client.is_none_or(|client| entry.client == Some(client))
            && self.grant.is_none_or(|grant| entry.event.grant() == Some(grant))
            && self.from_ms.is_none_or(|from| entry.time_ms >= from)
            && self.until_ms.is_none_or(|until| entry.time_ms < until)
    }
}

/// What an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// What its checkpoint says.
    pub checkpoint: Checkpoint,
    /// Entries that are there; the others were pruned.
    pub present: u64,
    /// Entries in the report.
    pub reported: u64,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The log does not hold.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A file of the export can't be written.
    #[error("{file}: {source}")]
    Io {
        /// Below the export's folder.
        file: String,
        /// From the system.
        source: io::Error,
    },
}

/// Copies the log up to its checkpoint into an empty folder, and reports the entries that `filter` takes. Names are those
/// of `names`: none where it is empty. Entries of other clients are in the copied log, masked as they are there.
///
/// # Errors
/// [`ExportError`]; what was written so far stays.
pub fn export(
    files: &impl Files,
    public: &PublicKey,
    names: &NameMap,
    filter: &Filter,
    to: &mut Folder,
) -> Result<Exported, ExportError> {
    let (note, checkpoint) = read::newest_checkpoint(files, public)?;
    let stored = Stored::open(files)?;
    let mut tiles = Ok(());
    let walked = walk(&stored, checkpoint, None, |(level, number, hashes)| {
        if tiles.is_ok() {
            tiles = put_tile(to, *level, *number, hashes);
        }
        Ok(())
    })?;
    tiles?;
    for (level, number, hashes) in walked.tree.partial() {
        put_tile(to, level, number, hashes)?;
    }
    put(to, CHECKPOINT, note.as_bytes())?;
    put(to, PUBLIC_KEY, format!("{}\n", public.to_text()).as_bytes())?;
    let present = checkpoint.size - walked.missing;
    let mut report = Report::begin(to, public, checkpoint, walked.missing)?;
    for bundle in walked.missing / WIDTH..checkpoint.size.div_ceil(WIDTH) {
        let entries = stored.entries(bundle, checkpoint.size)?;
        put_bundle(to, bundle, &entries)?;
        for (index, bytes) in (bundle * WIDTH..).zip(&entries) {
            report.add(index, bytes, names, filter)?;
        }
    }
    let reported = report.end()?;
    Ok(Exported { checkpoint, present, reported })
}

fn put_tile(to: &mut Folder, level: u8, number: u64, hashes: &[Hash]) -> Result<(), ExportError> {
    put(to, &format!("{LOG}{}", tile_name(level, number, hashes.len())), hashes.as_flattened())
}

fn put_bundle(to: &mut Folder, number: u64, entries: &[Vec<u8>]) -> Result<(), ExportError> {
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| encode_entry(&mut bytes, entry));
    put(to, &format!("{LOG}{}", bundle_name(number, entries.len())), &bytes)
}

fn put(to: &mut Folder, file: &str, bytes: &[u8]) -> Result<(), ExportError> {
    let written = to.create(file).and_then(|mut file| file.write_all(bytes));
    written.map_err(failed(file))
}

fn failed(file: &str) -> impl FnOnce(io::Error) -> ExportError {
    let file = file.to_owned();
    |source| ExportError::Io { file, source }
}

/// The two files of the report.
struct Report {
    text: BufWriter<File>,
    page: BufWriter<File>,
    reported: u64,
}

/// The page needs nothing from anywhere, and lets nothing be loaded.
const PAGE_HEAD: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Ringfence audit</title>
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1b1f24; background: #fff }
pre { background: #f3f4f6; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem; border-bottom: 1px solid #d8dce2 }
th { position: sticky; top: 0; background: #fff }
td:first-child { white-space: nowrap } td:last-child { overflow-wrap: anywhere }
</style></head><body>
<h1>Ringfence audit</h1>
";
const TABLE_HEAD: &str =
    "<table><thead><tr><th>When</th><th>Entry</th><th>Who</th><th>What</th></tr></thead><tbody>\n";
const PAGE_END: &str = "</tbody></table></body></html>\n";

impl Report {
    fn begin(
        to: &mut Folder,
        public: &PublicKey,
        checkpoint: Checkpoint,
        pruned: u64,
    ) -> Result<Self, ExportError> {
        let heading = heading(public, checkpoint, pruned);
        let mut create = |file: &str| to.create(file).map(BufWriter::new).map_err(failed(file));
        let mut report = Self { text: create(REPORT_TEXT)?, page: create(REPORT_PAGE)?, reported: 0 };
        report.write(&format!("Ringfence audit\n\n{heading}\n"), |page| {
            write!(page, "{PAGE_HEAD}<pre>{}</pre>\n{TABLE_HEAD}", escape(&heading))
        })?;
        Ok(report)
    }

    fn add(&mut self, index: u64, bytes: &[u8], names: &NameMap, filter: &Filter) -> Result<(), ExportError> {
        // What another version wrote is in the log, and in no words of this one.
        let Some(entry) = Entry::decode(bytes).ok().filter(|entry| filter.takes(entry)) else {
            return Ok(());
        };
        self.reported += 1;
        let cells = cells(index, &entry, names).map(|cell| escape(&cell));
        self.write(&(line(index, &entry, names) + "\n"), |page| {
            writeln!(page, "<tr><td>{}</td></tr>", cells.join("</td><td>"))
        })
    }

    fn end(mut self) -> Result<u64, ExportError> {
        let counted = format!("\n{} entries\n", self.reported);
        self.write(&counted, |page| page.write_all(PAGE_END.as_bytes()))?;
        self.text.flush().map_err(failed(REPORT_TEXT))?;
        self.page.flush().map_err(failed(REPORT_PAGE))?;
        Ok(self.reported)
    }

    fn write(
        &mut self,
        text: &str,
        page: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), ExportError> {
        self.text.write_all(text.as_bytes()).map_err(failed(REPORT_TEXT))?;
        page(&mut self.page).map_err(failed(REPORT_PAGE))
    }
}

fn heading(public: &PublicKey, checkpoint: Checkpoint, pruned: u64) -> String {
    let pruned = match pruned {
        0 => String::new(),
        pruned => {
            format!("The first {pruned} entries were removed in time; their hashes are here and hold.\n")
        }
    };
    format!(
        "The log {origin} of {size} entries, whose tree hashes to {root}.\n{pruned}\
         The folder log/ has the entries, the hash tiles and the signed checkpoint in the C2SP forms tlog-tiles and\n\
         signed-note; the key is in public-key. Paths, reasons and clients' names are masked there. To check it, and that\n\
         nobody with the key wrote it anew, hold it against a checkpoint that was kept elsewhere:\n\
         ringfence audit verify --log THIS-FOLDER --checkpoint FILE\n",
        origin = public.origin(),
        size = checkpoint.size,
        root = hex(&checkpoint.root),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

//! How fast a log is verified and opened, and what an entry costs beside a bare fdatasync.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringfence_audit::{Access, Entry, Event, Folder, KEYS_BYTES, Keys, Log, Word, verify};
use std::io::Write;

/// Entries of the log that is verified.
const ENTRIES: u64 = 100_000;
/// Callers that wait for one commit.
const GROUP: u64 = 64;

fn keys() -> Keys {
    Keys::generate(&[7; KEYS_BYTES])
}

/// An entry of the long kind, about 500 bytes.
fn entry(log: &mut Log<Folder>, number: u64) -> Entry {
    let word = |text: &str| Word::new(text).expect("it is a word");
    let event = Event::GrantRequested {
        grant: number,
        access: Access::FileRead,
        path: log.mask("/home/anna/documents/a.txt"),
        audience: word("minilm"),
        reason: log.mask("to find passages"),
        lifetime_ms: 600_000,
        bytes_max: 1 << 20,
        snapshot: false,
    };
    let client = Some(log.mask("notes"));
    let request = Some(word("01234567-89ab-cdef"));
    Entry { client, request, uid: Some(1_000), ..Entry::of_server(number, word("run-1"), event) }
}

fn open(folder: &tempfile::TempDir) -> Log<Folder> {
    let files = Folder::open(folder.path()).expect("the folder is there");
    Log::open(files, keys(), None).expect("the log opens").0
}

fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut log = open(&folder);
    for number in 0..ENTRIES {
        let entry = entry(&mut log, number);
        log.append(entry).expect("there is room");
        if number % 2_048 == 2_047 {
            log.commit().expect("it commits");
            log.checkpoint().expect("it signs");
        }
    }
    log.commit().expect("it commits");
    log.checkpoint().expect("it signs");
    folder
}

fn reading(criterion: &mut Criterion) {
    let folder = filled();
    let mut group = criterion.benchmark_group("audit");
    group.sample_size(10).throughput(Throughput::Elements(ENTRIES));
    group.bench_function("verify", |bencher| {
        let files = Folder::open(folder.path()).expect("the folder is there");
        bencher.iter(|| verify(&files, &keys().public(), None).expect("it holds"));
    });
    group.bench_function("open", |bencher| {
        bencher.iter(|| open(&folder));
    });
    group.finish();
}

fn writing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("audit");
    let folder = tempfile::tempdir().expect("a folder");
    let mut bare = tempfile::tempfile_in(folder.path()).expect("a file");
    group.bench_function("bare_fdatasync", |bencher| {
        bencher.iter(|| {
            bare.write_all(&[0; 500]).expect("it writes");
            bare.sync_data().expect("it syncs");
        });
    });
    let mut log = open(&folder);
    for (name, entries) in [("append_commit_1", 1), ("append_commit_64", GROUP)] {
        group.throughput(Throughput::Elements(entries));
        group.bench_function(name, |bencher| {
            // A checkpoint comes once a second or in 64 entries; here it is left out of the time.
            let ready = |log: &mut Log<Folder>| {
                log.checkpoint().expect("it signs");
                (0..entries).map(|number| entry(log, number)).collect::<Vec<_>>()
            };
            let cell = std::cell::RefCell::new(&mut log);
            bencher.iter_batched(
                || ready(&mut cell.borrow_mut()),
                |entries| {
                    let mut log = cell.borrow_mut();
                    for entry in entries {
                        log.append(entry).expect("there is room");
                    }
                    log.commit().expect("it commits")
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.throughput(Throughput::Elements(GROUP));
    group.bench_function("append_commit_64_checkpoint", |bencher| {
        bencher.iter(|| {
            for number in 0..GROUP {
                let entry = entry(&mut log, number);
                log.append(entry).expect("there is room");
            }
            log.commit().expect("it commits");
            log.checkpoint().expect("it signs")
        });
    });
    group.finish();
}

criterion_group!(benches, reading, writing);
criterion_main!(benches);

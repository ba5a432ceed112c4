//! Names that try to lead out of the root, by their words and by what others do to the folders meanwhile.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use ringfence_fileguard::reading::read_at;
use ringfence_fileguard::root::{Opened, Root};
use ringfence_protocol::{FileAccess, FileRefusal, FromFileguard};
use ringfence_sandbox::{FileId, HostRoot, RootAccess};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Guard, Host, INSIDE, SECRET};

const PAYLOADS: usize = 24_000;
/// Tries of the race, unless `RINGFENCE_RACES` says otherwise.
const RACES: usize = 50_000;

/// xorshift64*: the same payloads each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// Steps back and what somebody might take for one, separators and the like, and names that exist.
const PIECES: [&[&str]; 3] = [
    &[
        "..",
        "..",
        "..",
        ".",
        "...",
        "....",
        "%2e%2e",
        "%252e%252e",
        "..%00",
        "..;",
        ".. ",
        " ..",
        "\u{2025}",
        "\u{ff0e}\u{ff0e}",
        "\u{2024}\u{2024}",
        ".\u{200b}.",
        ".\u{0301}.",
        "%c0%ae%c0%ae",
        "..\u{feff}",
        "\\..",
    ],
    &[
        "/", "/", "/", "//", "\\", "%2f", "%5c", "\0", "%00", "\u{2215}", "\u{2044}", "\u{ff0f}", ":", "\n",
        "\r\n", "",
    ],
    &[
        "folder",
        "file",
        "outside",
        "secret",
        "root",
        "folder/deep",
        "proc/self/root",
        "proc/self/fd/3",
        "proc/self/cwd",
        "etc/passwd",
        "dev/fd/0",
        "sys",
        "tmp",
        "~",
        "file://",
        "C:",
        "link-out",
        "link-up",
        "e\u{0301}",
        "\u{00e9}",
        "\u{202e}terces",
        "granted",
    ],
];

fn payload(random: &mut Random, host: &Host) -> String {
    let long = [255, 256, 1024, 4094, 4095, 4096, 4097, 8192, 30_000];
    match random.below(20) {
        0 => "a".repeat(long[random.below(long.len())]),
        1 => "../".repeat(long[random.below(long.len())] / 3) + &host.text("outside/secret"),
        2 => "folder/../".repeat(long[random.below(long.len())] / 10) + "../outside/secret",
        3 => host.text("outside/secret"),
        4 => format!("{}{}", "/".repeat(1 + random.below(8)), host.text("root/../outside/secret")),
        5 => "a/".repeat(long[random.below(long.len())] / 2) + "../secret",
        6 => "folder/".repeat(1 + random.below(3)) + &"../".repeat(1 + random.below(6)) + "outside/secret",
        _ => {
            let parts = 1 + random.below(12);
            (0..parts)
                .map(|_| {
                    let kind = PIECES[random.below(3)];
                    kind[random.below(kind.len())]
                })
                .collect()
        }
    }
}

fn check_typed(path: &str, refusal: FileRefusal) {
    let typed = matches!(
        refusal,
        FileRefusal::NotFound
            | FileRefusal::OutsideRoot
            | FileRefusal::Symlink
            | FileRefusal::NotAFile
            | FileRefusal::NotAFolder
            | FileRefusal::ReadOnly
    );
    assert!(typed, "{path:?}: {refusal:?}");
}

#[test]
fn no_words_lead_outside() {
    let host = Host::new();
    host.make_folder("root/folder");
    host.write("root/folder/deep", INSIDE);
    host.link("../outside", "root/link-out");
    host.link("..", "root/link-up");
    let guard = Guard::read(&host.root());
    let mut random = Random(0x5eed);
    let (mut inside, mut refused) = (0, std::collections::BTreeMap::new());
    for turn in 0..PAYLOADS {
        let path = payload(&mut random, &host);
        let outcome = match turn % 4 {
            0 => guard.snapshot(&path, u64::MAX).map(Some),
            1 => guard.open(&path, FileAccess::Read).map(|file| Some(file.read(0, 100).unwrap())),
            2 => guard.open(&path, FileAccess::Write).map(|_| panic!("{path:?} opened for writing")),
            _ => guard.list(&path, "", 10).map(|listed| {
                let FromFileguard::Listed { entries, .. } = listed else { panic!("a list") };
                assert!(entries.iter().all(|entry| entry.name != "secret"), "{path:?}");
                None
            }),
        };
        match outcome {
            Ok(Some(bytes)) => {
                assert_eq!(bytes, INSIDE, "{path:?}");
                inside += 1;
            }
            Ok(None) => inside += 1,
            Err(refusal) => {
                check_typed(&path, refusal);
                *refused.entry(format!("{refusal:?}")).or_insert(0) += 1;
            }
        }
    }
    println!("{PAYLOADS} payloads: {inside} stayed inside, refused {refused:?}");
    assert!(inside > 0 && refused.len() >= 4, "the payloads are too uniform");
    assert_eq!(guard.snapshot("file", 100).unwrap(), INSIDE, "it still serves");
}

#[test]
fn no_swap_of_folders_and_links_leads_outside() {
    let (tries, host) = (races(), Host::new());
    lay_traps(&host);
    let guard = Guard::write(&host.root());
    while_folders_are_swapped(&host, || {
        let mut outcomes = std::collections::BTreeMap::new();
        for turn in 0..tries {
            let path = if turn % 2 == 0 { "now/secret" } else { "files/secret" };
            // Commits wait for the disk.
            let outcome = match turn % 100 {
                0..10 => guard.snapshot(path, 1000).map(|bytes| assert_eq!(bytes, INSIDE, "{path}")),
                10 => write_new(&guard, "now/new"),
                _ => guard.open(path, FileAccess::Read).map(|file| {
                    assert_eq!(file.read(0, 1000).unwrap(), INSIDE, "{path}");
                }),
            };
            if let Err(FileRefusal::Os { errno }) = outcome {
                panic!("{path}: error {errno}");
            }
            *outcomes.entry(format!("{outcome:?}")).or_insert(0) += 1;
        }
        println!("{tries} tries: {outcomes:?}");
        assert!(outcomes.contains_key("Ok(())") && outcomes.len() > 2, "the race is none");
    });
    assert_eq!(host.names("outside"), ["other", "secret"]);
    assert_eq!((host.read("outside/secret"), host.read("outside/other")), (SECRET.to_vec(), SECRET.to_vec()));
}

/// The same without the sandbox, which would hold if this did not: the way from a name to a descriptor has to hold alone.
fn beginning(opened: &Opened) -> Vec<u8> {
    let mut bytes = Vec::new();
    read_at(opened.file.as_fd(), 0, 1000, &mut bytes).unwrap();
    bytes
}

#[test]
fn no_swap_leads_outside_where_the_outside_can_be_seen() {
    let (tries, host) = (races(), Host::new());
    lay_traps(&host);
    let root = seen_from_inside(&host);
    while_folders_are_swapped(&host, || {
        let mut outcomes = std::collections::BTreeMap::new();
        for turn in 0..tries {
            let path = if turn % 2 == 0 { "now/secret" } else { "files/secret" };
            let outcome = root.open_file(path).map(|opened| {
                assert_eq!(beginning(&opened), INSIDE, "{path}");
            });
            let target = root.open_target("now/new").map(|target| {
                assert_ne!(target.folder_identity, host.identity("outside"));
            });
            for outcome in [outcome, target] {
                *outcomes.entry(format!("{outcome:?}")).or_insert(0) += 1;
            }
        }
        println!("{tries} tries: {outcomes:?}");
        assert!(outcomes.contains_key("Ok(())") && outcomes.len() > 2, "the race is none");
    });
}

#[test]
fn no_words_lead_outside_where_the_outside_can_be_seen() {
    let host = Host::new();
    host.make_folder("root/folder");
    host.write("root/folder/deep", INSIDE);
    host.link("../outside", "root/link-out");
    host.link("..", "root/link-up");
    let root = seen_from_inside(&host);
    let mut random = Random(0xca11);
    for _ in 0..PAYLOADS {
        let path = payload(&mut random, &host);
        match root.open_file(&path) {
            Ok(opened) => assert_eq!(beginning(&opened), INSIDE, "{path:?}"),
            Err(refusal) => check_typed(&path, refusal),
        }
        if let Err(refusal) = root.open_folder(&path) {
            check_typed(&path, refusal);
        }
    }
}

/// The root as the program has it, but in this process, which sees all of the host.
fn seen_from_inside(host: &Host) -> Root {
    let described = HostRoot {
        path: host.root(),
        access: RootAccess::Write,
        is_folder: true,
        id: FileId { device: 0, inode: 0 },
        owner: 0,
        size: 0,
        modified: 0,
        above: vec![],
    };
    Root::open(&described, &host.root(), support::owner()).unwrap()
}

fn races() -> usize {
    std::env::var("RINGFENCE_RACES").ok().and_then(|tries| tries.parse().ok()).unwrap_or(RACES)
}

/// Names that lead inside, and others to swap them with that don't.
fn lay_traps(host: &Host) {
    host.make_folder("root/now");
    host.write("root/now/secret", INSIDE);
    host.link("../outside", "root/then");
    host.make_folder("root/files");
    host.write("root/files/secret", INSIDE);
    host.link("../../outside/secret", "root/files/link");
    // A second name of a file outside: refused whenever it is met.
    host.write("outside/other", SECRET);
    std::fs::hard_link(host.at("outside/other"), host.at("root/files/other")).unwrap();
}

fn while_folders_are_swapped(host: &Host, work: impl FnOnce()) {
    let swaps = [
        ("root/now", "root/then"),
        ("root/files/secret", "root/files/link"),
        ("root/files/secret", "root/files/other"),
        ("root/now", "root/files"),
    ];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also where the work fails.
        let _stop = Stop(&done);
        scope.spawn(|| {
            for turn in 0.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let (a, b): (&str, &str) = swaps[turn / 2 % swaps.len()];
                renameat_with(CWD, host.at(a), CWD, host.at(b), RenameFlags::EXCHANGE).unwrap();
            }
        });
        work();
    });
}

/// Ends the other thread when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write_new(guard: &Guard, path: &str) -> Result<(), FileRefusal> {
    let file = guard.open(path, FileAccess::Write)?;
    file.write(0, INSIDE)?;
    file.commit().map(|_| ())
}

//! What is given and what is refused, each by its own name; windows, ends, and contents that change at once.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use ringfence_fileguard::clock::boot_ms;
use ringfence_protocol::{
    EntryKind, FILE_STEP_BYTES_MAX, FILE_STEPS_MAX, FileAccess, FileEnd, FileEntry, FileRefusal, FileReply,
    FileRequest, FromFileguard, Identity, LIST_ENTRIES_MAX, OPEN_FILES_MAX, Packet, ToFileguard,
    connected_pair,
};
use ringfence_sandbox::Exit;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;
use std::time::Duration;
use support::{DIGEST_KEY, Guard, Host, INSIDE, Mounted, NEVER, SECRET, is_root, last_words};

const STEP: u32 = FILE_STEP_BYTES_MAX as u32;
/// A number of steps and a bit.
const LONG: usize = 3_000_017;

fn long() -> Vec<u8> {
    (0..LONG).map(|at| (at * 31 % 251) as u8).collect()
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    blake3::keyed_hash(&DIGEST_KEY, bytes).into()
}

/// The whole of a file, a window of steps at a time.
fn read_whole(file: &support::Served) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut packet = Packet::default();
    let mut asked = 0;
    loop {
        while asked < bytes.len() as u64 + u64::from(STEP) * FILE_STEPS_MAX as u64 {
            file.link.send(&FileRequest::Read { offset: asked, length: STEP }, &[]).unwrap();
            asked += u64::from(STEP);
        }
        match file.link.receive_carried(&mut packet).unwrap().message {
            FileReply::Bytes { offset, length } if offset == bytes.len() as u64 => {
                bytes.extend_from_slice(packet.carried());
                if length < STEP {
                    return bytes;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_is_read_in_steps_and_its_end_tells_what_was_read() {
    let host = Host::new();
    host.make_folder("root/folder");
    host.write("root/folder/long", &long());
    let guard = Guard::read(&host.root());
    let file = guard.open("folder/long", FileAccess::Read).unwrap();
    assert_eq!(file.size, LONG as u64);
    assert_eq!(read_whole(&file), long());
    guard.link.send(&ToFileguard::Close { number: file.number }, &[]).unwrap();
    assert_eq!(guard.closed(file.number), (LONG as u64, digest(&long()), FileEnd::Asked));

    let part = guard.open("folder/long", FileAccess::Read).unwrap();
    assert_eq!(part.read(1_000_000, 10).unwrap(), long()[1_000_000..1_000_010]);
    assert_eq!(part.read(LONG as u64 - 3, 10).unwrap(), long()[LONG - 3..]);
    assert_eq!(part.read(LONG as u64, 10).unwrap(), b"");
    assert_eq!(part.read(u64::MAX, 10).unwrap(), b"");
    assert_eq!(part.read(0, 0).unwrap(), b"");
    let number = part.number;
    drop(part);
    let parts = [&long()[1_000_000..1_000_010], &long()[LONG - 3..]].concat();
    assert_eq!(guard.closed(number), (13, digest(&parts), FileEnd::HungUp));
}

#[test]
fn a_snapshot_is_sealed_and_no_longer_than_allowed() {
    let host = Host::new();
    host.write("root/long", &long());
    host.write("root/empty", b"");
    let guard = Guard::read(&host.root());
    let (_, size, of_copy) = guard.snapshot_file("long", LONG as u64).unwrap();
    assert_eq!((size, of_copy), (LONG as u64, digest(&long())));
    assert_eq!(guard.snapshot("long", u64::MAX).unwrap(), long());
    assert_eq!(guard.snapshot("empty", 0).unwrap(), b"");
    assert_eq!(guard.snapshot("long", LONG as u64 - 1), Err(FileRefusal::TooLarge));
    assert_eq!(guard.snapshot("missing", 1), Err(FileRefusal::NotFound));
}

fn special(host: &Host, path: &str, kind: FileType, device: u64) {
    mknodat(CWD, host.at(path), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    support::own(&host.at(path));
}

#[test]
fn each_thing_that_is_no_file_of_the_root_has_its_own_refusal() {
    let host = Host::new();
    host.make_folder("root/folder");
    host.make_folder("root/kept-out");
    host.make_folder("root/kept-out/below");
    host.write("root/kept-out/below/file", SECRET);
    host.write("root/closed", b"");
    std::fs::set_permissions(host.at("root/closed"), PermissionsExt::from_mode(0o000)).unwrap();
    host.link("file", "root/link");
    host.link("folder", "root/link-to-folder");
    host.link("/proc/self", "root/link-to-proc");
    host.link("nowhere", "root/dangling");
    host.write("outside/twice", b"");
    std::fs::hard_link(host.at("outside/twice"), host.at("root/twice")).unwrap();
    special(&host, "root/fifo", FileType::Fifo, 0);
    let _socket = std::os::unix::net::UnixListener::bind(host.at("root/socket")).unwrap();
    let long = "a/".repeat(3000);
    let mut cases = vec![
        ("missing", FileRefusal::NotFound),
        ("folder/missing", FileRefusal::NotFound),
        ("missing/file", FileRefusal::NotFound),
        ("proc/self/root/etc/passwd", FileRefusal::NotFound),
        ("", FileRefusal::OutsideRoot),
        ("..", FileRefusal::OutsideRoot),
        ("../outside/secret", FileRefusal::OutsideRoot),
        ("folder/../file", FileRefusal::OutsideRoot),
        ("/etc/passwd", FileRefusal::OutsideRoot),
        ("file\0", FileRefusal::OutsideRoot),
        ("./file", FileRefusal::OutsideRoot),
        (&long, FileRefusal::OutsideRoot),
        ("link", FileRefusal::Symlink),
        ("dangling", FileRefusal::Symlink),
        ("link-to-folder/missing", FileRefusal::Symlink),
        ("link-to-proc/root", FileRefusal::Symlink),
        ("twice", FileRefusal::HardLink),
        ("folder", FileRefusal::NotAFile),
        ("fifo", FileRefusal::NotAFile),
        ("socket", FileRefusal::NotAFile),
        ("file/below", FileRefusal::NotAFolder),
        ("kept-out/below/file", FileRefusal::Excluded),
        ("kept-out/missing", FileRefusal::Excluded),
    ];
    let mut mounts = Vec::new();
    if is_root() {
        special(&host, "root/device", FileType::CharacterDevice, rustix::fs::makedev(1, 5));
        std::fs::write(host.at("root/foreign"), SECRET).unwrap();
        cases.extend([("device", FileRefusal::NotAFile), ("foreign", FileRefusal::WrongOwner)]);
        for (name, kind) in [("mounted", c"tmpfs"), ("processes", c"proc")] {
            let path = host.at("root").join(name);
            std::fs::create_dir(&path).unwrap();
            mounts.push(Mounted::new(path, kind));
        }
        std::fs::write(host.at("root/mounted/file"), SECRET).unwrap();
        cases.extend([
            ("mounted", FileRefusal::OtherMount),
            ("mounted/file", FileRefusal::OtherMount),
            ("processes/version", FileRefusal::OtherMount),
        ]);
    } else {
        println!("not root: no device, no other owner, no mount");
    }
    let excluded = vec![host.identity("root/kept-out")];
    for access in ["read", "write"] {
        let guard = Guard::new(access, &host.root(), excluded.clone());
        for (path, refusal) in &cases {
            let read = guard.open(path, FileAccess::Read).map(|file| file.size);
            assert_eq!(read, Err(*refusal), "{path}");
            assert_eq!(guard.snapshot(path, u64::MAX), Err(*refusal), "{path}");
            let written = guard.open(path, FileAccess::Write).map(|file| file.size);
            match (access, refusal) {
                ("read", FileRefusal::OutsideRoot) | ("write", _) => {
                    // What is not there may be made, if its folder is.
                    let made = matches!(*path, "missing" | "folder/missing");
                    assert_eq!(written, if made { Ok(0) } else { Err(*refusal) }, "write of {path}");
                }
                _ => assert_eq!(written, Err(FileRefusal::ReadOnly), "write of {path}"),
            }
        }
        assert_eq!(guard.open("closed", FileAccess::Read).err(), Some(FileRefusal::Denied));
        assert!(matches!(guard.list("kept-out", "", 1), Err(FileRefusal::Excluded)));
        assert!(matches!(guard.list("kept-out/below", "", 1), Err(FileRefusal::Excluded)));
        assert!(matches!(guard.list("link-to-folder", "", 1), Err(FileRefusal::Symlink)));
        assert!(matches!(guard.list("file", "", 1), Err(FileRefusal::NotAFolder)));
        assert!(matches!(guard.list("..", "", 1), Err(FileRefusal::OutsideRoot)));
        assert_eq!(guard.open("file", FileAccess::Read).unwrap().read(0, 100).unwrap(), INSIDE);
    }
}

#[test]
fn a_root_in_a_folder_that_is_kept_out_gives_nothing() {
    let host = Host::new();
    for path in ["root", "root/file"] {
        let guard = Guard::new("read", &host.text(path), vec![host.identity("")]);
        assert_eq!(guard.open("file", FileAccess::Read).map(|file| file.size), Err(FileRefusal::Excluded));
        assert!(matches!(guard.list("", "", 1), Err(FileRefusal::Excluded)));
    }
}

#[test]
fn a_root_that_is_a_file_gives_that_file_only() {
    let host = Host::new();
    host.write("root/other", SECRET);
    for access in ["read", "write"] {
        let guard = Guard::new(access, &host.text("root/file"), vec![]);
        assert_eq!(guard.snapshot("file", 100).unwrap(), INSIDE);
        assert_eq!(guard.open("file", FileAccess::Read).unwrap().read(0, 100).unwrap(), INSIDE);
        for path in ["other", "root/file", "file2"] {
            assert_eq!(guard.snapshot(path, 100), Err(FileRefusal::NotFound), "{path}");
        }
        assert!(matches!(guard.list("", "", 1), Err(FileRefusal::NotAFolder)));
        let other = guard.open("other", FileAccess::Write).map(|file| file.size);
        assert_eq!(other, Err(FileRefusal::NotFound));
        let written = guard.open("file", FileAccess::Write);
        if access == "read" {
            assert_eq!(written.err(), Some(FileRefusal::ReadOnly));
        } else {
            let file = written.unwrap();
            file.write(0, b"new").unwrap();
            assert_eq!(file.commit(), Ok(3));
            assert_eq!(host.read("root/file"), b"new");
            assert_eq!(guard.snapshot("file", 100).unwrap(), b"new");
        }
    }
}

impl std::fmt::Debug for support::Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file {}", self.number)
    }
}

#[test]
fn no_byte_comes_after_the_end_of_its_time() {
    let host = Host::new();
    host.write("root/long", &long());
    let guard = Guard::read(&host.root());
    let past = guard.open_until("long", FileAccess::Read, boot_ms(), NEVER).err();
    assert_eq!(past, Some(FileRefusal::Expired));

    let until = boot_ms() + 300;
    let busy = guard.open_until("long", FileAccess::Read, until, NEVER).unwrap();
    let (mut last, mut steps) = (0, 0);
    let last_word = loop {
        // Before it is asked for: how long this test itself is held up is not the program's.
        let asked = boot_ms();
        match busy.try_ask(&FileRequest::Read { offset: 0, length: STEP }) {
            Ok(FileReply::Bytes { .. }) => (last, steps) = (asked, steps + 1),
            other => break other,
        }
    };
    assert!(matches!(last_word, Ok(FileReply::Refused(FileRefusal::Expired)) | Err(_)), "{last_word:?}");
    println!("{steps} steps, the last asked for {} ms before the end", until.saturating_sub(last));
    assert!(steps > 10 && last < until, "{steps} steps, {last}, {until}");
    assert!(busy.link.receive().is_err());
    assert_eq!(guard.closed(busy.number).2, FileEnd::Expired);
}

#[test]
fn a_file_that_nobody_asks_for_ends_in_time_too() {
    let host = Host::new();
    let guard = Guard::read(&host.root());
    // The best of a few: the machine may hold up both sides.
    let late = (0..8).filter_map(|_| {
        let until = boot_ms() + 50;
        // Held up for so long, it is over before it begins.
        let idle = guard.open_until("file", FileAccess::Read, until, NEVER).ok()?;
        assert_eq!(idle.link.receive().unwrap().message, FileReply::Refused(FileRefusal::Expired));
        let late = boot_ms().saturating_sub(until);
        assert_eq!(guard.closed(idle.number), (0, digest(b""), FileEnd::Expired));
        Some(late)
    });
    let late = late.min().unwrap();
    assert!(late <= 10, "{late} ms late");
}

#[test]
fn no_byte_that_is_read_after_the_kill_is_given() {
    let host = Host::new();
    host.write("root/long", &vec![b'a'; LONG]);
    let guard = Guard::read(&host.root());
    let file = guard.open("long", FileAccess::Read).unwrap();
    for step in 0..FILE_STEPS_MAX as u64 {
        file.link.send(&FileRequest::Read { offset: step * u64::from(STEP), length: STEP }, &[]).unwrap();
    }
    let mut packet = Packet::default();
    assert!(matches!(file.link.receive_carried(&mut packet).unwrap().message, FileReply::Bytes { .. }));
    guard.child.kill().unwrap();
    guard.child.wait().unwrap();
    std::fs::write(host.at("root/long"), vec![b'b'; LONG]).unwrap();
    let mut given = 0;
    while let Ok(received) = file.link.receive_carried(&mut packet) {
        match received.message {
            FileReply::Bytes { .. } => {
                assert!(packet.carried().iter().all(|byte| *byte == b'a'), "bytes from after the kill");
                given += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(given < FILE_STEPS_MAX, "what was sent before the kill is at most a window");
    assert!(file.link.send(&FileRequest::Read { offset: 0, length: 1 }, &[]).is_err());
}

#[test]
fn no_more_bytes_are_given_or_taken_than_were_granted() {
    let host = Host::new();
    let guard = Guard::write(&host.root());
    let file = guard.open_until("file", FileAccess::Read, NEVER, 20).unwrap();
    assert_eq!(file.read(0, 10).unwrap(), INSIDE[..10]);
    assert_eq!(file.read(0, 11), Err(FileRefusal::TooLarge));
    assert_eq!(file.read(0, 10).unwrap(), INSIDE[..10]);
    assert_eq!(file.read(0, 1), Err(FileRefusal::TooLarge));
    assert_eq!(file.read(INSIDE.len() as u64, 1).unwrap(), b"");
    assert_eq!(file.write(0, b"x"), Err(FileRefusal::ReadOnly));
    assert_eq!(file.commit(), Err(FileRefusal::ReadOnly));

    let new = guard.open_until("new", FileAccess::Write, NEVER, 4).unwrap();
    assert_eq!(new.write(1, b"1234"), Err(FileRefusal::TooLarge));
    assert_eq!(new.write(u64::MAX, b"1"), Err(FileRefusal::TooLarge));
    assert_eq!(new.read(0, 1), Err(FileRefusal::WriteOnly));
    new.write(0, b"123").unwrap();
    assert_eq!(new.write(0, b"12"), Err(FileRefusal::TooLarge));
    assert_eq!(new.commit(), Ok(3));
    assert_eq!(host.read("root/new"), b"123");
}

#[test]
fn a_window_that_is_overrun_is_refused_and_not_queued() {
    let host = Host::new();
    host.write("root/long", &long());
    let guard = Guard::read(&host.root());
    let pid = Pid::from_raw(guard.pid).unwrap();
    let read = |length| FileRequest::Read { offset: 0, length };
    // While it sleeps, so that all arrive together.
    for (count, end) in [(FILE_STEPS_MAX, None), (FILE_STEPS_MAX + 1, Some(FileEnd::Illegal))] {
        let file = guard.open("long", FileAccess::Read).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        thread::sleep(Duration::from_millis(20));
        (0..count).for_each(|_| file.link.send(&read(10), &[]).unwrap());
        kill_process(pid, Signal::CONT).unwrap();
        match end {
            None => (0..count).for_each(|_| {
                let reply = file.link.receive_carried(&mut Packet::default()).unwrap().message;
                assert!(matches!(reply, FileReply::Bytes { .. }), "{reply:?}");
            }),
            Some(end) => {
                let refused = FileReply::Refused(FileRefusal::TooMany);
                assert_eq!(file.link.receive().unwrap().message, refused);
                assert!(file.link.receive().is_err());
                assert_eq!(guard.closed(file.number), (0, digest(b""), end));
            }
        }
    }
    // Who never reads replies ends its own file, and no other.
    let deaf = guard.open("long", FileAccess::Read).unwrap();
    while deaf.link.send(&read(STEP), &[]).is_ok() {}
    assert_eq!(guard.closed(deaf.number).2, FileEnd::Illegal);
    assert_eq!(guard.open("file", FileAccess::Read).unwrap().read(0, 100).unwrap(), INSIDE);
}

#[test]
fn what_does_not_decode_on_a_file_s_socket_ends_that_file() {
    let host = Host::new();
    let guard = Guard::write(&host.root());
    let other = guard.open("file", FileAccess::Read).unwrap();
    let too_long = FileRequest::Read { offset: 0, length: STEP + 1 };
    let too_much = FileRequest::Write { offset: 0, length: STEP + 1 };
    for access in [FileAccess::Read, FileAccess::Write] {
        let file = guard.open("file", access).unwrap();
        rustix::net::send(&file.link, b"\xff\xff\xff", rustix::net::SendFlags::empty()).unwrap();
        assert_eq!(guard.closed(file.number).2, FileEnd::Illegal);
        let file = guard.open("file", access).unwrap();
        file.link.send(&FileRequest::Commit, &[guard.link.as_fd()]).unwrap();
        assert_eq!(guard.closed(file.number).2, FileEnd::Illegal);
        for (request, carried) in [(&too_long, 0), (&too_much, STEP + 1)] {
            let file = guard.open("file", access).unwrap();
            let (reply, _) = file.exchange(request, &vec![0; carried as usize]).unwrap();
            assert_eq!(reply, FileReply::Refused(FileRefusal::TooLarge));
            assert_eq!(guard.closed(file.number).2, FileEnd::Illegal);
        }
        // A step with fewer bytes than it says, and with more.
        for carried in [&[0; 6][..], &[0; 8]] {
            let file = guard.open("file", access).unwrap();
            // `Write`, from 0 on, seven bytes.
            let packet = [&[1, 0, 7], carried].concat();
            rustix::net::send(&file.link, &packet, rustix::net::SendFlags::empty()).unwrap();
            assert_eq!(guard.closed(file.number).2, FileEnd::Illegal);
        }
    }
    assert_eq!(other.read(0, 100).unwrap(), INSIDE);
    assert_eq!(host.read("root/file"), INSIDE);
}

#[test]
fn an_illegal_message_of_the_server_ends_the_program() {
    let host = Host::new();
    let sealed = || Guard::sealed("read", &host.root());
    let started = || Guard::read(&host.root());
    let list = ToFileguard::List { number: 0, path: String::new(), after: String::new(), entries_max: 1 };
    let open = |number| ToFileguard::Open {
        number,
        path: "file".to_owned(),
        access: FileAccess::Read,
        until_boot_ms: NEVER,
        bytes_max: 1,
    };
    let (socket, _other) = connected_pair().unwrap();
    let identity = Identity { device: 0, inode: 0 };

    let guard = started();
    rustix::net::send(&guard.link, b"\xff\xff", rustix::net::SendFlags::empty()).unwrap();
    assert!(guard.ends().contains("does not decode"));
    let guard = sealed();
    guard.link.send(&list, &[]).unwrap();
    assert!(guard.ends().contains("before the start"));
    let guard = sealed();
    guard
        .link
        .send(&ToFileguard::Start { excluded: vec![identity; 17], digest_key: DIGEST_KEY }, &[])
        .unwrap();
    assert!(guard.ends().contains("too many folders"));
    let guard = started();
    guard.link.send(&ToFileguard::Start { excluded: vec![], digest_key: DIGEST_KEY }, &[]).unwrap();
    assert!(guard.ends().contains("second start"));
    let guard = started();
    guard.link.send(&open(0), &[]).unwrap();
    assert!(guard.ends().contains("descriptors"));
    let guard = started();
    guard.link.send(&list, &[socket.as_fd()]).unwrap();
    assert!(guard.ends().contains("descriptors"));
    let guard = started();
    guard.link.send(&open(0), &[guard.child.stdout.as_fd()]).unwrap();
    assert!(guard.ends().contains("no socket"));
    let guard = started();
    guard.link.send(&open(7), &[socket.as_fd()]).unwrap();
    guard.link.send(&open(7), &[socket.as_fd()]).unwrap();
    assert!(guard.ends().contains("in use"));
    // And the end of the link is a plain end; what was open ends with it.
    let guard = started();
    let file = guard.open("file", FileAccess::Read).unwrap();
    rustix::net::shutdown(&guard.link, rustix::net::Shutdown::Both).unwrap();
    assert_eq!(last_words(&guard.child).0, Exit::Code(0));
    assert!(file.link.receive().is_err());
}

#[test]
fn only_so_many_files_are_open_at_a_time() {
    let host = Host::new();
    let guard = Guard::write(&host.root());
    let accesses = [FileAccess::Read, FileAccess::Write];
    let mut files: Vec<_> =
        (0..OPEN_FILES_MAX).map(|at| guard.open("file", accesses[at % 2]).unwrap()).collect();
    assert_eq!(guard.open("file", FileAccess::Read).err(), Some(FileRefusal::TooMany));
    assert_eq!(files[0].read(0, 100).unwrap(), INSIDE);
    let closed = files.pop().unwrap();
    guard.link.send(&ToFileguard::Close { number: closed.number }, &[]).unwrap();
    assert_eq!(guard.closed(closed.number).2, FileEnd::Asked);
    assert!(guard.open("file", FileAccess::Read).is_ok());
}

#[test]
fn new_contents_take_the_old_ones_place_at_once() {
    let host = Host::new();
    std::fs::set_permissions(host.at("root/file"), PermissionsExt::from_mode(0o640)).unwrap();
    let guard = Guard::write(&host.root());
    let file = guard.open("file", FileAccess::Write).unwrap();
    assert_eq!(file.size, INSIDE.len() as u64);
    for (at, step) in long().chunks(FILE_STEP_BYTES_MAX).enumerate() {
        file.write((at * FILE_STEP_BYTES_MAX) as u64, step).unwrap();
    }
    assert_eq!((host.read("root/file"), host.names("root")), (INSIDE.to_vec(), vec!["file".to_owned()]));
    assert_eq!(file.commit(), Ok(LONG as u64));
    assert_eq!((host.read("root/file"), host.names("root")), (long(), vec!["file".to_owned()]));
    assert_eq!(guard.closed(file.number), (LONG as u64, digest(&long()), FileEnd::Committed));
    let facts = std::fs::metadata(host.at("root/file")).unwrap();
    assert_eq!(facts.mode() & 0o7777, 0o640);
    assert_eq!(facts.uid(), std::fs::metadata(host.at("root")).unwrap().uid());

    let new = guard.open("new", FileAccess::Write).unwrap();
    new.write(0, b"new").unwrap();
    assert_eq!(host.names("root"), ["file"]);
    assert_eq!(new.commit(), Ok(3));
    assert_eq!(std::fs::metadata(host.at("root/new")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(host.read("root/new"), b"new");
}

#[test]
fn what_is_not_committed_leaves_nothing() {
    let host = Host::new();
    let before = |host: &Host| {
        assert_eq!((host.read("root/file"), host.names("root")), (INSIDE.to_vec(), vec!["file".to_owned()]));
    };
    let guard = Guard::write(&host.root());
    for path in ["file", "new"] {
        let file = guard.open(path, FileAccess::Write).unwrap();
        file.write(0, b"lost").unwrap();
        guard.link.send(&ToFileguard::Close { number: file.number }, &[]).unwrap();
        assert_eq!(guard.closed(file.number), (4, digest(b"lost"), FileEnd::Asked));
        let file = guard.open(path, FileAccess::Write).unwrap();
        file.write(0, b"lost").unwrap();
        let number = file.number;
        drop(file);
        assert_eq!(guard.closed(number), (4, digest(b"lost"), FileEnd::HungUp));
        before(&host);
    }
    let (old, new) =
        (guard.open("file", FileAccess::Write).unwrap(), guard.open("new", FileAccess::Write).unwrap());
    old.write(0, b"lost").unwrap();
    new.write(0, b"lost").unwrap();
    guard.child.kill().unwrap();
    guard.child.wait().unwrap();
    before(&host);
}

#[test]
fn a_target_that_changed_is_not_replaced() {
    let host = Host::new();
    host.make_folder("root/folder");
    host.write("root/folder/file", INSIDE);
    let guard = Guard::write(&host.root());
    let commit = |path: &str, change: &dyn Fn()| {
        let file = guard.open(path, FileAccess::Write).unwrap();
        file.write(0, b"lost").unwrap();
        change();
        file.commit()
    };
    let appears = commit("new", &|| host.write("root/new", b"theirs"));
    assert_eq!(appears, Err(FileRefusal::Changed));
    let replaced = commit("new", &|| {
        host.write("root/next", b"next");
        std::fs::rename(host.at("root/next"), host.at("root/new")).unwrap();
    });
    assert_eq!(replaced, Err(FileRefusal::Changed));
    assert_eq!(host.read("root/new"), b"next");
    // A file system may give the number of one that is gone to the next.
    let made_anew = commit("new", &|| {
        std::fs::remove_file(host.at("root/new")).unwrap();
        host.write("root/new", b"next");
    });
    assert_eq!(made_anew, Err(FileRefusal::Changed));
    assert_eq!(host.read("root/new"), b"next");
    let linked = commit("new", &|| {
        std::fs::remove_file(host.at("root/new")).unwrap();
        host.link("../outside/secret", "root/new");
    });
    assert_eq!(linked, Err(FileRefusal::Symlink));
    let moved = commit("folder/file", &|| {
        std::fs::rename(host.at("root/folder"), host.at("outside/folder")).unwrap();
        host.make_folder("root/folder");
        host.write("root/folder/file", b"other");
    });
    assert_eq!(moved, Err(FileRefusal::Changed));
    assert_eq!(host.read("outside/folder/file"), INSIDE);
    assert_eq!(
        (host.read("root/folder/file"), host.read("outside/secret")),
        (b"other".to_vec(), SECRET.to_vec())
    );
    assert_eq!(host.names("root"), ["file", "folder", "new"]);
}

#[test]
fn a_folder_is_listed_in_pages() {
    let host = Host::new();
    host.make_folder("root/many");
    let names: BTreeSet<String> =
        (0..450).map(|at| format!("{:04}-{}", at * 7919 % 10_000, "n".repeat(at % 240))).collect();
    names.iter().for_each(|name| host.write(&format!("root/many/{name}"), name.as_bytes()));
    host.make_folder("root/many/\u{e9}folder");
    host.link("/etc", "root/many/link");
    std::fs::write(host.at("root/many").join(std::ffi::OsStr::new(latin1())), b"").unwrap();
    let guard = Guard::read(&host.root());
    let (mut seen, mut after): (Vec<FileEntry>, _) = (Vec::new(), String::new());
    loop {
        let FromFileguard::Listed { entries, more, unnamed, .. } =
            guard.list("many", &after, u32::MAX).unwrap()
        else {
            panic!("a list");
        };
        assert_eq!(unnamed, 1);
        assert!(
            entries.len() <= LIST_ENTRIES_MAX as usize
                && (!more || entries.len() == LIST_ENTRIES_MAX as usize)
        );
        after = entries.last().unwrap().name.clone();
        assert!(entries.iter().all(|entry| entry.modified_ms > 1_700_000_000_000), "just now");
        seen.extend(entries.into_iter().map(|entry| FileEntry { modified_ms: 0, ..entry }));
        if !more {
            break;
        }
    }
    let entry = |name: &str, kind, size| FileEntry { name: name.to_owned(), kind, size, modified_ms: 0 };
    let mut expected: Vec<_> =
        names.iter().map(|name| entry(name, EntryKind::File, name.len() as u64)).collect();
    expected.push(entry("link", EntryKind::Other, 0));
    expected.push(entry("\u{e9}folder", EntryKind::Folder, 0));
    assert_eq!(seen, expected);
    let FromFileguard::Listed { entries, more, .. } = guard.list("", "", 1).unwrap() else {
        panic!("a list")
    };
    assert!(more && entries[0].name == "file");
}

/// A name that is no UTF-8.
fn latin1() -> &'static std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9")
}

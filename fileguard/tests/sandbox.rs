//! The program's sandbox: every forbidden act is stopped, and roots that are none are refused with the reason.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use ringfence_protocol::{FromFileguard, RootKind};
use ringfence_sandbox::{Act, Exit, Policy, judge};
use std::os::unix::fs::MetadataExt;
use support::{Guard, Host, INSIDE, Mounted, is_root, last_words, start};

#[test]
fn every_forbidden_act_is_stopped() {
    let (policy, host) = (Policy::fileguard(), Host::new());
    for access in ["read", "write"] {
        for &act in Act::ALL {
            let (child, _page, _link) = start(&["probe", access, act.name()], &host.root());
            if let Err(failure) = judge(&policy, act, child.wait().unwrap()) {
                panic!("{access}: {failure} {:?}", last_words(&child));
            }
        }
    }
}

#[test]
fn a_root_is_described_from_its_descriptor() {
    let host = Host::new();
    let facts = std::fs::metadata(host.at("root")).unwrap();
    match Guard::read(&host.root()).root {
        FromFileguard::Root { kind, identity, owner, modified, path, .. } => {
            assert_eq!(kind, RootKind::Folder);
            assert_eq!((identity, owner), (host.identity("root"), facts.uid()));
            assert_eq!((modified, path), (facts.mtime(), host.root()));
        }
        other => panic!("{other:?}"),
    }
    match Guard::write(&host.text("root/file")).root {
        FromFileguard::Root { kind, identity, size, .. } => {
            assert_eq!((kind, identity), (RootKind::File, host.identity("root/file")));
            assert_eq!(size, INSIDE.len() as u64);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_root_is_refused_with_the_reason() {
    let host = Host::new();
    host.link(&host.root(), "link");
    host.write("twice", b"");
    std::fs::hard_link(host.at("twice"), host.at("again")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(host.at("socket")).unwrap();
    let fifo = rustix::fs::mknodat(
        rustix::fs::CWD,
        host.at("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    );
    fifo.unwrap();
    let cases = [
        ("tmp".to_owned(), "not absolute"),
        (String::new(), "a path as its first packet"),
        ("/".to_owned(), "must name one file or folder"),
        (host.text("root/../outside"), "must name one file or folder"),
        (host.text("root/"), "must name one file or folder"),
        ("/proc".to_owned(), "the host's own"),
        ("/proc/self".to_owned(), "the host's own"),
        ("/sys/kernel".to_owned(), "the host's own"),
        ("/dev/null".to_owned(), "the host's own"),
        (host.text("link"), "symbolic link"),
        (host.text("link/file"), "symbolic link"),
        (host.text("twice"), "2 names"),
        (host.text("socket"), "neither a folder nor a regular file"),
        (host.text("fifo"), "neither a folder nor a regular file"),
        (host.text("missing"), "openat2"),
        ("/a".repeat(2048), "bytes"),
    ];
    let mut cases = Vec::from(cases);
    let _mounted = is_root().then(|| {
        host.make_folder("processes");
        cases.push((host.text("processes/self"), "symbolic link"));
        cases.push((host.text("processes/sys"), "the host's own"));
        Mounted::new(host.at("processes"), c"proc")
    });
    for (path, reason) in cases {
        for access in ["read", "write"] {
            let (child, _page, link) = start(&[access], &path);
            let (exit, words) = last_words(&child);
            assert!(exit == Exit::Code(1) && words.contains(reason), "{path}: {exit:?} {words}");
            assert!(link.receive().is_err(), "{path}");
        }
    }
}

/// What the kernel says is mounted in a program's namespace: where, and with which flags.
fn mounts(guard: &Guard) -> Vec<(String, Vec<String>)> {
    let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", guard.pid)).unwrap();
    let mount = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[4].to_owned(), words[5].split(',').map(str::to_owned).collect())
    };
    let mut mounts: Vec<_> = text.lines().map(mount).collect();
    mounts.sort();
    mounts
}

#[test]
fn the_program_s_root_holds_the_granted_root_and_nothing_else() {
    if !is_root() {
        return println!("not root: the kernel tells nobody else what is mounted there");
    }
    let host = Host::new();
    for (path, access, rights) in [
        ("root", "read", "ro"),
        ("root/file", "read", "ro"),
        ("root", "write", "rw"),
        ("root/file", "write", "rw"),
    ] {
        let mounts = mounts(&Guard::new(access, &host.text(path), vec![]));
        let [(root, of_root), (granted, of_granted)] = &mounts[..] else { panic!("{mounts:?}") };
        assert_eq!((root.as_str(), granted.as_str()), ("/", "/granted"));
        for (flags, wanted) in [(of_root, "ro"), (of_granted, rights)] {
            for flag in [wanted, "nosuid", "nodev", "noexec"] {
                assert!(flags.iter().any(|has| has == flag), "{access} {path}: no {flag} in {mounts:?}");
            }
        }
    }
}

#[test]
fn what_is_mounted_below_a_root_is_read_only_whatever_it_is_for() {
    if !is_root() {
        return println!("not root: nothing can be mounted");
    }
    let host = Host::new();
    host.make_folder("root/mounted");
    let _mounted = Mounted::new(host.at("root/mounted"), c"tmpfs");
    for (access, granted) in [("read", "ro"), ("write", "rw")] {
        let mounts = mounts(&Guard::new(access, &host.root(), vec![]));
        let rights: Vec<(&str, &str)> =
            mounts.iter().map(|(place, flags)| (place.as_str(), flags[0].as_str())).collect();
        assert_eq!(rights, [("/", "ro"), ("/granted", granted), ("/granted/mounted", "ro")]);
    }
    // A host's own mount that is read-only stays so.
    let path = host.at("root/mounted");
    rustix::mount::mount_remount(&path, rustix::mount::MountFlags::RDONLY, c"").unwrap();
    let mounts = mounts(&Guard::write(&host.text("root/mounted")));
    assert_eq!(mounts[1].1[0], "ro");
}

//! The program's sandbox: every forbidden act is stopped, and roots that are none are refused with the reason.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use ringfence_protocol::{FromFileguard, RootKind};
use ringfence_sandbox::{Act, Exit, Policy, judge};
use std::os::unix::fs::MetadataExt;
use support::{Guard, Host, INSIDE, last_words, start};

#[test]
fn every_forbidden_act_is_stopped() {
    let (policy, host) = (Policy::fileguard(), Host::new());
    for access in ["read", "write"] {
        for &act in Act::ALL {
            let (child, _page, _link) = start(&["probe", access, &host.root(), act.name()]);
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
        (String::new(), "not absolute"),
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
    for (path, reason) in cases {
        for access in ["read", "write"] {
            let (child, _page, link) = start(&[access, &path]);
            let (exit, words) = last_words(&child);
            assert!(exit == Exit::Code(1) && words.contains(reason), "{path}: {exit:?} {words}");
            assert!(link.receive().is_err(), "{path}");
        }
    }
}

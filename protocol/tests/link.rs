//! The link over real sockets: what is sent arrives, and what is no message is an error, never a panic.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use proptest::prelude::*;
use ringfence_protocol::{
    CHUNK_BYTES_MAX, ChunkBytes, DESCRIPTORS_MAX, Data, EmbedInput, FromWorker, ITEMS_MAX, Item, LinkError,
    MESSAGE_BYTES_MAX, ToWorker, WorkerLink, WorkerSideLink, connected_pair,
};
use rustix::net::{SendFlags, send};
use std::os::fd::{AsFd, OwnedFd};

fn pair() -> (WorkerLink, WorkerSideLink) {
    let (server, worker) = connected_pair().unwrap();
    (WorkerLink::new(server), WorkerSideLink::new(worker))
}

/// The server's end, and the bare socket of a worker that writes what it likes.
fn bare() -> (WorkerLink, OwnedFd) {
    let (server, worker) = connected_pair().unwrap();
    (WorkerLink::new(server), worker)
}

#[test]
fn messages_arrive_whole_in_order_and_with_their_descriptors() {
    let (server, worker) = pair();
    let input = EmbedInput { items: vec![Item::Text("a".into()), Item::Tokens(vec![1, 2])], truncate: true };
    let run = ToWorker::Run { slot: 3, domain: 9, weight: 2, input: Data::Inline(input) };
    let load = ToWorker::Load { files: vec!["config.json".to_owned()], blocks: vec![] };
    let file = tempfile();
    server.send(&run, &[]).unwrap();
    server.send(&load, &[file.as_fd()]).unwrap();
    let first = worker.receive().unwrap();
    assert_eq!((first.message, first.descriptors.len()), (run, 0));
    let second = worker.receive().unwrap();
    assert_eq!((second.message, second.descriptors.len()), (load, 1));
    let flags = rustix::io::fcntl_getfd(&second.descriptors[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

fn tempfile() -> OwnedFd {
    rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

#[test]
fn the_largest_chunk_fits_and_one_byte_more_than_a_message_does_not() {
    let (server, worker) = pair();
    let chunk =
        |bytes| FromWorker::Chunk { slot: u32::MAX, sequence: u32::MAX, data: ChunkBytes(vec![1; bytes]) };
    worker.send(&chunk(CHUNK_BYTES_MAX), &[]).unwrap();
    assert_eq!(server.receive().unwrap().message, chunk(CHUNK_BYTES_MAX));
    let error = worker.send(&chunk(MESSAGE_BYTES_MAX), &[]).unwrap_err();
    assert!(matches!(error, LinkError::TooLarge { .. }), "{error}");
}

#[test]
fn more_descriptors_than_a_message_carries_are_refused_by_the_sender() {
    let (server, _worker) = pair();
    let file = tempfile();
    let error = server.send(&ToWorker::Stop, &[file.as_fd(); DESCRIPTORS_MAX + 1]).unwrap_err();
    assert!(matches!(error, LinkError::TooLarge { descriptors, .. } if descriptors == DESCRIPTORS_MAX + 1));
}

#[test]
fn what_is_no_message_is_malformed() {
    let message = |message: &FromWorker| postcard::to_stdvec(message).unwrap();
    let done = message(&FromWorker::Done {
        slot: 1,
        tokens: 1,
        truncated: 0,
        compute_us: 1,
        used_bytes: 1,
        peak_bytes: 1,
    });
    let trailing = [done.clone(), vec![0]].concat();
    let cases: [(&str, Vec<u8>); 5] = [
        ("an unknown variant", vec![200]),
        ("half a message", done[..done.len() - 1].to_vec()),
        ("bytes after the message", trailing),
        ("a packet that is too long", vec![0; MESSAGE_BYTES_MAX + 1]),
        (
            "a length that overflows",
            vec![3, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ),
    ];
    for (what, bytes) in cases {
        let (server, worker) = bare();
        send(&worker, &bytes, SendFlags::empty()).unwrap();
        let error = server.receive().unwrap_err();
        assert!(matches!(error, LinkError::Malformed(_)), "{what}: {error}");
    }
}

#[test]
fn what_an_end_said_before_it_closed_arrives_though_it_has_not_read_all() {
    let (server, worker) = pair();
    let failed = FromWorker::DeviceFailed { reason: "lost".to_owned() };
    server.send(&ToWorker::Cancel { slot: 1 }, &[]).unwrap();
    worker.send(&failed, &[]).unwrap();
    drop(worker);
    assert_eq!(server.receive().unwrap().message, failed);
    assert!(matches!(server.receive().unwrap_err(), LinkError::Closed));
}

#[test]
fn an_end_that_is_gone_is_closed_on_both_ways() {
    let (server, worker) = pair();
    drop(worker);
    assert!(matches!(server.receive(), Err(LinkError::Closed)));
    assert!(matches!(server.send(&ToWorker::Stop, &[]), Err(LinkError::Closed)));
}

#[test]
fn an_input_with_no_item_or_too_many_does_not_decode() {
    let input = |items| EmbedInput { items: vec![Item::Tokens(vec![1]); items], truncate: false };
    for (items, legal) in [(0, false), (1, true), (ITEMS_MAX, true), (ITEMS_MAX + 1, false)] {
        assert_eq!(EmbedInput::decode(&input(items).encode()).is_some(), legal, "{items}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_receiver_panic(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
        let (server, worker) = bare();
        send(&worker, &bytes, SendFlags::empty()).unwrap();
        // Either it is a message, or the error says what it is not.
        match server.receive() {
            Ok(received) => prop_assert!(received.descriptors.is_empty()),
            Err(error) => prop_assert!(matches!(error, LinkError::Malformed(_))),
        }
        let _ = EmbedInput::decode(&bytes);
    }

    #[test]
    fn every_input_is_read_as_it_was_written(texts in prop::collection::vec(".{0,40}", 1..20), truncate: bool) {
        let items = texts.into_iter().map(Item::Text).collect();
        let input = EmbedInput { items, truncate };
        prop_assert_eq!(EmbedInput::decode(&input.encode()), Some(input));
    }
}

//! A packet on each link in each direction; a message that was read is written as it came.

use ringfence_protocol::{
    FileReply, FileRequest, FromConverter, FromFileguard, FromWorker, Link, LinkError, ToConverter,
    ToFileguard, ToWorker, connected_pair,
};
use rustix::net::{SendFlags, send};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(packet: &[u8]) {
    let (ours, theirs) = connected_pair().expect("descriptors are free");
    let link = Link::<M, M>::new(theirs);
    if send(&ours, packet, SendFlags::NOSIGNAL).is_err() {
        return;
    }
    match link.receive() {
        Ok(received) => {
            let back = Link::<M, M>::new(ours);
            back.send(&received.message, &[]).expect("it is no longer than it came");
            assert_eq!(link.receive().expect("it was a message").message, received.message);
        }
        Err(LinkError::Malformed(_)) => {}
        // A packet of nothing.
        Err(LinkError::Closed) => assert!(packet.is_empty()),
        Err(error) => panic!("{error}"),
    }
}

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let Some((which, packet)) = bytes.split_first() else { return };
    match which % 8 {
        0 => check::<ToWorker>(packet),
        1 => check::<FromWorker>(packet),
        2 => check::<ToConverter>(packet),
        3 => check::<FromConverter>(packet),
        4 => check::<ToFileguard>(packet),
        5 => check::<FromFileguard>(packet),
        6 => check::<FileRequest>(packet),
        _ => check::<FileReply>(packet),
    }
}

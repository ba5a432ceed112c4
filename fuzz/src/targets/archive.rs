//! Archives of registries.
use crate::support;
use ringfence_protocol::{Archive, ArchiveKind, Member};
use ringfence_worker::convert::unpack::unpack;
use ringfence_worker::package::FileBytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let source: FileBytes = Arc::new(bytes.to_vec());
    for kind in [ArchiveKind::Zip, ArchiveKind::TarGz] {
        let members = vec![Member { path: "a".to_owned(), name: "a".to_owned(), bytes: None }];
        let _ = unpack("source", &source, &Archive { kind, members }, &mut BTreeMap::new(), &support::Lease);
    }
}

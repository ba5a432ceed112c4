//! `tokenizer.json` of both kinds, and a text through what was read.

use crate::support;
use ringfence_worker::package::tokenizer::{encode, read, read_bpe};
use std::sync::Once;

static HOOK: Once = Once::new();

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    // The library's panics are caught where it is called, and refuse the file. Without the fuzzer's own hook, which aborts
    // before anybody can catch, only a panic that nobody caught stops it.
    HOOK.call_once(|| drop(std::panic::take_hook()));
    let files = support::files(&[("tokenizer.json", bytes)]);
    for read in [read, read_bpe] {
        if let Ok(tokenizer) = read(&files, 1 << 16) {
            let _ = encode(&tokenizer, "A text, 123 and\n\twhite space.", true);
        }
    }
}

//! `tokenizer.json` of both kinds, and a text through what was read.
#![no_main]

use ringfence_worker::package::tokenizer::{encode, read, read_bpe};

// The library's panics are caught where it is called, and refuse the file. Without the fuzzer's own hook, which aborts
// before anybody can catch, only a panic that nobody caught stops it.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |bytes: &[u8]| {
    let files = ringfence_fuzz::files(&[("tokenizer.json", bytes)]);
    for read in [read, read_bpe] {
        if let Ok(tokenizer) = read(&files, 1 << 16) {
            let _ = encode(&tokenizer, "A text, 123 and\n\twhite space.", true);
        }
    }
});

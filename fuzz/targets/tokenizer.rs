//! `tokenizer.json` of both kinds, and a text through what was read.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let files = ringfence_fuzz::files(&[("tokenizer.json", bytes)]);
    for read in [ringfence_worker::package::tokenizer::read, ringfence_worker::package::tokenizer::read_bpe] {
        if let Ok(tokenizer) = read(&files, 1 << 16) {
            let _ = tokenizer.encode_fast("A text, 123 and\n\twhite space.", true);
        }
    }
});

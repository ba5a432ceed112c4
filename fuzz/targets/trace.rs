//! A recorded trace.
#![no_main]

use ringfence_scheduler::replay::Trace;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Trace::parse(text);
    }
});

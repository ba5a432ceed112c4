//! A recorded trace.

use ringfence_scheduler::replay::Trace;

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Trace::parse(text);
    }
}

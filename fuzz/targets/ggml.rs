//! Whisper in ggml's form.
#![no_main]
use ringfence_protocol::SourceForm;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ringfence_fuzz::converted(SourceForm::WhisperGgml, &[("model.bin", bytes)]);
});

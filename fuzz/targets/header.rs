//! The header of safetensors.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ringfence_worker::package::safetensors::parse("model.safetensors", bytes);
});

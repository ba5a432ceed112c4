//! The header of safetensors.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ringfence_worker::package::safetensors::Tensors::read(&ringfence_fuzz::files(&[("model.safetensors", bytes)]));
});

//! The header of safetensors.
/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let _ = ringfence_worker::package::safetensors::parse("model.safetensors", bytes);
}

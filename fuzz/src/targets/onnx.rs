//! Silero's ONNX.
use crate::support;
use ringfence_protocol::SourceForm;

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let _ = support::converted(SourceForm::SileroOnnx, &[("model.onnx", bytes)]);
}

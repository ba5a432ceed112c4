//! Whisper in CTranslate2's form, with a vocabulary.

use crate::support;
use libfuzzer_sys::arbitrary::Unstructured;
use ringfence_protocol::SourceForm;

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let Ok((model, vocabulary)) = Unstructured::new(bytes).arbitrary::<(Vec<u8>, Vec<u8>)>() else { return };
    let sources = [("model.bin", &model[..]), ("vocabulary.tiktoken", &vocabulary[..])];
    let _ = support::converted(SourceForm::WhisperCtranslate2, &sources);
}

//! Whisper in CTranslate2's form, with a vocabulary.
#![no_main]
use ringfence_protocol::SourceForm;

libfuzzer_sys::fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (model, vocabulary) = input;
    let sources = [("model.bin", &model[..]), ("vocabulary.tiktoken", &vocabulary[..])];
    let _ = ringfence_fuzz::converted(SourceForm::WhisperCtranslate2, &sources);
});

//! OpenAI's checkpoints: the bytes as the whole file, and as the pickle in one.
use crate::support;
use ringfence_protocol::SourceForm;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const VOCABULARY: &[u8] = b"YQ== 0\nYg== 1\n";

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    for model in [bytes.to_vec(), checkpoint(bytes)] {
        let sources = [("model.pt", &model[..]), ("vocabulary.tiktoken", VOCABULARY)];
        let _ = support::converted(SourceForm::WhisperPt, &sources);
    }
}

fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("m/data.pkl", pickle), ("m/data/0", &[0; 64]), ("m/version", b"3\n")] {
        writer.start_file(name, stored).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

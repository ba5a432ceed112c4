//! What the tests of commands share.

use std::fs;
use std::path::Path;

/// Copies the tiny model into a folder: the files that are converted, without a manifest.
pub(crate) fn copy_tiny(to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny-bert");
    fs::create_dir_all(to.join("1_Pooling")).unwrap();
    for file in
        ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]
    {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

//! The files that a package can have: a closed list, each with the most bytes that it may take.

use std::fmt;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The longest name of a file in bytes.
const FILE_NAME_BYTES_MAX: usize = 128;

/// A file's name in its package: relative, with `/`, no part empty or beginning with a dot, and of a known kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName {
    name: String,
    kind: FileKind,
}

/// Why a text is no name of a file in a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileNameError {
    /// It could lead out of the package, or means different things to different programs.
    #[error("not a plain relative name")]
    Illegal,
    /// A package has no files like this.
    #[error("not a kind of file that packages have")]
    KindUnknown,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// `package.toml`.
    Manifest,
    /// `config.json`: the network's shape.
    Config,
    /// `tokenizer.json`.
    Tokenizer,
    /// `*.safetensors`.
    Weights,
    /// `modules.json`: what follows the network, in order.
    Modules,
    /// `1_Pooling/config.json`.
    Pooling,
    /// `sentence_bert_config.json`.
    SentenceBert,
    /// `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json`: how the model is spoken to, and what it may
    /// not say.
    Conversation,
    /// What other programs read, kept so that the package is whole for them.
    Companion,
    /// `vocab.txt` and the like: as companions, but longer.
    Vocabulary,
    /// `README.md`.
    Readme,
}

impl FileKind {
    /// The kind of the file of this name; `None` where packages have no such file.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "package.toml" => Some(Self::Manifest),
            "config.json" => Some(Self::Config),
            "tokenizer.json" => Some(Self::Tokenizer),
            "modules.json" => Some(Self::Modules),
            "1_Pooling/config.json" => Some(Self::Pooling),
            "sentence_bert_config.json" => Some(Self::SentenceBert),
            "chat_template.jinja" | "generation_config.json" | "tokenizer_config.json" => {
                Some(Self::Conversation)
            }
            "2_Normalize/config.json"
            | "added_tokens.json"
            | "config_sentence_transformers.json"
            | "normalizer.json"
            | "preprocessor_config.json"
            | "special_tokens_map.json" => Some(Self::Companion),
            "merges.txt" | "model.safetensors.index.json" | "vocab.json" | "vocab.txt" => {
                Some(Self::Vocabulary)
            }
            "README.md" => Some(Self::Readme),
            other if other.ends_with(".safetensors") && !other.contains('/') => Some(Self::Weights),
            _ => None,
        }
    }

    /// The most bytes that such a file may have.
    pub fn bytes_max(self) -> u64 {
        match self {
            Self::Manifest | Self::Modules | Self::Pooling | Self::SentenceBert => 64 * KIB,
            Self::Config | Self::Conversation | Self::Companion | Self::Readme => MIB,
            Self::Vocabulary => 16 * MIB,
            Self::Tokenizer => 64 * MIB,
            Self::Weights => 64 * GIB,
        }
    }

    /// Whether a worker reads it; the others are verified and stay with us.
    pub fn is_for_worker(self) -> bool {
        match self {
            Self::Config
            | Self::Tokenizer
            | Self::Weights
            | Self::Modules
            | Self::Pooling
            | Self::SentenceBert
            | Self::Conversation => true,
            Self::Manifest | Self::Companion | Self::Vocabulary | Self::Readme => false,
        }
    }
}

/// Whether a name leads to one place below a folder, the same for every program: no part empty, `.` or `..`, no
/// backslash and no control character.
pub(crate) fn is_relative(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(|c: char| c == '\\' || c.is_control())
    };
    name.split('/').all(plain)
}

fn is_hidden(part: &str) -> bool {
    part.starts_with('.')
}

impl FileName {
    /// Takes a legal name of a known kind.
    ///
    /// # Errors
    /// [`FileNameError`].
    pub fn new(name: &str) -> Result<Self, FileNameError> {
        if name.len() > FILE_NAME_BYTES_MAX || !is_relative(name) || name.split('/').any(is_hidden) {
            return Err(FileNameError::Illegal);
        }
        let kind = FileKind::of(name).ok_or(FileNameError::KindUnknown)?;
        Ok(Self { name: name.to_owned(), kind })
    }

    /// The manifest's.
    pub(crate) fn manifest() -> Self {
        Self { name: "package.toml".to_owned(), kind: FileKind::Manifest }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// What the file is for.
    pub fn kind(&self) -> FileKind {
        self.kind
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_can_not_lead_out_of_the_package() {
        let long = format!("{}.safetensors", "a".repeat(FILE_NAME_BYTES_MAX));
        for wrong in [
            "",
            "/config.json",
            "../config.json",
            "./config.json",
            "1_Pooling/../config.json",
            "a\0.safetensors",
            "1_Pooling//config.json",
            "1_Pooling\\config.json",
            "config.json/",
            "a\n.safetensors",
            ".safetensors",
            &long,
        ] {
            assert_eq!(FileName::new(wrong), Err(FileNameError::Illegal), "{wrong:?}");
        }
    }

    #[test]
    fn only_known_kinds_are_files_of_a_package() {
        for unknown in
            ["pytorch_model.bin", "model.py", "1_Pooling/model.safetensors", "Config.json", "package.toml2"]
        {
            assert_eq!(FileName::new(unknown), Err(FileNameError::KindUnknown), "{unknown}");
        }
        let kind = |name| FileName::new(name).unwrap().kind();
        assert_eq!(kind("model-00001-of-00002.safetensors"), FileKind::Weights);
        assert_eq!(kind("1_Pooling/config.json"), FileKind::Pooling);
    }
}

//! The link between whoever adds a package (the command line) and `ringfence-worker convert`.
//!
//! ```text
//! Hello ->                        both ends are of one build
//!   <- Start
//! Sealed ->                       every layer is on; only now comes what strangers filled
//!   <- Source ... Output ...      one descriptor each
//!   <- Convert                    what they are
//! Progress* -> File* -> Block* -> Done | Failed
//! ```

use crate::{Layer, Link};
use serde::{Deserialize, Serialize};

/// The most sources of one conversion.
pub const SOURCES_MAX: usize = 160;
/// The most files that one conversion makes.
pub const OUTPUTS_MAX: usize = 32;
/// The most members that are taken from one archive.
pub const MEMBERS_MAX: usize = 64;
/// The longest name of a source, member, file or tensor in bytes.
pub const CONVERT_NAME_BYTES_MAX: usize = 256;
/// The most tensors that stay in blocks.
pub const BLOCK_TENSORS_MAX: usize = 16_384;

/// The link as whoever spawned the converter holds it.
pub type ConverterLink = Link<ToConverter, FromConverter>;
/// The link as the converter holds it.
pub type ConverterSideLink = Link<FromConverter, ToConverter>;

/// Messages to the converter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToConverter {
    /// The most bytes that it may allocate. The first message.
    Start {
        /// Bytes.
        lease_bytes: u64,
    },
    /// A source, with its descriptor: a memfd with all seals.
    Source {
        /// What the recipe calls it; with `/` for files of a folder.
        name: String,
        /// Its bytes are an archive, of which only these members are taken.
        archive: Option<Archive>,
    },
    /// A place for a file, with its descriptor: a memfd that is as long as the file may become, and can't grow. Places
    /// count from 0.
    Output,
    /// Everything has been sent.
    Convert {
        /// What the sources are.
        form: SourceForm,
    },
}

/// An archive and what is taken from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// How it is packed.
    pub kind: ArchiveKind,
    /// What is taken, in this order. Members of one name are joined, those of earlier sources first.
    pub members: Vec<Member>,
}

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveKind {
    /// zip (Python wheels).
    Zip,
    /// tar with gzip (packages of npm, Python source distributions).
    TarGz,
}

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its whole path in the archive.
    pub path: String,
    /// What the recipe calls it.
    pub name: String,
    /// Its length once unpacked, where the catalog pins it; else a bound applies.
    pub bytes: Option<u64>,
}

/// What the sources of a conversion are. The names are those of sources and members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceForm {
    /// A folder in the Hugging Face layout: `config.json`, `tokenizer.json`, `model.safetensors` or shards, and others.
    HuggingFace,
    /// One `model.gguf`.
    Gguf,
    /// OpenAI Whisper: `model.pt`, with `vocabulary.tiktoken`.
    WhisperPt,
    /// ggml Whisper: `model.bin`, which holds its vocabulary.
    WhisperGgml,
    /// CTranslate2 Whisper: `model.bin`, with `tokenizer.json` or `vocabulary.tiktoken`.
    WhisperCtranslate2,
    /// Silero voice activity detection: `model.onnx`.
    SileroOnnx,
}

/// Messages from the converter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromConverter {
    /// What it was built with.
    Hello {
        /// [`crate::DIGEST`] as it has it.
        digest: String,
    },
    /// Every layer is on.
    Sealed {
        /// In the order in which they were applied.
        layers: Vec<Layer>,
    },
    /// How far it is; `done` never falls and never passes `total`.
    Progress {
        /// Bytes handled.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A file of the package.
    File {
        /// Its name there.
        name: String,
        /// Where its bytes are.
        content: Content,
    },
    /// A tensor that stays in quantised blocks, stored as bytes.
    Block {
        /// The tensor.
        tensor: String,
        /// How a block is laid out.
        block: BlockType,
        /// Sizes of its dimensions before it was quantised, outermost first; blocks run along the last one.
        shape: Vec<u64>,
    },
    /// All files were named.
    Done(Facts),
    /// There is no package in these sources.
    Failed(ConvertError),
}

/// Where the bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// In the place of this number, so many bytes from its start.
    Output {
        /// Counts from 0.
        number: u32,
        /// Its length.
        bytes: u64,
    },
    /// They are the source of this number (counted from 0), unchanged.
    Source {
        /// Counts from 0.
        number: u32,
    },
}

/// Types of quantised blocks that packages keep. Layouts are ggml's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockType {
    /// 32 weights: a half scale, a half minimum, 16 bytes of nibbles; 20 bytes.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 32 weights: a half scale, 32 signed bytes; 34 bytes.
    #[serde(rename = "q8_0")]
    Q8_0,
}

/// What a converter learned about the package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Which network it is.
    pub architecture: ModelArchitecture,
    /// Longest input in tokens.
    pub max_tokens: u32,
    /// The licence that the source states, if any; a stranger's words.
    pub licence: Option<String>,
}

/// Networks that can be imported; not each of them runs in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelArchitecture {
    /// BERT-family sentence embedders.
    Bert,
    /// Llama-family text generators.
    Llama,
    /// Whisper speech recognisers.
    Whisper,
    /// Silero voice activity detectors.
    SileroVad,
}

/// Why sources are no package. Reasons are ours and hold no contents, names are the stranger's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ConvertError {
    /// A descriptor is not a memfd with all seals.
    #[error("source `{file}` is not sealed")]
    NotSealed {
        /// Which.
        file: String,
    },
    /// A source that the form needs is not there.
    #[error("there is no `{file}`")]
    Missing {
        /// Which.
        file: String,
    },
    /// Two sources or members of one name, where that means nothing.
    #[error("`{file}` is there twice")]
    Twice {
        /// Which.
        file: String,
    },
    /// A source does not parse, or contradicts itself.
    #[error("`{file}`: {reason}")]
    Malformed {
        /// Which.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A source is well-formed and of a kind that is not converted.
    #[error("`{file}`: {what} is not supported")]
    Unsupported {
        /// Which.
        file: String,
        /// What it is.
        what: String,
    },
    /// A tensor is missing, or has another shape or type than the configuration says.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// Which.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A source, or what it becomes, is larger than may be.
    #[error("`{file}` has more than {bytes_max} bytes")]
    TooLarge {
        /// Which.
        file: String,
        /// The bound.
        bytes_max: u64,
    },
    /// More files than there are places for.
    #[error("the package would have more than {files_max} files")]
    TooManyFiles {
        /// The bound.
        files_max: u32,
    },
    /// It does not fit in the lease.
    #[error("out of memory: {wanted} bytes wanted, {used} of {limit} in use")]
    OutOfMemory {
        /// The request that was refused, in bytes.
        wanted: u64,
        /// Bytes in use then.
        used: u64,
        /// The lease.
        limit: u64,
    },
    /// A parser of a stranger's format gave up in a way that it must not; the converter ends.
    #[error("`{file}`: its decoder failed")]
    Decoder {
        /// Which.
        file: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_lists_fit_in_a_message() {
        let name = || "n".repeat(CONVERT_NAME_BYTES_MAX);
        let block = FromConverter::Block { tensor: name(), block: BlockType::Q4_1, shape: vec![u64::MAX; 8] };
        let member = Member { path: name(), name: name(), bytes: Some(u64::MAX) };
        let archive = Archive { kind: ArchiveKind::TarGz, members: vec![member; MEMBERS_MAX] };
        let source = ToConverter::Source { name: name(), archive: Some(archive) };
        let fits = |bytes: Vec<u8>| assert!(bytes.len() < crate::MESSAGE_BYTES_MAX, "{}", bytes.len());
        fits(postcard::to_stdvec(&block).expect("plain values encode"));
        fits(postcard::to_stdvec(&source).expect("plain values encode"));
    }
}

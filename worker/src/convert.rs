//! Makes a package of what strangers publish: folders in the Hugging Face layout, GGUF, and the forms that speech models
//! come in. Everything here reads a stranger's bytes, so it runs inside the sandbox only.
//!
//! ```text
//! link         the state machine of the converter's link
//! unpack       archives to the files that were asked for
//! huggingface, gguf, whisper, silero      one folder or file for each form
//! safetensors  writes the weights          output: where files go
//! ```

pub mod blocks;
pub mod gguf;
pub mod huggingface;
pub mod link;
pub mod output;
pub mod safetensors;
pub mod silero;
pub mod unpack;
pub mod whisper;

use crate::memory::Memory;
use crate::package::Files;
use output::Output;
use ringfence_protocol::{ConvertError, Facts, LoadError, SourceForm};
use ringfence_sandbox::Denial;

/// What every conversion works with.
pub struct Work<'a> {
    /// The sources and the members that were taken from archives, by name.
    pub files: &'a Files,
    /// Where the package's files go.
    pub output: &'a mut dyn Output,
    /// The lease: asked before anything that grows with the sources is allocated.
    pub memory: &'a dyn Memory,
}

impl std::fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Work({:?})", self.files)
    }
}

/// Makes a package of sources of this form.
///
/// # Errors
/// [`ConvertError`]: there is no package in them.
pub fn convert(form: SourceForm, work: &mut Work<'_>) -> Result<Facts, ConvertError> {
    match form {
        SourceForm::HuggingFace => huggingface::convert(work),
        SourceForm::Gguf => gguf::convert(work),
        SourceForm::WhisperPt => whisper::convert_pt(work),
        SourceForm::WhisperGgml => whisper::convert_ggml(work),
        SourceForm::WhisperCtranslate2 => whisper::convert_ctranslate2(work),
        SourceForm::SileroOnnx => silero::convert(work),
    }
}

/// A file that is not what it must be.
pub(crate) fn malformed(file: &str, reason: impl Into<String>) -> ConvertError {
    ConvertError::Malformed { file: file.to_owned(), reason: reason.into() }
}

/// The strict parsers of packages serve conversions as well; their refusals read the same.
pub(crate) fn refused(error: LoadError) -> ConvertError {
    match error {
        LoadError::NotSealed { file } => ConvertError::NotSealed { file },
        LoadError::Missing { file } => ConvertError::Missing { file },
        LoadError::Malformed { file, reason } => ConvertError::Malformed { file, reason },
        LoadError::Tensor { tensor, reason } => ConvertError::Tensor { tensor, reason },
        LoadError::OutOfMemory { wanted, used, limit } => ConvertError::OutOfMemory { wanted, used, limit },
        LoadError::Device { .. } => unreachable!("parsers use no device"),
    }
}

/// A denial of the lease as the failure of a conversion.
pub(crate) fn denied(denial: Denial) -> ConvertError {
    let Denial { wanted, used, limit } = denial;
    ConvertError::OutOfMemory { wanted, used, limit }
}

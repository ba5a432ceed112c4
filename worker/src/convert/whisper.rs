//! whisper.

use super::Work;
use ringfence_protocol::{ConvertError, Facts};

/// Placeholder on the way.
///
/// # Errors
/// Always.
pub fn convert_pt(_: &mut Work<'_>) -> Result<Facts, ConvertError> {
    Err(ConvertError::Missing { file: String::new() })
}

/// Placeholder on the way.
///
/// # Errors
/// Always.
pub fn convert_ggml(_: &mut Work<'_>) -> Result<Facts, ConvertError> {
    Err(ConvertError::Missing { file: String::new() })
}

/// Placeholder on the way.
///
/// # Errors
/// Always.
pub fn convert_ctranslate2(_: &mut Work<'_>) -> Result<Facts, ConvertError> {
    Err(ConvertError::Missing { file: String::new() })
}

//! gguf.

use super::Work;
use ringfence_protocol::{ConvertError, Facts};

/// Placeholder on the way.
///
/// # Errors
/// Always.
pub fn convert(_: &mut Work<'_>) -> Result<Facts, ConvertError> {
    Err(ConvertError::Missing { file: String::new() })
}

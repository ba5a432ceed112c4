//! Names of packages.

use std::fmt;

/// The longest name in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The ending of the folder that holds a package's bundles.
pub(crate) const BUNDLE_FOLDER_ENDING: &str = ".oms";

/// A package's name: `[a-z0-9][a-z0-9._-]{0,63}`, not ending in `.oms`, which is what bundle folders end in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageName(String);

/// A text that can't be a package's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a model's name is 1 to 64 of a-z 0-9 . _ -, begins with a letter or digit and does not end in .oms")]
pub struct NameError;

impl PackageName {
    /// Takes a name that follows the grammar.
    ///
    /// # Errors
    /// [`NameError`] for anything else.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let first = text.bytes().next().is_some_and(alphanumeric);
        let rest = text.bytes().all(|byte| alphanumeric(byte) || b"._-".contains(&byte));
        let legal = first && rest && text.len() <= NAME_BYTES_MAX && !text.ends_with(BUNDLE_FOLDER_ENDING);
        if legal { Ok(Self(text.to_owned())) } else { Err(NameError) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder beside the package in which its bundles lie.
    pub fn bundle_folder(&self) -> String {
        format!("{}{BUNDLE_FOLDER_ENDING}", self.0)
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for PackageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_not_leave_the_folder_nor_hide_nor_pass_for_a_bundle() {
        for wrong in ["", ".", "..", ".a", "-a", "a/b", "A", "ä", "a\0", "minilm.oms", &"a".repeat(65)] {
            assert_eq!(PackageName::new(wrong), Err(NameError), "{wrong:?}");
        }
        for right in ["a", "0", "minilm", "all-minilm_l6.v2", &"a".repeat(64)] {
            assert_eq!(PackageName::new(right).unwrap().as_str(), right);
        }
    }
}

//! Names with stars.

/// A name in which each `*` stands for any text, none included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Takes a text; every text is a pattern.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Matches every name.
    pub fn any() -> Self {
        Self::new("*")
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name is one of those meant.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().expect("a split has a first part");
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        // Taking the earliest place of each part leaves the most for the parts after it.
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(Pattern::new(pattern).matches(name), expected, "{pattern} {name}");
        };
        check("*", "", true);
        check("minilm", "minilm", true);
        check("minilm", "minilm-f16", false);
        check("whisper-*", "whisper-tiny.en", true);
        check("whisper-*", "whisper", false);
        check("*-f16", "minilm-f16", true);
        check("a*b*c", "axbxc", true);
        check("a*b*c", "axcxb", false);
        check("ab*ba", "aba", false);
    }
}

//! A set of tokens as bits.

/// Tokens that may come next: bit `id % 32` of word `id / 32`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bitmask(Vec<u32>);

/// Tokens of a word.
pub(super) const WORD_TOKENS: usize = u32::BITS as usize;

impl Bitmask {
    /// No token of a vocabulary of this size.
    pub fn none(vocabulary: usize) -> Self {
        Self(vec![0; vocabulary.div_ceil(WORD_TOKENS)])
    }

    /// Whether the token may come; one beyond the vocabulary may not.
    pub fn allows(&self, id: u32) -> bool {
        self.word(id as usize / WORD_TOKENS) & (1 << (id % u32::BITS)) != 0
    }

    /// Lets a token of the vocabulary come.
    ///
    /// # Panics
    /// The token is beyond the vocabulary.
    pub fn allow(&mut self, id: u32) {
        self.0[id as usize / WORD_TOKENS] |= 1 << (id % u32::BITS);
    }

    /// The bits of 32 tokens, from token `32 * place` on; none beyond the vocabulary.
    pub(super) fn word(&self, place: usize) -> u32 {
        self.0.get(place).copied().unwrap_or(0)
    }
}

impl From<Vec<u32>> for Bitmask {
    fn from(words: Vec<u32>) -> Self {
        Self(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_allowed_is_and_nothing_else() {
        let mut mask = Bitmask::none(70);
        for id in [0, 31, 32, 69] {
            mask.allow(id);
        }
        let allowed: Vec<u32> = (0..200).filter(|id| mask.allows(*id)).collect();
        assert_eq!(allowed, [0, 31, 32, 69]);
    }
}

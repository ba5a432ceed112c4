//! Tokens one at a time to text: whole characters only, cut at stop strings.

mod stops;
mod table;

pub use stops::Stops;
pub use table::TokenBytes;

/// The longest beginning of a character that is not one yet, in bytes.
const WAITING_BYTES_MAX: usize = 3;

/// Puts the text of one sequence together. What it gives is the same as if all bytes had been decoded at once: a byte
/// that is no text becomes U+FFFD, by the rules of [`String::from_utf8_lossy`].
#[derive(Clone, Debug, Default)]
pub struct Detokeniser {
    /// The beginning of a character whose end has not come.
    waiting: Vec<u8>,
}

impl Detokeniser {
    /// Adds the text that is certain now to `text`; the beginning of a character waits for its end. It takes time for the
    /// token's bytes only.
    pub fn push(&mut self, token: &[u8], text: &mut String) {
        self.waiting.extend_from_slice(token);
        let mut rest = self.waiting.as_slice();
        for chunk in self.waiting.utf8_chunks() {
            text.push_str(chunk.valid());
            rest = &rest[chunk.valid().len()..];
            if chunk.invalid().is_empty() || may_go_on(rest) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[chunk.invalid().len()..];
        }
        let done = self.waiting.len() - rest.len();
        self.waiting.drain(..done);
        debug_assert!(self.waiting.len() <= WAITING_BYTES_MAX, "a beginning of a character");
    }

    /// Ends the text: a beginning of a character becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.waiting.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        self.waiting.clear();
    }
}

/// These last bytes are the beginning of a character.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pushed(pieces: &[&[u8]]) -> Vec<String> {
        let mut detokeniser = Detokeniser::default();
        let mut texts: Vec<String> = Vec::new();
        for piece in pieces {
            let mut text = String::new();
            detokeniser.push(piece, &mut text);
            texts.push(text);
        }
        let mut text = String::new();
        detokeniser.finish(&mut text);
        texts.push(text);
        texts
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let [a, b, c, d] = [0xf0, 0x9f, 0x98, 0x80];
        assert_eq!(pushed(&[b"x", &[a], &[b, c], &[d, b'y']]), ["x", "", "", "😀y", ""]);
    }

    #[test]
    fn what_can_not_become_a_character_is_replaced_at_once_and_a_beginning_at_the_end() {
        assert_eq!(
            pushed(&[&[0xff], &[0xe2, 0x82], b"!", &[0xc3]]),
            ["\u{fffd}", "", "\u{fffd}!", "", "\u{fffd}"]
        );
    }

    proptest! {
        #[test]
        fn pieces_give_the_text_of_all_bytes(
            bytes in prop_oneof![
                prop::collection::vec(prop::sample::select(vec![0x41, 0x80, 0xbf, 0xc3, 0xa9, 0xe2, 0x82, 0xed, 0xa0, 0xf0, 0x9f, 0xf4, 0x90, 0xff]), 0..40),
                any::<String>().prop_map(String::into_bytes),
            ],
            cuts in prop::collection::vec(0usize..40, 0..20),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let text = pushed(&pieces).concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}

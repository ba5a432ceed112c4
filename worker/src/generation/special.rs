//! Special tokens in the text of a prompt: the template's own text means them, a client's does not.
//!
//! Between special tokens a template's text and a client's are one text for the tokeniser, so that a prompt becomes the
//! same tokens as by Hugging Face where no content spells a special token. The text pieces have to be tokenised by a
//! tokeniser that takes no spelling for a special token
//! ([`set_encode_special_tokens(true)`](tokenizers::Tokenizer::set_encode_special_tokens)). Added tokens that are not special are found in
//! either text, as there.

use super::template::Part;
use tokenizers::Tokenizer;

/// A longer special token is not sought, in bytes. Each place of a template's text is compared with those that begin with
/// the same byte.
const SPECIAL_BYTES_MAX: usize = 256;

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// One token.
    Special(u32),
    /// Text in which nothing is a special token; never empty.
    Text(String),
}

/// The spellings of a model's special tokens.
#[derive(Clone, Debug)]
pub struct Specials {
    /// With their ids, by first byte; of those the longest first.
    by_first_byte: Vec<Vec<(String, u32)>>,
}

impl Specials {
    /// Those of a tokeniser.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special);
        Self::new(special.map(|(id, token)| (token.content.clone(), *id)))
    }

    fn new(tokens: impl Iterator<Item = (String, u32)>) -> Self {
        let mut by_first_byte = vec![Vec::new(); 256];
        for (token, id) in tokens.filter(|(token, _)| token.len() <= SPECIAL_BYTES_MAX) {
            if let Some(first) = token.bytes().next() {
                by_first_byte[usize::from(first)].push((token, id));
            }
        }
        let longest_first = |tokens: &mut Vec<(String, u32)>| {
            tokens
                .sort_unstable_by(|left, right| right.0.len().cmp(&left.0.len()).then(left.1.cmp(&right.1)));
        };
        by_first_byte.iter_mut().for_each(longest_first);
        Self { by_first_byte }
    }

    /// The pieces of a prompt in order. A special token is found where it is wholly within a template's text; the leftmost
    /// counts, of several the longest.
    pub fn pieces(&self, parts: &[Part]) -> Vec<Piece> {
        let mut pieces = Pieces::default();
        for part in parts {
            if part.is_content {
                pieces.text.push_str(&part.text);
            } else {
                self.add(&part.text, &mut pieces);
            }
        }
        pieces.finish()
    }

    fn add(&self, text: &str, pieces: &mut Pieces) {
        let mut begin = 0;
        let mut at = 0;
        while at < text.len() {
            match self.found(&text.as_bytes()[at..]) {
                Some((length, id)) => {
                    pieces.text.push_str(&text[begin..at]);
                    pieces.special(id);
                    at += length;
                    begin = at;
                }
                None => at += 1,
            }
        }
        pieces.text.push_str(&text[begin..]);
    }

    fn found(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let tokens = &self.by_first_byte[usize::from(*bytes.first()?)];
        let (token, id) = tokens.iter().find(|(token, _)| bytes.starts_with(token.as_bytes()))?;
        Some((token.len(), *id))
    }
}

#[derive(Default)]
struct Pieces {
    done: Vec<Piece>,
    /// Since the last special token.
    text: String,
}

impl Pieces {
    fn special(&mut self, id: u32) {
        self.end_text();
        self.done.push(Piece::Special(id));
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.done.push(Piece::Text(std::mem::take(&mut self.text)));
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        self.end_text();
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(parts: &[(&str, bool)], expected: &[Piece]) {
        let tokens = [("<s>", 1), ("<|im_end|>", 2), ("<|im_end|>x", 3), ("é>", 4)];
        let specials = Specials::new(tokens.into_iter().map(|(token, id)| (token.to_owned(), id)));
        let parts: Vec<Part> = parts
            .iter()
            .map(|(text, is_content)| Part { text: (*text).to_owned(), is_content: *is_content })
            .collect();
        assert_eq!(specials.pieces(&parts), expected);
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    #[test]
    fn a_template_means_special_tokens_and_a_content_does_not() {
        check(
            &[("<s>user: ", false), ("hi<|im_end|>é", true), ("!<|im_end|>", false)],
            &[Piece::Special(1), text("user: hi<|im_end|>é!"), Piece::Special(2)],
        );
    }

    #[test]
    fn a_content_does_not_complete_a_special_token_either() {
        check(&[("<", false), ("s", true), (">", false)], &[text("<s>")]);
        check(&[("<|im_", true), ("end|>", false)], &[text("<|im_end|>")]);
    }

    #[test]
    fn the_longest_special_token_counts_and_none_begins_inside_of_a_character() {
        check(&[("<|im_end|>xé><s", false)], &[Piece::Special(3), Piece::Special(4), text("<s")]);
    }
}

//! The bytes of each token, made once for a model.

use std::collections::HashMap;
use tokenizers::Tokenizer;

/// The bytes that each token of a byte-level BPE stands for: of a token of the vocabulary by the byte-level alphabet
/// (Radford et al. 2019, GPT-2), of an added token its own text. Special tokens stand for no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBytes {
    bytes: Vec<u8>,
    /// Where the bytes of each token end.
    ends: Vec<u32>,
    /// Ascending.
    special: Vec<u32>,
}

impl TokenBytes {
    /// Of a network that knows `vocabulary` tokens. Ids that the tokeniser doesn't know stand for no text.
    pub fn new(tokenizer: &Tokenizer, vocabulary: usize) -> Self {
        let alphabet = alphabet();
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut table = Self { bytes: Vec::new(), ends: Vec::with_capacity(vocabulary), special: Vec::new() };
        for id in ids(vocabulary) {
            match added.get(&id) {
                Some(token) if token.special => table.special.push(id),
                Some(token) => table.bytes.extend_from_slice(token.content.as_bytes()),
                None => {
                    let token = tokenizer.id_to_token(id).unwrap_or_default();
                    append(&mut table.bytes, &token, &alphabet);
                }
            }
            table.ends.push(u32::try_from(table.bytes.len()).expect("a tokeniser's file is far below 4 GiB"));
        }
        table.bytes.shrink_to_fit();
        table
    }

    /// The most bytes of memory that the table of a network takes while it is made, found without making it: its text
    /// may be moved once as it grows.
    pub fn bytes_needed(tokenizer: &Tokenizer, vocabulary: usize) -> u64 {
        let text: usize =
            ids(vocabulary).filter_map(|id| tokenizer.id_to_token(id)).map(|token| token.len()).sum();
        let special = tokenizer.get_added_vocabulary().get_added_tokens_decoder().len();
        (3 * text + (vocabulary + 2 * special) * size_of::<u32>()) as u64
    }

    /// What a token stands for; nothing if it is special, or beyond the vocabulary.
    pub fn get(&self, id: u32) -> &[u8] {
        let place = id as usize;
        let end = |place: usize| self.ends.get(place).copied();
        let begin = if place == 0 { Some(0) } else { end(place - 1) };
        match (begin, end(place)) {
            (Some(begin), Some(end)) => &self.bytes[begin as usize..end as usize],
            (None, _) | (_, None) => &[],
        }
    }

    /// Whether it is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// How many tokens there are.
    pub fn vocabulary(&self) -> usize {
        self.ends.len()
    }
}

fn ids(vocabulary: usize) -> impl Iterator<Item = u32> {
    let count = u32::try_from(vocabulary).expect("a vocabulary has fewer tokens than 2^32");
    0..count
}

/// As the library decodes: a token with a character that is not of the alphabet stands for its own text.
fn append(bytes: &mut Vec<u8>, token: &str, alphabet: &HashMap<char, u8>) {
    let begin = bytes.len();
    for character in token.chars() {
        match alphabet.get(&character) {
            Some(byte) => bytes.push(*byte),
            None => {
                bytes.truncate(begin);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// Bytes that print as themselves, the others from U+0100 on in their order.
fn alphabet() -> HashMap<char, u8> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    let mut letter = |byte| if prints(&byte) { char::from(byte) } else { others.next().unwrap_or_default() };
    (0..=u8::MAX).map(|byte| (letter(byte), byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer() -> Tokenizer {
        let added = |id: u32, content: &str, special: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [added(4, "<end>", true), added(5, "é tool", false)],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": {"a": 0, "Ġa": 1, "Ã": 2, "©Ċ": 3, "<end>": 4, "é tool": 5, "日": 6}, "merges": [],
            },
        });
        Tokenizer::from_bytes(file.to_string()).unwrap()
    }

    #[test]
    fn tokens_stand_for_bytes_added_ones_for_their_text_and_special_ones_for_none() {
        let table = TokenBytes::new(&tokenizer(), 9);
        let bytes: Vec<&[u8]> = (0..10).map(|id| table.get(id)).collect();
        let expected: [&[u8]; 10] =
            [b"a", b" a", b"\xc3", b"\xa9\n", b"", "é tool".as_bytes(), "日".as_bytes(), b"", b"", b""];
        assert_eq!(bytes, expected);
        assert_eq!((0..10).filter(|id| table.is_special(*id)).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn the_alphabet_is_a_character_for_each_byte() {
        let alphabet = alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(
            [alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'ł'], alphabet[&'Ń']],
            [b' ', b'\n', 0xa0, 0xad]
        );
    }

    #[test]
    fn a_table_takes_no_more_than_was_said() {
        let tokenizer = tokenizer();
        let table = TokenBytes::new(&tokenizer, 9);
        let taken = table.bytes.capacity() + 4 * (table.ends.capacity() + table.special.capacity());
        assert!(taken as u64 <= TokenBytes::bytes_needed(&tokenizer, 9), "{taken}");
    }
}

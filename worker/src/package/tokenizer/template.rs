//! Templates put special tokens around a text. The library trusts them: a name that it can't find, or a second text that
//! nobody gave, is a panic when it encodes.

use super::ADDED_TOKENS_MAX;
use serde::Deserialize;
use std::collections::HashMap;

/// The most pieces of a template.
const PIECES_MAX: usize = 64;
/// The most ids that a special token stands for.
const IDS_MAX: usize = 16;

#[derive(Deserialize)]
pub(super) struct Template {
    single: Vec<Piece>,
    pair: Vec<Piece>,
    special_tokens: HashMap<String, SpecialToken>,
}

#[derive(Deserialize)]
enum Piece {
    Sequence { id: Sequence },
    SpecialToken { id: String },
}

#[derive(Deserialize, PartialEq, Eq)]
enum Sequence {
    A,
    B,
}

#[derive(Deserialize)]
struct SpecialToken {
    ids: Vec<u32>,
    tokens: Vec<String>,
}

impl Template {
    /// What is wrong with it, if anything is.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.single.len() > PIECES_MAX || self.pair.len() > PIECES_MAX {
            return Err("a template has too many pieces");
        }
        if self.special_tokens.len() > ADDED_TOKENS_MAX {
            return Err("a template has too many special tokens");
        }
        for token in self.special_tokens.values() {
            if token.ids.len() > IDS_MAX {
                return Err("a special token stands for too many ids");
            }
            if token.ids.len() != token.tokens.len() {
                return Err("a special token has not as many ids as tokens");
            }
        }
        let unknown = |piece: &Piece| match piece {
            Piece::SpecialToken { id } => !self.special_tokens.contains_key(id),
            Piece::Sequence { .. } => false,
        };
        if self.single.iter().chain(&self.pair).any(unknown) {
            return Err("a template names a special token that it does not define");
        }
        let texts = |wanted| {
            let is_text = |piece: &&Piece| matches!(piece, Piece::Sequence { id } if *id == wanted);
            self.single.iter().filter(is_text).count()
        };
        if texts(Sequence::A) != 1 || texts(Sequence::B) != 0 {
            return Err("the template of one text does not hold exactly that text");
        }
        Ok(())
    }

    /// The ids of all its special tokens.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.special_tokens.values().flat_map(|token| &token.ids).copied()
    }
}

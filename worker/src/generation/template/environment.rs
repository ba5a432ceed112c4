//! What templates can call: the engine's own, less what shows its state, and what Hugging Face adds.

use super::{RAISED_BYTES_MAX, json, marks, methods};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

/// What a template's failure was, below the engine's error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Raised {
    /// `raise_exception(text)`
    #[error("{0}")]
    Exception(String),
    /// The marks of a content are no pair any more.
    #[error("torn")]
    Torn,
}

impl From<Raised> for Error {
    fn from(raised: Raised) -> Self {
        Self::from(ErrorKind::InvalidOperation).with_source(raised)
    }
}

pub(super) fn environment(recursion_max: usize) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_recursion_limit(recursion_max);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
    environment.remove_global("debug");
    environment.remove_filter("pprint");
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", json::tojson);
    methods::add(&mut environment);
    environment
}

fn raise_exception(text: &str) -> Result<(), Error> {
    let plain = text.chars().filter(|character| !marks::has_marks(character.encode_utf8(&mut [0; 4])));
    let mut text = String::new();
    for character in plain {
        if text.len() + character.len_utf8() > RAISED_BYTES_MAX {
            break;
        }
        text.push(character);
    }
    Err(Raised::Exception(text).into())
}

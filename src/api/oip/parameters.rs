//! `parameters` of requests and tensors. One that is not known is refused: a client that sends it counts on it.

use crate::api::ApiError;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What a name is cut to in messages.
const NAME_CHARS_MAX: usize = 64;

/// A value, as the protocol has them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Parameter {
    Flag(bool),
    Count(u64),
    Number(f64),
    Text(String),
}

/// Those of one place, from which each that is known is taken.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub(super) struct Parameters {
    left: BTreeMap<String, Parameter>,
    #[serde(skip)]
    known: Vec<&'static str>,
}

impl Parameters {
    /// True or false.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Parameter::Flag(value)) => Ok(Some(value)),
            Some(_) => Err(wrong(name, "true or false")),
        }
    }

    /// A whole number from 0.
    pub(super) fn count(&mut self, name: &'static str) -> Result<Option<u64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Parameter::Count(value)) => Ok(Some(value)),
            Some(_) => Err(wrong(name, "a whole number from 0")),
        }
    }

    /// A number.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Parameter::Number(value)) => Ok(Some(value)),
            Some(Parameter::Count(value)) => Ok(Some(value as f64)),
            Some(_) => Err(wrong(name, "a number")),
        }
    }

    /// A text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Parameter::Text(value)) => Ok(Some(value)),
            Some(_) => Err(wrong(name, "a text")),
        }
    }

    /// Refuses what was not taken; `place` says whose they are.
    pub(super) fn end(self, place: &str) -> Result<(), ApiError> {
        let Some(name) = self.left.into_keys().next() else { return Ok(()) };
        let name: String = name.chars().take(NAME_CHARS_MAX).collect();
        let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        let message = format!("{place} has no parameter {name:?}; known are: {known}");
        Err(ApiError::invalid("parameter_invalid", &name, message))
    }

    fn take(&mut self, name: &'static str) -> Option<Parameter> {
        self.known.push(name);
        self.left.remove(name)
    }
}

fn wrong(name: &'static str, expected: &str) -> ApiError {
    ApiError::invalid("parameter_invalid", name, format!("the parameter {name} is {expected}"))
}

//! How an answer is to be made, as the command line says it.

use crate::error::CliError;
use clap::Args;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The longest schema that the server takes.
const SCHEMA_BYTES_MAX: u64 = 64 * 1024;

/// Fields of a request.
pub type Fields = Map<String, Value>;

/// How an answer is to be made. What is left out is left to the server.
#[derive(Args, Clone, Debug, Default)]
pub struct Sampling {
    /// The most tokens of an answer [default: as many as the model has room for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// From 0, which always takes the likeliest token, to 2 [default: 1]
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub temperature: Option<f64>,
    /// Only the likeliest tokens that are so likely together [default: 1]
    #[arg(long, value_name = "P", value_parser = top_p)]
    pub top_p: Option<f64>,
    /// The same number gives the same answer [default: another each time]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Hold the answer to the JSON schema in this file
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
}

impl Sampling {
    /// As fields of a request.
    ///
    /// # Errors
    /// A schema's file that can't be read or is no JSON.
    pub fn fields(&self) -> Result<Fields, CliError> {
        let Self { max_tokens, temperature, top_p, seed, schema } = self;
        let mut fields = Fields::new();
        let mut set =
            |name: &str, value: Option<Value>| value.map(|value| fields.insert(name.to_owned(), value));
        set("max_tokens", max_tokens.map(Value::from));
        set("temperature", temperature.map(Value::from));
        set("top_p", top_p.map(Value::from));
        set("seed", seed.map(Value::from));
        set("response_format", schema.as_deref().map(response_format).transpose()?);
        Ok(fields)
    }
}

fn response_format(file: &Path) -> Result<Value, CliError> {
    let name = file.display().to_string();
    let failed = |source| CliError::io(&*name, source);
    let wrong = |what: String| CliError::Usage { what: format!("{name}: {what}"), advice: String::new() };
    if fs::metadata(file).map_err(failed)?.len() > SCHEMA_BYTES_MAX {
        return Err(wrong(format!("a schema has at most {SCHEMA_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(file).map_err(failed)?;
    let schema: Value =
        serde_json::from_str(&text).map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    Ok(json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}))
}

fn temperature(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|value| (0.0..=2.0).contains(value)).ok_or("give 0 to 2")
}

fn top_p(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|value| *value > 0.0 && *value <= 1.0).ok_or("give more than 0, and at most 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_left_to_the_server() {
        assert_eq!(Sampling::default().fields().unwrap(), Fields::new());
        let some = Sampling { seed: Some(-1), temperature: Some(0.7), ..Sampling::default() };
        assert_eq!(Value::Object(some.fields().unwrap()), json!({"seed": -1, "temperature": 0.7}));
    }

    #[test]
    fn numbers_are_what_the_server_takes() {
        assert_eq!((temperature("0"), temperature("2"), top_p("1")), (Ok(0.0), Ok(2.0), Ok(1.0)));
        for wrong in ["2.1", "-0.1", "nan", "hot", ""] {
            assert!(temperature(wrong).is_err(), "{wrong}");
        }
        assert!(top_p("0").is_err() && top_p("1.01").is_err() && top_p("nan").is_err());
    }

    #[test]
    fn a_schema_is_a_file_of_json() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        fs::write(&file, r#"{"type": "object"}"#).unwrap();
        assert_eq!(response_format(&file).unwrap()["json_schema"]["schema"], json!({"type": "object"}));
        fs::write(&file, "{").unwrap();
        assert_eq!(response_format(&file).unwrap_err().code(), "usage");
        fs::write(&file, " ".repeat(64 * 1024 + 1)).unwrap();
        assert_eq!(response_format(&file).unwrap_err().code(), "usage");
        assert_eq!(response_format(&folder.path().join("none")).unwrap_err().code(), "io_error");
    }
}

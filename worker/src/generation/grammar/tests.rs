use super::*;
use crate::generation::detokenise::TokenBytes;
use crate::package::chat::EndTokens;
use crate::random::Random;
use serde_json::json;
use std::sync::OnceLock;
use tokenizers::Tokenizer;

const END: u32 = 256;
/// Not an end token.
const START: u32 = 257;

/// A token for each byte, some of several, and two special ones.
fn bytes() -> &'static TokenBytes {
    static BYTES: OnceLock<TokenBytes> = OnceLock::new();
    BYTES.get_or_init(|| {
        let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let mut others = '\u{100}'..;
        let letters = (0..=u8::MAX).map(|byte| if prints(&byte) { char::from(byte) } else { others.next().unwrap() });
        let more = ["<end>", "<start>", "{\"", "\":", "true", "name", "},", "Ġ12", "\",\""].map(str::to_owned);
        let vocabulary: serde_json::Map<String, Value> =
            letters.map(String::from).chain(more).zip(0u32..).map(|(token, id)| (token, id.into())).collect();
        let added = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [added(END, "<end>"), added(START, "<start>")],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [],
            },
        });
        TokenBytes::new(&Tokenizer::from_bytes(file.to_string()).unwrap(), 265)
    })
}

fn trie() -> &'static TokenTrie {
    static TRIE: OnceLock<TokenTrie> = OnceLock::new();
    TRIE.get_or_init(|| TokenTrie::new(bytes(), &EndTokens::from_iter([END])).unwrap())
}

fn grammar(schema: &Value) -> Result<Grammar, GrammarError> {
    Grammar::json_schema(&schema.to_string(), trie())
}

/// Takes a text byte by byte, as far as it is allowed.
fn taken<'a>(grammar: &mut Grammar, text: &'a str) -> &'a str {
    let stop = text.bytes().position(|byte| grammar.take(u32::from(byte)).is_err());
    &text[..stop.unwrap_or(text.len())]
}

fn person() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    })
}

#[test]
fn an_answer_is_held_to_its_schema() {
    for (text, until) in [
        (r#"{"name":"Bo","age":7}"#, r#"{"name":"Bo","age":7}"#),
        (r#"{"name":"Benjamin"#, r#"{"name":"Benja"#),
        (r#"{"name":"Bo","age":-"#, r#"{"name":"Bo","age":"#),
        (r#"{"name":"Bo","age":151"#, r#"{"name":"Bo","age":15"#),
        (r#"{"nane"#, r#"{"na"#),
        (r#"[1]"#, ""),
    ] {
        assert_eq!(taken(&mut grammar(&person()).unwrap(), text), until);
    }
}

#[test]
fn an_end_token_may_come_only_where_the_json_is_whole_and_no_other_special_token_ever() {
    let mut grammar = grammar(&json!({"type": "integer"})).unwrap();
    assert!(!grammar.mask().unwrap().allows(END));
    taken(&mut grammar, "12");
    assert!(grammar.is_whole());
    let mask = grammar.mask().unwrap();
    assert!(mask.allows(END) && !mask.allows(START) && mask.allows(u32::from(b'3')));
    assert!(!grammar.is_done());
    grammar.take(END).unwrap();
    assert!(grammar.is_done());
    assert!((0..300).all(|id| !grammar.mask().unwrap().allows(id)));
}

#[test]
fn an_object_that_is_whole_is_done() {
    let mut grammar = grammar(&person()).unwrap();
    assert_eq!(taken(&mut grammar, r#"{"name":"","age":0}"#).len(), 19);
    assert!(grammar.is_whole());
    let whole = grammar.is_done() || grammar.mask().unwrap().allows(END);
    assert!(whole);
}

#[test]
fn a_token_that_is_not_allowed_is_not_taken() {
    assert_eq!(grammar(&person()).unwrap().take(u32::from(b'x')), Err(GrammarError::NotAllowed));
    assert_eq!(grammar(&person()).unwrap().take(9999), Err(GrammarError::NotAllowed));
    assert_eq!(grammar(&json!({"type": "string"})).unwrap().take(START), Err(GrammarError::NotAllowed));
}

/// Whatever is chosen of what is allowed, what comes out is JSON of the schema.
#[test]
fn random_answers_are_json_of_the_schema() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut grammar = grammar(&person()).unwrap();
        let mut answer = Vec::new();
        for _ in 0..200 {
            if grammar.is_done() {
                break;
            }
            let mask = grammar.mask().unwrap();
            let allowed: Vec<u32> = (0..265).filter(|id| mask.allows(*id)).collect();
            let white = |id: &&u32| !bytes().get(**id).iter().all(u8::is_ascii_whitespace);
            let choices: Vec<&u32> = allowed.iter().filter(white).collect();
            let id = match mask.allows(END) {
                true => END,
                false => *choices[(random.unit() * choices.len() as f64) as usize],
            };
            answer.extend_from_slice(bytes().get(id));
            grammar.take(id).unwrap();
        }
        let answer: Value = serde_json::from_slice(&answer)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}: {}", String::from_utf8_lossy(&answer)));
        assert!(answer["name"].as_str().unwrap().chars().count() <= 5, "{answer}");
        assert!(answer["age"].as_u64().unwrap() <= 150, "{answer}");
    }
}

#[test]
fn any_object_is_an_object() {
    let any = || Grammar::json_schema(r#"{"type": "object"}"#, trie()).unwrap();
    let text = r#"{"a":[1,{"b":null}],"c":"\n\"é"}"#;
    assert_eq!(taken(&mut any(), text), text);
    assert_eq!(taken(&mut any(), "[1]"), "");
}

#[test]
fn references_within_a_schema_are_followed_and_others_refused() {
    let tree = json!({
        "$defs": {"node": {"type": "object", "additionalProperties": false, "properties": {"next": {"$ref": "#/$defs/node"}}}},
        "$ref": "#/$defs/node",
    });
    let text = r#"{"next":{"next":{}}}"#;
    assert_eq!(taken(&mut grammar(&tree).unwrap(), text), text);
    let other = grammar(&json!({"$ref": "https://example.org/schema.json"})).map(|_| ());
    assert!(matches!(other, Err(GrammarError::Refused(_))), "{other:?}");
}

#[test]
fn schemas_that_are_none_are_refused_and_those_that_want_everything_too() {
    let refused = |schema: String| match Grammar::json_schema(&schema, trie()) {
        Ok(mut grammar) => {
            // What takes too much may be found only when it is walked.
            let mut random = Random::new(1);
            for _ in 0..50 {
                match grammar.mask() {
                    Err(error) => return error,
                    Ok(mask) => {
                        let allowed: Vec<u32> = (0..265).filter(|id| mask.allows(*id)).collect();
                        if allowed.is_empty() {
                            break;
                        }
                        grammar.take(allowed[(random.unit() * allowed.len() as f64) as usize]).unwrap();
                    }
                }
            }
            panic!("it was taken: {}", &schema[..schema.len().min(100)])
        }
        Err(error) => error,
    };
    assert_eq!(refused(" ".repeat(65_537)), GrammarError::TooLarge(65_537));
    assert_eq!(refused("{".to_owned()), GrammarError::NoJson);
    assert_eq!(refused("[".repeat(60_000)), GrammarError::NoJson);
    for schema in [
        json!(1),
        json!({"type": "person"}),
        json!({"type": "object", "properties": 5}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "string", "pattern": "(?=a)b"}),
        json!({"not": {"type": "string"}}),
        json!({"type": "integer", "multipleOf": 0}),
        json!({"enum": []}),
        json!(false),
    ] {
        let error = refused(schema.to_string());
        assert!(matches!(error, GrammarError::Refused(_) | GrammarError::Failed), "{schema}: {error:?}");
        let GrammarError::Refused(reason) = error else { continue };
        assert!(reason.len() <= REASON_BYTES_MAX);
    }
}

/// Patterns with far more states than memory: they are found one by one, and only so many.
#[test]
fn patterns_that_want_everything_give_masks_or_end() {
    for pattern in
        ["^((a{1,1000}){1,1000}){1,1000}$", "^(.*a.{60}b.*|.*b.{61}a.*){30}$", "^(a|b)*a(a|b){1000}$"]
    {
        let Ok(mut grammar) = grammar(&json!({"type": "string", "pattern": pattern})) else { continue };
        grammar.take(u32::from(b'"')).unwrap();
        for _ in 0..300 {
            match grammar.mask().map(|mask| mask.allows(u32::from(b'a'))) {
                Ok(true) => grammar.take(u32::from(b'a')).unwrap(),
                Ok(false) => break,
                Err(error) => {
                    assert_eq!(error, GrammarError::Failed);
                    break;
                }
            }
        }
    }
}

#[test]
fn where_no_token_ends_an_answer_there_is_no_grammar() {
    assert!(TokenTrie::new(bytes(), &EndTokens::default()).is_none());
}

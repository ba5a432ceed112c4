//! Tokenisers that must be refused before the library sees them, each with what is wrong, and those at the bounds that
//! must not.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_protocol::LoadError;
use ringfence_worker::package::config::BertConfig;
use ringfence_worker::package::llama::LlamaConfig;
use ringfence_worker::package::safetensors;
use ringfence_worker::package::tokenizer::{self, parse_bpe};
use serde_json::{Value, json};
use support::Package;

/// Tokens of the network in these tests.
const VOCABULARY: usize = 16;
/// The largest vocabulary, and the most merges, that are taken.
const VOCABULARY_MAX: usize = 1 << 21;

/// A small byte-level BPE.
fn bpe() -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(4, "<s>")],
        "normalizer": null,
        "pre_tokenizer": split(r"\p{N}"),
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "<s>": 4},
            "merges": [["a", "b"]],
        },
    })
}

fn added(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

fn split(expression: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
}

/// The small one, whose words are GPT-2's, with a change.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut tokenizer = bpe();
    tokenizer["pre_tokenizer"] =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    change(&mut tokenizer);
    tokenizer.to_string().into_bytes()
}

#[track_caller]
fn refused(bytes: &[u8], reason: &str) {
    check_refused(parse_bpe(bytes, VOCABULARY).err(), tokenizer::FILE, reason);
}

#[track_caller]
fn check_refused(error: Option<LoadError>, name: &str, reason: &str) {
    match error {
        Some(LoadError::Malformed { file, reason: said }) => {
            assert!(file == name && said.contains(reason), "`{file}`: {said}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_small_one_is_read_and_encodes() {
    let tokenizer = parse_bpe(&changed(|_| {}), VOCABULARY).unwrap();
    assert_eq!(tokenizer.encode("<s>abc", true).unwrap().get_ids(), [4, 3, 2]);
}

#[test]
fn regular_expressions_are_never_a_strangers() {
    let long = "a?".repeat(5000) + &"a".repeat(5000);
    let bombs = [
        r"(a+)+$",
        r"(x+x+)+y",
        r"(a|aa)+\1$",
        r"((\p{L}{1000}){1000}){1000}",
        r"(?=(a+))\1+(?<!b)",
        r"\p{N}",
        "(",
        "",
        &long,
    ];
    let unknown = "a component or a regular expression";
    for bomb in bombs {
        refused(&changed(|tokenizer| tokenizer["pre_tokenizer"] = split(bomb)), unknown);
        let nested = json!({"type": "Sequence", "pretokenizers": [split(bomb)]});
        refused(&changed(|tokenizer| tokenizer["pre_tokenizer"] = nested), unknown);
        // Elsewhere, nothing with an expression is known at all.
        let replace = json!({"type": "Replace", "pattern": {"Regex": bomb}, "content": ""});
        for place in ["normalizer", "decoder"] {
            refused(&changed(|tokenizer| tokenizer[place] = replace.clone()), "of another type");
        }
        let mut wordpiece = Package::tiny();
        let mut outline: Value = serde_json::from_slice(&wordpiece.0[tokenizer::FILE]).unwrap();
        outline["pre_tokenizer"] = split(bomb);
        wordpiece.0.insert(tokenizer::FILE.to_owned(), outline.to_string().into_bytes());
        check_refused(wordpiece.load().err(), tokenizer::FILE, "of another type");
    }
    let deep = (0..5).fold(split("x"), |inner, _| json!({"type": "Sequence", "pretokenizers": [inner]}));
    refused(&changed(|tokenizer| tokenizer["pre_tokenizer"] = deep), unknown);
}

/// A key whose value makes the file so many levels deep, the file itself included.
fn deep(levels: usize) -> String {
    format!(r#""deep": {}{}"#, "[".repeat(levels - 1), "]".repeat(levels - 1))
}

fn with_key(object: &[u8], key: &str) -> Vec<u8> {
    let text = std::str::from_utf8(object).unwrap().trim_start().strip_prefix('{').unwrap();
    format!("{{{key}, {text}").into_bytes()
}

#[test]
fn nesting_is_bounded_in_every_file() {
    let package = Package::tiny();
    let config = &package.0["config.json"];
    assert!(BertConfig::parse(&with_key(config, &deep(127))).is_ok());
    for levels in [128, 129, 100_000] {
        let key = deep(levels);
        let no_json = "no JSON";
        check_refused(BertConfig::parse(&with_key(config, &key)).err(), "config.json", no_json);
        check_refused(LlamaConfig::parse(&with_key(b"{}", &key)).err(), "config.json", no_json);
        refused(&with_key(&changed(|_| {}), &key), no_json);
        let wordpiece = with_key(&package.0[tokenizer::FILE], &key);
        check_refused(tokenizer::parse(&wordpiece, 246).err(), tokenizer::FILE, no_json);
        let header = format!("{{{key}}}");
        let mut weights = (header.len() as u64).to_le_bytes().to_vec();
        weights.extend_from_slice(header.as_bytes());
        check_refused(safetensors::parse("x.safetensors", &weights).err(), "x.safetensors", "header");
        let mut bare = package.clone();
        bare.0.insert("modules.json".to_owned(), format!("{{{key}}}").into_bytes());
        check_refused(bare.load().err(), "modules.json", "");
    }
}

#[test]
fn vocabularies_and_merges_are_bounded() {
    let at = |count: usize, item: &dyn Fn(usize) -> String| {
        let items: Vec<String> = (0..count).map(item).collect();
        items.join(",")
    };
    let file = |vocab: &str, merges: &str| {
        let text = String::from_utf8(changed(|tokenizer| {
            tokenizer["model"]["vocab"] = "VOCAB".into();
            tokenizer["model"]["merges"] = "MERGES".into();
            tokenizer["added_tokens"] = json!([]);
        }));
        let text = text.unwrap().replace(r#""VOCAB""#, &format!("{{{vocab}}}"));
        text.replace(r#""MERGES""#, &format!("[{merges}]")).into_bytes()
    };
    let vocab = at(VOCABULARY_MAX + 1, &|id| format!(r#""{id:x}":{id}"#));
    refused(&file(&vocab, ""), "the vocabulary is too large");
    let merges = at(VOCABULARY_MAX + 1, &|_| r#""a b""#.to_owned());
    refused(&file(r#""a":0,"b":1,"ab":2"#, &merges), "the vocabulary is too large");
    let long = vec![b' '; tokenizer::BYTES_MAX + 1];
    refused(&long, "are taken");
    check_refused(tokenizer::parse(&long, VOCABULARY).err(), tokenizer::FILE, "are taken");
}

#[test]
fn tokens_are_bounded_and_have_one_id_each() {
    for (change, reason) in [
        (
            &(|t: &mut Value| t["model"]["vocab"]["x".repeat(4097)] = 5.into()) as &dyn Fn(&mut Value),
            "too long",
        ),
        (
            &|t| {
                t["model"]["vocab"][""] = 5.into();
                t["model"]["merges"] = json!([["", "a"]]);
            },
            "a merge is not of tokens",
        ),
        (&|t| t["model"]["vocab"]["c"] = 1.into(), "two tokens have one id"),
        (&|t| t["model"]["vocab"]["c"] = 16.into(), "outside the vocabulary"),
        (&|t| t["model"]["vocab"]["c"] = (-1).into(), "of another type"),
        (&|t| t["model"]["vocab"]["c"] = (1_u64 << 32).into(), "of another type"),
        (&|t| t["model"]["merges"] = json!([["a", "x"]]), "a merge is not of tokens"),
        (&|t| t["model"]["merges"] = json!([["a", "c"]]), "a merge is not of tokens"),
        (&|t| t["model"]["merges"] = json!(["ab"]), "a merge is not of tokens"),
        (&|t| t["model"]["unk_token"] = "x".into(), "lacks the unknown token"),
        (&|t| t["added_tokens"] = (0..2049).map(|i| added(i, &format!("<{i}>"))).collect(), "too many added"),
        (&|t| t["added_tokens"] = json!([added(4, "<s>"), added(4, "<s>")]), "there twice"),
        (&|t| t["added_tokens"] = json!([added(4, "")]), "is empty"),
        (&|t| t["added_tokens"] = json!([added(16, "<x>")]), "outside the vocabulary"),
        (&|t| t["added_tokens"] = json!([added(9, "<x>")]), "not the one that it gets"),
    ] {
        refused(&changed(change), reason);
    }
    let text = String::from_utf8(changed(|_| {})).unwrap();
    refused(text.replacen(r#""a":0"#, r#""a":0,"a":0"#, 1).as_bytes(), "a key is doubled");
}

#[test]
fn the_same_holds_for_wordpiece() {
    for (change, reason) in [
        (
            &(|t: &mut Value| t["model"]["vocab"]["[UNK]"] = 0.into()) as &dyn Fn(&mut Value),
            "two tokens have one id",
        ),
        (&|t| t["model"]["vocab"]["[UNK]"] = 246.into(), "outside the vocabulary"),
        (&|t| t["added_tokens"] = (0..2049).map(|i| added(i, &format!("<{i}>"))).collect(), "too many added"),
        (&|t| t["added_tokens"][0]["id"] = 7.into(), "not the one that it gets"),
        (&|t| t["model"]["max_input_chars_per_word"] = 513.into(), "too large"),
    ] {
        let mut outline: Value = serde_json::from_slice(&Package::tiny().0[tokenizer::FILE]).unwrap();
        change(&mut outline);
        let error = tokenizer::parse(outline.to_string().as_bytes(), 246).err();
        check_refused(error, tokenizer::FILE, reason);
    }
}

/// The special token `<s>` in front of one text.
fn template() -> Value {
    json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}},
    })
}

#[test]
fn templates_are_checked_before_the_library_trusts_them() {
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let lost = json!({"SpecialToken": {"id": "<lost>", "type_id": 0}});
    let (undefined, not_one) = ("names a special token", "exactly that text");
    for (change, reason) in [
        (&(|t: &mut Value| t["special_tokens"] = json!({})) as &dyn Fn(&mut Value), undefined),
        (&|t| t["pair"][0] = lost.clone(), undefined),
        (&|t| t["single"][1] = json!({"Sequence": {"id": "B", "type_id": 0}}), not_one),
        (&|t| t["single"][0] = text.clone(), not_one),
        (&|t| t["single"] = json!([]), not_one),
        (&|t| t["single"] = json!(vec![text.clone(); 65]), "too many pieces"),
        (&|t| t["special_tokens"]["<s>"]["ids"] = json!([4, 4]), "as many ids as tokens"),
        (&|t| t["special_tokens"]["<s>"]["ids"] = json!(vec![4; 17]), "too many ids"),
        (&|t| t["special_tokens"]["<s>"]["ids"] = json!([16]), "outside the vocabulary"),
        (
            &|t| {
                for i in 0..2048 {
                    t["special_tokens"][format!("<{i}>")] = t["special_tokens"]["<s>"].clone();
                }
            },
            "too many special tokens",
        ),
    ] {
        let mut wrong = template();
        change(&mut wrong);
        refused(&changed(|tokenizer| tokenizer["post_processor"] = wrong.clone()), reason);
        let nested = json!({"type": "Sequence", "processors": [wrong]});
        refused(&changed(|tokenizer| tokenizer["post_processor"] = nested), reason);
    }
    let whole = changed(|tokenizer| tokenizer["post_processor"] = template());
    let tokenizer = parse_bpe(&whole, VOCABULARY).unwrap();
    assert_eq!(tokenizer::encode(&tokenizer, "c", true).unwrap().get_ids(), [4, 2]);
}

/// The library looks a template's tokens up without asking whether they are there.
#[test]
fn a_panic_of_the_library_is_no_answer() {
    let unchecked = changed(|tokenizer| {
        tokenizer["post_processor"] = template();
        tokenizer["post_processor"]["special_tokens"] = json!({});
    });
    let tokenizer = tokenizers::Tokenizer::from_bytes(unchecked).unwrap();
    assert!(tokenizer::encode(&tokenizer, "c", true).is_none());
}

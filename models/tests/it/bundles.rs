//! Bundles that are signed, and refused all the same.

use crate::fixture::{Fixture, envelope};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringfence_models::{Fault, FieldError, PublicKey, Refusal, SigningKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs;

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

#[test]
fn what_is_written_is_the_format_byte_for_byte() {
    let fixture = Fixture::new();
    let text = fs::read_to_string(fixture.bundle_path()).unwrap();
    let bundle = fixture.bundle();
    let files =
        ["1_Pooling/config.json", "config.json", "model.safetensors", "package.toml", "tokenizer.json"];
    let digests = files.map(|file| Sha256::digest(fs::read(fixture.file(file)).unwrap()));
    let whole = Sha256::digest(digests.concat());
    let resource = |(name, digest): (&str, &_)| {
        let digest = hex(digest);
        format!(r#"{{"name":"{name}","digest":"{digest}","algorithm":"sha256"}}"#)
    };
    let resources: Vec<String> =
        files.into_iter().zip(digests.iter().map(|digest| &digest[..])).map(resource).collect();
    let payload = format!(
        "{}{}{}{}{}{}{}",
        r#"{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"tiny","digest":{"sha256":""#,
        hex(&whole),
        r#""}}],"predicateType":"https://model_signing/signature/v1.0","predicate":{"resources":["#,
        resources.join(","),
        r#"],"serialization":{"method":"files","hash_type":"sha256","allow_symlinks":false}"#,
        "}",
        "}",
    );
    let pem = PublicKey::of(&fixture.operator).to_pem();
    let expected = format!(
        concat!(
            r#"{{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","#,
            r#""verificationMaterial":{{"publicKey":{{"hint":"{}"}},"tlogEntries":[]}},"#,
            r#""dsseEnvelope":{{"payload":"{}","payloadType":"application/vnd.in-toto+json","#,
            r#""signatures":[{{"sig":"{}","keyid":""}}]}}}}"#
        ),
        hex(&Sha256::digest(pem)),
        STANDARD.encode(&payload),
        envelope(PAYLOAD_TYPE, &payload, "", &fixture.operator)["signatures"][0]["sig"].as_str().unwrap(),
    );
    assert_eq!(text, expected);
    assert_eq!(bundle["dsseEnvelope"], envelope(PAYLOAD_TYPE, &payload, "", &fixture.operator));
}

#[test]
fn an_unsigned_package_is_refused() {
    let fixture = Fixture::new();
    fs::remove_dir_all(fixture.path("tiny.oms")).unwrap();
    assert_eq!(fixture.refusal(), Refusal::Unsigned);
    fs::create_dir(fixture.path("tiny.oms")).unwrap();
    assert_eq!(fixture.refusal(), Refusal::Unsigned);
}

#[test]
fn every_field_of_the_bundle_is_needed_and_none_is_added() {
    let check = |change: &dyn Fn(&mut Value), field: &str, fault| {
        let fixture = Fixture::new();
        let mut bundle = fixture.bundle();
        change(&mut bundle);
        fs::write(fixture.bundle_path(), bundle.to_string()).unwrap();
        assert_eq!(fixture.refusal(), malformed(field, fault));
    };
    check(&|b| b["mediaType"] = json!("text/plain"), "mediaType", Fault::WrongValue);
    check(&|b| b["more"] = json!(1), "more", Fault::Unknown);
    check(&|b| b["verificationMaterial"]["more"] = json!(1), "verificationMaterial.more", Fault::Unknown);
    let hint = "verificationMaterial.publicKey.hint";
    check(&|b| b["verificationMaterial"]["publicKey"] = json!({}), hint, Fault::Missing);
    check(&|b| b["verificationMaterial"]["publicKey"]["hint"] = json!("00"), hint, Fault::WrongValue);
    let entries = "verificationMaterial.tlogEntries";
    check(&|b| b["verificationMaterial"]["tlogEntries"] = json!([{}]), entries, Fault::WrongCount);
    check(&|b| b["dsseEnvelope"]["payloadType"] = json!("x"), "dsseEnvelope.payloadType", Fault::WrongValue);
    check(&|b| b["dsseEnvelope"]["payload"] = json!("a"), "dsseEnvelope.payload", Fault::NotBase64);
    check(&|b| b["dsseEnvelope"]["payload"] = json!(["a"]), "dsseEnvelope.payload", Fault::WrongType);
    let signatures = "dsseEnvelope.signatures";
    check(&|b| b["dsseEnvelope"]["signatures"] = json!([]), signatures, Fault::WrongCount);
    let twice = |b: &mut Value| {
        let one = b["dsseEnvelope"]["signatures"][0].clone();
        b["dsseEnvelope"]["signatures"] = json!([one, one]);
    };
    check(&twice, signatures, Fault::WrongCount);
    let keyid = "dsseEnvelope.signatures[0].keyid";
    check(&|b| b["dsseEnvelope"]["signatures"][0]["keyid"] = json!("a"), keyid, Fault::WrongValue);
}

#[test]
fn a_duplicate_key_is_refused_at_any_level() {
    let fixture = Fixture::new();
    let good = fs::read_to_string(fixture.bundle_path()).unwrap();
    for (key, field) in [
        ("mediaType", "mediaType"),
        ("publicKey", "verificationMaterial.publicKey"),
        ("hint", "verificationMaterial.publicKey.hint"),
        ("payload", "dsseEnvelope.payload"),
        ("sig", "dsseEnvelope.signatures[0].sig"),
    ] {
        let twice = good.replacen(&format!("\"{key}\":"), &format!("\"{key}\":\"\",\"{key}\":"), 1);
        fs::write(fixture.bundle_path(), twice).unwrap();
        assert_eq!(fixture.refusal(), malformed(field, Fault::Twice));
    }
}

#[test]
fn a_bundle_that_is_too_long_or_no_json_is_refused() {
    let fixture = Fixture::new();
    let mut long = fs::read(fixture.bundle_path()).unwrap();
    long.resize(ringfence_models::BUNDLE_BYTES_MAX + 1, b' ');
    fs::write(fixture.bundle_path(), long).unwrap();
    assert_eq!(fixture.refusal(), malformed("document", Fault::TooLong));
    for bad in ["", "{", "\u{feff}{}", "nul", &"[".repeat(100_000)] {
        fs::write(fixture.bundle_path(), bad).unwrap();
        assert_eq!(fixture.refusal(), malformed("document", Fault::NotJson));
    }
}

#[test]
fn a_signed_statement_of_another_form_is_refused() {
    let check = |change: &dyn Fn(&mut Value), expected: Refusal| {
        let fixture = Fixture::new();
        let mut statement = statement(&fixture);
        change(&mut statement);
        resign(&fixture, &statement.to_string());
        assert_eq!(fixture.refusal(), expected);
    };
    check(&|s| s["_type"] = json!("x"), malformed("_type", Fault::WrongValue));
    check(&|s| s["predicateType"] = json!("x"), malformed("predicateType", Fault::WrongValue));
    check(&|s| s["subject"] = json!([]), malformed("subject", Fault::WrongCount));
    check(&|s| s["subject"][0]["name"] = json!("other"), Refusal::NameMismatch("other".to_owned()));
    let zeros = "0".repeat(64);
    check(&|s| s["subject"][0]["digest"]["sha256"] = json!(zeros), Refusal::SubjectMismatch);
    check(
        &|s| s["subject"][0]["digest"]["md5"] = json!(zeros),
        malformed("subject[0].digest.md5", Fault::Unknown),
    );
    check(&|s| s["predicate"]["more"] = json!(1), malformed("predicate.more", Fault::Unknown));
    let serialization = |key: &str, value: Value| {
        let key = key.to_owned();
        move |s: &mut Value| s["predicate"]["serialization"][&key] = value.clone()
    };
    let field = |key: &str, fault| malformed(&format!("predicate.serialization.{key}"), fault);
    check(&serialization("method", json!("shards")), field("method", Fault::WrongValue));
    check(&serialization("hash_type", json!("md5")), field("hash_type", Fault::WrongValue));
    check(&serialization("allow_symlinks", json!(true)), field("allow_symlinks", Fault::WrongValue));
    check(&serialization("allow_symlinks", json!("no")), field("allow_symlinks", Fault::WrongType));
    check(&serialization("ignore_paths", json!(["config.json"])), Refusal::IgnorePaths);
    check(&serialization("ignore_paths", json!("a")), field("ignore_paths", Fault::WrongType));
}

#[test]
fn an_empty_list_of_ignored_paths_ignores_nothing() {
    let fixture = Fixture::new();
    let mut statement = statement(&fixture);
    statement["predicate"]["serialization"]["ignore_paths"] = json!([]);
    resign(&fixture, &statement.to_string());
    fixture.load().unwrap();
}

#[test]
fn a_listed_name_is_relative_unique_known_and_in_order() {
    let check = |change: &dyn Fn(&mut Vec<Value>), expected: Refusal| {
        let fixture = Fixture::new();
        let mut statement = statement(&fixture);
        change(statement["predicate"]["resources"].as_array_mut().unwrap());
        resign(&fixture, &statement.to_string());
        assert_eq!(fixture.refusal(), expected);
    };
    let first = |text: &str| {
        let text = text.to_owned();
        move |r: &mut Vec<Value>| r[0]["name"] = json!(text)
    };
    for illegal in
        ["../x.safetensors", "/config.json", "a\\b.safetensors", "a\0.safetensors", "./config.json", ""]
    {
        check(&first(illegal), malformed("predicate.resources[0].name", Fault::WrongValue));
    }
    check(&first("0.py"), Refusal::FileKindUnknown("0.py".to_owned()));
    check(&first(&"a".repeat(257)), malformed("predicate.resources[0].name", Fault::TooLong));
    let digest = |r: &mut Vec<Value>| r[0]["digest"] = json!("0");
    check(&digest, malformed("predicate.resources[0].digest", Fault::WrongValue));
    let algorithm = |r: &mut Vec<Value>| r[0]["algorithm"] = json!("sha1");
    check(&algorithm, malformed("predicate.resources[0].algorithm", Fault::WrongValue));
    check(&|r| r.insert(0, r[0].clone()), malformed("predicate.resources[1]", Fault::Twice));
    check(&|r| r.swap(0, 1), malformed("predicate.resources[1]", Fault::Unordered));
    check(&|r| r.extend(vec![r[0].clone(); 300]), malformed("predicate.resources", Fault::WrongCount));
    check(&Vec::clear, Refusal::SubjectMismatch);
}

#[test]
fn a_statement_signed_for_another_purpose_does_not_hold() {
    let fixture = Fixture::new();
    let statement = statement(&fixture).to_string();
    let mut other = envelope("application/vnd.ringfence.trust+json", &statement, "", &fixture.operator);
    other["payloadType"] = json!(PAYLOAD_TYPE);
    replace_envelope(&fixture, &fixture.operator, other);
    assert_eq!(fixture.refusal(), Refusal::SignatureInvalid);
}

#[test]
fn a_stranger_who_names_the_operators_key_does_not_hold() {
    let fixture = Fixture::new();
    let stranger = SigningKey::from_bytes(&[9; 32]);
    let forged = envelope(PAYLOAD_TYPE, &statement(&fixture).to_string(), "", &stranger);
    replace_envelope(&fixture, &fixture.operator, forged.clone());
    assert_eq!(fixture.refusal(), Refusal::SignatureInvalid);
    replace_envelope(&fixture, &stranger, forged);
    assert_eq!(fixture.refusal(), Refusal::UnknownSigner(PublicKey::of(&stranger).id()));
}

fn statement(fixture: &Fixture) -> Value {
    let payload = fixture.bundle()["dsseEnvelope"]["payload"].as_str().map(|text| STANDARD.decode(text));
    serde_json::from_slice(&payload.unwrap().unwrap()).unwrap()
}

/// Puts a statement of our own in the bundle, signed by the operator.
fn resign(fixture: &Fixture, statement: &str) {
    let signed = envelope(PAYLOAD_TYPE, statement, "", &fixture.operator);
    replace_envelope(fixture, &fixture.operator, signed);
}

fn replace_envelope(fixture: &Fixture, named: &SigningKey, envelope: Value) {
    let mut bundle = fixture.bundle();
    bundle["verificationMaterial"]["publicKey"]["hint"] = json!(PublicKey::of(named).id().to_string());
    bundle["dsseEnvelope"] = envelope;
    fs::write(fixture.bundle_path(), bundle.to_string()).unwrap();
}

fn malformed(field: &str, fault: Fault) -> Refusal {
    Refusal::BundleMalformed(FieldError { field: field.to_owned(), fault })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

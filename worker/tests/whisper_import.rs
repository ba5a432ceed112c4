//! Tiny speech models in each form, made here: what the importers make of them, and what they refuse. Thousands of
//! damaged ones show that no input makes an importer panic.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use ringfence_protocol::{ConvertError, SourceForm};
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::memory::Lease;
use ringfence_worker::package::safetensors::Tensors;
use ringfence_worker::package::{FileBytes, Files};
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::sync::Arc;

const STATE: usize = 2;
const MELS: usize = 3;
const AUDIO: usize = 5;
const TEXT: usize = 7;
/// All bytes and two merges; then 99 languages, 8 other special tokens and 1501 timestamps.
const TOKENS: usize = 258;
const VOCABULARY: usize = TOKENS + 99 + 8 + 1501;

type Sources = BTreeMap<&'static str, Vec<u8>>;

fn tokens() -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    tokens.extend([b"ab".to_vec(), b"abc".to_vec()]);
    tokens
}

fn ranks(tokens: &[Vec<u8>]) -> Vec<u8> {
    let line = |(rank, token): (usize, &Vec<u8>)| format!("{} {rank}\n", STANDARD.encode(token));
    tokens.iter().enumerate().map(line).collect::<String>().into_bytes()
}

/// Names and shapes by OpenAI's code, for one layer on each side.
fn openai() -> Vec<(String, Vec<usize>)> {
    let d = STATE;
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    for (conv, inputs) in [("conv1", MELS), ("conv2", d)] {
        add(format!("encoder.{conv}.weight"), &[d, inputs, 3]);
        add(format!("encoder.{conv}.bias"), &[d]);
    }
    add("encoder.positional_embedding".into(), &[AUDIO, d]);
    add("decoder.positional_embedding".into(), &[TEXT, d]);
    add("decoder.token_embedding.weight".into(), &[VOCABULARY, d]);
    for norm in ["encoder.ln_post", "decoder.ln"] {
        add(format!("{norm}.weight"), &[d]);
        add(format!("{norm}.bias"), &[d]);
    }
    for (side, attentions) in [("encoder", &["attn"][..]), ("decoder", &["attn", "cross_attn"])] {
        for attention in attentions {
            for part in ["query", "key", "value", "out"] {
                add(format!("{side}.blocks.0.{attention}.{part}.weight"), &[d, d]);
                if part != "key" {
                    add(format!("{side}.blocks.0.{attention}.{part}.bias"), &[d]);
                }
            }
        }
        for norm in attentions.iter().copied().chain(["mlp"]) {
            add(format!("{side}.blocks.0.{norm}_ln.weight"), &[d]);
            add(format!("{side}.blocks.0.{norm}_ln.bias"), &[d]);
        }
        for (part, outputs, inputs) in [(0, 4 * d, d), (2, d, 4 * d)] {
            add(format!("{side}.blocks.0.mlp.{part}.weight"), &[outputs, inputs]);
            add(format!("{side}.blocks.0.mlp.{part}.bias"), &[outputs]);
        }
    }
    all
}

/// The bytes of a tensor in F32: numbers that its name gives, the same in every form.
fn floats(name: &str, shape: &[usize]) -> Vec<u8> {
    let seed = name.bytes().fold(1_u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let value = |at: usize| (seed.wrapping_add(at as u32) % 2048) as f32 / 64.0 - 16.0;
    (0..shape.iter().product()).flat_map(|at| value(at).to_le_bytes()).collect()
}

fn le(numbers: &[usize]) -> Vec<u8> {
    numbers.iter().flat_map(|number| (*number as u32).to_le_bytes()).collect()
}

fn ggml() -> Sources {
    let mut file = le(&[0x6767_6d6c, VOCABULARY, AUDIO, STATE, 1, 1, TEXT, STATE, 1, 1, MELS, 0, MELS, 2]);
    file.extend([0; MELS * 2 * 4]);
    file.extend(le(&[TOKENS]));
    for token in tokens() {
        file.extend(le(&[token.len()]));
        file.extend(token);
    }
    for (name, shape) in openai() {
        let column = name.starts_with("encoder.conv") && name.ends_with("bias");
        let mut written: Vec<usize> = shape.iter().rev().copied().collect();
        if column {
            written.insert(0, 1);
        }
        file.extend(le(&[written.len(), name.len(), 0]));
        file.extend(le(&written));
        file.extend(name.as_bytes());
        file.extend(floats(&name, &shape));
    }
    Sources::from([("model.bin", file)])
}

/// Pickle's operations as `torch.save` writes them.
#[derive(Default)]
struct Pickler(Vec<u8>);

impl Pickler {
    fn op(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.op(b"X").op(&le(&[text.len()])).op(text.as_bytes())
    }

    fn integer(&mut self, integer: usize) -> &mut Self {
        self.op(b"J").op(&le(&[integer]))
    }

    fn tuple(&mut self, integers: &[usize]) -> &mut Self {
        self.op(b"(");
        for integer in integers {
            self.integer(*integer);
        }
        self.op(b"t")
    }

    fn tensor(&mut self, key: &str, shape: &[usize], turned: bool) -> &mut Self {
        let elements = shape.iter().product();
        let mut strides: Vec<usize> = (1..=shape.len()).map(|from| shape[from..].iter().product()).collect();
        if turned {
            strides = vec![1, shape[0]];
        }
        self.op(b"ctorch._utils\n_rebuild_tensor_v2\n((").text("storage").op(b"ctorch\nFloatStorage\nq\x05");
        self.text(key).text("cpu").integer(elements).op(b"tQ").op(b"K\0");
        self.tuple(shape).tuple(&strides).op(b"\x89ccollections\nOrderedDict\n)RtR")
    }
}

/// Some tensors stand column by column, as in OpenAI's own files.
fn is_turned(name: &str) -> bool {
    name.ends_with("mlp.0.weight") || name.ends_with("mlp.2.weight")
}

fn columns(rows: &[u8], shape: &[usize]) -> Vec<u8> {
    let element = |row: usize, column: usize| &rows[(row * shape[1] + column) * 4..][..4];
    (0..shape[1])
        .flat_map(|column| (0..shape[0]).flat_map(move |row| element(row, column).to_vec()))
        .collect()
}

fn pickle() -> Vec<u8> {
    let mut pickle = Pickler::default();
    pickle.op(b"\x80\x02}q\0(").text("dims").op(b"}q\x01(");
    let dimensions = [
        ("n_mels", MELS),
        ("n_vocab", VOCABULARY),
        ("n_audio_ctx", AUDIO),
        ("n_audio_state", STATE),
        ("n_audio_head", 1),
        ("n_audio_layer", 1),
        ("n_text_ctx", TEXT),
        ("n_text_state", STATE),
        ("n_text_head", 1),
        ("n_text_layer", 1),
    ];
    for (name, size) in dimensions {
        pickle.text(name).integer(size);
    }
    pickle.op(b"u").text("model_state_dict").op(b"ccollections\nOrderedDict\n)R(");
    for (key, (name, shape)) in openai().iter().enumerate() {
        pickle.text(name).tensor(&key.to_string(), shape, is_turned(name));
    }
    pickle.op(b"u}").text("_metadata").op(b"}sbu.");
    pickle.0
}

fn pt_of(pickle: &[u8]) -> Sources {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut add = |name: String, bytes: &[u8]| {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    };
    add("archive/data.pkl".into(), pickle);
    for (key, (name, shape)) in openai().iter().enumerate() {
        let rows = floats(name, shape);
        let stored = if is_turned(name) { columns(&rows, shape) } else { rows };
        add(format!("archive/data/{key}"), &stored);
    }
    add("archive/version".into(), b"3\n");
    let file = zip.finish().unwrap().into_inner();
    Sources::from([("model.pt", file), ("vocabulary.tiktoken", ranks(&tokens()))])
}

fn pt() -> Sources {
    pt_of(&pickle())
}

/// CTranslate2's names, each with what is joined in it.
fn joined() -> Vec<(String, Vec<String>, Vec<usize>)> {
    let d = STATE;
    let mut all = Vec::new();
    let mut add = |name: &str, parts: &[String], shape: &[usize]| {
        all.push((name.to_owned(), parts.to_vec(), shape.to_vec()))
    };
    let one = |name: &str| vec![name.to_owned()];
    for (conv, inputs) in [("conv1", MELS), ("conv2", d)] {
        add(&format!("encoder/{conv}/weight"), &one(&format!("encoder.{conv}.weight")), &[d, inputs, 3]);
        add(&format!("encoder/{conv}/bias"), &one(&format!("encoder.{conv}.bias")), &[d]);
    }
    add("encoder/position_encodings/encodings", &one("encoder.positional_embedding"), &[AUDIO, d]);
    add("decoder/position_encodings/encodings", &one("decoder.positional_embedding"), &[TEXT, d]);
    add("decoder/embeddings/weight", &one("decoder.token_embedding.weight"), &[VOCABULARY, d]);
    let mut norm = |name: &str, of: &str| {
        add(&format!("{name}/layer_norm/gamma"), &one(&format!("{of}.weight")), &[d]);
        add(&format!("{name}/layer_norm/beta"), &one(&format!("{of}.bias")), &[d]);
    };
    norm("encoder", "encoder.ln_post");
    norm("decoder", "decoder.ln");
    for side in ["encoder", "decoder"] {
        norm(&format!("{side}/layer_0/self_attention"), &format!("{side}.blocks.0.attn_ln"));
        norm(&format!("{side}/layer_0/ffn"), &format!("{side}.blocks.0.mlp_ln"));
    }
    norm("decoder/layer_0/attention", "decoder.blocks.0.cross_attn_ln");
    let mut linear = |name: &str, block: &str, parts: &[&str], outputs: usize, inputs: usize| {
        for (kind, mut shape) in [("weight", vec![outputs, inputs]), ("bias", vec![outputs])] {
            shape[0] *= parts.len();
            let parts: Vec<_> = parts.iter().map(|part| format!("{block}.{part}.{kind}")).collect();
            add(&format!("{name}/{kind}"), &parts, &shape);
        }
    };
    for side in ["encoder", "decoder"] {
        let (name, block) = (format!("{side}/layer_0"), format!("{side}.blocks.0"));
        linear(
            &format!("{name}/self_attention/linear_0"),
            &format!("{block}.attn"),
            &["query", "key", "value"],
            d,
            d,
        );
        linear(&format!("{name}/self_attention/linear_1"), &format!("{block}.attn"), &["out"], d, d);
        linear(&format!("{name}/ffn/linear_0"), &format!("{block}.mlp"), &["0"], 4 * d, d);
        linear(&format!("{name}/ffn/linear_1"), &format!("{block}.mlp"), &["2"], d, 4 * d);
    }
    let (name, block) = ("decoder/layer_0/attention", "decoder.blocks.0.cross_attn");
    linear(&format!("{name}/linear_0"), block, &["query"], d, d);
    linear(&format!("{name}/linear_1"), block, &["key", "value"], d, d);
    linear(&format!("{name}/linear_2"), block, &["out"], d, d);
    all
}

fn ctranslate2_with(key_bias: u8) -> Sources {
    let name = |text: &str| [&(text.len() as u16 + 1).to_le_bytes()[..], text.as_bytes(), &[0]].concat();
    let shapes: BTreeMap<_, _> = openai().into_iter().collect();
    let mut file = [le(&[6]), name("WhisperSpec"), le(&[3])].concat();
    let (joined, scalars) = (joined(), ["encoder/num_heads", "decoder/num_heads", "encoder/pre_norm"]);
    file.extend(le(&[joined.len() + scalars.len()]));
    for scalar in scalars {
        file.extend([name(scalar), vec![0, 1], le(&[1]), vec![1]].concat());
    }
    for (variable, parts, shape) in joined {
        let part = |part: &String| match shapes.get(part) {
            Some(shape) => floats(part, shape),
            None => vec![key_bias; STATE * 4],
        };
        let bytes: Vec<u8> = parts.iter().flat_map(part).collect();
        file.extend(
            [name(&variable), vec![shape.len() as u8], le(&shape), vec![0], le(&[bytes.len()])].concat(),
        );
        file.extend(bytes);
    }
    file.extend([le(&[1]), name("decoder/projection/weight"), name("decoder/embeddings/weight")].concat());
    Sources::from([("model.bin", file), ("vocabulary.tiktoken", ranks(&tokens()))])
}

fn ctranslate2() -> Sources {
    ctranslate2_with(0)
}

/// A field of a protobuf message that holds bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 0x7f {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend(bytes);
    field
}

const SILERO: &[(&str, &[usize], &[u8])] = &[
    ("stft.forward_basis_buffer", &[258, 1, 256], &[128, 0]),
    ("encoder.0.reparam_conv.weight", &[128, 129, 3], &[1, 1]),
    ("encoder.0.reparam_conv.bias", &[128], &[]),
    ("encoder.1.reparam_conv.weight", &[64, 128, 3], &[2, 1]),
    ("encoder.1.reparam_conv.bias", &[64], &[]),
    ("encoder.2.reparam_conv.weight", &[64, 64, 3], &[2, 1]),
    ("encoder.2.reparam_conv.bias", &[64], &[]),
    ("encoder.3.reparam_conv.weight", &[128, 64, 3], &[1, 1]),
    ("encoder.3.reparam_conv.bias", &[128], &[]),
    ("decoder.rnn.weight_ih", &[512, 128], &[]),
    ("decoder.rnn.weight_hh", &[512, 128], &[]),
    ("decoder.rnn.bias_ih", &[512], &[]),
    ("decoder.rnn.bias_hh", &[512], &[]),
    ("decoder.decoder.2.weight", &[1, 128, 1], &[1, 0]),
    ("decoder.decoder.2.bias", &[1], &[]),
];

/// The graph, with this step in its second convolution.
fn silero_with(step: u8) -> Sources {
    let mut graph = Vec::new();
    for (name, shape, steps) in SILERO {
        let name = format!("model.{name}");
        let varint = |number: usize| match number {
            0x80.. => vec![number as u8 | 0x80, (number >> 7) as u8],
            _ => vec![number as u8],
        };
        let dimensions: Vec<u8> = shape.iter().flat_map(|size| [vec![8], varint(*size)].concat()).collect();
        let raw = field(9, &floats(&name, shape));
        graph.extend(field(5, &[dimensions, vec![16, 1], field(8, name.as_bytes()), raw].concat()));
        if let [stride, padding] = steps {
            let stride = if name.contains("encoder.1") { step } else { *stride };
            // Both ways of writing a list.
            let alone = |value: u8| [vec![64], varint(value.into())].concat();
            let attribute = |name: &str, list: &[u8]| field(5, &[&field(1, name.as_bytes()), list].concat());
            let lists = [
                attribute("strides", &alone(stride)),
                attribute("pads", &field(8, &[*padding, *padding])),
                attribute("dilations", &alone(1)),
            ];
            let node = [field(1, b"x"), field(1, name.as_bytes()), field(4, b"Conv"), lists.concat()];
            graph.extend(field(1, &node.concat()));
        }
    }
    Sources::from([("model.onnx", field(7, &graph))])
}

fn silero() -> Sources {
    silero_with(2)
}

fn import(form: SourceForm, sources: &BTreeMap<impl ToString, Vec<u8>>) -> Result<InMemory, ConvertError> {
    let shared = |(name, bytes)| (ToString::to_string(name), Arc::new(Vec::clone(bytes)) as FileBytes);
    let files: Files = sources.iter().map(shared).collect();
    let mut output = InMemory::new(&files);
    convert(form, &mut Work { files: &files, output: &mut output, memory: &Lease })?;
    Ok(output)
}

fn weights(output: &InMemory) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = Arc::new(output.files["model.safetensors"].clone()) as FileBytes;
    let tensors =
        Tensors::read(&Files::from_iter([("model.safetensors".to_owned(), bytes.clone())])).unwrap();
    let content = |entry: &ringfence_worker::package::safetensors::Entry| bytes[entry.bytes.clone()].to_vec();
    let entries = tensors.entries().iter();
    entries.map(|(name, entry)| (name.clone(), (entry.shape.clone(), content(entry)))).collect()
}

#[test]
fn every_form_of_a_model_becomes_the_same_package() {
    let pt = import(SourceForm::WhisperPt, &pt()).unwrap();
    let ggml = import(SourceForm::WhisperGgml, &ggml()).unwrap();
    let ctranslate2 = import(SourceForm::WhisperCtranslate2, &ctranslate2()).unwrap();
    assert!(pt.files == ggml.files, "ggml");
    assert!(pt.files == ctranslate2.files, "CTranslate2");
    let weights = weights(&pt);
    assert_eq!(weights.len(), openai().len());
    let checked = [
        ("model.decoder.layers.0.encoder_attn.v_proj.weight", "decoder.blocks.0.cross_attn.value.weight"),
        ("model.encoder.layers.0.fc2.weight", "encoder.blocks.0.mlp.2.weight"),
        ("model.encoder.conv1.weight", "encoder.conv1.weight"),
        ("model.decoder.embed_tokens.weight", "decoder.token_embedding.weight"),
    ];
    for (name, of) in checked {
        let (shape, bytes) = &weights[name];
        assert_eq!(*bytes, floats(of, shape), "{name}");
    }
}

#[test]
fn a_package_is_a_folder_that_is_kept_unchanged() {
    let package = import(SourceForm::WhisperPt, &pt()).unwrap();
    let again = import(SourceForm::HuggingFace, &package.files).unwrap();
    assert_eq!(again.files, package.files);
}

#[test]
fn folders_that_are_another_whisper_are_refused() {
    let package = import(SourceForm::WhisperPt, &pt()).unwrap().files;
    let config: serde_json::Value = serde_json::from_slice(&package["config.json"]).unwrap();
    let import_with = |key: &str, value: serde_json::Value| {
        let (mut files, mut config) = (package.clone(), config.clone());
        config[key] = value;
        files.insert("config.json".to_owned(), config.to_string().into_bytes());
        import(SourceForm::HuggingFace, &files).unwrap_err()
    };
    for key in ["d_model", "num_mel_bins", "vocab_size", "max_source_positions", "max_target_positions"] {
        assert!(
            matches!(import_with(key, (1_u64 << 17 | 2).into()), ConvertError::Malformed { .. }),
            "{key}"
        );
    }
    for key in ["num_mel_bins", "max_source_positions", "max_target_positions"] {
        assert!(matches!(import_with(key, 4.into()), ConvertError::Tensor { .. }), "{key}");
    }
    for key in ["encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"] {
        assert!(matches!(import_with(key, 0.into()), ConvertError::Malformed { .. }), "{key}");
    }
    assert!(matches!(import_with("encoder_layers", 65.into()), ConvertError::Malformed { .. }));
    assert!(matches!(import_with("encoder_layers", 64.into()), ConvertError::Tensor { .. }));
    assert!(matches!(import_with("decoder_ffn_dim", 9.into()), ConvertError::Unsupported { .. }));
    assert!(matches!(import_with("scale_embedding", true.into()), ConvertError::Unsupported { .. }));
    assert!(matches!(import_with("activation_function", "relu".into()), ConvertError::Malformed { .. }));
    // The ids of its tokens.
    assert!(matches!(import_with("vocab_size", 258.into()), ConvertError::Malformed { .. }));
}

#[test]
fn a_tokenizer_is_rebuilt_from_one() {
    let first = import(SourceForm::WhisperPt, &pt()).unwrap();
    let mut sources = pt();
    sources.remove("vocabulary.tiktoken");
    sources.insert("tokenizer.json", first.files["tokenizer.json"].clone());
    let second = import(SourceForm::WhisperPt, &sources).unwrap();
    assert!(first.files == second.files);
    let tokenizer = tokenizers::Tokenizer::from_bytes(&first.files["tokenizer.json"]).unwrap();
    let ids = tokenizer.encode("xabcab<|0.02|>", false).unwrap().get_ids().to_vec();
    assert_eq!(ids, [120, 257, 256, VOCABULARY as u32 - 1500]);
}

#[test]
fn silero_keeps_every_weight() {
    let weights = weights(&import(SourceForm::SileroOnnx, &silero()).unwrap());
    assert_eq!(weights.len(), SILERO.len());
    let (shape, bytes) = &weights["lstm.weight_ih"];
    assert_eq!(*bytes, floats("model.decoder.rnn.weight_ih", shape));
}

#[track_caller]
fn refused(form: SourceForm, sources: &Sources, reason: &str) {
    let said = import(form, sources).map(drop).unwrap_err().to_string();
    assert!(said.contains(reason), "{said}");
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn pickles_that_ask_for_more_are_refused() {
    let cases: [(&[u8], &[u8], &str); 9] = [
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n", "`os.system`"),
        (b"ctorch\nFloatStorage\n", b"cbuiltins\neval\n", "`builtins.eval`"),
        (b"\x80\x02", b"\x80\x04", "protocol 4"),
        (b"\x89ccollections", b"\x93ccollections", "operation 0x93"),
        (b"tQK\0", b"tQK\x01", "it lies outside its numbers"),
        (b"sbu.", b"sbu", "ends too early"),
        (b"sbu.", b"sbu..", "more than one value"),
        (b"q\x05", b"h\x09", "never kept"),
        (b"\x80\x02", b"\x80\x02t", "a mark that isn't there"),
    ];
    for (from, to, reason) in cases {
        refused(SourceForm::WhisperPt, &pt_of(&replaced(&pickle(), from, to)), reason);
    }
    let turned = Pickler::default().tuple(&[STATE, 1]).0.clone();
    let gaps = Pickler::default().tuple(&[1, STATE]).0.clone();
    refused(SourceForm::WhisperPt, &pt_of(&replaced(&pickle(), &turned, &gaps)), "gaps or turned");
    let deep = [b"\x80\x02".to_vec(), b")".to_vec(), vec![0x85; 1_000_000], b".".to_vec()].concat();
    refused(SourceForm::WhisperPt, &pt_of(&deep), "no dictionary");
    refused(SourceForm::WhisperPt, &pt_of(&vec![b')'; 100_000]), "on the stack");
    refused(SourceForm::WhisperPt, &pt_of(&vec![b'('; 100_000]), "marks");
}

#[test]
fn models_that_are_something_else_are_refused() {
    use SourceForm::{SileroOnnx, WhisperCtranslate2, WhisperGgml, WhisperPt};
    let change = |mut sources: Sources, file: &'static str, from: &[u8], to: &[u8]| {
        let changed = replaced(&sources[file], from, to);
        sources.insert(file, changed);
        sources
    };
    let mut bare = pt();
    bare.remove("vocabulary.tiktoken");
    refused(WhisperPt, &bare, "there is no `vocabulary.tiktoken`");
    refused(WhisperPt, &change(pt(), "model.pt", b"3\n", b"3"), "list of members is broken");
    refused(WhisperPt, &change(pt(), "vocabulary.tiktoken", b" 7\n", b" 8\n"), "line 8");
    let mut few = pt();
    few.insert("vocabulary.tiktoken", ranks(&tokens()[..200]));
    refused(WhisperPt, &few, "200 tokens");
    let mut apart = tokens();
    apart[256] = b"abcd".to_vec();
    let mut unmade = pt();
    unmade.insert("vocabulary.tiktoken", ranks(&apart));
    refused(WhisperPt, &unmade, "not made of two tokens");
    let mut doubled = pt();
    doubled.remove("vocabulary.tiktoken");
    let texts = r#"{"added_tokens":[],"model":{"vocab":{"a":0,"b":0}}}"#;
    doubled.insert("tokenizer.json", texts.into());
    refused(WhisperPt, &doubled, "two tokens have the id 0");
    let header = |kind: usize| [le(&[2, 30, kind]), le(&[STATE, VOCABULARY])].concat();
    refused(WhisperGgml, &change(ggml(), "model.bin", &header(0), &header(8)), "tensor type 8");
    refused(
        WhisperGgml,
        &change(ggml(), "model.bin", b"encoder.conv1.bias", b"encoder.conv3.bias"),
        "missing",
    );
    refused(WhisperCtranslate2, &ctranslate2_with(1), "keys a bias");
    refused(
        WhisperCtranslate2,
        &change(ctranslate2(), "model.bin", b"\x06\0\0\0", b"\x05\0\0\0"),
        "version 5",
    );
    refused(WhisperCtranslate2, &change(ctranslate2(), "model.bin", b"pre_norm", b"pre_nose"), "pre_nose");
    refused(SileroOnnx, &silero_with(1), "convolutions");
    refused(SileroOnnx, &change(silero(), "model.onnx", b"rnn.bias_hh", b"rnn.bias_xx"), "bias_xx");
}

#[track_caller]
fn survives(
    form: SourceForm,
    valid: &Sources,
    file: &'static str,
    span: usize,
    edits: &[(usize, u8)],
    cut: usize,
) {
    let mut sources = valid.clone();
    let bytes = sources.get_mut(file).unwrap();
    let length = bytes.len();
    for (at, value) in edits {
        // Half of them near one of the ends, where most of the structure is.
        let at = if at % 2 == 0 { at % length } else { length - 1 - at % span.min(length) };
        bytes[at] ^= value;
    }
    bytes.truncate(length.saturating_sub(cut));
    drop(import(form, &sources));
}

fn edits() -> impl Strategy<Value = (Vec<(usize, u8)>, usize)> {
    let edits = prop::collection::vec((any::<u32>().prop_map(|at| at as usize), 1..=u8::MAX), 1..4);
    (edits, prop_oneof![4 => Just(0), 1 => 0_usize..30_000])
}

/// Thousands of damaged files, of which none may bring the importer down.
fn damage(form: SourceForm, valid: &Sources, file: &'static str, span: usize, cases: u32) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(cases));
    let run = |(edits, cut): (Vec<(usize, u8)>, usize)| {
        survives(form, valid, file, span, &edits, cut);
        Ok(())
    };
    runner.run(&edits(), run).unwrap();
}

#[test]
fn no_damage_to_a_checkpoint_brings_the_importer_down() {
    damage(SourceForm::WhisperPt, &pt(), "model.pt", 8000, 1500);
}

#[test]
fn no_damage_to_a_vocabulary_brings_the_importer_down() {
    damage(SourceForm::WhisperPt, &pt(), "vocabulary.tiktoken", 3000, 1000);
    let mut sources = pt();
    let tokenizer = import(SourceForm::WhisperPt, &sources).unwrap().files["tokenizer.json"].clone();
    sources.remove("vocabulary.tiktoken");
    sources.insert("tokenizer.json", tokenizer);
    damage(SourceForm::WhisperPt, &sources, "tokenizer.json", 4000, 1000);
}

#[test]
fn no_damage_to_a_pickle_brings_the_importer_down() {
    let valid = pickle();
    proptest!(ProptestConfig::with_cases(2000), |((edits, cut) in edits())| {
        let mut pickle = valid.clone();
        let length = pickle.len();
        edits.iter().for_each(|(at, value)| pickle[at % length] ^= value);
        pickle.truncate(length.saturating_sub(cut));
        drop(import(SourceForm::WhisperPt, &pt_of(&pickle)));
    });
}

#[test]
fn no_damage_to_ggml_brings_the_importer_down() {
    damage(SourceForm::WhisperGgml, &ggml(), "model.bin", 6000, 1500);
}

#[test]
fn no_damage_to_ctranslate2_brings_the_importer_down() {
    damage(SourceForm::WhisperCtranslate2, &ctranslate2(), "model.bin", 8000, 1500);
}

/// Weights are most of this file: its first bytes and those about nodes are changed one by one.
#[test]
fn no_damage_to_onnx_brings_the_importer_down() {
    let valid = silero();
    let bytes = &valid["model.onnx"];
    let structure = |at: usize| {
        at < 64
            || bytes[at.saturating_sub(160)..(at + 160).min(bytes.len())]
                .windows(6)
                .any(|six| six == b"model.")
    };
    let places: Vec<usize> =
        (0..bytes.len()).filter(|at| at % 3 == 0 || *at < 64).filter(|at| structure(*at)).collect();
    assert!(places.len() > 1000, "{}", places.len());
    for at in places {
        let mut damaged = valid.clone();
        damaged.get_mut("model.onnx").unwrap()[at] ^= 0x81;
        drop(import(SourceForm::SileroOnnx, &damaged));
        damaged.get_mut("model.onnx").unwrap().truncate(at);
        assert!(import(SourceForm::SileroOnnx, &damaged).is_err());
    }
}

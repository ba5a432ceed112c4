//! MiniLM's real weights against what sentence-transformers computed from them in f32.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_gpu::{Adapters, Gpu, Products, Shaders};
use ringfence_protocol::{Architecture, Item};
use ringfence_worker::device::Wgpu;
use ringfence_worker::memory::Lease;
use ringfence_worker::models::{LoadedEmbedder, load, load_on};
use ringfence_worker::package::Files;
use serde_json::Value;
use support::{cosine, data, embed, floats};

fn minilm() -> LoadedEmbedder {
    let folder = std::env::var("RINGFENCE_MINILM").expect(
        "RINGFENCE_MINILM must name the folder with the unpacked MiniLM weights; `make test` fetches them",
    );
    let files = Files::from_folder(folder.as_ref()).unwrap();
    let loaded = load(&files, Architecture::Bert, support::compute(), 512, &Lease).unwrap();
    loaded.embedder().unwrap()
}

fn expected() -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(data("minilm.expected.json")).unwrap()).unwrap()
}

#[test]
fn fifty_sentences_are_within_a_millionth_of_sentence_transformers() {
    let mut loaded = minilm();
    assert_eq!(loaded.text.max_tokens(), 256, "the package's own bound");
    let cases = expected();
    assert_eq!(cases.len(), 50);
    let mut batch = Vec::new();
    for case in &cases {
        let item = Item::Text(case["text"].as_str().unwrap().to_owned());
        let tokens = loaded.text.tokens(0, &item, true).unwrap();
        assert_eq!(tokens.ids.len() as u64, case["tokens"].as_u64().unwrap(), "{case}");
        assert_eq!(tokens.truncated, case["truncated"].as_bool().unwrap());
        batch.push(tokens.ids);
    }
    let together = embed(&mut loaded, &batch);
    for ((case, ids), vector) in cases.iter().zip(batch).zip(together) {
        let exact = floats(&case["embedding"]);
        let alone = embed(&mut loaded, &[ids]).remove(0);
        for found in [vector, alone] {
            let cosine = cosine(&found, &exact);
            assert!(cosine >= 0.999_999, "{cosine} for {}", case["text"]);
        }
    }
}

#[test]
fn related_texts_are_closer_than_unrelated_ones() {
    let mut loaded = minilm();
    let texts =
        ["The cat sat on the mat.", "A feline rested on a rug.", "Stock markets fell sharply on Monday."];
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| support::tokens(&loaded, text)).collect();
    let vectors = embed(&mut loaded, &ids);
    assert!(cosine(&vectors[0], &vectors[1]) > 0.4);
    assert!(cosine(&vectors[0], &vectors[2]) < 0.2);
}

#[test]
fn a_gpu_gives_the_same_vectors() {
    let adapters =
        Adapters::list().unwrap_or_else(|error| panic!("{error}; `scripts/system-packages` installs one"));
    let ways = [
        ("RINGFENCE_MINILM", Products::Singles, 0.999_99),
        ("RINGFENCE_MINILM_F16", Products::Singles, 0.999),
        ("RINGFENCE_MINILM_F16", Products::Halves, 0.999),
        ("RINGFENCE_MINILM_F16", Products::Cooperative, 0.999),
    ];
    for (folder, products, least) in ways {
        let files = Files::from_folder(std::env::var(folder).expect("as above").as_ref()).unwrap();
        let shaders = Shaders { subgroups: true, products };
        let gpu = Gpu::open_with(&adapters.all()[0], 256 << 20, shaders).unwrap();
        gpu.warm_up().unwrap();
        let loaded = load_on(&files, Architecture::Bert, Wgpu::new(gpu), 512, &Lease).unwrap();
        let mut loaded = loaded.embedder().unwrap();
        // Mesa's software driver takes seconds for each; the other devices are given all of them.
        let cases = &expected()[..5];
        let batch: Vec<Vec<u32>> =
            cases.iter().map(|case| support::tokens(&loaded, case["text"].as_str().unwrap())).collect();
        for (case, found) in cases.iter().zip(embed(&mut loaded, &batch)) {
            let cosine = cosine(&found, &floats(&case["embedding"]));
            assert!(cosine >= least, "{cosine} for {} from {folder}, {products:?}", case["text"]);
        }
    }
}

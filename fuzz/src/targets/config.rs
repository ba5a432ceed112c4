//! The files that say what a network is.
use crate::support;
use ringfence_worker::package::config::BertConfig;
use ringfence_worker::package::llama::LlamaConfig;
use ringfence_worker::package::modules::Head;

/// One run.
pub(crate) fn run(bytes: &[u8]) {
    let _ = BertConfig::read(&support::files(&[("config.json", bytes)]));
    let _ = LlamaConfig::parse(bytes);
    for name in ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"] {
        let modules = &b"[{\"idx\":0,\"name\":\"0\",\"path\":\"\",\"type\":\"sentence_transformers.models.Transformer\"},{\"idx\":1,\"name\":\"1\",\"path\":\"1_Pooling\",\"type\":\"sentence_transformers.models.Pooling\"}]"[..];
        let mut named = vec![("modules.json", modules)];
        named.retain(|(known, _)| *known != name);
        named.push((name, bytes));
        let _ = Head::read(&support::files(&named), 32);
    }
    let _ = ringfence_models::Manifest::parse(bytes);
}

"""Makes the tiny Llama package of the tests, once, with NumPy: random weights, a token for each byte, and some words.

    python make_tiny_llama.py                tiny-llama/

Its output is committed; the tests need neither this nor Python.
"""

import json
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "tiny-llama"
HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS, HEAD, POSITIONS = 32, 64, 2, 4, 2, 8, 512
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = ["in", "on", "an", "er", "th", "re"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def alphabet():
    """GPT-2's characters for bytes."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


def tokenizer():
    vocab = {character: index for index, character in enumerate(alphabet())}
    merges = []
    for word in WORDS:
        vocab[word] = len(vocab)
        merges.append([word[0], word[1]])
    added = []
    for token in SPECIAL:
        added.append(
            {"id": len(vocab), "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
        )
        vocab[token] = len(vocab)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return len(vocab), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": merges},
    }


def tensors(vocabulary):
    random = np.random.default_rng(7)
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,)}
    queries, keys = HEADS * HEAD, KEY_HEADS * HEAD
    for layer in range(LAYERS):
        for part, shape in {
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (queries, HIDDEN), "self_attn.k_proj": (keys, HIDDEN),
            "self_attn.v_proj": (keys, HIDDEN), "self_attn.o_proj": (HIDDEN, queries),
            "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
        }.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    for name, shape in sorted(shapes.items()):
        one = random.normal(0, 0.4, shape) if len(shape) == 2 else 1 + random.normal(0, 0.1, shape)
        yield name, one.astype("<f4")


def main():
    HERE.mkdir(exist_ok=True)
    vocabulary, words = tokenizer()
    config = {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD, "max_position_embeddings": POSITIONS, "vocab_size": vocabulary, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": vocabulary - 5,
        "eos_token_id": [vocabulary - 4, vocabulary - 1],
    }
    spoken = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    for name, value in [("config", config), ("tokenizer", words), ("tokenizer_config", spoken)]:
        (HERE / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    header, data = {}, b""
    for name, one in tensors(vocabulary):
        end = len(data) + one.nbytes
        header[name] = {"dtype": "F32", "shape": list(one.shape), "data_offsets": [len(data), end]}
        data += one.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (HERE / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


main()

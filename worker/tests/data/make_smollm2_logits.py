"""Makes the stored logits of SmolLM2-135M-Instruct, once, with transformers on F32 weights.

    python make_smollm2_logits.py FOLDER [LLAMA_CPP.json]      smollm2.logits.json

FOLDER holds smollm2-f32.gguf, the model as benches/peers/gguf_to_f32.py writes it. LLAMA_CPP.json has the perplexities
that benches/peers/generate.py answers with for perplexity.txt, by the kind of the weights; the one of F32 is made here.
Needs torch 2.15.0, transformers 5.24.0, accelerate 1.15.0, gguf 0.19.0 and NumPy 2.2.6. Its output is committed;
the tests need neither this nor Python.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
NAME, STEP, LARGEST, WINDOW = "smollm2-f32.gguf", 512, 32, 1024

LONG = """The ferry to the outer island leaves at a quarter past six, and in winter it is dark until the second stop. \
The captain has made the crossing some nine thousand times, by his own count, and he still reads the tide table aloud \
before he casts off, as if it were a letter from somebody who might have changed his mind. Beside him stands the mate, \
who repeats each number. Nobody on board finds this strange. The schoolteacher corrects her papers on the bench near \
the engine, where it is warm; two fishermen share a thermos and a newspaper; and a dog, which belongs to none of them, \
lies down across the doorway so that everybody has to step over it.

Halfway there is a rock that the chart calls the Anvil. At low water it is as large as a house, and at high water it \
is only a patch of sea with a different colour. The captain's father struck it once in fog, and lost a mast and a \
cargo of roof tiles, which can still be seen on a calm day, stacked on the bottom as neatly as they were on deck. \
Every child on the island has a tile, or says so. When a house is built, one of them is laid beside the chimney, and \
the owner pays for it with a basket of eggs, although there is no agreement about who should get the eggs. This year \
they went to the mate. He ate them in the wheelhouse, one every morning, and on the last of those mornings, as the \
light came up behind the Anvil and the engine slowed, he turned to the captain and said"""

TEXTS = [
    "The capital of France is",
    "Once upon a time there was a clockmaker who could not tell the time. Every morning he asked the baker, and every"
    " morning the baker told him",
    "What is the difference between a lake and a pond?",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "fn main() {\n    let words: Vec<&str> = \"one two three\".split(' ').collect();\n    println!(\"{}\", words.",
    "1, 1, 2, 3, 5, 8, 13, 21, 34,",
    "2024-01-31T23:59:58Z, 3.14159265, 1,000,000, -42, 0x7fff, 1e-9, 007",
    "Über den Dächern von Köln hängt früh am Morgen der Nebel, und die Straßenbahn fährt",
    "À l'école, les élèves étudient déjà la leçon de français, mais le garçon",
    "The launch went well 🚀🎉 and everybody was 😀",
    "Hello",
    LONG,
    '{"name": "lamp", "price": 24.5, "tags": ["light", "desk"], "stock": {"berlin": 3, "oslo":',
    "one  two   three    4  5   66\t\ttabs\n\n\nx² and ½ or      then     ",
    "<html>\n  <body>\n    <h1>Opening hours</h1>\n    <ul>\n      <li>Monday",
    "SELECT name, COUNT(*) FROM orders WHERE placed > '2020-01-01' GROUP BY",
    "She said, \"I don't think we've met; you're the one who'd written it, aren't you?\" and he'll",
    "日本の首都は東京です。中国的首都是",
    "THE QUICK BROWN FOX jumps over the lazy dog. tHe QuIcK bRoWn fOx",
    "Ingredients:\n- 2 cups of flour\n- 1 cup of milk\n- 3 eggs\n\nSteps:\n1. Mix the flour and the milk.\n2.",
]


def main():
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=NAME)
    # What transformers makes of a GGUF forgets that this model's tokenizer cuts numbers into digits first.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=NAME, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    def tokenise(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def logits(tokens):
        return model(torch.tensor([tokens]), use_cache=False).logits[0]

    lines = []
    for text in TEXTS:
        tokens = tokenise(text)
        last = logits(tokens)[-1]
        ids = sorted({*range(0, len(last), STEP), *last.topk(LARGEST).indices.tolist()})
        pairs = [[id, round(last[id].item(), 6)] for id in ids]
        prompt = {"text": text, "tokens": tokens, "logits": pairs}
        lines.append(json.dumps(prompt, ensure_ascii=False, separators=(",", ":")))

    perplexity = json.loads(Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else {}
    tokens = tokenise((HERE / "perplexity.txt").read_text(encoding="utf-8"))[:WINDOW]
    loss = torch.nn.functional.cross_entropy(logits(tokens)[:-1].double(), torch.tensor(tokens[1:]))
    perplexity["f32"] = round(loss.exp().item(), 6)
    last = json.dumps(perplexity, separators=(",", ":"))
    text = '{"prompts":[\n' + ",\n".join(lines) + '\n],"perplexity":' + last + "}\n"
    (HERE / "smollm2.logits.json").write_text(text, encoding="utf-8")


main()

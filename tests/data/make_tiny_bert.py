"""Makes the tiny BERT package of the tests and the expected numbers, once, with PyTorch.

    python make_tiny_bert.py                 tiny-bert/ and tiny-bert.expected.json
    python make_tiny_bert.py MINILM_FOLDER   minilm.expected.json as well

Needs torch, transformers, sentence-transformers. Their output is committed; the tests need none of them.
"""

import json
import random
import string
import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

HERE = Path(__file__).parent
MAX_TOKENS = 64

WORDS = """the of and to a in is it you that he was for on are with as his they be at one have this from or had by hot but
some what there we can out other were all your when up use word how said an each she which do their time if will way about
many then them would write like so these her long make thing see him two has look more day could go come did my sound no
most number who over know water than call first people may down side been now find any new work part take get place made
live where after back little only round man year came show every good me give our under name""".split()
SUFFIXES = ["##s", "##ed", "##ing", "##er", "##ly", "##est", "##ion", "##al", "##able", "##ment"]


def vocabulary():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += list(string.ascii_lowercase + string.digits + string.punctuation)
    tokens += ["##" + letter for letter in string.ascii_lowercase + string.digits]
    tokens += [word for word in WORDS if len(word) > 1] + SUFFIXES + ["ü", "##ü", "日", "本"]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def make_tokenizer(vocab):
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.normalizer = BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    # As some published packages have them: the worker must switch both off.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return tokenizer


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def make_package(folder):
    torch.manual_seed(1)
    vocab = vocabulary()
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=MAX_TOKENS, type_vocab_size=2, initializer_range=0.3,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    make_tokenizer(vocab).save(str(folder / "tokenizer.json"))
    write_json(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ])
    write_json(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    })
    return model


@torch.no_grad()
def embed(model, ids, pooling):
    states = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    states = states.last_hidden_state[0]
    return states.mean(0) if pooling == "mean" else states[0]


def rounded(vector):
    return [round(float(x), 8) for x in vector]


TEXTS = [
    "a", "hello world", "The water is hot, but we could go.", "UPPER and lower", "1 + 2 = 3!", "über", "日本 and 語",
    "   spaces\tand\nlines   ", "[SEP] in a text", "people " * 30, "what people call a long day of work " * 20,
]


def tiny_expected(model, folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        truncated = len(ids) > MAX_TOKENS
        if truncated:
            ids = ids[: MAX_TOKENS - 1] + ids[-1:]
        mean = embed(model, ids, "mean")
        cases.append({
            "text": text, "ids": ids, "truncated": truncated, "mean": rounded(mean), "cls": rounded(embed(model, ids, "cls")),
            "embedding": rounded(torch.nn.functional.normalize(mean, dim=0)),
        })
    return cases


SENTENCES = [
    "A", "Hello.", "Yes, of course!", "What time is it?", "The cat sat on the mat.", "A feline rested on a rug.",
    "Stock markets fell sharply on Monday.", "The kernel refuses the system call.", "I love you.",
    "Two plus two is four.", "12,345.67 divided by 8.9 is roughly 1387.", "http://example.org/path?query=1&other=2",
    "fn main() { println!(\"hi\"); }", "SELECT name FROM users WHERE id = 42;", "Ünïcödé ïs fün", "naïve café façade",
    "日本語の文章です。", "Привет, как дела?", "مرحبا بالعالم", "🙂🙃 emoji are tokens too 🎉", "ﬁne ligature",
    "Supercalifragilisticexpialidocious", "pneumonoultramicroscopicsilicovolcanoconiosis is a long word",
    "a" * 150, "word" * 40, "tabs\tand\nnewlines\r\nin one text", "   leading and trailing spaces   ",
    "UPPERCASE SHOUTING", "MiXeD cAsE", "[CLS] literal special [SEP] tokens [MASK]", "don't can't won't shouldn't",
    "e-mail: someone@example.com", "3.14159 is pi", "H2O and CO2", "C++ vs C#", "¿Dónde está la biblioteca?",
    "Der schnelle braune Fuchs springt über den faulen Hund.", "Le renard brun saute par-dessus le chien.",
    "敏捷的棕色狐狸", "It was the best of times, it was the worst of times, it was the age of wisdom.",
]
PARAGRAPH = (
    "A worker holds one model on one device. It opens nothing and talks to nobody but the server, which passes it the bytes "
    "of a package whose signature was verified. When a job would need more memory than the lease allows, the job is refused "
    "with a typed error and the next one runs. "
)


def minilm_sentences():
    sentences = list(SENTENCES)
    sentences += [PARAGRAPH * n for n in (1, 2, 3, 4)]
    rng = random.Random(7)
    words = PARAGRAPH.split()
    sentences += [" ".join(rng.choices(words, k=n)) for n in (5, 31, 100, 180)]
    sentences += [PARAGRAPH * 12, " ".join(rng.choices(words, k=700))]
    return sentences


def minilm_expected(folder):
    model = SentenceTransformer(folder, device="cpu")
    sentences = minilm_sentences()
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cases = []
    for text in sentences:
        tokens = len(tokenizer.encode(text).ids)
        vector = model.encode(text, convert_to_tensor=True, batch_size=1)
        truncated = tokens > model.max_seq_length
        cases.append({"text": text, "tokens": min(tokens, model.max_seq_length), "truncated": truncated, "embedding": rounded(vector)})
    return cases


def main():
    folder = HERE / "tiny-bert"
    model = make_package(folder)
    write_json(HERE / "tiny-bert.expected.json", tiny_expected(model, folder))
    if len(sys.argv) > 1:
        cases = minilm_expected(sys.argv[1])
        lines = ",\n".join(json.dumps(case) for case in cases)
        (HERE / "minilm.expected.json").write_text(f"[\n{lines}\n]\n")


main()

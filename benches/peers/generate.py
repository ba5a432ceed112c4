"""llama.cpp on a GGUF that ours reads as well: generate.py MODEL.gguf

Each line of input asks for one thing; the answer is a line of JSON. Two threads, greedy, weights mapped from the file.

    prefill N         one prompt of N tokens, until the logits of its last are there: {"seconds": ..., "tokens": N}
    decode S N        N tokens for each of S sequences together, after prompts of 16: {"seconds": ..., "tokens": S * N}
    perplexity FILE   of the first 1024 tokens of a text: {"perplexity": ..., "tokens": ...}
"""

import ctypes
import json
import os
import sys
import time

import llama_cpp
import numpy as np

THREADS, CONTEXT, SEQUENCES, PROMPT, WINDOW = 2, 8192, 8, 16, 1024

# The library may write to standard output itself.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def formula(count, sequence=0):
    return (1000 + 1000 * sequence + 37 * np.arange(count)) % 40000


class Engine:
    def __init__(self, path):
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.width = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        params = llama_cpp.llama_context_default_params()
        # A cache that the sequences share: one of them may have all of it.
        params.n_ctx, params.n_seq_max, params.kv_unified = CONTEXT, SEQUENCES, True
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_threads = params.n_threads_batch = THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
        # Views of the batch's own memory, to fill it without a loop.
        self.token, self.position, self.wanted = (
            np.ctypeslib.as_array(part, (CONTEXT,)) for part in (self.batch.token, self.batch.pos, self.batch.logits)
        )
        np.ctypeslib.as_array(self.batch.n_seq_id, (CONTEXT,))[:] = 1

    def clear(self):
        llama_cpp.llama_memory_clear(self.memory, False)

    def fill(self, sequences, tokens, positions, wanted):
        count = self.batch.n_tokens = len(tokens)
        self.token[:count], self.position[:count], self.wanted[:count] = tokens, positions, wanted
        for place, sequence in enumerate(sequences):
            self.batch.seq_id[place][0] = sequence

    def decode(self, outputs):
        """Runs the batch; the logits that it wants, a row each, valid until the next run."""
        if code := llama_cpp.llama_decode(self.context, self.batch):
            sys.exit(f"llama_decode answered {code}")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (outputs, self.width))

    def prefill(self, count):
        count = int(count)
        self.clear()
        self.fill([0] * count, formula(count), np.arange(count), np.arange(count) == count - 1)
        begun = time.perf_counter()
        self.decode(1)
        return {"seconds": time.perf_counter() - begun, "tokens": count}

    def generate(self, sequences, steps):
        sequences, steps = int(sequences), int(steps)
        self.clear()
        prompts = np.concatenate([formula(PROMPT, sequence) for sequence in range(sequences)])
        positions = np.tile(np.arange(PROMPT), sequences)
        self.fill(np.repeat(np.arange(sequences), PROMPT).tolist(), prompts, positions, positions == PROMPT - 1)
        tokens = self.decode(sequences).argmax(axis=1)
        self.fill(range(sequences), tokens, PROMPT, 1)
        begun = time.perf_counter()
        for step in range(steps):
            self.token[:sequences] = tokens
            self.position[:sequences] = PROMPT + step
            tokens = self.decode(sequences).argmax(axis=1)
        return {"seconds": time.perf_counter() - begun, "tokens": sequences * steps}

    def tokenise(self, text):
        tokens = (llama_cpp.llama_token * len(text))()
        count = llama_cpp.llama_tokenize(self.vocabulary, text, len(text), tokens, len(text), False, False)
        return np.array(tokens[:count])

    def perplexity(self, path):
        with open(path, "rb") as file:
            tokens = self.tokenise(file.read())[:WINDOW]
        count = len(tokens)
        self.clear()
        self.fill([0] * count, tokens, np.arange(count), 1)
        loss = 0.0
        for row, target in zip(self.decode(count), tokens[1:]):
            row = row.astype(np.float64)
            most = row.max()
            loss += most + np.log(np.exp(row - most).sum()) - row[target]
        return {"perplexity": float(np.exp(loss / (count - 1))), "tokens": count}


def main():
    engine = Engine(sys.argv[1])
    ask = {"prefill": engine.prefill, "decode": engine.generate, "perplexity": engine.perplexity}
    engine.prefill(512)
    engine.generate(SEQUENCES, 16)
    engine.generate(1, 16)
    for line in sys.stdin:
        name, *words = line.rstrip("\n").split(" ", 2 if line.startswith("decode") else 1)
        print(json.dumps(ask[name](*words)), file=answers, flush=True)


if __name__ == "__main__":
    main()

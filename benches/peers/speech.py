"""Other recognisers on the weights and the sound that ours has: faster-whisper and whisper.cpp.

`speech.py FOLDER` takes the folder that scripts/fetch-speech fills. Each line of input names one, as `faster-whisper base
float32` or `whisper.cpp tiny.en`; the answer is a line of JSON, `{"seconds": ..., "text": ...}`. Two threads, greedy, with
timestamps, as ours.
"""
import json
import os
import sys
import tempfile
import time
import wave

import numpy
from faster_whisper import WhisperModel
from pywhispercpp.model import Model

THREADS = 2
folder = os.path.abspath(sys.argv[1])

with wave.open(os.path.join(folder, "jfk.wav")) as sound:
    samples = numpy.frombuffer(sound.readframes(sound.getnframes()), dtype=numpy.int16).astype(numpy.float32) / 32768


def ctranslate2(into, size):
    """The model's files under the names that ctranslate2 wants, with the list of tokens that it wants beside them."""
    for name in ("config.json", "tokenizer.json"):
        os.symlink(os.path.join(folder, f"{size}.{name}"), os.path.join(into, name))
    os.symlink(os.path.join(folder, f"{size}.ctranslate2.bin"), os.path.join(into, "model.bin"))
    with open(os.path.join(into, "tokenizer.json"), encoding="utf-8") as file:
        tokenizer = json.load(file)
    ids = dict(tokenizer["model"]["vocab"])
    ids.update((token["content"], token["id"]) for token in tokenizer["added_tokens"])
    # The list ends with the times, which the tokeniser does not name.
    tokens = [f"<|x{id}|>" for id in range(51865)]
    for token, id in ids.items():
        tokens[id] = token
    with open(os.path.join(into, "vocabulary.json"), "w", encoding="utf-8") as file:
        json.dump(tokens, file)
    return into


def faster_whisper(size, kind):
    into = ctranslate2(tempfile.mkdtemp(), size)
    model = WhisperModel(into, device="cpu", compute_type=kind, cpu_threads=THREADS)

    def run():
        segments, _ = model.transcribe(samples, beam_size=1, best_of=1)
        return "".join(segment.text for segment in segments)

    return run


def whisper_cpp(size):
    path = os.path.join(folder, f"{size}.ggml.bin")
    model = Model(path, n_threads=THREADS, print_progress=False, print_realtime=False)
    return lambda: " ".join(segment.text.strip() for segment in model.transcribe(samples))


MAKERS = {"faster-whisper": faster_whisper, "whisper.cpp": whisper_cpp}
# The libraries write to standard output themselves.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
models = {}
for line in sys.stdin:
    name, *words = line.split()
    if line not in models:
        models[line] = MAKERS[name](*words)
        models[line]()
    begun = time.perf_counter()
    text = models[line]()
    print(json.dumps({"seconds": time.perf_counter() - begun, "text": text}), file=answers, flush=True)

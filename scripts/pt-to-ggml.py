#!/usr/bin/env python3
"""Writes an OpenAI Whisper checkpoint in ggml's form, without PyTorch: pt-to-ggml.py MODEL.pt VOCABULARY.tiktoken MEL_FILTERS.npz OUT.

The layout is that of whisper.cpp: numbers of the network, mel filters, vocabulary, tensors; matrices stay halves, vectors
and positions become floats. It shares no code with the importers that it is compared with.
"""
import base64
import pickle
import struct
import sys
import zipfile

import numpy as np

TYPES = {"HalfStorage": np.float16, "FloatStorage": np.float32}
NUMBERS = ["n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"]
NUMBERS += ["n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"]
FLOATS = {"encoder.positional_embedding", "decoder.positional_embedding"}


def tensor(storage, offset, size, stride, *_):
    item = storage.dtype.itemsize
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [item * step for step in stride])


class Checkpoint(pickle.Unpickler):
    def __init__(self, archive):
        self.archive = archive
        self.pickle = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        super().__init__(archive.open(self.pickle))

    def find_class(self, module, name):
        if name == "_rebuild_tensor_v2":
            return tensor
        return TYPES[name] if name in TYPES else super().find_class(module, name)

    def persistent_load(self, reference):
        _, dtype, key, _, _ = reference
        return np.frombuffer(self.archive.read(self.pickle.replace("data.pkl", f"data/{key}")), dtype)


def main():
    model, vocabulary, filters, out = sys.argv[1:]
    checkpoint = Checkpoint(zipfile.ZipFile(model)).load()
    dims = checkpoint["dims"]
    bands = np.load(filters)["mel_%d" % dims["n_mels"]].astype(np.float32)
    with open(out, "wb") as file:
        file.write(struct.pack("<12i", 0x67676D6C, *[dims[name] for name in NUMBERS], 1))
        file.write(struct.pack("<2i", *bands.shape) + bands.tobytes())
        tokens = [base64.b64decode(line.split()[0]) for line in open(vocabulary, "rb") if line.strip()]
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name, data in checkpoint["model_state_dict"].items():
            data = data.squeeze()
            if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
                data = data.reshape(-1, 1).astype(np.float32)
            if data.ndim < 2 or name in FLOATS:
                data = data.astype(np.float32)
            kind = 0 if data.dtype == np.float32 else 1
            file.write(struct.pack("<3i", data.ndim, len(name), kind))
            file.write(struct.pack("<%di" % data.ndim, *reversed(data.shape)) + name.encode())
            file.write(np.ascontiguousarray(data).tobytes())


main()

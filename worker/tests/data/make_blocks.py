"""Makes blocks.expected.json: blocks of random bytes of each type of ggml's, and the weights in them.

    pip install gguf numpy
    python make_blocks.py > blocks.expected.json

The weights are those of llama.cpp's own Python package (gguf.quants), as the bits of f32 in little-endian hexadecimal.
Halves inside blocks are finite: of all bits, with the exponent's lowest cleared.
"""
import json, sys
import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

# Where each type has halves.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
WEIGHTS = 1024
random = numpy.random.default_rng(20)


def block(name):
    size = GGML_QUANT_SIZES[Type[name]][1]
    block = random.integers(0, 256, size, dtype=numpy.uint8)
    for at in HALVES[name]:
        block[at + 1] &= 0xFB
    return block


def case(name):
    count = WEIGHTS // GGML_QUANT_SIZES[Type[name]][0]
    blocks = numpy.concatenate([block(name) for _ in range(count)])
    weights = dequantize(blocks, Type[name])
    assert weights.dtype == numpy.float32 and weights.size == WEIGHTS and numpy.isfinite(weights).all()
    return {"type": name, "blocks": blocks.tobytes().hex(), "weights": weights.astype("<f4").tobytes().hex()}


json.dump([case(name) for name in HALVES], sys.stdout, indent=1)
print()

"""Writes a GGUF again with all its tensors as F32: gguf_to_f32.py IN OUT.

IN is a GGUF v3 with tensors of F32, F16, Q8_0, Q4_0 and Q4_1. OUT has its metadata byte for byte, but for
`general.file_type`, which becomes 0 (all F32) where it is there. Needs NumPy.
"""

import struct
import sys

import numpy as np

UINT32, STRING, ARRAY = 4, 8, 9
# Bytes of the metadata's types of one size.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values if len(values) > 1 else values[0]

    def string(self):
        length = self.take("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def skip(self, kind):
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            inner, count = self.take("I"), self.take("Q")
            if inner in SIZES:
                self.at += SIZES[inner] * count
            else:
                for _ in range(count):
                    self.skip(inner)
        else:
            self.at += SIZES[kind]


def halves(block, first):
    """The F16 at a place of each block, as a column of F32."""
    return block[:, first : first + 2].copy().view("<f2").astype("<f4")


def nibbles(block, first):
    """The 32 numbers of each block from 16 bytes: all the low halves, then all the high ones."""
    both = block[:, first : first + 16]
    return np.concatenate([both & 15, both >> 4], axis=1).astype("<f4")


# For each of GGML's kinds: its number of elements and of bytes in a block, and how blocks (one a row) become F32.
KINDS = {
    0: (1, 4, lambda block: block.view("<f4")),
    1: (1, 2, lambda block: halves(block, 0)),
    2: (32, 18, lambda block: (nibbles(block, 2) - np.float32(8)) * halves(block, 0)),
    3: (32, 20, lambda block: nibbles(block, 4) * halves(block, 0) + halves(block, 2)),
    8: (32, 34, lambda block: block[:, 2:].view("i1").astype("<f4") * halves(block, 0)),
}


def convert(source, target):
    data = np.memmap(source, mode="r", dtype=np.uint8)
    reader = Reader(data)
    magic, version, tensors, pairs = reader.take("4sIQQ")
    if magic != b"GGUF" or version != 3:
        sys.exit(f"{source} is not a GGUF of version 3")
    alignment, type_at = 32, None
    for _ in range(pairs):
        key, kind = reader.string(), reader.take("I")
        if key in (b"general.alignment", b"general.file_type"):
            if kind != UINT32:
                sys.exit(f"{key.decode()} is not a uint32")
            if key == b"general.alignment":
                alignment = struct.unpack_from("<I", data, reader.at)[0]
            else:
                type_at = reader.at
        reader.skip(kind)
    header = bytearray(data[: reader.at])
    if type_at is not None:
        header[type_at : type_at + 4] = bytes(4)

    found, end = [], 0
    for _ in range(tensors):
        name, rank = reader.string(), reader.take("I")
        shape = [reader.take("Q") for _ in range(rank)]
        kind, offset = reader.take("I"), reader.take("Q")
        if kind not in KINDS:
            sys.exit(f"{name.decode()} is of kind {kind}, which is not known here")
        count = int(np.prod(shape, dtype=np.int64))
        header += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{rank}QIQ", rank, *shape, 0, end)
        found.append((kind, offset, count))
        end += 4 * count + -4 * count % alignment
    start = reader.at + -reader.at % alignment

    with open(target, "wb") as out:
        out.write(header + bytes(-len(header) % alignment))
        for kind, offset, count in found:
            elements, size, decode = KINDS[kind]
            blocks = count // elements
            raw = np.array(data[start + offset :][: blocks * size]).reshape(blocks, size)
            out.write(np.ascontiguousarray(decode(raw), dtype="<f4").tobytes() + bytes(-4 * count % alignment))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(*sys.argv[1:])

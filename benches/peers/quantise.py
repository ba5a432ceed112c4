"""Has llama.cpp write a GGUF with all its matrices as one kind: quantise.py F32.gguf OUT f16|q8_0

The embedding, which is the output too, has that kind as well; the norms stay F32.
"""

import os
import sys

import llama_cpp

KINDS = {"f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16, "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def main():
    if len(sys.argv) != 4 or sys.argv[3] not in KINDS:
        sys.exit(__doc__)
    source, target, kind = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = 2, KINDS[kind], True
    if code := llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
        sys.exit(f"llama_model_quantize answered {code}")


main()

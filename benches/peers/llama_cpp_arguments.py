"""Prints the CMAKE_ARGS with which llama-cpp-python is built for this processor.

    CMAKE_ARGS="$(python llama_cpp_arguments.py)" pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
"""

# llama.cpp's switches, and the flag in /proc/cpuinfo that each needs.
SWITCHES = {
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
}


def flags():
    with open("/proc/cpuinfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return set(value.split())
    return set()


def arguments(has):
    # GGML_NATIVE would take AMX in as well, which crashed on a processor that names it. What is not here is said to be
    # off, since llama.cpp has some of it on by itself.
    switches = [f"-DGGML_{name}={'ON' if flag in has else 'OFF'}" for name, flag in SWITCHES.items()]
    return ["-DLLAVA_BUILD=OFF", "-DGGML_NATIVE=OFF", *switches]


if __name__ == "__main__":
    print(*arguments(flags()))

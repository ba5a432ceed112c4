# Two commands do everything: `make demo` and `make test`. The rest are parts of them. `make demo DEVICE=wgpu` runs the
# model on Vulkan, on Mesa's software driver where there is no card.

CARGO ?= cargo
PREFIX ?= /usr/local
CACHE := $(CURDIR)/.cache
VENV := $(CACHE)/venv
export RINGFENCE_MINILM := $(CACHE)/minilm
export RINGFENCE_MINILM_F16 := $(CACHE)/minilm-f16
export RINGFENCE_PYTHON := $(VENV)/bin/python
export RINGFENCE_SMOLLM2 := $(CACHE)/smollm2-135m/model.gguf
export RINGFENCE_SPEECH := $(CACHE)/speech

# The compiler with clippy's lints, each of which fails the build: code is read once to be checked, built and tested, where
# `make lint` reads it and everything below it once more.
LINTING := RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__

.PHONY: demo test check soak bench gpu-bench lint deny install clean system-packages nextest programs

demo: system-packages
	$(CARGO) build --release --bins --example demo
	target/release/examples/demo $(DEVICE)

# Offline and on tiny packages: minutes. What wants too much memory of a GPU takes two by itself, and is in soak.
check: system-packages nextest
	$(CARGO) fmt --all --check
	$(LINTING) $(CARGO) build --workspace --bins --examples --benches
	$(LINTING) $(CARGO) nextest run --workspace -E 'not binary(/^real_/) and not test(every_want_of_memory_is_stopped_on_a_gpu)'
	$(LINTING) $(CARGO) test --workspace --doc --quiet

# check, plus real weights, real clients and five seconds for each fuzz target, on the program that is built already: led by
# coverage it needs everything built once more, and is in soak.
test: check $(VENV)/ready $(CACHE)/sources/ready
	$(LINTING) $(CARGO) nextest run --workspace -E 'binary(/^real_/)'
	scripts/fuzz --blind 5

# Full counts and long runs.
soak: system-packages nextest $(CACHE)/sources/ready
	$(CARGO) build --release --bins --examples
	RINGFENCE_HISTORIES=100000 $(CARGO) nextest run --profile soak --release -p ringfence-scheduler
	RINGFENCE_HISTORIES=10000 PROPTEST_CASES=1000 $(CARGO) nextest run --profile soak --release -p ringfence-gpu
	RINGFENCE_MUTATIONS=100000 $(CARGO) nextest run --profile soak --release -p ringfence-models
	PROPTEST_CASES=5000 $(CARGO) nextest run --profile soak --release -p ringfence-kernels -p ringfence-protocol
	PROPTEST_CASES=10000 $(CARGO) nextest run --profile soak --release -p ringfence-worker -E 'test(/^generation::/)'
	RINGFENCE_AUDIT_KILLS=200 RINGFENCE_AUDIT_FLIPS=8 RINGFENCE_AUDIT_CUTS=10000 $(CARGO) nextest run --profile soak --release -p ringfence-audit
	RINGFENCE_AUDIT_KILLS=200 $(CARGO) nextest run --profile soak --release -p ringfence-server -E 'binary(audit)'
	RINGFENCE_RACES=1000000 $(CARGO) nextest run --profile soak --release -p ringfence-fileguard -E 'binary(escapes)'
	RINGFENCE_GRANT_ROUNDS=10000 $(CARGO) nextest run --profile soak --release -p ringfence-server -E 'binary(grants) and test(many)'
	RINGFENCE_GRANT_STRESS_ROUNDS=10000 $(CARGO) nextest run --profile soak --release -p ringfence-server -E 'binary(stress) and test(grants)'
	RINGFENCE_OOM_ROUNDS=100 $(CARGO) nextest run --profile soak --release -p ringfence-server -E 'binary(stress) and test(memory)'
	RINGFENCE_FAULT_ROUNDS=200 $(CARGO) nextest run --profile soak --release -p ringfence-server -E 'binary(faults) or binary(hostile)'
	RINGFENCE_LIVE_S=600 RINGFENCE_MARKER_S=60 $(CARGO) nextest run --profile soak --release -E 'package(ringfence-server) and binary(real_listen)'
	scripts/fuzz 600

bench: system-packages $(CACHE)/sources/ready
	$(CARGO) build --release --bins --example demo
	$(CARGO) bench --bench '*'

# On the first adapter, a card before software; ARGUMENTS="--json --rounds 15 --adapter 1".
gpu-bench: system-packages
	$(CARGO) run --release -p ringfence-gpu --example bench -- $(ARGUMENTS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

deny:
	$(CARGO) deny check

# Tests of one package start the programs of others.
programs:
	$(CARGO) build --workspace --bins --examples

nextest:
	@$(CARGO) nextest --version >/dev/null 2>&1 || { echo "installing cargo-nextest"; $(CARGO) install --locked cargo-nextest; }

# Only what is missing is installed, and said.
system-packages:
	@scripts/system-packages

$(VENV)/ready: tests/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

# What packages are made of, with the digests that the catalog pins: about 450 MB, once.
$(CACHE)/sources/ready: $(wildcard models/catalog/*.toml) scripts/fetch-sources scripts/fetch-speech scripts/pt-to-ggml.py $(VENV)/ready
	scripts/fetch-sources $(CACHE) minilm minilm-f16 smollm2-135m
	scripts/fetch-speech $(CACHE)/speech $(VENV)/bin/python
	mkdir -p $(@D) && touch $@

install:
	$(CARGO) build --release --bins
	install -Dm755 -t $(DESTDIR)$(PREFIX)/bin target/release/ringfence target/release/ringfence-server target/release/ringfence-worker target/release/ringfence-fileguard target/release/ringfence-audio
	install -Dm644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system packaging/systemd/system/*.service
	install -Dm644 -t $(DESTDIR)$(PREFIX)/lib/systemd/user packaging/systemd/user/*.service
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/ringfence packaging/README.md packaging/apparmor/ringfence packaging/container/Containerfile packaging/container/seccomp.json

clean:
	$(CARGO) clean
	rm -rf $(CACHE)

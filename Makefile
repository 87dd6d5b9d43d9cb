# Two commands for a fresh Debian 12 machine: `make demo` and `make test`.
BUILD  := build/release
NIBBLE := $(BUILD)/nibble
MODEL  := models/smollm2-135m-instruct
PREFIX ?= /usr/local
PYTHON ?= python3
# Seconds that `make tidy` may take; it starts with the files changed last. 0: no limit.
TIDY_SECONDS ?= 600
FUZZ_SECONDS ?= 30
# For the release build: make CMAKE_OPTIONS=-DNIBBLE_CUDA=OFF
CMAKE_OPTIONS ?=
# 0: another one at each run.
FUZZ_SEED ?= 0
# gcc's sanitizers need the address layout that setarch -R gives; where that is forbidden, go on without.
STEADY := $(shell setarch -R true 2>/dev/null && echo setarch -R)
SANITIZED_CTEST := $(STEADY) ctest --output-on-failure --no-tests=error -j2 --timeout 900

.PHONY: all deps configure demo test lint tidy format asan tsan fuzz bench interop install clean

all: configure
	cmake --build $(BUILD)

deps:
	scripts/install_deps.sh

configure: deps
	cmake --preset release $(CMAKE_OPTIONS)

# Fetches a small real model, quantizes it here and lets it speak.
demo: all
	scripts/fetch_demo_model.sh $(MODEL)
	scripts/demo.sh $(NIBBLE) $(MODEL)

# Unit, operator, parity and end-to-end tests, the checks of the tools, the examples of the documents.
test: all
	ctest --test-dir $(BUILD) --output-on-failure --no-tests=error -j2 --timeout 600

lint: all
	scripts/install_deps.sh lint
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror
	$(PYTHON) tools/check_layers.py tools/layers.txt include src cli
	$(PYTHON) tools/check_sizes.py include src cli tests bench tools

tidy: all
	scripts/install_deps.sh lint
	$(PYTHON) tools/tidy.py $(BUILD) $(TIDY_SECONDS)

format: deps
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs clang-format -i

# Address and undefined-behaviour sanitizers over every test.
asan: deps
	cmake --preset asan
	cmake --build build/asan
	$(SANITIZED_CTEST) --test-dir build/asan

# Thread sanitizer over what starts threads.
TSAN_MODULES := base|kernels_cpu|ops|models|runtime|generate|api
tsan: deps
	cmake --preset tsan
	cmake --build build/tsan --target $$(ninja -C build/tsan -t targets all | grep -oE '^test_($(TSAN_MODULES)):' | tr -d ':')
	$(SANITIZED_CTEST) --test-dir build/tsan -R '^($(TSAN_MODULES))\.'

# Each fuzzer for FUZZ_SECONDS, from the seeds in tests/fuzz/corpus.
fuzz: deps
	scripts/install_deps.sh fuzz
	cmake --preset fuzz
	cmake --build build/fuzz --target fuzzers
	scripts/run_fuzzers.sh build/fuzz/tests/fuzz $(FUZZ_SECONDS) $(FUZZ_SEED)

bench: deps
	scripts/install_deps.sh bench
	cmake --preset bench
	cmake --build build/bench
	scripts/run_benches.sh build/bench

# The real Python libraries against ours, both ways; PYTHON must have torch, transformers and bitsandbytes.
interop: all
	cmake --build $(BUILD) --target interop_logits
	NIBBLE_BUILD=$(CURDIR)/$(BUILD) $(PYTHON) -m unittest discover -v -s tests/interop -p '*_test.py'

install: all
	cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	rm -rf build

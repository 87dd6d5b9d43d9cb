# Two commands for a fresh Debian 12 machine: `make demo` and `make test`.
BUILD := build/release
NIBBLE := $(BUILD)/nibble
MODEL := models/smollm2-135m-instruct

.PHONY: all configure demo test lint fuzz asan tsan bench clean deps
all: configure
	cmake --build $(BUILD)

deps:
	scripts/install_deps.sh

configure: deps
	cmake --preset release

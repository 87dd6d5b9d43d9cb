#!/usr/bin/env bash
# Installs a build beside itself, builds examples/ against it with find_package(nibble), and runs the example on a model.
# usage: check_install.sh BUILD_FOLDER [MODEL]
set -euo pipefail
build=$1
model=${2:-tests/data/models/llama}
rm -rf "$build-installed" "$build-example"
cmake --install "$build" --prefix "$PWD/$build-installed" >/dev/null
cmake -S examples/generate -B "$build-example" -G Ninja -DCMAKE_PREFIX_PATH="$PWD/$build-installed" >/dev/null
cmake --build "$build-example"
"$build-example/generate" "$model" "Hello"
"$build-installed/bin/nibble" info

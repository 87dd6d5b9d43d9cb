#!/usr/bin/env bash
# Runs every fuzzer of a build folder for some seconds, two at a time; a crash leaves its input in the build folder.
# usage: run_fuzzers.sh FOLDER SECONDS [SEED]        SEED 0, the default: another one at each run
set -euo pipefail
folder=$1
export seconds=$2 seed=${3:-0}
export seeds=$PWD/tests/fuzz/corpus
export setarch=""
setarch -R true 2>/dev/null && setarch="setarch -R"

run_one() {
  local name log
  name=$(basename "$1")
  log=$1.log
  mkdir -p "$1.corpus"
  local folders=("$1.corpus")
  [ -d "$seeds/$name" ] && folders+=("$seeds/$name")
  if $setarch "$1" -seed="$seed" -max_total_time="$seconds" -timeout=20 -malloc_limit_mb=600 -rss_limit_mb=2500 \
    -max_len=65536 -artifact_prefix="$1." "${folders[@]}" >"$log" 2>&1; then
    echo "$name: ok, $(grep -oE 'Done [0-9]+ runs' "$log" | tail -1)"
  else
    tail -40 "$log"
    echo "$name: FAILED"
    return 1
  fi
}
export -f run_one

mapfile -t fuzzers < <(find "$folder" -maxdepth 1 -name 'fuzz_*' -type f -executable | sort)
[ ${#fuzzers[@]} -gt 0 ] || { echo "no fuzzers in $folder" >&2; exit 1; }
printf '%s\0' "${fuzzers[@]}" | xargs -0 -n 1 -P 2 bash -c 'run_one "$0"'

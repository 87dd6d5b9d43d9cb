#!/usr/bin/env bash
# Runs every benchmark program of a build folder one after another; results go to standard output and, as JSON, beside it.
# usage: run_benches.sh FOLDER [PATTERN]
set -euo pipefail
pattern=${2:-bench_*}
find "$1/bench" -name "$pattern" -type f -executable | sort | while read -r program; do
  echo "== $(basename "$program")"
  "$program"
done

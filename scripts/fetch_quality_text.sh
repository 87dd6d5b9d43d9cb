#!/usr/bin/env bash
# Fetches the English text that docs/results/quality.md measures perplexity on: the opening 128 KiB of Newton's Opticks
# (public domain), which Debian's package golang-1.19-src carries as test data. Does nothing when it is there already.
# usage: fetch_quality_text.sh [FILE]
set -euo pipefail
out=${1:-models/opticks.txt}
sha256=03102b6dd458f4943bb55acb41daf710255c819cd4cc2194ab9b4dae2c220587
check() { echo "$sha256  $1" | sha256sum --check --status; }

[ -f "$out" ] && check "$out" && exit 0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
(cd "$folder" && apt-get download -qq golang-1.19-src 2>/dev/null && dpkg -x golang-1.19-src_*.deb .)
book=$folder/usr/share/go-1.19/src/testdata/Isaac.Newton-Opticks.txt
[ -f "$book" ] || { echo "error: golang-1.19-src: expected src/testdata/Isaac.Newton-Opticks.txt in it" >&2; exit 3; }
sed -n '/^THE FIRST BOOK OF OPTICKS/,$p' "$book" >"$folder/book"
head -c 131072 "$folder/book" >"$folder/text"
check "$folder/text" || { echo "error: $book: its text is not the expected one (sha256 of the excerpt: $(sha256sum <"$folder/text"))" >&2; exit 4; }
mkdir -p "$(dirname "$out")"
mv "$folder/text" "$out"

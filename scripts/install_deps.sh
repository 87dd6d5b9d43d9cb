#!/usr/bin/env bash
# Installs what building and testing need, from Debian's packages; does nothing when all are there.
# usage: install_deps.sh [lint] [fuzz] [bench]
set -euo pipefail
packages=(g++ cmake ninja-build make ccache nlohmann-json3-dev libeigen3-dev libcli11-dev libfmt-dev libpcre2-dev libutf8proc-dev
  libgtest-dev libgmock-dev python3 python3-pip python3-venv git)
for purpose in "$@"; do
  case $purpose in
    lint) packages+=(clang-format clang-tidy clang) ;;
    fuzz) packages+=(clang libclang-rt-14-dev) ;;
    bench) packages+=(libdnnl-dev) ;;
    *) echo "error: $purpose: expected lint, fuzz or bench" >&2; exit 2 ;;
  esac
done
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing: ${missing[*]}" >&2
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

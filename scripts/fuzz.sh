#!/usr/bin/env bash
# New inputs for the parsers, by libFuzzer: `make fuzz`. What plain `cargo test` replays is fuzz/corpus.
#
#   scripts/fuzz.sh                        every target for FOR (60s)
#   FOR=10m scripts/fuzz.sh session resp   only these
#   FOR=0 scripts/fuzz.sh                  nothing new, only the merge of what earlier runs found
#
# New inputs gather in the target folder. Those that reach code which the corpus doesn't are merged into fuzz/corpus, bounded
# in number and size; one that fails is kept in fuzz/corpus as well, under the name that libFuzzer gave it, so that
# `cargo test` fails until its cause is mended.
#
# Compiled by the compiler of everything else (libfuzzer/rustc.sh says how), with a C++ compiler for libFuzzer. With a nightly
# compiler cargo-fuzz runs the same targets: cargo +nightly fuzz run --fuzz-dir fuzz/libfuzzer session fuzz/corpus/session
set -euo pipefail
cd "$(dirname "$0")/.."

FOR=${FOR:-60s}
# Longer inputs repeat what shorter ones say, and no file of the corpus may be longer.
INPUT_BYTES_MAX=4096
# As fuzz/src/replay.rs demands, with room for a few that failed.
INPUTS_MAX=100
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
FOLDER=$TARGET/fuzz

say() { printf '== %s\n' "$*"; }
fail() { printf 'fuzz.sh: %s\n' "$1" >&2; exit "${2:-1}"; }

seconds() {
  case $1 in
    *h) echo $((${1%h} * 3600)) ;;
    *m) echo $((${1%m} * 60)) ;;
    *) echo "${1%s}" ;;
  esac
}

# The parsers are safe Rust, so there is no address sanitizer: what it finds the language forbids.
build() {
  command -v cargo >/dev/null || fail "cargo is not on PATH: install Rust (rustup.rs, or your distribution)" 69
  { command -v c++ || command -v clang++; } >/dev/null || fail "no C++ compiler on PATH, for libFuzzer: install g++" 69
  # Programs of its own workspace, but dependencies of everybody's.
  CARGO_TARGET_DIR=$TARGET RUSTC_WRAPPER=$PWD/fuzz/libfuzzer/rustc.sh \
    cargo build --locked --bins --manifest-path fuzz/libfuzzer/Cargo.toml
}

# Runs one target; false where an input failed.
fuzz() {
  local name=$1 found=$FOLDER/found/$1 program=$TARGET/debug/$1 failed=0 artefact
  mkdir -p "$found" "$FOLDER/failed/$name" "$FOLDER/merged"
  rm -f "$FOLDER/failed/$name"/*
  if [ "$SECONDS_EACH" != 0 ]; then
    say "$name: $FOR"
    "$program" "$found" "fuzz/corpus/$name" -max_total_time="$SECONDS_EACH" -max_len="$INPUT_BYTES_MAX" -timeout=10 \
      -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$FOLDER/failed/$name/" >"$FOLDER/$name.log" 2>&1 || failed=1
    grep -aE 'stat::number_of_executed_units|^SUMMARY|panicked at' "$FOLDER/$name.log" || true
  fi
  for artefact in "$FOLDER/failed/$name"/*; do
    [ -f "$artefact" ] || continue
    say "$name: FAILED on $artefact; its log is $FOLDER/$name.log"
    cp "$artefact" "fuzz/corpus/$name/"
  done
  # A merge stops at an input that fails.
  [ "$failed" = 0 ] || return 1
  merge "$name" "$found" "$program"
}

# Makes fuzz/corpus/$1 the smallest set of inputs that reaches what it and $2 reach together.
merge() {
  local name=$1 found=$2 program=$3 merged=$FOLDER/merged/$1
  rm -rf "$merged"
  mkdir -p "$merged"
  "$program" -merge=1 -max_len="$INPUT_BYTES_MAX" "$merged" "fuzz/corpus/$name" "$found" >"$FOLDER/$name.merge.log" 2>&1 ||
    fail "the merge of $name failed: $(tail -3 "$FOLDER/$name.merge.log")"
  # Inputs written by hand keep their names and stay; of the rest the shortest.
  local input room
  room=$((INPUTS_MAX - $(find "fuzz/corpus/$name" -type f | wc -l)))
  # shellcheck disable=SC2045  # names are hashes
  for input in $(ls -Sr "$merged"); do
    [ "$room" -gt 0 ] || return 0
    known "fuzz/corpus/$name" "$merged/$input" && continue
    cp "$merged/$input" "fuzz/corpus/$name/$input"
    room=$((room - 1))
  done
}

# Whether folder $1 has a file with the content of $2.
known() {
  local file
  for file in "$1"/*; do cmp -s "$file" "$2" && return; done
  return 1
}

SECONDS_EACH=$(seconds "$FOR")
read -ra NAMES <<<"$*"
[ ${#NAMES[@]} -gt 0 ] || for folder in fuzz/corpus/*; do NAMES+=("${folder##*/}"); done
for name in "${NAMES[@]}"; do
  [ -d "fuzz/corpus/$name" ] || fail "no target $name: known are the folders of fuzz/corpus" 2
done
say "building"
build
broken=()
for name in "${NAMES[@]}"; do fuzz "$name" || broken+=("$name"); done
[ ${#broken[@]} -eq 0 ] || fail "these targets failed: ${broken[*]}"
say "all of ${NAMES[*]}: nothing found"

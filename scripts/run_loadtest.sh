#!/usr/bin/env bash
# The whole measurement: clients connect, events are published, the report is printed.
#
#   scripts/run_loadtest.sh [CLIENTS] [EVENTS]      50 and 50
#   RATE=5 scripts/run_loadtest.sh 10000 50
#
# Uses the broadcaster at PORT (8000), or starts one with the Redis of REDIS_HOST, REDIS_PORT and REDIS_PASSWORD and ends
# it afterwards. RATE (10) is events a second. Logs stay in LOGS (logs/loadtest-DATE). Fails if a delivery is dropped.
set -euo pipefail
scripts=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$scripts/lib.sh"

clients=${1:-50}
events=${2:-50}
logs=${LOGS:-logs/loadtest-$(date +%Y%m%d-%H%M%S)}
export LOGS=$logs
corecast=$(find_corecast)
mkdir -p "$logs"

port=$("$corecast" config show --preset broadcaster | sed -n 's/^listen = ".*:\([0-9]*\)".*/\1/p')
answers() { (exec 3<>"/dev/tcp/localhost/$port") 2>/dev/null; }

server=
clean_up() {
  trap - EXIT INT TERM
  if [ -e "$logs/clients.pid" ]; then "$scripts/stop_clients.sh" >/dev/null || true; fi
  if [ -n "$server" ]; then
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" || true
  fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM

if answers; then
  echo "server: the one at port $port"
else
  "$corecast" serve --preset broadcaster >"$logs/server.log" 2>&1 &
  server=$!
  started() { answers || ! kill -0 "$server" 2>/dev/null; }
  wait_for 30 started || true
  answers || { cat "$logs/server.log" >&2; echo "run_loadtest.sh: the server did not start" >&2; exit 69; }
  echo "server: started at port $port, log $logs/server.log"
fi

"$scripts/run_clients.sh" "$clients" --events "$events"
"$corecast" publish --type SERVER_DOWN --source server-a --count "$events" --rate "${RATE:-10}" --quiet
# They end by themselves when everybody has everything; what is still missing after 10 s won't come.
pid=$(cat "$logs/clients.pid")
have_ended() { ! is_corecast "$pid"; }
wait_for 10 have_ended || true
"$scripts/stop_clients.sh" | tail -n +2
echo
"$corecast" report --events "$events" --strict "$logs"

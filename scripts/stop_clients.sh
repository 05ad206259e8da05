#!/usr/bin/env bash
# Stops the clients that run_clients.sh started, and shows what they said.
#
# LOGS (logs) is the folder that run_clients.sh was given.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

logs=${LOGS:-logs}
pid_file=$logs/clients.pid
pid=$(cat "$pid_file" 2>/dev/null) || {
  echo "stop_clients.sh: no clients run ($pid_file is not there)" >&2
  exit 1
}
has_ended() { ! is_corecast "$pid"; }
if ! has_ended; then
  kill -TERM "$pid"
  wait_for 30 has_ended || {
    echo "stop_clients.sh: process $pid has not ended within 30 s: kill -KILL $pid" >&2
    exit 1
  }
fi
rm -f "$pid_file"
cat "$logs/clients.out"

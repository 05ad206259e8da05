#!/usr/bin/env bash
# Starts the workflow fan-out: `corecast serve --preset workflow`, on PORT (8084) and with the Redis of REDIS_HOST,
# REDIS_PORT and REDIS_PASSWORD. Further flags are passed on.
#
#   scripts/start.sh
#   PORT=8085 scripts/start.sh --log-format json
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

corecast=$(find_corecast 2>/dev/null) || {
  # From a fresh checkout.
  make -C "$(dirname "$0")/.." build
  corecast=$(find_corecast)
}
exec "$corecast" serve --preset workflow "$@"

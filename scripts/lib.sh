# shellcheck shell=bash
# What the scripts beside it share. Sourced, not run.

# The program: of this checkout if it is built, else the one on PATH.
find_corecast() {
  local built="${CARGO_TARGET_DIR:-$(dirname "${BASH_SOURCE[0]}")/../target}/release/corecast"
  if [ -x "$built" ]; then
    printf '%s\n' "$built"
  else
    command -v corecast || {
      echo "$(basename "$0"): no corecast at $built and none on PATH: run \`make build\` first" >&2
      return 69
    }
  fi
}

# Says whether process $1 runs and is a corecast: a pid may have gone to another program, and a process that has ended
# keeps its pid until its parent asks.
is_corecast() {
  local status
  status=$(cat "/proc/$1/status" 2>/dev/null) || return 1
  grep -qx 'Name:[[:space:]]*corecast' <<<"$status" && ! grep -q '^State:[[:space:]]*Z' <<<"$status"
}

# Waits until `$2...` succeeds, at most $1 seconds.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

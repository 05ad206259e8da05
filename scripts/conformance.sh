#!/usr/bin/env bash
# The Autobahn test suite against the real server on each driver: `make conformance`. Some two minutes.
#
#   scripts/conformance.sh                     io_uring and epoll; writes docs/CONFORMANCE.md
#   DRIVERS=epoll scripts/conformance.sh 7.*   only these cases on this driver; writes nothing
#
# Exit code 1 where a case fails or a connection is not closed cleanly, or fewer than OK_MIN cases are OK.
#
# The suite is a program for CPython 2.7: python2.7 on PATH, pyenv's, or the one that PYTHON27 names. It and the virtualenv
# that still knows 2.7 are wheels of PyPI, put into the target folder.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

SUITE=autobahntestsuite==25.10.1
# 301 cases, of which three ask for what the RFC leaves open and are only told.
OK_MIN=298
# 12 and 13 are permessage-deflate, which corecast doesn't offer.
EXCLUDED='"12.*", "13.*"'
PAGE=docs/CONFORMANCE.md
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
FOLDER=$TARGET/conformance
WSTEST=$FOLDER/python2.7/bin/wstest

read -ra DRIVERS <<<"${DRIVERS:-io_uring epoll}"
CASES=("$@")

say() { printf '== %s\n' "$*"; }
fail() { printf 'conformance.sh: %s\n' "$1" >&2; exit "${2:-1}"; }

find_python27() {
  local python
  for python in "${PYTHON27:-}" "$(command -v python2.7 || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7.*/bin/python2.7; do
    # pyenv's shim is on PATH whether or not a 2.7 is chosen.
    [ -n "$python" ] && "$python" -c 'import ssl, ctypes' 2>/dev/null && printf '%s\n' "$python" && return
  done
  return 1
}

need_suite() {
  [ -x "$WSTEST" ] && return
  local python
  python=$(find_python27) || fail "no CPython 2.7 with ssl: install one (pyenv install 2.7.18) or name it by PYTHON27" 69
  command -v python3 >/dev/null || fail "python3 is not on PATH: install it (Debian: apt install python3-venv)" 69
  say "installing $SUITE from PyPI for $python into $FOLDER"
  python3 -m venv "$FOLDER/python3" || fail "python3 can't make a virtual environment (Debian: apt install python3-venv)" 69
  "$FOLDER/python3/bin/pip" install -q --disable-pip-version-check 'virtualenv<20.22' || fail "PyPI gave no virtualenv" 69
  "$FOLDER/python3/bin/virtualenv" -q -p "$python" "$FOLDER/python2.7"
  "$FOLDER/python2.7/bin/pip" install -q "$SUITE" || fail "PyPI gave no $SUITE, or one of its dependencies" 69
}

is_running() { kill -0 "$SERVER" 2>/dev/null; }
has_ports() { [ -s "$FOLDER/ports.json" ] || ! is_running; }

# Runs the cases on driver $1; leaves index.json in $FOLDER/reports-$1.
run_cases() {
  local driver=$1 listen cases='"*"'
  [ ${#CASES[@]} -eq 0 ] || printf -v cases '"%s", ' "${CASES[@]}"
  rm -rf "$FOLDER/ports.json" "$FOLDER/reports-$driver"
  # The largest messages of the suite have 16 MiB; each connection gets back exactly its own.
  "$CORECAST" serve --listen 127.0.0.1:0 --echo-route --message-bytes-max 16MiB --driver "$driver" \
    --ports-file "$FOLDER/ports.json" >"$FOLDER/server-$driver.log" 2>&1 &
  SERVER=$!
  wait_for 10 has_ports && [ -s "$FOLDER/ports.json" ] || fail "the server did not start: $(cat "$FOLDER/server-$driver.log")"
  listen=$(sed -n 's/.*"listen":"\([^"]*\)".*/\1/p' "$FOLDER/ports.json")
  printf '{"outdir": "%s", "servers": [{"agent": "corecast", "url": "ws://%s/echo"}], "cases": [%s], "exclude-cases": [%s], "exclude-agent-cases": {}}' \
    "$FOLDER/reports-$driver" "$listen" "${cases%, }" "$EXCLUDED" >"$FOLDER/spec-$driver.json"
  say "$driver: the suite against ws://$listen/echo"
  "$WSTEST" -m fuzzingclient -s "$FOLDER/spec-$driver.json" >"$FOLDER/wstest-$driver.log" 2>&1 ||
    fail "the suite failed: $(tail -5 "$FOLDER/wstest-$driver.log")"
  is_running || fail "the server did not outlive the suite: $(tail -5 "$FOLDER/server-$driver.log")"
  stop_server
}

stop_server() {
  [ -n "${SERVER:-}" ] || return 0
  kill "$SERVER" 2>/dev/null || true
  wait "$SERVER" 2>/dev/null || true
  SERVER=
}

need_suite
CORECAST=$(find_corecast)
trap stop_server EXIT
mkdir -p "$FOLDER"
for driver in "${DRIVERS[@]}"; do run_cases "$driver"; done

commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain --untracked-files=no -- . ":!$PAGE" 2>/dev/null)" ] || commit="$commit with changes"
# Some cases alone say nothing of the whole.
[ ${#CASES[@]} -eq 0 ] && [ "${DRIVERS[*]}" = "io_uring epoll" ] || { PAGE=/dev/null; OK_MIN=0; }
python3 scripts/conformance_table.py --folder "$FOLDER" --ok-min "$OK_MIN" --page "$PAGE" --suite "${SUITE/==/ }" \
  --version "$("$CORECAST" version)" --commit "$commit" "${DRIVERS[@]}"

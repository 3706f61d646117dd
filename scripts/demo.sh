#!/usr/bin/env bash
# From a fresh checkout to a ranked answer: installs into .venv, indexes the sample of WordNet into demo-index, starts
# the service on a free loopback port and sends it a real query. It stops what it started, and can be run again.
#
#   scripts/demo.sh [--query q7] [--top-k 10]      options go to scripts/demo.py
#
# It needs Python 3.11 or newer. PYTHON=/path/to/python3 chooses one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/setup.sh
. scripts/setup.sh

service=
log=$(mktemp)

stop_service() {
  local waited=0
  [ -n "$service" ] || return 0
  kill "$service" 2>/dev/null || true
  # A service that hangs while it shuts down must not outlive the demo.
  while kill -0 "$service" 2>/dev/null && [ "$waited" -lt 100 ]; do
    sleep 0.1
    waited=$((waited + 1))
  done
  kill -KILL "$service" 2>/dev/null || true
  wait "$service" 2>/dev/null || true
  service=
}

finish() {
  local status=$?
  trap '' HUP INT TERM
  stop_service
  rm -f "$log"
  exit "$status"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

service_failed() {
  printf 'The service %s. The end of its log:\n\n' "$1" >&2
  tail -n 30 "$log" >&2
  exit 1
}

answers() { # answers URL: whether it answers 200
  .venv/bin/python -c 'import sys, httpx
try:
    sys.exit(httpx.get(sys.argv[1], trust_env=False, timeout=2).status_code != 200)
except httpx.TransportError:
    sys.exit(1)' "$1" 2>/dev/null
}

wait_until_ready() {
  local deadline=$((SECONDS + 90))
  until answers "$url/readyz"; do
    kill -0 "$service" 2>/dev/null || service_failed "ended"
    [ "$SECONDS" -lt "$deadline" ] || service_failed "was not ready after 90 seconds"
    sleep 0.2
  done
}

prepare cpu

say "Indexing the sample: 4,000 WordNet definitions as Gaussians"
# --restart, because the rest of a demo that was interrupted is worth nothing.
.venv/bin/gaussearch build sample/wordnet/documents.parquet --index demo-index --restart

port=$(.venv/bin/python -c 'import socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    print(free.getsockname()[1])')
url=http://127.0.0.1:$port
say "Starting the service on $url"
.venv/bin/gaussearch serve --index demo-index --host 127.0.0.1 --port "$port" >"$log" 2>&1 &
service=$!
wait_until_ready

say ""
.venv/bin/python scripts/demo.py --url "$url" "$@"

cat <<TEXT

The service is stopped again. To go on:

  .venv/bin/gaussearch serve --index demo-index       then open http://127.0.0.1:8080/
  .venv/bin/python scripts/demo.py --query q7         another of the sample's queries, q0 to q399
  .venv/bin/gaussearch --help                         build an index of your own, search it, verify it

The same search with curl, while the service runs:

  .venv/bin/python scripts/demo.py --body |
    curl -s http://127.0.0.1:8080/v1/search -H 'content-type: application/json' -d @-

README.md tells the rest.
TEXT

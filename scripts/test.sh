#!/usr/bin/env bash
# Every check, the same for people and for CI: ruff, mypy, and pytest over the tests and the notebooks of docs.
#
#   scripts/test.sh [-x] [-k EXPRESSION] [tests/test_encoding.py]      arguments go to pytest
#
# As many tests run at a time as the machine has cores, up to eight, of 1 GB each; -n 0 runs one after the other.
# It needs Python 3.11 or newer. PYTHON=/path/to/python3 chooses one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/setup.sh
. scripts/setup.sh

failed=()

check() {
  say ""
  say "$*"
  ".venv/bin/$1" "${@:2}" || failed+=("$*")
}

prepare cpu,dev

# What tests write lies in memory where there is room: on a disk, thousands of publications wait to be synced.
room=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1) || room=0
if [ -w /dev/shm ] && [ "${room:-0}" -ge 4000000 ]; then
  TMPDIR=/dev/shm
fi
scratch=$(mktemp -d "${TMPDIR:-/tmp}/gaussearch-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch
# Tests become somebody else, who has to reach what they have written.
chmod 755 "$scratch"

# A notebook's kernel talks to pytest over sockets, and its code to a service: both stay on this machine, whatever
# proxy or Jupyter configuration the caller has.
export JUPYTER_CONFIG_DIR=$scratch/jupyter JUPYTER_RUNTIME_DIR=$scratch/runtime IPYTHONDIR=$scratch/ipython
export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}" no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"

# Tests share the cores: a thread that waits for another's share of a loop is to sleep meanwhile.
export OMP_WAIT_POLICY=passive

check ruff check
check ruff format --check
check mypy
# Last, so that pytest's summary ends the output.
check pytest --nbmake -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi

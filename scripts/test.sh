#!/usr/bin/env bash
# Every check, the same for people and for CI: ruff, mypy, and pytest over the tests and the notebooks of docs.
#
#   scripts/test.sh [-x] [-k EXPRESSION] [tests/test_encoding.py]      arguments go to pytest
#
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

# A notebook's kernel talks to pytest over sockets, and its code to a service: both stay on this machine, whatever
# proxy or Jupyter configuration the caller has.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export JUPYTER_CONFIG_DIR=$scratch/jupyter JUPYTER_RUNTIME_DIR=$scratch/runtime IPYTHONDIR=$scratch/ipython
export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}" no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"

check ruff check
check ruff format --check
check mypy
# Last, so that pytest's summary ends the output.
check pytest --nbmake "$@"

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi

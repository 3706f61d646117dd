# shellcheck shell=bash
# Sourced by demo.sh and test.sh, from the repository's root: `prepare EXTRAS` makes .venv hold the package, editable,
# with the named extras at the versions of constraints.txt. It installs only when something that decides the result
# has changed since the last time.

oldest=3.11

# What is shown and what is tested must not depend on settings that the caller has for a service of their own.
unset "${!GAUSSEARCH_@}"

say() { printf '%s\n' "$*"; }
fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

is_new_enough() { "$1" -c "import sys; sys.exit(sys.version_info < (${oldest/./, }))" 2>/dev/null; }

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON is $PYTHON, which is not a command here."
    is_new_enough "$PYTHON" || fail "PYTHON is $PYTHON, which is not Python $oldest or newer: $("$PYTHON" --version 2>&1)"
    say "$PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
      say "$candidate"
      return
    fi
  done
  fail "No Python $oldest or newer was found. Install one, or name one: PYTHON=/path/to/python3 $0"
}

make_venv() {
  # Debian and Ubuntu package the two apart from Python; without them venv leaves half an environment behind.
  "$1" -c 'import venv, ensurepip' 2>/dev/null || fail "$("$1" --version) has no venv module. On Debian and Ubuntu: \
apt install python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  say "Making .venv with $("$1" --version)"
  rm -rf .venv
  "$1" -m venv .venv
}

# What an installation depends on. The folder is in it because an editable installation points to it.
fingerprint() {
  .venv/bin/python - "$1" <<'PYTHON'
import hashlib, pathlib, sys
digest = hashlib.sha256(f"{sys.version} {pathlib.Path.cwd()} {sys.argv[1]}".encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON
}

# Whether .venv holds at least these extras, at the versions that the files name now.
is_prepared() {
  local extras=$1 stamp
  for stamp in ".venv/installed-$extras" ".venv/installed-$extras,dev"; do
    [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint "${stamp#.venv/installed-}")" ] && return
  done
  return 1
}

prepare() {
  local extras=$1 python
  if ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    make_venv "$python"
  fi
  is_prepared "$extras" && return
  say "Installing the package and what it needs (the first time takes a few minutes)"
  rm -f .venv/installed-*
  .venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check \
    --constraint constraints.txt --editable ".[$extras]" || fail "pip could not install the package; see above."
  fingerprint "$extras" >".venv/installed-$extras"
}

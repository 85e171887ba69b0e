#!/bin/sh
# Make or refresh the virtual environment .venv of this tree.
#
#   sh tools/setup.sh base    what Kestrel needs to run        (make demo)
#   sh tools/setup.sh dev     that, and what the checks need   (make test)
#
# Needs a POSIX shell and a Python >= 3.11; everything else goes into .venv. The second call is
# quick: .venv/.kestrel-base and .venv/.kestrel-dev say what was installed, and anything that
# matters and has changed since (pyproject.toml, this script, the place of the tree) brings the
# work back. pip's own settings (PIP_*, pip.conf) are left alone. PYTHON=… chooses the Python.
# Never uses sudo; installs Debian packages only as root.
set -eu

level=${1:-}
case $level in
base | dev) ;;
*)
    echo "setup: say what for: sh tools/setup.sh base|dev" >&2
    exit 2
    ;;
esac

tree=$(cd "$(dirname "$0")/.." && pwd -P)
cd "$tree"
venv=$tree/.venv
python=$venv/bin/python

say() { echo "setup: $*"; }
fail() {
    for line in "$@"; do echo "setup: $line" >&2; done
    exit 1
}

state() { { pwd -P; cat pyproject.toml tools/setup.sh tools/requirements.py; } | cksum; }

ready() { # LEVEL: is what this level needs installed already?
    [ -f "$venv/.kestrel-$1" ] && [ "$(cat "$venv/.kestrel-$1")" = "$(state)" ] &&
        "$python" -c '' 2>/dev/null &&
        { [ -z "${PYTHON:-}" ] || [ "$("$python" -V)" = "$("$PYTHON" -V 2>&1)" ]; }
}

if ready "$level" || { [ "$level" = base ] && ready dev; }; then
    exit 0
fi

usable() { # PYTHON: does it run, is it new enough, does it have the parts that Kestrel needs?
    "$1" -c 'import sys, ssl, sqlite3, pyexpat, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        if usable "$PYTHON"; then echo "$PYTHON"; fi
        return
    fi
    for name in python3.14 python3.13 python3.12 python3.11 python3 python; do
        # A name may stand for several programs, of which only a later one works (pyenv's shims).
        for found in $(printf '%s' "$PATH" | tr ':' '\n' | sed "s|\$|/$name|") /usr/bin/$name \
            /usr/local/bin/$name /opt/homebrew/bin/$name; do
            if [ -x "$found" ] && usable "$found"; then
                echo "$found"
                return
            fi
        done
    done
}

debian_root() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

apt_install() {
    say "apt-get install $*"
    sh tools/debian-packages.sh install "$@" || say "apt-get could not install $*"
}

base_python=$(find_python)
if [ -z "$base_python" ] && [ -z "${PYTHON:-}" ] && debian_root; then
    apt_install python3 python3-venv
    base_python=$(find_python)
fi
if [ -z "$base_python" ]; then
    fail "no Python >= 3.11 (with ssl, sqlite3 and expat) found${PYTHON:+ as PYTHON=$PYTHON}." \
        "  Debian, Ubuntu:  apt-get install python3 python3-venv" \
        "  macOS:           brew install python3, or https://www.python.org/downloads/" \
        "  elsewhere:       PYTHON=/path/to/python3.12 make test"
fi

make_venv() {
    if ! "$base_python" -c 'import ensurepip' 2>/dev/null; then
        version=$("$base_python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        if debian_root; then apt_install "$version-venv"; fi
        "$base_python" -c 'import ensurepip' 2>/dev/null ||
            fail "$base_python cannot make virtual environments: its ensurepip is missing." \
                "  as root:  apt-get install $version-venv    (then run this again)"
    fi
    say "making .venv with $("$base_python" --version) ($base_python)"
    "$base_python" -m venv --clear "$venv"
}

# A tree that was moved or copied has an environment that points to the old place.
if [ -d "$venv" ] && [ -f "$venv/.kestrel-place" ] && [ "$(cat "$venv/.kestrel-place")" != "$tree" ]; then
    say ".venv was made for $(cat "$venv/.kestrel-place"); making it anew"
    make_venv
elif ! usable "$python" || { [ -n "${PYTHON:-}" ] && [ "$("$python" -V)" != "$("$base_python" -V)" ]; }; then
    make_venv
fi
echo "$tree" >"$venv/.kestrel-place"

# Environments made by other tools (uv) may come without pip.
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >/dev/null

rm -f "$venv/.kestrel-base" "$venv/.kestrel-dev"
wanted=$venv/.kestrel-requirements
"$python" tools/requirements.py "$level" >"$wanted"
say "installing Kestrel and its dependencies into .venv ($level)"
"$python" -m pip install -qq --disable-pip-version-check --editable . --requirement "$wanted" ||
    fail "pip could not install the dependencies (its words are above)." \
        "  Is there a network, or an index that pip is told of (PIP_INDEX_URL, PIP_FIND_LINKS)?"
"$python" -c 'import kestrel'
state >"$venv/.kestrel-$level"
say "ready: .venv/bin/kestrel"

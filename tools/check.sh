#!/bin/sh
# The one check: format, lint, types, layers, documents, tests. `make test`, `make check` and CI run
# exactly this, in an environment made by tools/setup.sh. Every step runs even if one before it
# failed, so that one run tells everything; the exit code is 0 only if all passed.
set -u

cd "$(dirname "$0")/.." || exit 2
bin=.venv/bin
failed=""

step() { # NAME COMMAND…: silent when it passes
    name=$1
    shift
    if output=$("$@" 2>&1); then
        echo "check: $name: ok"
    else
        printf '%s\n' "$output"
        echo "check: $name: FAILED   (alone: make $name)"
        failed="$failed $name"
    fi
}

step format $bin/ruff format --check --quiet --diff .
step lint $bin/ruff check --quiet .
step types $bin/mypy
step layers $bin/lint-imports --no-cache --no-logo
step docs-check $bin/python tools/gen_docs.py --check

# Three files at a time: most of their time they wait for servers, networks and clocks, also on two cores.
$bin/python -m pytest --numprocesses 3 --dist loadfile "$@"
tests=$?
if [ -n "$failed" ]; then
    echo "check: FAILED before the tests:$failed"
    exit 1
fi
exit $tests

"""Programs that a test cannot do without: missing ones skip loudly on a laptop and fail in CI."""

import os
import shutil

import pytest


def need(program: str) -> str:
    """Path of the program, or no test: a skip that names it, a failure where `CI` is set."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is not None:
        return path
    text = f"{program} is missing: apt-get install it (see CONTRIBUTING.md)"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)

"""What a test cannot do without: missing parts skip loudly on a laptop and fail in CI."""

import os
import shutil

import pytest


def need(program: str) -> str:
    """Path of the program, or no test: a skip that names it, a failure where `CI` is set."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    need_that(path is not None, f"{program} is missing: apt-get install it (see CONTRIBUTING.md)")
    return str(path)


def need_that(fulfilled: bool, text: str) -> None:
    """The same for what is no program."""
    if fulfilled:
        return
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)

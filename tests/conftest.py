"""What all tests share: shape and type checks are on in this process, and notebooks run in this environment's kernel."""

import os
from pathlib import Path

import jaxtyping
import pytest

# Every annotated function of the package checks its arguments here: free for users, strict in tests. Subprocesses run without.
jaxtyping.install_import_hook("cegen", "typechecker.check")

os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
os.environ.setdefault("CEGEN_PROGRESS", "0")


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository."
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def unchecked(monkeypatch):
    "Shape and type checks off, as users have it, so that a bad argument meets the package's own errors."
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# The files that take longest, begun first: two workers that take file after file then end at nearly the same time.
LONGEST = ("test_sweep", "test_notebooks", "test_install", "test_site", "test_train", "test_run")


def pytest_collection_modifyitems(items):
    place = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))

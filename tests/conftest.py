"""What all tests share: shape and type checks are on in this process, and notebooks run in this environment's kernel."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Every annotated function of the package checks its arguments here: free for users, strict in tests. Subprocesses run without.
install_import_hook("cegen", "beartype.beartype")

os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository."
    return Path(__file__).resolve().parent.parent

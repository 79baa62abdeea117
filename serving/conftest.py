"""One service of the committed model for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.local import Server, running
from serving.package import package


@pytest.fixture(scope="session")
def mar(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    path: Path = tmp_path_factory.mktemp("mar") / "emnist.mar"
    package(model_path, path)
    return path


@pytest.fixture(scope="session")
def server(mar: Path) -> Iterator[Server]:
    with running(mar) as server:
        yield server

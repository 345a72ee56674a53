"""What the tests share."""

import json
import os
from pathlib import Path

import pytest

VECTORS = Path(os.environ.get("CACHEKEEPER_VECTORS", Path(__file__).parents[2] / "vectors"))


@pytest.fixture
def vectors():
    return lambda name: json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))

"""Where the repository and its tests lie, for tests in whatever folder."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# For a process of its own: the package here, and what tests share.
PATHS = os.pathsep.join(map(str, (ROOT, TESTS)))

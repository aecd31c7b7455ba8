"""What fails in these modules is told in detail."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.chaos.site", "tests.chaos.load")

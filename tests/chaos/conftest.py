"""Makes failed assertions in these modules show their values."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.chaos.site", "tests.chaos.load")

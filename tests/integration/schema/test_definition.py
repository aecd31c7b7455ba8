"""The files of the schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.schema.definition import Schema, digest

ROOT = Path(__file__).parents[3]
STEPS = sorted((ROOT / "service/schema/steps").iterdir())

# A step that was once committed has been applied somewhere, so it never changes; the kept tables neither.
DIGESTS = {
    3: "63d2251c3bd64676ddc77599edc2b2dc91b987a1626788b3cfb9127cded9a34a",
    4: "949b16cbbf9519a98b5fbe6f09507851b4e40d6e13f1da487e4a8cc8c092c24b",
}


def test_steps_are_numbered_without_gaps() -> None:
    schema = Schema.load()
    assert [step.version for step in schema.steps] == list(range(3, schema.version + 1))
    assert [path.name[:5] for path in STEPS] == [f"{step.version:04}-" for step in schema.steps[1:]]


def test_applied_steps_never_change() -> None:
    assert {step.version: digest(step.text).hex() for step in Schema.load().steps} == DIGESTS


def test_a_concurrent_index_is_the_only_statement_of_its_step() -> None:
    for step in Schema.load().steps:
        if "concurrently" in step.text:
            assert step.concurrent_index is not None
            assert step.text.count(";") == 1


def test_schema_lists_its_tables_and_functions() -> None:
    schema = Schema.load()
    assert {"accounts", "images", "removals", "scrub", "unfinished_uploads"} < set(schema.tables)
    assert schema.functions == ["keep_image_tags"]
    assert schema.text.count("create table ") == len(schema.tables)


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("create index slow on images (size);", "require-concurrent-index-creation"),
        ("alter table images add constraint small check (size < 10);", "constraint-missing-not-valid"),
        ("alter table images drop column size;", "ban-drop-column"),
    ],
)
def test_lint_refuses_long_locks(tmp_path: Path, statement: str, rule: str) -> None:
    (tmp_path / "9999-slow.sql").write_text(f"{statement}\n")
    done = lint(tmp_path / "9999-slow.sql")
    assert done.returncode != 0
    assert rule in done.stdout + done.stderr


def test_steps_pass_the_lint() -> None:
    done = lint(*STEPS)
    assert done.returncode == 0, done.stdout + done.stderr


def lint(*files: Path) -> subprocess.CompletedProcess[str]:
    squawk = Path(sys.executable).with_name("squawk")
    return subprocess.run([squawk, *files], cwd=ROOT, capture_output=True, text=True, check=False)

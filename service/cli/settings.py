"""`daguerre settings`: the settings with their values, or the table of docs/configuration.md."""

from __future__ import annotations

from urllib.parse import urlsplit

import click

from service.cli.common import load_settings, print_table
from service.config import environment
from service.config.settings import Settings
from service.config.values import format_size

_SIZES = {"max_upload", "cache_size", "renditions_size", "renditions_memory"}
# Defaults that depend on the machine or on other settings.
_DEFAULTS = {
    "data": "`/var/lib/daguerre` for root, else `~/.local/share/daguerre`",
    "storage": "`storage` in the data folder",
    "cache": "`cache` in the data folder",
    "renditions_dir": "`renditions` in the folder for originals",
    "metrics_dir": "in `/dev/shm`, else `metrics` in the data folder",
    "rate_limit": "no limit",
    "rendition_widths": "all widths",
    "scrub": "never",
}


@click.command()
@click.option("--markdown", is_flag=True, help="Write the table of docs/configuration.md, with the defaults.")
def settings(*, markdown: bool) -> None:
    """List all settings with their values here, and what they mean.

    A * marks a value that the environment sets. Passwords in URLs are left out.
    """
    if markdown:
        click.echo(write_markdown(), nl=False)
        return
    current = load_settings()
    values = current.model_dump()
    print_table(
        ("SETTING", "VALUE", "MEANING"),
        [
            (
                f"{environment.PREFIX}{name.upper()}" + ("*" if name in current.model_fields_set else ""),
                _show(name, values[name]),
                field.description or "",
            )
            for name, field in Settings.model_fields.items()
        ],
    )


def write_markdown() -> str:
    """Returns a table of the settings: variable, default, meaning."""
    rows = ["| Variable | Default | Meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = _DEFAULTS.get(name)
        if default is None:
            default = f"`{_show(name, field.default)}`" if field.default not in {None, ""} else "none"
        rows.append(f"| `{environment.PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def _show(name: str, value: object) -> str:
    if name in _SIZES and isinstance(value, int):
        return format_size(value).replace(" ", "")
    text = "" if value is None else str(value)
    password = urlsplit(text).password if "://" in text else None
    return text.replace(f":{password}@", ":…@") if password else text

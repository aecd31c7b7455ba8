"""`daguerre sign`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from service.cli.common import DATA, locate, with_database

_TIME = re.compile(r"(?P<number>[0-9]{1,11})(?P<unit>[smhd]?)")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@click.argument("account")
@click.argument("target")
@click.option("--expires", help="How long the URL is valid, e.g. 30m, 12h or 7d, or a Unix time at which it expires.")
@DATA
def sign(account: str, target: str, expires: str | None, data: Path | None) -> None:
    """Print TARGET as a signed URL.

    TARGET is e.g. `/i/NKrigl4/red-car.jpg?width=300`. It is signed with the newest signing key of ACCOUNT.

    A path is prefixed with DAGUERRE_PUBLIC_URL. A whole URL keeps its scheme and host.
    """
    from service.renditions import signatures  # noqa: PLC0415

    try:
        expiry = None if expires is None else _parse_expiry(expires, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from None
    secret = with_database(data, lambda connection: _newest_secret(connection, account))
    try:
        signed = signatures.sign(target, secret, expires=expiry)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(locate(data).public_url.rstrip("/") + signed if signed.startswith("/") else signed)


async def _newest_secret(connection: Any, account: str) -> str:
    from service.accounts.accounts import find_account  # noqa: PLC0415
    from service.accounts.policies import load_policy  # noqa: PLC0415

    policy = await load_policy(connection, (await find_account(connection, account)).id)
    if not policy.secrets:
        raise click.ClickException(
            f"Account {account!r} has no signing key: create one with `daguerre signing-keys create`."
        )
    return policy.secrets[0]


def _parse_expiry(text: str, now: float) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time: use a number with s, m, h or d, or a Unix time.")
    number = int(match["number"])
    expiry = int(now) + number * _UNITS_S[match["unit"]] if match["unit"] else number
    if expiry <= now:
        raise ValueError(f"{text!r} is in the past: a number without a unit is a Unix time.")
    return expiry

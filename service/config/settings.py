"""Every setting, read from the `DAGUERRE_*` environment variables here and nowhere else.

A field has the parsed value: bytes for a size, seconds for a period, a `Rate` for a rate. Defaults are written as in
the environment, and are parsed too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from service.addresses import AllowedAddresses
from service.config import environment, errors
from service.config.servers import check_database_url, check_redis_url
from service.config.values import (
    Network,
    Rate,
    StoreUrl,
    parse_networks,
    parse_period,
    parse_rate,
    parse_size,
    parse_storage,
    parse_widths,
    shorten,
)

_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder that is created there belongs to the user


def default_data_folder() -> Path:
    """Root's data folder is outside root's home, because PostgreSQL runs as `nobody`, which cannot enter that."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser())
    return Path("/var/lib/daguerre") if os.geteuid() == 0 or not home.is_absolute() else home / "daguerre"


def _check_folder(path: Path | None) -> Path | None:
    """Expands `~`, which no shell does in an env file. Unprintable characters would break PostgreSQL and the log."""
    if path is None:
        return None
    if not str(path).isprintable():
        raise ValueError("must be the path of a folder in UTF-8, without control characters")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder of {shorten(path.parts[0])!r}") from None


def _check_storage(storage: Path | StoreUrl | None) -> Path | StoreUrl | None:
    return storage if isinstance(storage, StoreUrl) else _check_folder(storage)


def _check_accel_path(path: str) -> str:
    if re.fullmatch("(/.*[^/])?", path) is None:
        raise ValueError("must be a path like /protected, which begins with a slash and ends without one")
    return path


def _parsed(parse: Callable[[str], object]) -> BeforeValidator:
    """Parses a string. Any other value was parsed before."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _join(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


Folder = Annotated[Path, AfterValidator(_check_folder)]
OptionalStorage = Annotated[
    Path | StoreUrl | None,
    _parsed(parse_storage),
    AfterValidator(_check_storage),
    PlainSerializer(lambda storage: None if storage is None else str(storage)),
]
OptionalFolder = Annotated[Path | None, AfterValidator(_check_folder)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
# Each is dumped as text that can be parsed again.
OptionalRate = Annotated[Rate | None, _parsed(parse_rate), PlainSerializer(lambda rate: str(rate or ""))]
OptionalPeriod = Annotated[int | None, _parsed(parse_period), PlainSerializer(lambda s: f"{s}s" if s else "")]
Networks = Annotated[tuple[Network, ...], _parsed(parse_networks), PlainSerializer(_join)]
Widths = Annotated[tuple[int, ...], _parsed(parse_widths), PlainSerializer(_join)]
Addresses = Annotated[AllowedAddresses, _parsed(AllowedAddresses.parse), PlainSerializer(str)]
# The upper bounds are larger than any sensible value, so that a typo is found at the start and not under load.
MAX_SECONDS = 86_400
# Each field has its own upper bound: a bound of this type would override that of the field.
Seconds = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=100_000)]
Processes = Annotated[int, Field(gt=0, le=1000)]
Disk: TypeAlias = Literal["auto", "local", "remote"]


class Settings(BaseSettings):
    """Frozen: one instance is created at start-up and passed down."""

    model_config = SettingsConfigDict(env_prefix=environment.PREFIX, enable_decoding=False, frozen=True, extra="ignore")

    data: Folder = Field(default_factory=default_data_folder, description="Folder for all data.")
    storage: OptionalStorage = Field(
        None,
        description="Folder for originals, by default `storage` in the data folder; or `s3://bucket/prefix`.",
    )
    storage_disk: Disk = Field(
        "auto",
        description="`local` if short calls to the disks of originals and renditions may run on the event loop,"
        " `remote` if they need a thread; `auto` decides by the types of the file systems.",
    )
    database_url: Annotated[str, AfterValidator(check_database_url)] = Field(
        "postgresql://localhost/daguerre", description="URL of PostgreSQL."
    )
    redis_url: Annotated[str, AfterValidator(check_redis_url)] = Field(
        "redis://localhost:6379/0",
        description="URL of Redis or Valkey: `redis://`, `rediss://` with TLS, `unix://` for a socket,"
        " `redis+sentinel://` for Sentinel.",
    )
    public_url: str = Field("http://localhost:8080", description="URL at which clients reach this service.")

    host: str = Field("127.0.0.1", description="Address on which the service listens.")
    port: int = Field(8080, ge=0, le=65535, description="Port on which the service listens; 0 picks a free one.")

    api_processes: Processes = Field(2, description="API processes that share the port.")

    max_upload: Size = Field(50 << 20, description="Maximum size of a request body, in bytes or e.g. `50MB`.")
    max_pixels: int = Field(
        100_000_000, gt=0, le=10**12, description="Maximum width x height x pages of an uploaded picture."
    )
    uploads_in_flight: Count = Field(
        256, description="Maximum uploads in flight in one API process; further ones get 503."
    )
    upload_idle_timeout_s: Seconds = Field(
        30, gt=0, le=MAX_SECONDS, description="Maximum time without a byte of a body, in seconds; then 408."
    )
    upload_timeout_s: Seconds = Field(
        600, gt=0, le=1800, description="Maximum time for a whole body, in seconds; then 408."
    )
    downloads_in_flight: Count = Field(
        32, description="Maximum downloads from URLs in flight in one API process; further ones get 503."
    )
    fetch_allow: Addresses = Field(
        "",
        validate_default=True,
        description="Addresses that are not public and that URLs may point to, e.g. `10.0.0.0/8,127.0.0.1:9000`.",
    )
    rate_limit: OptionalRate = Field(
        "",
        validate_default=True,
        description="Maximum rate of requests of one API key, e.g. `100/s,burst=1000`; also `/m` and `/h`. Then 429.",
    )
    wait_s: Seconds = Field(
        10,
        ge=0,
        le=MAX_SECONDS,
        description="Maximum time that an upload waits for its metadata, in seconds; then the response is 202.",
    )
    drain_s: Seconds = Field(
        30,
        ge=0,
        le=MAX_SECONDS,
        description="Maximum time after SIGTERM for requests and jobs in flight, in seconds.",
    )

    cache: OptionalFolder = Field(
        None,
        description="Folder for local copies of files in an object store, and for uploads that are being received;"
        " by default `cache` in the data folder.",
    )
    cache_size: Size = Field(
        10 << 30, description="Maximum size of these copies; the least recently used are deleted first."
    )

    delivery_redirect: bool = Field(
        False,
        description="With an object store, clients get originals over 256 KB from the store itself, by a redirect (302)"
        " that is valid for 10 minutes; except for accounts that strip locations.",
    )

    renditions_dir: OptionalFolder = Field(
        None,
        description="Folder for renditions, which may be lost; by default `renditions` in the originals' folder."
        " In an object store they are beside the originals.",
    )
    renditions_size: Size = Field(
        10 << 30,
        description="Maximum size of all stored renditions; the least recently used are deleted first.",
    )
    renditions_memory: Size = Field(
        64 << 20, description="Size of the memory cache of one API process for small pictures."
    )
    renditions_in_flight: Count = Field(
        512,
        description="Maximum new renditions in flight in one API process; further ones get 503,"
        " or 429 for an address or account that exceeds its share.",
    )
    rendition_widths: Widths = Field(
        "",
        validate_default=True,
        description="Widths that unsigned requests may have, e.g. `320,640,1280`; others are raised to the next one.",
    )
    rendition_rate_limit: OptionalRate = Field(
        "1000/m",
        validate_default=True,
        description="Maximum rate of new renditions of one account's images by unsigned requests;"
        " one address gets three quarters. Then 429.",
    )
    not_found_rate_limit: OptionalRate = Field(
        "60/m,burst=300",
        validate_default=True,
        description="Maximum rate of requests of one address under `/i` for ids that do not exist. Then 429.",
    )
    trusted_proxies: Networks = Field(
        "",
        validate_default=True,
        description="Networks of proxies whose `X-Forwarded-For` names the client's address, e.g. `10.0.0.0/8`.",
    )
    cache_max_age_s: int = Field(
        2_592_000, ge=0, le=2**31, description="Maximum time that caches may keep pictures, in seconds."
    )
    x_accel_redirect: Annotated[str, AfterValidator(_check_accel_path)] = Field(
        "", description="Path of the internal nginx locations that send files, e.g. `/protected`."
    )

    database_connections: Count = Field(10, description="Maximum connections of one process to PostgreSQL.")
    database_pooler: Literal["auto", "none", "transaction"] = Field(
        "auto",
        description="`transaction` if a pooler like PgBouncer gives each transaction another connection to PostgreSQL,"
        " `none` if not; `auto` finds out, and takes every pooler for such a one.",
    )
    probe_processes: Processes = Field(
        2, description="Decoder processes of one worker that probe uploads of one account; one more is for others."
    )
    probe_timeout_s: Seconds = Field(
        8, gt=0, le=9, description="Maximum time to probe a picture, in seconds; then it is refused."
    )

    render_processes: Processes = Field(
        2, description="Decoder processes of one worker that render for one account; one more is for others."
    )
    render_timeout_s: Seconds = Field(
        8, gt=0, le=9, description="Maximum time to make a rendition, in seconds; then it is refused."
    )

    scrub: OptionalPeriod = Field(
        "",
        validate_default=True,
        description="Time in which the workers read every original once to find damaged files, e.g. `7d`.",
    )

    metrics_dir: OptionalFolder = Field(
        None, description="Folder in which the processes of one host collect their metrics; by default in memory."
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port on which a worker serves its own `/metrics`; with 0 the API serves them with its own.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is console on a terminal and under `up`, and JSON elsewhere."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ignores a DAGUERRE_PORT of Kubernetes, which is not a port, and empty folder names of an env file, which
        would mean the current folder.
        """
        variables = EnvSettingsSource(settings_cls)
        folders = {name for name, field in settings_cls.model_fields.items() if errors.is_folder(field)}
        variables.env_vars = {
            f"{environment.PREFIX}{name}".lower(): value
            for name, value in environment.select(os.environ).items()
            if value or name.lower() not in folders
        }
        return init_settings, variables

    @property
    def object_store(self) -> StoreUrl | None:
        """The place of originals and renditions in an object store, or None if they are in folders."""
        return self.storage if isinstance(self.storage, StoreUrl) else None

    @property
    def storage_folder(self) -> Path:
        """The folder of originals, if they are not in an object store."""
        return self.storage if isinstance(self.storage, Path) else self.data / "storage"

    @property
    def cache_folder(self) -> Path:
        return self.cache or self.data / "cache"

    @property
    def renditions_folder(self) -> Path:
        return self.renditions_dir or self.storage_folder / "renditions"

    @property
    def metrics_folder(self) -> Path:
        """By default in memory, if the system has a folder for that: a full disk must not stop processes that update
        metrics, and each container has its own folder even if the data folder is shared.
        """
        if self.metrics_dir is not None or not os.access(_MEMORY, os.W_OK):
            return self.metrics_dir or self.data / "metrics"
        digest = hashlib.sha256(os.fsencode(self.data.absolute())).hexdigest()[:12]
        return _MEMORY / f"daguerre-{os.geteuid()}-{digest}"


class SettingsError(Exception):
    """A setting that cannot be used. The message names the variable and is for the operator."""


def load(**overrides: object) -> Settings:
    """Reads the environment. `overrides`, the command's options, win unless they are None.

    Raises SettingsError for an invalid value, and for a variable that is not a setting: it is misspelt, and the default
    would apply silently.
    """
    if unknown := environment.find_unknown(os.environ, [name.upper() for name in Settings.model_fields]):
        raise SettingsError(unknown)
    options = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings.model_validate({**Settings().model_dump(exclude_unset=True), **options})
    except ValidationError as error:
        raise SettingsError(errors.explain(error, Settings.model_fields)) from None
    if settings.object_store is not None and settings.renditions_dir is not None:
        raise SettingsError("DAGUERRE_RENDITIONS_DIR: must be unset, because renditions are in the object store")
    if settings.object_store is not None and settings.x_accel_redirect:
        raise SettingsError("DAGUERRE_X_ACCEL_REDIRECT: must be unset, because the pictures are in the object store")
    return settings

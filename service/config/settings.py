"""Every setting, read from `DAGUERRE_*` environment variables here and nowhere else."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from service.addresses import AllowedAddresses
from service.config import environment, errors
from service.config.values import Rate, parse_networks, parse_period, parse_size, parse_widths, shorten


def _check_period(text: str) -> str:
    parse_period(text)
    return text


def default_data_folder() -> Path:
    """Root's is outside root's home, which the `nobody` that runs PostgreSQL cannot enter."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser())
    return Path("/var/lib/daguerre") if os.geteuid() == 0 or not home.is_absolute() else home / "daguerre"


_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder that is made there is the user's own


def _check_folder(path: Path | None) -> Path | None:
    """Expands `~`, which no shell does in an env file. What is not printable would break PostgreSQL and the log."""
    if path is None:
        return None
    if not str(path).isprintable():
        raise ValueError("must be the path of a folder in UTF-8, without control characters")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder of {shorten(path.parts[0])!r}") from None


def _check_allowed(text: str) -> str:
    AllowedAddresses.parse(text)
    return text


def _check_servers(url: str) -> str:
    """Of each server in it: `host`, `host:port`, or a folder of sockets as PostgreSQL's URLs have it. The query may
    have ports as well.
    """
    address = urlsplit(url)
    for ports in parse_qs(address.query).get("port", []):
        for port in ports.split(","):
            _ = urlsplit(f"//host:{port}").port
    for server in address.netloc.rpartition("@")[2].split(","):
        parts = urlsplit(f"//{server}")
        _ = parts.port
        if parts.hostname and "%" not in parts.hostname:
            _check_host(parts.hostname)
    return url


def _check_database_url(url: str) -> str:
    if re.match("postgres(ql)?://", url) is None:
        raise ValueError("must begin with postgresql://")
    return _check_servers(url)


def _check_redis_url(url: str) -> str:
    if re.match("(rediss?|unix)://", url) is None:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return _check_servers(url)


def _check_accel_path(path: str) -> str:
    if re.fullmatch("(/.*[^/])?", path) is None:
        raise ValueError("must be a path like /protected, which begins with a slash and ends without one")
    return path


def _check_host(name: str) -> None:
    try:
        name.encode("idna")
    except UnicodeError:
        raise ValueError(f"{shorten(name)!r} is not the name of a host") from None


def _check_networks(text: str) -> str:
    parse_networks(text)
    return text


def _check_widths(text: str) -> str:
    parse_widths(text)
    return text


def _check_rate(text: str) -> str:
    Rate.parse(text)
    return text


Folder = Annotated[Path, AfterValidator(_check_folder)]
OptionalFolder = Annotated[Path | None, AfterValidator(_check_folder)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
# Bounds beyond what any machine has keep a slip of the pen from becoming an error in the middle of the work.
MAX_SECONDS = 86_400
# Its upper bound stands at each field: of two, pydantic keeps the type's, not the field's.
Seconds = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=100_000)]
Processes = Annotated[int, Field(gt=0, le=1000)]


class Settings(BaseSettings):
    """Frozen: one is made at start-up and handed down."""

    model_config = SettingsConfigDict(env_prefix="DAGUERRE_", frozen=True, extra="ignore")

    data: Folder = Field(default_factory=default_data_folder, description="Folder for everything that is kept.")
    storage: OptionalFolder = Field(None, description="Folder for the images; by default `storage` in the data folder.")
    database_url: Annotated[str, AfterValidator(_check_database_url)] = Field(
        "postgresql://localhost/daguerre", description="PostgreSQL, as a URL."
    )
    redis_url: Annotated[str, AfterValidator(_check_redis_url)] = Field(
        "redis://localhost:6379/0", description="Redis or Valkey; `unix://` for a socket."
    )
    public_url: str = Field("http://localhost:8080", description="Where clients reach this service.")

    host: str = Field("127.0.0.1", description="Address the service listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the service listens on; 0 picks a free one.")

    api_processes: Processes = Field(2, description="API processes behind the one port.")

    max_upload: Size = Field(50 << 20, description="Largest accepted body, in bytes or like `50MB`.")
    max_pixels: int = Field(100_000_000, gt=0, le=10**12, description="Largest accepted width x height x pages.")
    uploads_in_flight: Count = Field(
        256, description="Uploads that one API process works on at once; more are answered 503."
    )
    upload_idle_timeout_s: Seconds = Field(
        30, gt=0, le=MAX_SECONDS, description="Longest pause of a client inside a body, in seconds; then 408."
    )
    upload_timeout_s: Seconds = Field(
        600, gt=0, le=1800, description="Longest time a whole body may take, in seconds; then 408."
    )
    downloads_in_flight: Count = Field(
        32, description="Pictures that one API process fetches from URLs at once; more are answered 503."
    )
    fetch_allow: Annotated[str, AfterValidator(_check_allowed)] = Field(
        "", description="Addresses that URLs may lead to though they are not public, like `10.0.0.0/8,127.0.0.1:9000`."
    )
    rate_limit: Annotated[str, AfterValidator(_check_rate)] = Field(
        "", description="Requests a key may make, like `100/s,burst=1000`; also `/m` and `/h`. Then 429."
    )
    wait_s: Seconds = Field(
        10, ge=0, le=MAX_SECONDS, description="Seconds an upload waits for its metadata before it is answered 202."
    )
    drain_s: Seconds = Field(
        30, ge=0, le=MAX_SECONDS, description="Seconds that SIGTERM waits for requests and jobs under way."
    )

    renditions: OptionalFolder = Field(
        None, description="Folder for renditions, which may be lost; by default `renditions` in that of the images."
    )
    renditions_size: Size = Field(
        10 << 30, description="Renditions are kept up to this size on disk, the last used ones."
    )
    renditions_memory: Size = Field(
        64 << 20, description="Small pictures that one API process keeps in memory, up to this size."
    )
    renditions_in_flight: Count = Field(
        512,
        description="Renditions that one API process waits for at once;"
        " more are answered 503, and an address or account over its share 429.",
    )
    rendition_widths: Annotated[str, AfterValidator(_check_widths)] = Field(
        "", description="Widths that unsigned requests may have, like `320,640,1280`; others become the next of them."
    )
    rendition_rate: Annotated[str, AfterValidator(_check_rate)] = Field(
        "1000/m",
        description="New renditions that unsigned requests may ask for, of an account's images;"
        " one address gets three quarters. Then 429.",
    )
    miss_rate: Annotated[str, AfterValidator(_check_rate)] = Field(
        "60/m,burst=300", description="Ids that do not exist that one address may ask for under `/i`. Then 429."
    )
    trusted_proxies: Annotated[str, AfterValidator(_check_networks)] = Field(
        "", description="Networks of proxies whose `X-Forwarded-For` tells a client's address, like `10.0.0.0/8`."
    )
    max_age_s: int = Field(2_592_000, ge=0, le=2**31, description="Seconds that pictures may be kept in caches.")
    x_accel_redirect: Annotated[str, AfterValidator(_check_accel_path)] = Field(
        "", description="Path of internal nginx locations that send files, like `/protected`."
    )

    database_connections: Count = Field(10, description="Connections of one process to PostgreSQL.")
    probe_processes: Processes = Field(
        2, description="Child processes of one worker that run libvips for one account; there is one more for others."
    )
    probe_timeout_s: Seconds = Field(8, gt=0, le=9, description="Seconds a picture may take; then it is refused.")

    render_processes: Processes = Field(
        2,
        description="Child processes of one worker that make renditions for one account; there is one more for others.",
    )
    render_timeout_s: Seconds = Field(8, gt=0, le=9, description="Seconds a rendition may take; then it is refused.")

    scrub: Annotated[str, AfterValidator(_check_period)] = Field(
        "", description="Time in which the workers read every image once, to find damaged files, like `7d`."
    )

    metrics: OptionalFolder = Field(
        None, description="Folder where the processes of one host put their metrics together; by default in memory."
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port where a worker serves `/metrics` of its own; 0 puts them with the API's."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
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
        """Kubernetes sets DAGUERRE_PORT too, and to another thing than a port. A folder that is empty in an env file is
        not set: it would be the current one.
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
    def storage_folder(self) -> Path:
        return self.storage or self.data / "storage"

    @property
    def renditions_folder(self) -> Path:
        return self.renditions or self.storage_folder / "renditions"

    @property
    def metrics_folder(self) -> Path:
        """In memory where the system has a folder for that: a full disk must not end who counts, and each container
        has its own even where the data are shared."""
        if self.metrics is not None or not os.access(_MEMORY, os.W_OK):
            return self.metrics or self.data / "metrics"
        digest = hashlib.sha256(os.fsencode(self.data.absolute())).hexdigest()[:12]
        return _MEMORY / f"daguerre-{os.geteuid()}-{digest}"


class SettingsError(Exception):
    """A setting that cannot be used; the message names the variable and is meant for the operator."""


def load(**overrides: object) -> Settings:
    """Reads the environment; `overrides` (command-line options) win where they are not None.

    Raises SettingsError for a value that cannot be used, and for a variable that is no setting: it is a misspelt one,
    whose default would hold without a word.
    """
    if unknown := environment.find_unknown(os.environ, [name.upper() for name in Settings.model_fields]):
        raise SettingsError(unknown)
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings.model_validate({**Settings().model_dump(exclude_unset=True), **given})
    except ValidationError as error:
        raise SettingsError(errors.explain(error, Settings.model_fields)) from None

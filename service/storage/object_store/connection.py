"""Opens an object store with its endpoint, region and credentials, as the AWS tools take them.

obstore reads the variables `AWS_*` itself, with web identities and the credentials of containers and virtual machines;
for the other stores, `GOOGLE_*` and `AZURE_*`. What it does not read is added here: profiles, the endpoint of S3 alone,
and a private certificate authority.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from service.config.settings import SettingsError
from service.config.values import StoreUrl

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

Store: TypeAlias = S3Store | GCSStore | AzureStore

# A request is repeated after a lost connection or a response 5xx. Together they take less time than a client waits.
_CONNECT_TIMEOUT = timedelta(seconds=2)
_READ_TIMEOUT = timedelta(seconds=8)
_REQUEST_TIMEOUT = timedelta(seconds=120)
_RETRY: RetryConfig = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=6),
    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(milliseconds=500), "base": 2},
}

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_REGION = "us-east-1"  # also for stores that have no regions
# How the AWS tools look for keys in a profile that has none itself.
_UNSUPPORTED = ("role_arn", "sso_session", "sso_start_url", "credential_process")


def open_store(url: StoreUrl, environment: Mapping[str, str]) -> Store:
    """Does not connect. Raises SettingsError if the environment cannot be used."""
    client: ClientConfig = {
        "connect_timeout": _CONNECT_TIMEOUT,
        "read_timeout": _READ_TIMEOUT,
        "timeout": _REQUEST_TIMEOUT,
    }
    try:
        match url.scheme:
            case "gs":
                return GCSStore(url.bucket, prefix=url.prefix or None, client_options=client, retry_config=_RETRY)
            case "az":
                return AzureStore(url.bucket, prefix=url.prefix or None, client_options=client, retry_config=_RETRY)
            case _:
                config = read_s3_config(environment)
                client["allow_http"] = config.get("endpoint", "").startswith("http://")
                if bundle := environment.get("AWS_CA_BUNDLE"):
                    client["root_certificate"] = Path(bundle).read_bytes()
                return S3Store(
                    url.bucket, prefix=url.prefix or None, config=config, client_options=client, retry_config=_RETRY
                )
    except (BaseError, ValueError, OSError) as error:
        raise SettingsError(f"DAGUERRE_STORAGE: {url} cannot be opened: {error}") from None


def read_s3_config(environment: Mapping[str, str]) -> S3Config:
    """Returns what the environment says about S3. Variables win over the profile, as for the AWS tools."""
    keys = {name.lower(): environment[name] for name in _KEYS if environment.get(name)}
    profile = keys if "aws_access_key_id" in keys else read_profile(environment)
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    config: S3Config = {"region": region or profile.get("region", _REGION)}
    if endpoint := endpoint or profile.get("endpoint_url", ""):
        config["endpoint"] = endpoint
        # Other servers than Amazon's seldom have a name for each bucket.
        config["virtual_hosted_style_request"] = False
    if "aws_access_key_id" in profile:
        config["access_key_id"] = profile["aws_access_key_id"]
        config["secret_access_key"] = profile.get("aws_secret_access_key", "")
        if token := profile.get("aws_session_token"):
            config["session_token"] = token
    return config


def read_profile(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the values of the profile of AWS_PROFILE, or of the default profile if there is one.

    Raises SettingsError if AWS_PROFILE names a profile that is missing or has no keys.
    """
    name = environment.get("AWS_PROFILE", "")
    home = Path(environment.get("HOME") or "~").expanduser()
    values: dict[str, str] = {}
    for variable, default, section in (
        ("AWS_CONFIG_FILE", "config", f"profile {name}" if name not in {"", "default"} else "default"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name or "default"),
    ):
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        path = Path(environment.get(variable) or home / ".aws" / default).expanduser()
        try:
            parser.read(path)
        except (configparser.Error, UnicodeDecodeError, OSError) as error:
            raise SettingsError(f"{variable}: {path} cannot be read: {_explain(error)}") from None
        if parser.has_section(section):
            values |= parser[section]
    if name and "aws_access_key_id" not in values:
        if unsupported := [key for key in _UNSUPPORTED if key in values]:
            raise SettingsError(
                f"AWS_PROFILE: the profile {name} gets its keys by {unsupported[0]}, which Daguerre does not do. Set"
                f" AWS_ACCESS_KEY_ID and the others, e.g. by `aws configure export-credentials --profile {name}`"
            )
        raise SettingsError(f"AWS_PROFILE: there is no profile {name} with an aws_access_key_id")
    return values


def _explain(error: Exception) -> str:
    """Returns the reason without the text of a line, which may be a key."""
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    numbers = [number for number, _ in getattr(error, "errors", [])] or [getattr(error, "lineno", None)]
    return f"line {numbers[0]} is not `name = value` in a [section], or repeats an earlier one"

"""How an object store is named in the settings and found in the environment, as the AWS tools do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.config import settings as configuration
from service.config.settings import Settings, SettingsError
from service.config.values import StoreUrl, parse_storage
from service.storage.object_store.connection import open_store, read_profile, read_s3_config

URL = StoreUrl("s3", "bucket")


@pytest.mark.parametrize(
    ("text", "storage"),
    [
        ("/srv/images", Path("/srv/images")),
        ("images", Path("images")),
        ("s3://bucket", StoreUrl("s3", "bucket")),
        ("s3://my.bucket-1/", StoreUrl("s3", "my.bucket-1")),
        ("s3://bucket/a/b_c=1/", StoreUrl("s3", "bucket", "a/b_c=1")),
        ("gs://bucket/prefix", StoreUrl("gs", "bucket", "prefix")),
        ("az://container", StoreUrl("az", "container")),
    ],
)
def test_storage_is_a_folder_or_a_store(text: str, storage: Path | StoreUrl) -> None:
    assert parse_storage(text) == storage
    assert parse_storage(str(storage)) == storage


@pytest.mark.parametrize(
    "text",
    [
        "https://bucket",
        "s3://",
        "s3://b",
        "s3://Bucket",
        "s3://bucket//a",
        "s3://bucket/../a",
        "s3://bucket/a b",
        "s3://user:secret@bucket",
        "S3://bucket",
    ],
)
def test_other_urls_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGUERRE_STORAGE", text)
    with pytest.raises(SettingsError, match="DAGUERRE_STORAGE: must be a folder or a URL like s3://bucket") as caught:
        configuration.load()
    assert "secret" not in str(caught.value)


def test_settings_have_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAGUERRE_STORAGE", "s3://bucket/prefix")
    settings = configuration.load(data=tmp_path)
    assert settings.object_store == StoreUrl("s3", "bucket", "prefix")
    assert settings.cache_folder == tmp_path / "cache"
    assert Settings(data=tmp_path, storage=tmp_path).object_store is None


@pytest.mark.parametrize(
    ("name", "value"), [("DAGUERRE_RENDITIONS_DIR", "/renditions"), ("DAGUERRE_X_ACCEL_REDIRECT", "/protected")]
)
def test_settings_of_folders_are_refused_beside_a_store(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    configuration.load()
    monkeypatch.setenv("DAGUERRE_STORAGE", "s3://bucket/prefix")
    with pytest.raises(SettingsError, match=f"{name}: must be unset"):
        configuration.load()


WriteAws = Callable[..., dict[str, str]]


@pytest.fixture
def write_aws(tmp_path: Path) -> WriteAws:
    """Writes the files of the AWS tools into a home, and returns an environment."""

    def write(*, config: str = "", credentials: str = "", **environment: str) -> dict[str, str]:
        folder = tmp_path / ".aws"
        folder.mkdir(exist_ok=True)
        (folder / "config").write_text(config)
        (folder / "credentials").write_text(credentials)
        return {"HOME": str(tmp_path), **environment}

    return write


KEYS = "aws_access_key_id = {0}\naws_secret_access_key = {0}-secret\n"


class TestProfile:
    def test_default_profile_needs_no_name(self, write_aws: WriteAws) -> None:
        environment = write_aws(
            config="[default]\nregion = eu-central-1\n", credentials="[default]\n" + KEYS.format("a")
        )
        assert read_s3_config(environment) == {
            "region": "eu-central-1",
            "access_key_id": "a",
            "secret_access_key": "a-secret",
        }

    def test_named_profile_has_another_section(self, write_aws: WriteAws) -> None:
        environment = write_aws(
            config="[default]\nregion = a\n[profile p]\nregion = b\nendpoint_url = http://127.0.0.1:9000\n",
            credentials="[default]\n" + KEYS.format("a") + "[p]\n" + KEYS.format("p%") + "aws_session_token = t\n",
            AWS_PROFILE="p",
        )
        assert read_s3_config(environment) == {
            "region": "b",
            "endpoint": "http://127.0.0.1:9000",
            "virtual_hosted_style_request": False,
            "access_key_id": "p%",
            "secret_access_key": "p%-secret",
            "session_token": "t",
        }

    def test_variables_win_over_the_profile(self, write_aws: WriteAws) -> None:
        environment = write_aws(
            config="[default]\nregion = a\nendpoint_url = http://a\n",
            credentials="[default]\n" + KEYS.format("a"),
            AWS_ACCESS_KEY_ID="b",
            AWS_SECRET_ACCESS_KEY="c",
            AWS_REGION="d",
            AWS_ENDPOINT_URL="http://e",
            AWS_ENDPOINT_URL_S3="http://f",
        )
        config = read_s3_config(environment)
        assert (config["access_key_id"], config["secret_access_key"]) == ("b", "c")
        assert (config["region"], config["endpoint"]) == ("d", "http://f")

    def test_files_may_be_elsewhere(self, tmp_path: Path) -> None:
        path = tmp_path / "other"
        path.write_text("[default]\n" + KEYS.format("a"))
        environment = {"HOME": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(path)}
        assert read_profile(environment)["aws_access_key_id"] == "a"

    def test_without_any_profile_the_store_finds_credentials_itself(self, write_aws: WriteAws) -> None:
        assert read_s3_config(write_aws()) == {"region": "us-east-1"}

    def test_unknown_profile_is_refused(self, write_aws: WriteAws) -> None:
        with pytest.raises(SettingsError, match="AWS_PROFILE: there is no profile p with an aws_access_key_id"):
            open_store(URL, write_aws(AWS_PROFILE="p"))

    @pytest.mark.parametrize("key", ["role_arn", "sso_session", "credential_process"])
    def test_profile_without_keys_of_its_own_is_explained(self, write_aws: WriteAws, key: str) -> None:
        with pytest.raises(SettingsError, match=rf"by {key}, .* `aws configure export-credentials --profile p`"):
            open_store(URL, write_aws(config=f"[profile p]\n{key} = x\n", AWS_PROFILE="p"))

    def test_malformed_file_is_refused(self, write_aws: WriteAws) -> None:
        with pytest.raises(SettingsError, match=r"AWS_CONFIG_FILE: .*config cannot be read"):
            open_store(URL, write_aws(config="no section\n"))


def test_missing_certificates_are_refused(write_aws: WriteAws) -> None:
    with pytest.raises(SettingsError, match="DAGUERRE_STORAGE: s3://bucket cannot be opened"):
        open_store(URL, write_aws(AWS_CA_BUNDLE="/nowhere.pem"))


@pytest.mark.parametrize(
    ("credentials", "number"),
    [
        ("aws_secret_access_key = hidden\n", 1),
        ("[default]\naws_access_key_id = key\naws_secret_access_key hidden\n", 3),
        ("[default]\naws_access_key_id = key\naws_access_key_id = hidden\n", 3),
    ],
)
def test_error_of_a_file_shows_no_key(write_aws: WriteAws, credentials: str, number: int) -> None:
    with pytest.raises(SettingsError, match=f"AWS_SHARED_CREDENTIALS_FILE: .* cannot be read: line {number}") as caught:
        read_profile(write_aws(credentials=credentials))
    assert "hidden" not in str(caught.value)

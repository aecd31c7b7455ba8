"""Signed URLs, and docs/signed-urls.md: its recipes are run."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ServiceError
from service.renditions.signatures import is_signed, sign, verify

DOCUMENT = (Path(__file__).parents[3] / "docs/signed-urls.md").read_text()
SECRET = "an-example-key-that-nobody-should-ever-use0"
OTHER = "b" * 43
NOW = 1_700_000_000
LATER = NOW + 60
TARGET = "/i/NKrigl4/red-car.jpg?width=300"


def sign_by_hand(text: str, secret: str = SECRET) -> str:
    """Signs any text, including what `sign` refuses."""
    digest = hmac.new(secret.encode(), text.encode(errors="surrogateescape"), hashlib.sha256).digest()
    separator = "&" if "?" in text else "?"
    return f"{text}{separator}signature={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def refusal(raw_target: str, *secrets: str, now: float = NOW) -> str:
    with pytest.raises(ServiceError) as error:
        verify(raw_target, secrets or (SECRET,), now=now)
    assert error.value.status == 403
    return error.value.code


@pytest.mark.parametrize(
    "target", ["/i/NKrigl4", TARGET, "/i/NKrigl4/caf%C3%A9.jpg?width=300&gravity=0.5,0.3&background=%23fff", "/"]
)
@pytest.mark.parametrize("expires", [None, LATER])
def test_signed_url_is_verified(target: str, expires: int | None) -> None:
    signed = sign(target, SECRET, expires=expires)
    separator = "&" if "?" in target else "?"
    assert signed.startswith(target + separator)
    assert re.search(r"[?&]signature=[A-Za-z0-9_-]{43}$", signed)
    assert is_signed(signed)
    assert not is_signed(target)
    assert verify(signed, [SECRET], now=NOW) == expires


def test_scheme_and_host_are_not_signed() -> None:
    for origin in ("https://img.example.com", "http://[::1]:8080", "HTTPS://img.example.com"):
        assert sign(origin + TARGET, SECRET) == origin + sign(TARGET, SECRET)


def test_empty_query_is_not_signed() -> None:
    assert sign("/i/NKrigl4?", SECRET) == sign("/i/NKrigl4", SECRET)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("", "begins with one /"),
        ("i/NKrigl4", "begins with one /"),
        ("https://img.example.com", "begins with one /"),
        ("https://img.example.com?width=3", "begins with one /"),
        ("//img.example.com/i/NKrigl4", "begins with one /"),
        ("ftp://img.example.com/i/NKrigl4", "begins with one /"),
        ("/i/NKrigl4\n", "begins with one /"),
        (f"{TARGET}#top", "fragment"),
        ("/i/NKrigl4/red car.jpg", "percent-encode"),
        ("/i/NKrigl4/café.jpg", "percent-encode"),
        ("/i/NKrigl4/100%.jpg", "percent-encode"),
        ("/i/NKrigl4?text='", "percent-encode"),
        (sign(TARGET, SECRET), "signed already"),
        (f"{TARGET}&signature", "signed already"),
        ("/i/NKrigl4?sign%61ture=&width=3", "signed already"),
        ("/i/NKrigl4?expires=5", "parameter expires"),
    ],
)
def test_unverifiable_url_is_not_signed(target: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sign(target, SECRET)


@pytest.mark.parametrize("expires", [-1, 10**11])
def test_invalid_expiry_is_not_signed(expires: int) -> None:
    with pytest.raises(ValueError, match="Unix time"):
        sign(TARGET, SECRET, expires=expires)


@pytest.mark.parametrize("place", range(len(sign(TARGET, SECRET, expires=LATER))))
def test_changed_character_is_refused(place: int) -> None:
    signed = sign(TARGET, SECRET, expires=LATER)
    for character in "AQ":
        if signed[place] != character:
            assert refusal(signed[:place] + character + signed[place + 1 :]) == "signature-invalid"


@pytest.mark.parametrize(
    "raw_target",
    [
        "",
        "/",
        TARGET,
        f"{TARGET}&signature",
        f"{TARGET}&signature=",
        sign(TARGET, SECRET) + "=",
        sign(TARGET, SECRET) + "&",
        sign(TARGET, SECRET) + "&width=900",
        sign(TARGET, SECRET) + "#top",
        sign(TARGET, SECRET) + "é",
        sign(TARGET, SECRET) + "\udcff",
        sign(TARGET, SECRET).replace("signature", "sign%61ture"),
        sign(TARGET, SECRET).replace("?", "?signature=x&"),
        sign_by_hand(sign(TARGET, SECRET)),
        sign_by_hand(f"{TARGET}&sign%61ture=x"),
        sign("/i/NKrigl4", SECRET).replace("?signature", "&signature"),
        sign("/i/NKrigl4", SECRET).replace("?", "?&"),
        sign(TARGET, SECRET).replace("&signature", "?signature"),
        "https://img.example.com" + sign(TARGET, SECRET),
    ],
)
def test_malformed_signature_is_refused(raw_target: str) -> None:
    assert refusal(raw_target) == "signature-invalid"


def test_encoded_signature_name_is_recognised() -> None:
    assert is_signed(f"{TARGET}&sign%61ture=x")
    assert is_signed(f"{TARGET}&signature")
    assert not is_signed("/signature=x")
    assert not is_signed(f"{TARGET}&x=signature&signatures=")


def test_any_live_key_verifies() -> None:
    assert verify(sign(TARGET, SECRET), [OTHER, SECRET], now=NOW) is None
    assert verify(sign(TARGET, OTHER), [OTHER, SECRET], now=NOW) is None
    assert refusal(sign(TARGET, "c" * 43), OTHER, SECRET) == "signature-invalid"
    with pytest.raises(ServiceError, match="signature-invalid"):
        verify(sign(TARGET, SECRET), [], now=NOW)


def test_url_is_valid_until_it_expires() -> None:
    signed = sign(TARGET, SECRET, expires=LATER)
    assert verify(signed, [SECRET], now=LATER - 0.001) == LATER
    assert refusal(signed, now=LATER) == "signature-expired"
    assert refusal(sign(TARGET, SECRET, expires=0)) == "signature-expired"


def test_only_a_valid_signature_can_expire() -> None:
    assert refusal(sign(TARGET, OTHER, expires=1)) == "signature-invalid"


@pytest.mark.parametrize(
    "query",
    [
        "expires",
        "expires=",
        "expires=-1",
        "expires=+1",
        "expires=1e12",
        f"expires={LATER}.5",
        "expires=never",
        f"expires=%20{LATER}",
        f"expires={'9' * 12}",
        f"expires={'9' * 7000}",
        "expires=١٧٩٩٩٩٩٩٩٩",  # digits to Python only
        f"expires={LATER}&expires={LATER}",
        f"expires=1&exp%69res={LATER}",
    ],
)
def test_unreadable_expiry_is_refused(query: str) -> None:
    assert refusal(sign_by_hand(f"/i/NKrigl4?{query}")) == "signature-invalid"


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.one_of(st.none(), st.integers(NOW + 1, 10**11 - 1)))
def test_any_encoded_name_can_be_signed(name: str, expires: int | None) -> None:
    signed = sign(f"/i/NKrigl4/{quote(name, safe='')}", SECRET, expires=expires)
    assert verify(signed, [SECRET], now=NOW) == expires


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_crash(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    assert refusal(f"/{text}") == "signature-invalid"
    assert refusal(f"/?signature={text}") == "signature-invalid"
    is_signed(text)


VECTOR_TARGET = "/i/NKrigl4/red-car.jpg?width=300&fit=cover"
VECTOR_EXPIRES = 1_800_000_000


def test_documented_vector_is_right() -> None:
    rows = dict(re.findall(r"^\| (.+) \| `(.+)` \|$", DOCUMENT, re.MULTILINE))
    assert rows["Key"] == SECRET
    assert rows["Target"] == VECTOR_TARGET
    assert rows["Expires"] == str(VECTOR_EXPIRES)
    assert rows["Signed"] == sign(VECTOR_TARGET, SECRET, expires=VECTOR_EXPIRES)
    assert rows["Without `expires`"] == sign(VECTOR_TARGET, SECRET)


def recipe(language: str) -> str:
    """The block of the document's recipes, not of its commands before them."""
    _, _, recipes = DOCUMENT.partition("## In your language")
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", recipes, re.MULTILINE | re.DOTALL)
    return str(text)


# How a recipe is run, and what prints the result of its function for the arguments that follow.
CALLS = {
    "python": ([sys.executable, "-c"], "\nimport sys\nprint(sign(*sys.argv[1:]))"),
    "javascript": (["node", "-e"], "\nconsole.log(sign(...process.argv.slice(1)));"),
    "php": (["php", "-r"], "\necho sign($argv[1], $argv[2], isset($argv[3]) ? (int) $argv[3] : null);"),
    "sh": (["sh", "-euc"], '\nsign "$@"'),
}
LANGUAGES = [
    "python",
    pytest.param("javascript", marks=pytest.mark.needs("node")),
    pytest.param("php", marks=pytest.mark.needs("php")),
    pytest.param("sh", marks=pytest.mark.needs("openssl")),
]


def test_every_recipe_is_tested() -> None:
    _, _, recipes = DOCUMENT.partition("## In your language")
    assert re.findall(r"^```(\w+)$", recipes, re.MULTILINE) == list(CALLS)


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("target", [VECTOR_TARGET, "/i/NKrigl4", "/i/NKrigl4/caf%C3%A9.jpg"])
@pytest.mark.parametrize("expires", [None, VECTOR_EXPIRES])
def test_recipe_signs_like_daguerre(language: str, target: str, expires: int | None) -> None:
    command, call = CALLS[language]
    arguments = [target, SECRET, *([] if expires is None else [str(expires)])]
    name = ["sh"] if language == "sh" else []  # what sh calls itself
    done = subprocess.run(
        [*command, recipe(language) + call, *name, *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == sign(target, SECRET, expires=expires)
    assert verify(done.stdout.strip(), [SECRET], now=NOW) == expires

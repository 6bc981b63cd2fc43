"""JSON Web Tokens: which tokens are accepted, which are refused, and where the keys come from."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from quart import Quart, Response

from quart_openai_sse import Principal, bearer_tokens, first_of
from quart_openai_sse.auth import Authenticate
from quart_openai_sse.auth.jwt import jwt_bearer
from quart_openai_sse.errors import (
    AuthenticationRequired,
    AuthUnavailable,
    ConfigurationError,
    OpenAISSEError,
    PermissionDenied,
)
from quart_openai_sse.testing import ScriptedUpstream, chunk, finish, serve_app
from tests.auth.test_hooks import whoami
from tests.conftest import ANN, QUESTION, TOKENS, Clock, CreateApp, Serve

SECRET = "a secret of thirty-two bytes, or more"
ISSUER = "https://login.example"
AUDIENCE = "chat"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def public_pem(key: Any) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def now() -> int:
    return int(time.time())


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a valid token, with *changes*; a change to `None` removes a claim."""
    said = {"sub": "ann", "exp": now() + 60, "iat": now(), "aud": AUDIENCE, "iss": ISSUER} | changes
    return {name: value for name, value in said.items() if value is not None}


def sign(key: Any = RSA_KEY, algorithm: str = "RS256", *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def by_hand(header: dict[str, Any], body: dict[str, Any] | bytes, secret: bytes | None = None) -> str:
    """A token made by hand, for contents that PyJWT refuses to sign."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, body)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = b"" if secret is None else hmac.new(secret, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def public_key_hook(**options: Any) -> Authenticate:
    return jwt_bearer(
        **{
            "key": public_pem(RSA_KEY),
            "algorithms": ["RS256"],
            "audience": AUDIENCE,
            "issuer": ISSUER,
            **options,
        }
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the hook uses for its keys. Tokens are checked with the real clock."""
    clock = Clock()
    monkeypatch.setattr("quart_openai_sse.auth.jwks.monotonic", clock)
    return clock


class Issuer:
    """An identity provider: it serves a key set, can be made to fail, and counts the requests."""

    def __init__(self) -> None:
        self.keys: dict[str | None, Any] = {"one": RSA_KEY}
        self.more: list[Any] = []
        self.answer: Callable[[], Response] | None = None
        self.fetches = 0
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.app = Quart("issuer")
        self.app.add_url_rule("/jwks", view_func=self.jwks)
        self.url = ""

    async def jwks(self) -> Any:
        self.fetches += 1
        self.asked.set()
        await self.open.wait()
        if self.answer is not None:
            return self.answer()
        return {"keys": [*self.more, *(jwk(key, kid=kid) for kid, key in self.keys.items())]}

    def hook(self, **options: Any) -> Authenticate:
        return jwt_bearer(
            **{
                "jwks_url": self.url,
                "algorithms": ["RS256", "ES256"],
                "audience": AUDIENCE,
                "issuer": ISSUER,
                **options,
            }
        )

    def down(self) -> None:
        self.answer = lambda: Response("no", status=503)

    def up(self) -> None:
        self.answer = None


def jwk(key: Any, *, kid: str | None, **members: Any) -> dict[str, Any]:
    public = key.public_key()
    algorithm = {rsa.RSAPublicKey: RSAAlgorithm, ec.EllipticCurvePublicKey: ECAlgorithm}.get(
        next(cls for cls in (rsa.RSAPublicKey, ec.EllipticCurvePublicKey, object) if isinstance(public, cls)),
        OKPAlgorithm,
    )
    return algorithm.to_jwk(public, as_dict=True) | ({} if kid is None else {"kid": kid}) | members


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    async with serve_app(issuer.app) as address:
        issuer.url = f"http://{address}/jwks"
        yield issuer
        issuer.open.set()


async def ask(hook: Authenticate, token: str) -> Any:
    """The principal that the hook returns for a request with that token."""
    async with Quart("x").test_request_context("/", headers=bearer(token)):
        return await hook()


def kid(name: str, key: Any = RSA_KEY, algorithm: str = "RS256", **changes: Any) -> str:
    """A valid token that names its key."""
    return sign(key, algorithm, headers={"kid": name}, **changes)


# Tokens --------------------------------------------------------------------------------------------------------------


async def test_a_valid_token_identifies_the_caller(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=public_key_hook())
    client = await whoami(app, ai, serve, headers={})
    expected = {"principal": "jwt:ann", "cookie": False, "anonymous": False}
    assert (await client.get("/who", headers=bearer(sign()))).json() == expected
    foreign = {"Origin": "https://other.example", "Cookie": "x=1", **bearer(sign())}
    assert (await client.post("/who", headers=foreign)).status_code == 200  # no page can send it for a visitor


# Made when they are sent, or a token would be refused because it has expired meanwhile.
BAD: dict[str, Callable[[], str]] = {
    "no token": lambda: "",
    "garbage": lambda: "garbage",
    "garbage with dots": lambda: "a.b.c",
    "nothing between the dots": lambda: "..",
    "not ASCII": lambda: "é.é.é",
    "a header that is no object": lambda: by_hand({}, {}).replace(
        "e30.", base64.urlsafe_b64encode(b"[1]").decode() + ".", 1
    ),
    "a header that is nested too deeply": lambda: (base64.urlsafe_b64encode(b"[" * 6000) + b".e30.e30").decode(),
    "a header without an algorithm": lambda: by_hand({}, claims()),
    "an algorithm that is a list": lambda: by_hand({"alg": ["RS256"]}, claims()),
    "a kid that is a list": lambda: by_hand({"alg": "RS256", "kid": ["one"]}, claims()),
    "alg none": lambda: jwt.encode(claims(), None, algorithm="none"),
    "alg none, in other letters": lambda: by_hand({"alg": "nOnE"}, claims()),
    "alg none, with the signature of a good token": lambda: (
        by_hand({"alg": "none"}, claims()) + sign().rpartition(".")[2]
    ),
    "HS256, signed with the public key": lambda: by_hand({"alg": "HS256"}, claims(), public_pem(RSA_KEY).encode()),
    "an algorithm that is not allowed": lambda: sign(algorithm="PS256"),
    "signed by somebody else": lambda: sign(OTHER_RSA_KEY),
    "signed by a key of another type": lambda: sign(EC_KEY, "ES256"),
    "changed after it was signed": lambda: ".".join(
        [sign().split(".")[0], sign(sub="bob").split(".")[1], sign().split(".")[2]]
    ),
    "without its signature": lambda: sign().rpartition(".")[0] + ".",
    "expired": lambda: sign(exp=now() - 1),
    "expired long ago": lambda: sign(exp=0),
    "an expiry that is no number": lambda: sign(exp="tomorrow"),
    "never expires": lambda: sign(exp=None),
    "not yet valid": lambda: sign(nbf=now() + 600),
    "issued in the future": lambda: sign(iat=now() + 600),
    "another audience": lambda: sign(aud="mail"),
    "no audience": lambda: sign(aud=None),
    "an audience that is no text": lambda: sign(aud=[1]),
    "another issuer": lambda: sign(iss="https://evil.example"),
    "an issuer that begins alike": lambda: sign(iss=ISSUER[:-1]),
    "no issuer": lambda: sign(iss=None),
    "no subject": lambda: sign(sub=None),
    "an empty subject": lambda: sign(sub=""),
    "a subject that breaks a log line": lambda: sign(sub="ann\nbob"),
    "a subject that is too long": lambda: sign(sub="x" * 256),
    "a subject that turns a log line around": lambda: sign(sub="ann\u202ebob"),
    "a subject that is too long a number": lambda: sign(sub="9" * 256),
    "a token to log out with": lambda: sign(headers={"typ": "logout+jwt"}),
    "a proof of a key": lambda: sign(headers={"typ": "dpop+jwt"}),
    "a type that is a list": lambda: by_hand({"alg": "RS256", "typ": ["JWT"]}, claims()),
    "a refresh token": lambda: sign(type="refresh"),
    "something that must be understood": lambda: sign(headers={"crit": ["more"], "more": 1}),
}


@pytest.mark.parametrize("create", BAD.values(), ids=BAD)
async def test_a_bad_token_is_a_401_and_is_not_to_be_seen(
    create_app: CreateApp, serve: Serve, create: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    token = create()
    client = await serve(create_app(ScriptedUpstream(), auth=public_key_hook())[0], headers={})
    caplog.set_level("DEBUG", "quart_openai_sse")
    response = await client.post(
        "/v1/chat/completions",
        json={"messages": QUESTION},
        headers={"Authorization": f"Bearer {token}".strip().encode()},
    )
    assert response.status_code == 401
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    seen = response.text + caplog.text + repr([vars(record) for record in caplog.records])
    assert not [part for part in token.split(".") if len(part) > 4 and part in seen]


@pytest.mark.parametrize(
    "said",
    [
        b"[]",
        b"",
        b"\xff",
        b"[" * 5000,
        b'{"sub": "ann", "exp": 1e999}',
        b'{"sub": "ann", "exp": NaN}',
        b'{"sub": "ann", "exp": [1]}',
        b'{"sub": "ann", "exp": %s}' % (b"9" * 5000),
    ],
    ids=lambda said: repr(said[:30]),
)
async def test_a_signed_token_with_an_invalid_payload_is_refused(said: bytes) -> None:
    hook = jwt_bearer(key=SECRET, algorithms=["HS256"], audience=None, issuer=None)
    good = json.dumps({"sub": "ann", "exp": now() + 60}).encode()
    assert await ask(hook, by_hand({"alg": "HS256"}, good, SECRET.encode()))
    assert await ask(hook, by_hand({"alg": "HS256"}, said, SECRET.encode())) is None


async def test_other_credentials_are_left_to_other_hooks(create_app: CreateApp, serve: Serve) -> None:
    app, ai = create_app(ScriptedUpstream(), auth=first_of(public_key_hook(), bearer_tokens(TOKENS)))
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who", headers=ANN)).json()["principal"] == "token:ann"
    assert (await client.get("/who", headers=bearer(sign()))).json()["principal"] == "jwt:ann"
    for headers in ({}, {"Authorization": f"Basic {sign()}"}, {"Authorization": sign()}):
        assert (await client.get("/who", headers=headers)).status_code == 401


async def test_leeway_is_for_clocks_that_differ() -> None:
    strict, lenient = public_key_hook(), public_key_hook(leeway=30)
    late, early = sign(exp=now() - 10), sign(nbf=now() + 20)
    assert [await ask(strict, late), await ask(strict, early)] == [None, None]
    assert [str(await ask(lenient, late)), str(await ask(lenient, early))] == ["jwt:ann", "jwt:ann"]
    assert await ask(lenient, sign(exp=now() - 60)) is None


@pytest.mark.parametrize(
    ("key", "public", "algorithm"),
    [
        (SECRET, SECRET, "HS256"),
        (SECRET, SECRET.encode(), "HS256"),
        (RSA_KEY, public_pem(RSA_KEY), "PS256"),
        (EC_KEY, public_pem(EC_KEY), "ES256"),
        (ed := ed25519.Ed25519PrivateKey.generate(), public_pem(ed), "EdDSA"),
    ],
    ids=["a secret", "a secret of bytes", "RSA-PSS", "a curve", "Ed25519"],
)
async def test_any_kind_of_key(key: Any, public: Any, algorithm: str) -> None:
    hook = public_key_hook(key=public, algorithms=[algorithm])
    assert str(await ask(hook, sign(key, algorithm))) == "jwt:ann"
    assert await ask(hook, sign(key, algorithm)[:-6] + "AAAAAA") is None


async def test_one_of_several_audiences_is_enough() -> None:
    hook = public_key_hook(audience=["chat", "voice"])
    assert await ask(hook, sign(aud="voice"))
    assert await ask(hook, sign(aud=["mail", "chat"]))
    assert await ask(hook, sign(aud="mail")) is None


async def test_without_an_audience_only_tokens_without_one_are_meant_for_us() -> None:
    hook = public_key_hook(audience=None)
    assert await ask(hook, sign(aud=None))
    assert await ask(hook, sign(aud="mail")) is None


async def test_without_an_issuer_the_key_alone_decides() -> None:
    hook = public_key_hook(issuer=None)
    assert await ask(hook, sign(iss=None))
    assert await ask(hook, sign(iss="anybody"))


async def test_a_subject_may_be_a_number() -> None:
    """RFC 7519 wants a text, but issuers with numbers as the ids of users put these into their tokens."""
    assert await ask(public_key_hook(), sign(sub=42)) == Principal("42", realm="jwt", cookie=False)
    for subject in (True, 1.5, ["ann"], {"id": 1}):
        assert await ask(public_key_hook(), sign(sub=subject)) is None


async def test_realm_and_subject_are_chosen() -> None:
    hook = public_key_hook(realm="customers", subject_claim="uid")
    assert await ask(hook, sign(uid=42)) == Principal("42", realm="customers", cookie=False)
    for subject in (None, True, 1.5, ["ann"], {"id": 1}):
        assert await ask(hook, sign(uid=subject)) is None


def test_the_key_is_not_to_be_seen() -> None:
    hook = public_key_hook(key=SECRET, algorithms=["HS256"])
    seen, todo = repr(hook), [hook]
    while todo:
        cells = [cell.cell_contents for cell in todo.pop().__closure__ or ()]
        seen += repr(cells)
        todo += [each for each in cells if hasattr(each, "__closure__")]
    assert "Key(" in seen
    assert SECRET not in seen


WRONG = {
    "no algorithm": {"algorithms": []},
    "none": {"algorithms": ["none"]},
    "none beside others": {"algorithms": ["RS256", "none"]},
    "None": {"algorithms": ["NONE"]},
    "an unknown algorithm": {"algorithms": ["RS1"]},
    "a text": {"algorithms": "RS256"},
    "secret and public": {"algorithms": ["RS256", "HS256"]},
    "a secret from an address": {"algorithms": ["HS256"], "key": None, "jwks_url": "https://login.example/jwks"},
    "no key": {"key": None},
    "an empty key": {"key": ""},
    "two keys": {"jwks_url": "https://login.example/jwks"},
    "a key that is none": {"key": "hunter2"},
    "a key of another type": {"key": public_pem(EC_KEY)},
    "a key that fits one algorithm only": {"algorithms": ["RS256", "ES256"]},
    "a public key as a secret": {"algorithms": ["HS256"]},
    "a secret that can be guessed": {"algorithms": ["HS256"], "key": "hunter2"},
    "a secret that is too short for one of them": {"algorithms": ["HS256", "HS512"], "key": SECRET},
    "a key that is too short": {"key": public_pem(rsa.generate_private_key(public_exponent=65537, key_size=1024))},
    "a private key": {
        "key": RSA_KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    },
    "an empty issuer": {"issuer": ""},
    "an empty audience": {"audience": ""},
    "no audience at all": {"audience": []},
    "one empty audience": {"audience": ["chat", ""]},
    "an address of a file": {"key": None, "jwks_url": "file:///etc/passwd"},
    "an address with a password": {"key": None, "jwks_url": "https://me:hunter2@login.example/jwks"},
    "no address": {"key": None, "jwks_url": "http://[::1"},
}


@pytest.mark.parametrize("options", WRONG.values(), ids=WRONG)
def test_unsafe_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        public_key_hook(**options)
    assert "hunter2" not in repr(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize("name", ["algorithms", "audience", "issuer"])
def test_the_checks_have_no_defaults(name: str) -> None:
    options = {"algorithms": ["HS256"], "audience": None, "issuer": None, "key": SECRET}
    del options[name]
    with pytest.raises(TypeError, match=name):
        jwt_bearer(**options)


# What a token is for -------------------------------------------------------------------------------------------------

TYPES = {
    "none": (None, True),
    "JWT": ("JWT", True),
    "in small letters": ("jwt", True),
    "of an access token": ("at+jwt", True),
    "in full": ("application/at+jwt", True),
    "in capitals": ("Application/AT+JWT", True),
    "of a logout": ("logout+jwt", False),
    "of an event": ("secevent+jwt", False),
    "of a proof": ("dpop+jwt", False),
    "of a refresh token": ("refresh+jwt", False),
    "a longer one": ("at+jwt2", False),
    "another kind": ("text/jwt", False),
    "blank": (" ", False),
}


@pytest.mark.parametrize(("typ", "accepted"), TYPES.values(), ids=TYPES)
async def test_the_type_in_a_tokens_header_says_what_it_is_for(typ: str | None, accepted: bool) -> None:
    token = sign(headers={"typ": typ})
    assert jwt.get_unverified_header(token).get("typ") == typ
    assert (await ask(public_key_hook(), token) is not None) is accepted


async def test_other_types_can_be_accepted_instead() -> None:
    hook = public_key_hook(types=["at+jwt", "application/acme+jwt"])
    assert await ask(hook, sign(headers={"typ": "acme+jwt"}))
    assert await ask(hook, sign(headers={"typ": "at+JWT"}))
    assert [await ask(hook, sign(headers={"typ": typ})) for typ in ("JWT", None)] == [None, None]


@pytest.mark.parametrize("types", ["at+jwt", [], [None]])
def test_types_are_a_collection_of_texts(types: Any) -> None:
    with pytest.raises(ConfigurationError, match="types"):
        public_key_hook(types=types)


async def test_a_token_of_another_type_is_no_reason_to_fetch_keys(issuer: Issuer) -> None:
    assert await ask(issuer.hook(), sign(headers={"kid": "one", "typ": "logout+jwt"})) is None
    assert issuer.fetches == 0


@pytest.mark.parametrize(
    "said",
    [{"type": "refresh"}, {"token_type": "refresh"}, {"token_use": "refresh"}, {"typ": "Refresh"}, {"typ": "Offline"}],
    ids=str,
)
async def test_a_refresh_token_is_refused(said: dict[str, str]) -> None:
    assert await ask(public_key_hook(check=lambda claims: True), sign(**said)) is None


@pytest.mark.parametrize(
    "said",
    [{"type": "access"}, {"token_type": "Bearer"}, {"token_use": "access"}, {"typ": "Bearer"}, {"type": 7}],
    ids=str,
)
async def test_an_access_token_is_accepted(said: dict[str, Any]) -> None:
    assert await ask(public_key_hook(), sign(**said))


# What the app says of a token ----------------------------------------------------------------------------------------


async def is_current(claims: Any) -> bool:
    return claims["jti"] != "revoked"


CHECKS: dict[str, Callable[[Any], Any]] = {
    "def": lambda claims: claims["jti"] != "revoked",
    "async def": is_current,
    "def that returns a coroutine": lambda claims: is_current(claims),
    "an object that is found": lambda claims: {"current": [object()]}.get(claims["jti"]),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
async def test_the_app_can_refuse_a_token_by_its_claims(
    create_app: CreateApp, serve: Serve, check: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "quart_openai_sse")
    app, ai = create_app(ScriptedUpstream(), auth=first_of(public_key_hook(check=check), bearer_tokens(TOKENS)))
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who", headers=bearer(sign(jti="current")))).json()["principal"] == "jwt:ann"
    assert (await client.get("/who", headers=bearer(sign(jti="revoked")))).status_code == 401
    assert "jwt_bearer: a token was refused: check did not accept it" in caplog.text
    assert (await client.get("/who", headers=bearer(sign()))).status_code == 401  # the claim is missing
    assert (await client.get("/who", headers=ANN)).json()["principal"] == "token:ann"


async def test_only_tokens_that_are_valid_otherwise_are_checked_and_in_a_thread(
    create_app: CreateApp, serve: Serve
) -> None:
    checked = []

    def check(claims: Any) -> bool:
        checked.append((claims["sub"], threading.current_thread().name))
        return True

    hook = public_key_hook(check=check, models_claim="models")
    app, ai = create_app(ScriptedUpstream(), auth=hook)
    client = await whoami(app, ai, serve, headers={})
    assert (await client.get("/who", headers=bearer(sign()))).status_code == 200
    for token in (sign(exp=now() - 1), sign(OTHER_RSA_KEY), sign(type="refresh"), sign(sub="a\n"), sign(models=1)):
        assert (await client.get("/who", headers=bearer(token))).status_code == 401
    assert checked == [("ann", "quart_openai_sse auth hook")]


@pytest.mark.parametrize(
    ("error", "said", "status", "code"),
    [
        (RuntimeError, "canary", 500, "internal_error"),
        (KeyError, "canary", 401, "invalid_api_key"),
        (KeyError, "sub", 500, "internal_error"),  # the token has this claim: something else was not found
        (AuthenticationRequired, "The token was revoked.", 401, "invalid_api_key"),
        (AuthUnavailable, "The database is down.", 503, "auth_unavailable"),
        (PermissionDenied, "Your plan has no chat.", 403, "permission_denied"),
    ],
)
async def test_an_error_of_the_check_accepts_no_token(
    create_app: CreateApp, serve: Serve, error: type[Exception], said: str, status: int, code: str
) -> None:
    def check(claims: Any) -> bool:
        raise error(said)

    client = await serve(create_app(ScriptedUpstream(), auth=public_key_hook(check=check))[0], headers=bearer(sign()))
    response = await client.get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert "canary" not in response.text
    assert (response.json()["error"]["message"] == said) is issubclass(error, OpenAISSEError)


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async def", "def"])
async def test_a_check_that_hangs_is_a_503(
    create_app: CreateApp, serve: Serve, caplog: pytest.LogCaptureFixture, asynchronous: bool
) -> None:
    gate = threading.Event()

    async def hang(claims: Any) -> bool:
        await asyncio.Event().wait()
        return True

    def hang_in_a_thread(claims: Any) -> bool:
        return gate.wait()

    hook = public_key_hook(check=hang if asynchronous else hang_in_a_thread)
    client = await serve(create_app(ScriptedUpstream(), auth=hook, auth_timeout=0.05)[0], headers=bearer(sign()))
    try:
        response = await client.get("/v1/models")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "auth_unavailable")
        assert f"auth hook {'hang' if asynchronous else 'hang_in_a_thread'!r} has been running" in caplog.text
    finally:
        gate.set()


# Limits that a token brings ------------------------------------------------------------------------------------------


async def test_a_token_may_ask_for_the_models_of_its_claim(create_app: CreateApp, serve: Serve) -> None:
    hook = public_key_hook(models_claim="models")
    app, ai = create_app(ScriptedUpstream(), auth=hook, models=["small", "large"])

    @ai.model("support")
    async def support(chat):
        yield "Hello."

    client = await serve(app, headers={})

    async def listed(token: str) -> list[str]:
        return [model["id"] for model in (await client.get("/v1/models", headers=bearer(token))).json()["data"]]

    async def asked(token: str, model: str) -> tuple[int, str]:
        body = {"model": model, "messages": QUESTION, "stream": True}
        response = await client.post("/v1/chat/completions", json=body, headers=bearer(token))
        return response.status_code, "" if response.status_code == 200 else response.json()["error"]["code"]

    some = sign(models=["small", "support", "unheard of"])
    assert await listed(some) == ["support", "small"]
    assert [await asked(some, model) for model in ("small", "support")] == [(200, ""), (200, "")]
    assert await asked(some, "large") == (404, "model_not_found")
    assert await asked(some, "unheard of") == (404, "model_not_found")  # the configuration's word counts as well
    assert await listed(sign(models="large support")) == ["support", "large"]  # as OAuth writes a scope
    for none in (sign(), sign(models=[]), sign(models="")):
        assert await listed(none) == []
        assert await asked(none, "small") == (404, "model_not_found")


async def test_a_token_may_run_the_streams_of_its_claim(create_app: CreateApp, serve: Serve) -> None:
    on = asyncio.Event()
    hook = public_key_hook(max_streams_claim="max_streams")
    upstream = ScriptedUpstream([chunk("Hello"), on.wait, finish()])
    app, _ = create_app(upstream, auth=hook, max_streams_per_principal=2)
    client = await serve(app, headers={})

    async def start(token: str) -> int:
        return (await client.post("/v1/streams", json={"messages": QUESTION}, headers=bearer(token))).status_code

    three = sign(max_streams=3)
    assert [await start(three) for _ in range(4)] == [201, 201, 201, 429]
    assert [await start(sign(sub="bob", max_streams=1)) for _ in range(2)] == [201, 429]
    assert [await start(sign(sub="cid")) for _ in range(3)] == [201, 201, 429]  # nothing said: the configuration's
    assert await start(sign(sub="dan", max_streams=0)) == 429
    on.set()


async def test_functions_read_limits_from_anywhere_in_a_token() -> None:
    hook = public_key_hook(
        models_claim=lambda claims: claims["realm_access"]["roles"],
        max_streams_claim=lambda claims: 5 if claims.get("plan") == "pro" else None,
    )
    found = await ask(hook, sign(realm_access={"roles": ["small"]}, plan="pro"))
    assert found == Principal("ann", realm="jwt", cookie=False, models=frozenset({"small"}), max_streams=5)
    assert (await ask(hook, sign(realm_access={"roles": None}))).models is None
    assert await ask(hook, sign()) is None  # the function raises


@pytest.mark.parametrize(
    "said", [{"models": 1}, {"models": [1]}, {"models": {"small": 1}}, {"max_streams": "3"}, {"max_streams": -1}]
)
async def test_a_token_with_invalid_limits_is_refused(said: dict[str, Any]) -> None:
    assert await ask(public_key_hook(models_claim="models", max_streams_claim="max_streams"), sign(**said)) is None


# Keys from the issuer ------------------------------------------------------------------------------------------------


async def test_the_issuers_keys_are_fetched_once(create_app: CreateApp, serve: Serve, issuer: Issuer) -> None:
    issuer.keys["two"] = EC_KEY
    app, ai = create_app(ScriptedUpstream(), auth=issuer.hook())
    client = await whoami(app, ai, serve, headers={})
    assert issuer.fetches == 0
    for token in (kid("one"), kid("two", EC_KEY, "ES256"), kid("one", sub="bob")):
        assert (await client.get("/who", headers=bearer(token))).json()["principal"] in ("jwt:ann", "jwt:bob")
    assert issuer.fetches == 1
    for token in (kid("three"), kid("one", OTHER_RSA_KEY), kid("two"), kid("one", EC_KEY, "ES256"), "garbage"):
        response = await client.get("/who", headers=bearer(token))
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert issuer.fetches == 1


async def test_garbage_is_no_reason_to_fetch_keys(issuer: Issuer) -> None:
    hook = issuer.hook()
    for token in (
        "garbage",
        "",
        BAD["alg none"](),
        BAD["HS256, signed with the public key"](),
        kid("x", algorithm="PS256"),
    ):
        assert await ask(hook, token) is None
    assert issuer.fetches == 0


async def test_many_at_once_wait_for_one_fetch_and_leaving_does_not_end_it(issuer: Issuer) -> None:
    hook = issuer.hook()
    issuer.open.clear()
    asking = [asyncio.ensure_future(ask(hook, kid("one"))) for _ in range(10)]
    await issuer.asked.wait()
    asking[0].cancel()
    issuer.open.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {str(each) for each in found[1:]} == {"jwt:ann"}
    assert issuer.fetches == 1


async def test_a_new_key_is_picked_up_and_an_old_one_given_up(issuer: Issuer, clock: Clock) -> None:
    hook = issuer.hook(jwks_interval=10)
    assert await ask(hook, kid("one"))
    issuer.keys = {"two": OTHER_RSA_KEY}
    assert await ask(hook, kid("two", OTHER_RSA_KEY)) is None  # asked just now
    clock.now += 11
    assert await ask(hook, kid("two", OTHER_RSA_KEY))
    assert await ask(hook, kid("one")) is None
    assert issuer.fetches == 2


async def test_keys_are_fetched_anew_when_they_are_old(issuer: Issuer, clock: Clock) -> None:
    hook = issuer.hook(jwks_max_age=300)
    assert await ask(hook, kid("one"))
    issuer.keys = {"one": OTHER_RSA_KEY}  # the old one was stolen
    clock.now += 299
    assert await ask(hook, kid("one"))
    clock.now += 2
    assert await ask(hook, kid("one")) is None
    assert await ask(hook, kid("one", OTHER_RSA_KEY))
    assert issuer.fetches == 2


async def test_a_flood_of_unknown_kids_is_not_passed_on(issuer: Issuer, clock: Clock) -> None:
    hook = issuer.hook(jwks_interval=10)
    for _ in range(3):
        assert set(await asyncio.gather(*(ask(hook, kid(f"k{n}")) for n in range(100)))) == {None}
        assert {await ask(hook, kid(f"k{n}")) for n in range(20)} == {None}
        assert await ask(hook, kid("one"))
        clock.now += 10
    assert issuer.fetches == 3


OUTAGES: dict[str, Callable[[], Response]] = {
    "an error": lambda: Response("no", status=503),
    "a page": lambda: Response("<!doctype html>"),
    "a redirect": lambda: Response(status=302, headers={"Location": "/elsewhere"}),
    "no keys": lambda: Response('{"keys": []}'),
    "another object": lambda: Response("{}"),
    "keys that are no list": lambda: Response('{"keys": {"0": 1}}'),
    "no object": lambda: Response("[]"),
    "secrets only": lambda: Response('{"keys": [{"kty": "oct", "k": "aGk", "kid": "one"}]}'),
    "too much": lambda: Response('{"keys": []}' + " " * (1 << 20)),
    "a bomb": lambda: Response(gzip.compress(b" " * (1 << 20)), headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("answer", OUTAGES.values(), ids=OUTAGES)
async def test_while_the_keys_cannot_be_fetched_the_previous_keys_work(
    create_app: CreateApp,
    serve: Serve,
    issuer: Issuer,
    clock: Clock,
    answer: Callable[[], Response],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hook = issuer.hook(jwks_interval=10, jwks_max_age=300)
    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0], headers={})

    async def status(token: str) -> int:
        return (await client.get("/v1/models", headers=bearer(token))).status_code

    assert await status(kid("one")) == 200
    issuer.answer = answer
    clock.now += 301
    for _ in range(3):
        assert await status(kid("one")) == 200
        assert await status(kid("two")) == 401
        clock.now += 11
    assert 2 <= issuer.fetches <= 4
    assert "the keys of 127.0.0.1" in caplog.text
    assert "KeyError" not in caplog.text  # what the answer lacks is said in words
    issuer.up()
    issuer.keys["two"] = EC_KEY
    assert await status(kid("two", EC_KEY, "ES256")) == 200


async def test_a_token_whose_key_is_known_does_not_wait_for_a_hanging_issuer(issuer: Issuer, clock: Clock) -> None:
    hook = issuer.hook(jwks_interval=10, jwks_max_age=300, jwks_timeout=30)
    assert await ask(hook, kid("one"))
    issuer.down()
    clock.now += 301
    assert await ask(hook, kid("one"))
    issuer.asked.clear()
    issuer.open.clear()
    clock.now += 11
    async with asyncio.timeout(20):  # less than jwks_timeout
        assert await ask(hook, kid("one"))
        await issuer.asked.wait()  # it is being asked, and that was not waited for
        issuer.up()
        issuer.open.set()
        assert await ask(hook, kid("unknown")) is None
    assert issuer.fetches == 3


async def test_an_issuer_that_was_never_reached_is_a_503(create_app: CreateApp, serve: Serve, clock: Clock) -> None:
    issuer = Issuer()
    async with serve_app(issuer.app) as address:
        issuer.url = f"http://{address}/jwks"
    hook = issuer.hook(jwks_interval=10)
    client = await serve(create_app(ScriptedUpstream(), auth=hook)[0], headers={})
    response = await client.get("/v1/models", headers=bearer(kid("one")))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "auth_unavailable")
    assert response.headers["Retry-After"] == "5"
    assert (await client.get("/v1/models", headers=bearer("garbage"))).status_code == 401
    async with serve_app(issuer.app, port=int(address.rpartition(":")[2])):
        assert (await client.get("/v1/models", headers=bearer(kid("one")))).status_code == 503  # asked just now
        assert issuer.fetches == 0
        clock.now += 11
        assert (await client.get("/v1/models", headers=bearer(kid("one")))).status_code == 200


async def test_an_issuer_that_never_answers_is_given_up(issuer: Issuer) -> None:
    issuer.open.clear()
    with pytest.raises(AuthUnavailable):
        await ask(issuer.hook(jwks_timeout=0.05), kid("one"))


async def test_strange_keys_do_not_take_the_others_away(issuer: Issuer) -> None:
    issuer.more = [
        None,
        7,
        {},
        {"kty": ["RSA"]},
        {"kty": "RSA", "kid": "one"},
        {"kty": "EC", "crv": "P-0", "x": "", "y": "", "kid": "one"},
        {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "kid": "one", "alg": "HS256"},
        jwk(OTHER_RSA_KEY, kid="one", use="enc"),
        jwk(OTHER_RSA_KEY, kid="one", alg="RSA-OAEP"),
        jwk(OTHER_RSA_KEY, kid=["one"]),
    ]
    hook = issuer.hook()
    assert await ask(hook, kid("one"))
    assert await ask(hook, kid("one", OTHER_RSA_KEY)) is None
    assert await ask(hook, by_hand({"alg": "HS256", "kid": "one"}, claims(), SECRET.encode())) is None


async def test_a_key_is_good_for_its_own_algorithm_only(issuer: Issuer) -> None:
    issuer.keys = {}
    issuer.more = [jwk(RSA_KEY, kid="one", alg="RS256"), jwk(OTHER_RSA_KEY, kid="two")]
    hook = issuer.hook(algorithms=["RS256", "PS256"])
    assert await ask(hook, kid("one"))
    assert await ask(hook, kid("one", algorithm="PS256")) is None
    assert await ask(hook, kid("two", OTHER_RSA_KEY, "PS256"))


async def test_a_token_that_names_no_key_must_leave_no_choice(issuer: Issuer, clock: Clock) -> None:
    hook = issuer.hook()
    assert await ask(hook, sign())
    issuer.keys["two"] = OTHER_RSA_KEY
    clock.now += 301
    assert await ask(hook, sign()) is None
    assert await ask(hook, kid("one"))


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")
async def test_a_short_key_in_the_issuers_set_is_skipped(issuer: Issuer) -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    issuer.keys["short"] = short
    hook = issuer.hook()
    assert await ask(hook, kid("one"))
    assert await ask(hook, kid("short", short)) is None


async def test_every_event_loop_has_its_own_keys(issuer: Issuer) -> None:
    hook = issuer.hook()
    assert await ask(hook, kid("one"))
    for _ in range(2):
        assert str(await asyncio.to_thread(asyncio.run, ask(hook, kid("one")))) == "jwt:ann"
    together = [asyncio.to_thread(asyncio.run, ask(hook, kid("one"))) for _ in range(4)]
    assert {str(each) for each in await asyncio.gather(*together)} == {"jwt:ann"}
    assert issuer.fetches == 7


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_the_http_client_can_be_ones_own_and_is_closed(issuer: Issuer, library: Any) -> None:
    clients = []

    def create() -> Any:
        clients.append(library.AsyncClient(headers={"X-From": "us"}))
        return clients[-1]

    assert await ask(issuer.hook(client=create), kid("one"))
    assert [client.is_closed for client in clients] == [True]

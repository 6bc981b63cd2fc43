"""Options: one field each, from the constructor, the app's config and the environment."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_type_hints

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quart import Quart

from quart_openai_sse.config import (
    KEY_PREFIX,
    OPENAI_BASE_URL,
    ApiKey,
    Config,
    LogCipher,
    Names,
    Options,
    UpstreamConfig,
)
from quart_openai_sse.errors import ConfigurationError
from quart_openai_sse.principal import Principal

LOCAL = "http://127.0.0.1:9/v1"
SECRET = "sk-very-secret"
FIELDS = {each.name: each for each in dataclasses.fields(Config)}


def load(
    app_config: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    prefix: str = KEY_PREFIX,
    **options: Any,
) -> Config:
    """A configuration for a server that needs no key."""
    if "base_url" not in options and f"{prefix}BASE_URL" not in (app_config or {}):
        options["base_url"] = LOCAL
    return Config.load(options, settings=app_config or {}, prefix=prefix, environ=environ or {})


# Keys derive from fields --------------------------------------------------------------------------------------------

SAMPLES: dict[str, Any] = {
    "api_key": SECRET,
    "base_url": "http://localhost:8000/v1",
    "api_key_header": "api-key",
    "api_keys": (SECRET, "sk-other"),
    "first_output_timeouts": {"o9": 300.0},
    "gap_timeouts": {"o9": 300.0},
    "headers": {"X-A": "b"},
    "models": ("a", "b"),
    "allowed_members": ("user", "seed"),
    "denied_members": ("n",),
    "upstreams": (UpstreamConfig(base_url=LOCAL),),
    "trusted_origins": ("https://app.example",),
    "url_prefix": "/ai",
    "log_cipher": (bytes.lower, bytes.upper),
}


def sample(name: str) -> Any:
    if name in SAMPLES:
        return SAMPLES[name]
    default = FIELDS[name].default
    if isinstance(default, bool):
        return not default
    return "text" if isinstance(default, str) else 7


def unlike(found: Mapping[str, object], expected: Mapping[str, object]) -> dict[str, object]:
    """The options for which something else was found than expected."""
    return {name: each for name, each in found.items() if each != expected[name]}


def test_every_field_is_an_option_and_a_key() -> None:
    found, expected = {}, {}
    for name in FIELDS:
        value, key = sample(name), name.upper()
        ways = [
            load({KEY_PREFIX + key: value}),
            load({"CHAT_" + key: value}, prefix="CHAT_"),
            load(**{name: value}),
        ]
        found[name], expected[name] = [getattr(config, name) for config in ways], [value] * 3
    assert unlike(found, expected) == {}


def test_the_constructor_stands_above_the_config_and_that_above_the_default() -> None:
    found, expected = {}, {}
    for name in FIELDS.keys() - {"api_key", "base_url"}:
        field = FIELDS[name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        key, value = KEY_PREFIX + name.upper(), sample(name)
        ways = [load(), load({key: value}, **{name: default}), load({key: default}, **{name: value})]
        found[name], expected[name] = [getattr(config, name) for config in ways], [default, default, value]
    assert unlike(found, expected) == {}


ARGUMENTS: dict[Any, Any] = {
    str | ApiKey | None: str | ApiKey | None,
    str: str,
    bool: bool,
    int: int,
    float: float,
    float | None: float | None,
    int | None: int | None,
    tuple[str, ...]: Names,
    tuple[str, ...] | None: Names | None,
    Mapping[str, str]: Mapping[str, str],
    Mapping[str, float]: Mapping[str, float],
    tuple[UpstreamConfig, ...]: Sequence[UpstreamConfig | Mapping[str, Any]],
    LogCipher | None: LogCipher | None,
}
"""What an argument may be, by the type of its field without its limits."""


def test_an_argument_of_the_extension_has_the_name_and_the_type_of_its_field() -> None:
    # `log` is an argument of its own: it may be a function, too.
    expected = {name: ARGUMENTS[hint] for name, hint in get_type_hints(Config).items() if name != "log"}
    assert get_type_hints(Options) == expected
    assert list(get_type_hints(Options)) == [name for name in FIELDS if name != "log"]  # in the same order


def test_the_defaults_leave_room_for_pictures_and_for_models_that_reason() -> None:
    config = load()
    assert (config.max_body, config.max_event, config.max_bytes) == (16 << 20, 16 << 20, 64 << 20)
    assert (config.first_output_timeout, config.gap_timeout, config.total_timeout) == (300, 120, 600)


@pytest.mark.parametrize("name", ["model", "messages", "stream", "*"])
def test_a_member_that_every_request_needs_cannot_be_denied(name: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"OPENAI_SSE_DENIED_MEMBERS must not contain {name}.")):
        load(denied_members=["n", name])


def test_keys_of_others_are_none_of_ours() -> None:
    app_config = {
        "SECRET_KEY": "x",
        "OPENAI_SSE": 1,
        "OPENAI_API_KEY": SECRET,
        "MY_OPENAI_SSE_MODEL": "m",
        "DEBUG": True,
    }
    assert load(app_config) == load()
    assert load({"OPENAI_SSE_MODEL": "m"}, prefix="CHAT_").model == ""


def test_the_quart_apps_own_config_is_taken() -> None:
    app = Quart(__name__)
    app.config["OPENAI_SSE_KEEPALIVE"] = 5
    assert load(app.config).keepalive == 5


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["OPENAI_SSE_KEEPALIV", "OPENAI_SSE_keepalive", "OPENAI_SSE_Keepalive", "OPENAI_SSE_KEEP_ALIVE"],
)
def test_an_unknown_key_is_named_with_the_closest_one_and_its_value_is_not(key: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load({key: SECRET, "OPENAI_SSE_MODEL": "m"})
    assert str(raised.value) == f"Unknown configuration: {key} (did you mean OPENAI_SSE_KEEPALIVE?)."


def test_a_key_that_is_like_no_other_is_named_alone() -> None:
    with pytest.raises(ConfigurationError) as raised:
        load({"OPENAI_SSE_": SECRET})
    assert str(raised.value) == "Unknown configuration: OPENAI_SSE_."


def test_all_unknown_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"^Unknown configuration: OPENAI_SSE_A, OPENAI_SSE_B\.$"):
        load({"OPENAI_SSE_B": 1, "OPENAI_SSE_A": 2})


def test_an_unknown_option_is_named_and_its_value_is_not() -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(api_kye=SECRET, KEEPALIVE=5, zzz=1)
    assert str(raised.value) == (
        "Unknown options: KEEPALIVE (did you mean keepalive?), api_kye (did you mean api_key?), zzz."
    )


SECONDS = [name for name, each in FIELDS.items() if "Seconds" in str(each.type)]
COUNTS = [name for name, each in FIELDS.items() if "Count" in str(each.type)]
BOOLEANS = [name for name, each in FIELDS.items() if each.type == "bool"]
TEXTS = [name for name, each in FIELDS.items() if each.type == "str"]

WRONG: list[tuple[str, Any]] = [
    *((name, value) for name in SECONDS for value in (-1, -0.5, float("nan"), "soon", "", True, [], "nan", "-1")),
    *((name, None) for name in SECONDS + COUNTS if FIELDS[name].default is not None),
    *((name, value) for name in COUNTS for value in (0, -1, 1.5, "many", "", True, [], "0")),
    *((name, value) for name in BOOLEANS for value in (2, "yes", "", None, [], 0.5)),
    *((name, value) for name in TEXTS for value in (5, None, True, [], b"text")),
    *(("retry", value) for value in (-1, 0.5, "soon", None, True)),
    *(("models", value) for value in (5, True, ["a", 5], [None], {"a": 1}, {1, "a"}, b"a")),
    *(("trusted_origins", value) for value in (None, 5, ["a", 5])),
    *(("headers", value) for value in (None, 5, "a: b", ["a"], {"a": 5}, {"a": None}, {5: "a"})),
    *(("api_key", value) for value in (5, True, [], b"key", {"a": "b"})),
    *(("log_cipher", value) for value in (5, "a,b", [], [len], (len, None), {len, repr}, len)),
]


def refusal(app_config: Mapping[str, Any] | None = None, **options: Any) -> ConfigurationError | None:
    """What a configuration is refused with, if it is."""
    try:
        load(app_config, **options)
    except ConfigurationError as error:
        return error
    return None


def test_a_value_of_the_wrong_type_or_out_of_range_names_its_key() -> None:
    taken = []
    for name, value in WRONG:
        key = KEY_PREFIX + name.upper()
        errors = [refusal({key: value}), refusal(**{name: value})]
        if not all(key in str(error) for error in errors):
            taken.append((name, value, errors))
    assert taken == []


def test_no_message_ever_holds_a_value() -> None:
    secrets = (f"{SECRET}\n", f"\0{SECRET}", [5, SECRET], {SECRET: 5}, {5: SECRET}, SECRET.encode(), {SECRET: "\n"})
    refused, wrong = 0, []
    for name, value in itertools.product(FIELDS, secrets):
        key = KEY_PREFIX + name.upper()
        if error := refusal({key: value}):  # some of them are right for some
            refused += 1
            if (SECRET in str(error), key in str(error), error.__cause__) != (False, True, None):
                wrong.append((name, value))
    assert wrong == []
    assert refused > len(FIELDS) * 5


ADDRESSES = [
    "",
    "localhost:8000",
    "/v1",
    "ftp://host/v1",
    "http:///v1",
    "http://",
    "https:/host/v1",
    "http://[::1",
    "http://host:99999/v1",
    "http://host:0/v1",
    "http://host:port/v1",
    "http://host/v1 ",
    "http://host/v1\n",
    " http://host/v1",
    "http://ho st/v1",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_base_url_that_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^OPENAI_SSE_BASE_URL must be an http or https address\.$"):
        load(base_url=address)


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{SECRET}@host/v1",
        f"http://{SECRET}@host/v1",
        f"http://:{SECRET}@host/v1",
        "http://@host/v1",
        f"http://a@{SECRET}@host/v1",
        f"http://user:{SECRET}/@host/v1",
        f"http://user:{SECRET}@",
    ],
)
def test_a_base_url_with_credentials_is_refused_without_telling_them(address: str) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_SSE_BASE_URL") as raised:
        load(base_url=address)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    "address",
    [
        "https://name.openai.azure.com/openai/v1?api-version=preview",
        "http://[::1]:8000/v1",
        "HTTP://HOST/v1",
        "http://host",
        "http://host/@cf/v1",
    ],
)
def test_any_other_address_is_taken_as_it_is(address: str) -> None:
    assert load(base_url=address).base_url == address


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"api_key": "sk\n"}, "API_KEY"),
        ({"api_key": "sk-ü"}, "API_KEY"),
        ({"api_key_header": "api-key:\r\nX: y"}, "API_KEY_HEADER"),
        ({"organization": "org\n"}, "ORGANIZATION"),
        ({"project": "pröj"}, "PROJECT"),
        ({"headers": {"X-A": "b\r\nX-C: d"}}, "HEADERS"),
        ({"headers": {"X-A\n": "b"}}, "HEADERS"),
    ],
)
def test_what_no_header_can_carry_is_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^OPENAI_SSE_{key} contains characters that a header can't carry"):
        load(**options)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Connection"])
def test_how_a_request_is_framed_is_not_for_headers_to_say(name: str) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_SSE_HEADERS must not contain any of"):
        load(headers={name: "3"})


@pytest.mark.parametrize("prefix", ["v1", "/", "/v1/", "v1/"])
def test_a_url_prefix_begins_with_a_slash_and_does_not_end_with_one(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^OPENAI_SSE_URL_PREFIX must begin"):
        load(url_prefix=prefix)


@pytest.mark.parametrize("prefix", ["", "/v1", "/api/v1"])
def test_a_url_prefix_may_be_left_empty(prefix: str) -> None:
    assert load(url_prefix=prefix).url_prefix == prefix


def test_an_error_names_the_prefix_of_its_instance() -> None:
    for options in ({"base_url": "x"}, {"url_prefix": "x"}, {"keepalive": -1}, {"api_key": 5}, {"api_key": "\n"}):
        with pytest.raises(ConfigurationError, match="CHAT_"):
            load(prefix="CHAT_", **options)


# The key and the address --------------------------------------------------------------------------------------------


def test_openai_needs_a_key() -> None:
    for base_url in (OPENAI_BASE_URL, "https://API.OpenAI.com/v1"):
        for app_config in ({}, {"OPENAI_SSE_API_KEY": ""}, {"OPENAI_SSE_API_KEY": None}):
            with pytest.raises(ConfigurationError, match=r"set OPENAI_SSE_API_KEY or OPENAI_API_KEY\.$"):
                load(app_config, base_url=base_url, environ={"OPENAI_API_KEY": ""}).check_key()
    assert load(base_url="https://api.example/v1").api_key is None
    load(base_url="https://api.example/v1").check_key()
    with pytest.raises(ConfigurationError, match=r"^OpenAI needs a key: set OPENAI_SSE_UPSTREAMS: API_KEY"):
        load(upstreams=[{"base_url": OPENAI_BASE_URL}])


def test_the_environment_is_the_last_place_to_look() -> None:
    environ = {"OPENAI_API_KEY": "sk-env", "OPENAI_BASE_URL": "http://env/v1", "OPENAI_KEEPALIVE": "1"}

    def made(options: Mapping[str, Any], app_config: Mapping[str, Any]) -> tuple[Any, str]:
        config = Config.load(options, settings=app_config, prefix=KEY_PREFIX, environ=environ)
        assert config.keepalive == 15
        return config.api_key, config.base_url

    assert made({}, {}) == ("sk-env", "http://env/v1")
    assert made({}, {"OPENAI_SSE_API_KEY": "sk-app"}) == ("sk-app", "http://env/v1")
    assert made({}, {"OPENAI_SSE_BASE_URL": "http://app/v1"}) == ("sk-env", "http://app/v1")
    assert made({"api_key": "sk-arg", "base_url": "http://arg/v1"}, {"OPENAI_SSE_API_KEY": "sk-app"}) == (
        "sk-arg",
        "http://arg/v1",
    )
    assert made({"api_key": None}, {}) == ("sk-env", "http://env/v1")


def test_without_anything_the_address_is_openais() -> None:
    config = Config.load({}, settings={}, prefix=KEY_PREFIX, environ={"OPENAI_API_KEY": SECRET})
    assert (config.base_url, config.api_key) == ("https://api.openai.com/v1", SECRET)


def test_the_key_may_be_a_coroutine_function() -> None:
    async def key(principal: Principal) -> str:
        return principal.id

    assert load(api_key=key, base_url=OPENAI_BASE_URL).api_key is key


def test_azure_has_its_own_header() -> None:
    assert load().api_key_header == "Authorization"
    config = load({"OPENAI_SSE_API_KEY_HEADER": "api-key"}, api_key=SECRET)
    assert (config.api_key_header, config.api_key) == ("api-key", SECRET)


def test_keys_are_in_no_repr() -> None:
    config = load(api_key=SECRET, headers={"X-Api-Key": SECRET}, log=f"redis://:{SECRET}@localhost")
    for text in (repr(config), str(config), f"{config}", repr([config])):
        assert SECRET not in text
        assert "keepalive=15" in text


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().keepalive = 1  # type: ignore[misc]


# Values as the environment has them ---------------------------------------------------------------------------------

ENVIRONMENT: list[tuple[str, str, Any]] = [
    ("keepalive", "5", 5.0),
    ("keepalive", "0", 0.0),
    ("keepalive", "2.5", 2.5),
    ("keepalive", '"5"', 5.0),
    ("max_streams", "5", 5),
    ("max_streams", '"5"', 5),
    ("include_usage", "false", False),
    ("include_usage", "False", False),
    ("include_usage", "0", False),
    ("log_responses", "true", True),
    ("log_responses", "True", True),
    ("log_responses", "1", True),
    ("models", "a", ("a",)),
    ("models", "a,b", ("a", "b")),
    ("models", " a , b ,", ("a", "b")),
    ("models", '["a", "b"]', ("a", "b")),
    ("models", "null", None),
    ("models", "[]", ()),
    ("models", "", ()),
    ("trusted_origins", "https://a.example,https://b.example", ("https://a.example", "https://b.example")),
    ("headers", '{"X-A": "b"}', {"X-A": "b"}),
    ("model", "gpt-5-mini", "gpt-5-mini"),
    ("model", "", ""),
    ("base_url", "http://host/v1", "http://host/v1"),
    ("api_key", "sk-1", "sk-1"),
    ("retry", "0", 0),
]


@pytest.mark.parametrize(("name", "text", "value"), ENVIRONMENT)
def test_quarts_from_prefixed_env_is_understood(
    name: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUART_OPENAI_SSE_" + name.upper(), text)
    app = Quart(__name__)
    app.config.from_prefixed_env()
    made = getattr(load(app.config), name)
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize(
    "value", [["a", "b"], ("a", "b"), deque("ab"), {"b", "a"}, frozenset({"a", "b"}), {"b": 1, "a": 2}.keys(), "a,b"]
)
def test_models_may_be_any_collection(value: Any) -> None:
    assert load(models=value).models == ("a", "b")


@pytest.mark.parametrize("made", [list, tuple, deque])
def test_upstreams_may_be_a_sequence_of_objects_and_mappings(made: Any) -> None:
    upstream = UpstreamConfig(base_url=LOCAL)
    config = load(upstreams=made([upstream, {"base_url": LOCAL}, MappingProxyType({"base_url": LOCAL})]))
    assert config.upstreams == (upstream,) * 3


@pytest.mark.parametrize("given", [None, False, True])
@pytest.mark.parametrize("default", [False, True])
def test_an_upstream_says_for_itself_whether_it_sends_a_reason(given: bool | None, default: bool) -> None:
    upstream = UpstreamConfig(base_url=LOCAL, require_finish_reason=given)
    config = load(upstreams=[upstream], require_finish_reason=default)
    assert config.of(upstream).require_finish_reason is (default if given is None else given)


def test_none_and_no_models_are_not_the_same() -> None:
    assert load(models=None).models is None
    assert load(models=[]).models == ()


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(FIELDS)), _json_values)
@example("keepalive", "\udcff")  # as the environment gives bytes that are not UTF-8
@example("include_usage", "\udcff")
@example("models", "\udcff")
@example("base_url", "http://\udcff/v1")
def test_any_value_is_taken_or_refused_by_its_key(name: str, value: Any) -> None:
    key = KEY_PREFIX + name.upper()
    try:
        config = load({key: value})
    except ConfigurationError as error:
        assert key in str(error)  # noqa: PT017 (either may happen)
    else:
        assert isinstance(json.dumps(dataclasses.asdict(config)), str)

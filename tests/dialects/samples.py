"""Samples of each kind: streams and answers written for this harness, with their readings."""

from __future__ import annotations

from typing import Any

from tests.dialects.oracle import FAILURES
from tests.dialects.sample import (
    DONE,
    HEAD,
    SECRET,
    Frame,
    Sample,
    answer,
    called,
    counted,
    counts,
    dumped,
    frame,
    piece,
    role,
    said,
)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _thinking(*texts: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [_text(text) for text in texts]}


REFERENCE = {"type": "reference", "reference_ids": [4, 9]}

PARTS = [
    Sample(
        name="parts-text-list-text",
        kind="parts",
        events=[
            role(),
            said("Tides "),
            said({"content": [_text("follow "), _text("the ")]}),
            said("moon.", "stop"),
            DONE,
        ],
        text="Tides follow the moon.",
    ),
    Sample(
        name="parts-list-first",
        kind="parts",
        events=[
            said({"role": "assistant", "content": [_text("Granite ")]}),
            said("is "),
            said({"content": [_text("hard.")]}),
            said({"content": ""}, "stop"),
            counts(9, 4),
            DONE,
        ],
        text="Granite is hard.",
        usage=(9, 4),
    ),
    Sample(
        name="parts-thinking-lists",
        kind="parts",
        events=[
            role(),
            said({"content": [_thinking("Weigh ", "both ")]}),
            said({"content": [_thinking("sides."), _text("Left ")]}),
            said("wins.", "stop", usage=counted(9, 4)),
            DONE,
        ],
        text="Left wins.",
        reasoning="Weigh both sides.",
        usage=(9, 4),
    ),
    Sample(
        name="parts-thinking-str",
        kind="parts",
        events=[
            role(),
            said({"content": [{"type": "thinking", "thinking": "Count "}]}),
            said({"content": [{"type": "thinking", "thinking": "legs."}]}),
            said({"content": [_text("Eight.")]}, "stop"),
            DONE,
        ],
        text="Eight.",
        reasoning="Count legs.",
    ),
    Sample(
        name="parts-reference-between",
        kind="parts",
        events=[role(), said("Per "), said({"content": [REFERENCE]}), said("page nine.", "stop"), DONE],
        text="Per page nine.",
        keeps=[REFERENCE],
    ),
    Sample(
        name="parts-whole-answer",
        kind="parts",
        body=answer(
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": [_thinking("Sum."), _text("Forty "), REFERENCE, _text("two.")],
                },
            }
        ),
        text="Forty two.",
        reasoning="Sum.",
        usage=(9, 4),
        keeps=[REFERENCE],
    ),
    Sample(
        name="parts-empty-list",
        kind="parts",
        events=[role(), said("Basalt."), said({"content": []}), said({"content": []}, "stop"), DONE],
        text="Basalt.",
    ),
]


def _choice(**members: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [members]}


MESSAGE = [
    Sample(
        name="message-last-frame-repeats",
        kind="message",
        events=[
            said({"role": "assistant", "content": "Amber "}),
            said("glows."),
            {
                **HEAD,
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "Amber glows.", "name": "helper"},
                    }
                ],
                "usage": counted(9, 4),
            },
        ],
        text="Amber glows.",
        usage=(9, 4),
    ),
    Sample(
        name="message-last-frame-repeats-call",
        kind="message",
        events=[
            called(piece(0, id="call_r", type="function", name="look", arguments='{"at":"sky"}')),
            _choice(
                index=0,
                finish_reason="tool_calls",
                message={
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"id": "call_r", "type": "function", "function": {"name": "look", "arguments": '{"at":"sky"}'}}
                    ],
                },
            ),
            DONE,
        ],
        calls=[("look", '{"at":"sky"}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="message-only-event",
        kind="message",
        events=[
            {
                **HEAD,
                "object": "chat.completion",
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Whole at once."}}
                ],
                "usage": counted(9, 4),
            },
            DONE,
        ],
        text="Whole at once.",
        usage=(9, 4),
    ),
    Sample(
        name="message-empty-delta-beside",
        kind="message",
        body=answer(
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Lisbon."},
                "delta": {"role": "assistant", "content": ""},
            },
            citations=["https://atlas.example/lisbon"],
        ),
        text="Lisbon.",
        usage=(9, 4),
        details={"citations": ["https://atlas.example/lisbon"]},
    ),
    Sample(
        name="message-grows-beside-delta",
        kind="message",
        events=[
            _choice(index=0, delta={"role": "assistant", "content": "Copper "}, message={"content": "Copper "}),
            _choice(index=0, delta={"content": "bends."}, message={"content": "Copper bends."}),
            _choice(index=0, delta={"content": ""}, message={"content": "Copper bends."}, finish_reason="stop"),
            DONE,
        ],
        text="Copper bends.",
    ),
    Sample(
        name="message-missing-filtered",
        kind="message",
        body=answer(
            {"index": 0, "finish_reason": "content_filter", "content_filter_results": {"self_harm": {"filtered": True}}}
        ),
        finish_reason="content_filter",
        usage=(9, 4),
    ),
    Sample(
        name="message-null-filtered",
        kind="message",
        body=answer({"index": 0, "finish_reason": "content_filter", "message": None}),
        finish_reason="content_filter",
        usage=(9, 4),
    ),
    Sample(
        name="message-choice-without-index",
        kind="message",
        events=[
            _choice(delta={"role": "assistant", "content": "No "}, finish_reason=None),
            _choice(delta={"content": "number."}, finish_reason=None),
            _choice(delta={}, finish_reason="stop"),
            DONE,
        ],
        text="No number.",
    ),
    Sample(
        name="message-whole-without-index",
        kind="message",
        body=answer({"finish_reason": "length", "message": {"role": "assistant", "content": "Unnumbered"}}),
        text="Unnumbered",
        finish_reason="length",
        usage=(9, 4),
    ),
]


def _detail(**members: Any) -> dict[str, Any]:
    return {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1", **members}


REASONING = [
    *(
        Sample(
            name=f"reasoning-{member}",
            kind="reasoning",
            events=[
                said({"role": "assistant", member: "First "}),
                said({member: "guess."}),
                said("Seven."),
                said({}, "stop"),
                DONE,
            ],
            text="Seven.",
            reasoning="First guess.",
        )
        for member in ("reasoning_content", "reasoning", "reasoning_text", "thinking")
    ),
    Sample(
        name="reasoning-thinking-blocks",
        kind="reasoning",
        events=[
            role(),
            said({"thinking_blocks": [{"type": "thinking", "thinking": "Try ", "signature": None}]}),
            said({"thinking_blocks": [{"type": "thinking", "thinking": "north."}]}),
            said({"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "c2lnbmVk"}]}),
            said("North.", "stop"),
            DONE,
        ],
        text="North.",
        reasoning="Try north.",
        message={"thinking_blocks": [{"type": "thinking", "thinking": "Try north.", "signature": "c2lnbmVk"}]},
    ),
    Sample(
        name="reasoning-said-twice",
        kind="reasoning",
        events=[
            role(),
            said(
                {
                    "reasoning": "Add ",
                    "reasoning_content": "Add ",
                    "thinking_blocks": [{"type": "thinking", "thinking": "Add "}],
                }
            ),
            said(
                {
                    "reasoning": "ten.",
                    "reasoning_content": "ten.",
                    "thinking_blocks": [{"type": "thinking", "thinking": "ten."}],
                }
            ),
            said("Nineteen.", "stop"),
            DONE,
        ],
        text="Nineteen.",
        reasoning="Add ten.",
    ),
    Sample(
        name="reasoning-details-merged",
        kind="reasoning",
        events=[
            said(
                {"role": "assistant", "content": "", "reasoning": "Look ", "reasoning_details": [_detail(text="Look ")]}
            ),
            said({"content": "", "reasoning": "twice.", "reasoning_details": [_detail(text="twice.")]}),
            said({"content": "", "reasoning_details": [_detail(signature="QUJD")]}),
            said("Twice.", "stop"),
            DONE,
        ],
        text="Twice.",
        reasoning="Look twice.",
        message={"reasoning_details": [_detail(text="Look twice.", signature="QUJD")]},
    ),
    Sample(
        name="reasoning-details-alone-two",
        kind="reasoning",
        events=[
            role(),
            said({"reasoning_details": [_detail(text="One. ")]}),
            said({"reasoning_details": [_detail(signature="Rmlyc3Q=")]}),
            said({"reasoning_details": [{**_detail(text="Two."), "index": 1}]}),
            said("Three.", "stop"),
            DONE,
        ],
        text="Three.",
        reasoning="One. Two.",
        message={
            "reasoning_details": [_detail(text="One. ", signature="Rmlyc3Q="), {**_detail(text="Two."), "index": 1}]
        },
    ),
    Sample(
        name="reasoning-constant-members",
        kind="reasoning",
        events=[
            said({"role": "assistant", "reasoning": "Ask ", "channel": "analysis", "message_id": "msg_55"}),
            said({"role": "assistant", "reasoning": "again.", "channel": "analysis", "message_id": "msg_55"}),
            said({"role": "assistant", "content": "Asked.", "message_id": "msg_55"}),
            said({"role": "assistant", "content": ""}, "stop"),
            DONE,
        ],
        text="Asked.",
        reasoning="Ask again.",
        message={"role": "assistant", "channel": "analysis", "message_id": "msg_55"},
    ),
    Sample(
        name="reasoning-same-word-twice",
        kind="reasoning",
        events=[
            role(),
            said({"reasoning_content": "no "}),
            said({"reasoning_content": "no "}),
            said("ha"),
            said("ha"),
            said({}, "stop"),
            DONE,
        ],
        text="haha",
        reasoning="no no ",
    ),
]

CALLS = [
    Sample(
        name="calls-two-by-index",
        kind="calls",
        events=[
            role(),
            called(piece(0, id="call_a", type="function", name="find", arguments="")),
            called(piece(1, id="call_b", type="function", name="sort", arguments="")),
            called(piece(0, arguments='{"what":')),
            called(piece(1, arguments='{"by":"age"}')),
            called(piece(0, arguments='"owls"}')),
            said({}, "tool_calls"),
            DONE,
        ],
        calls=[("find", '{"what":"owls"}'), ("sort", '{"by":"age"}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-without-index-by-id",
        kind="calls",
        events=[
            called(piece(None, id="call_a", type="function", name="find", arguments='{"what"')),
            called(piece(None, id="call_a", arguments=':"bats"}')),
            called(piece(None, id="call_b", type="function", name="sort", arguments='{"by":')),
            called(piece(None, id="call_b", arguments='"size"}')),
            said({}, "tool_calls"),
            DONE,
        ],
        calls=[("find", '{"what":"bats"}'), ("sort", '{"by":"size"}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-same-index-new-id",
        kind="calls",
        events=[
            called(piece(0, id="call_a", type="function", name="find", arguments='{"what":"elk"}')),
            called(
                piece(0, id="call_b", type="function", name="find", arguments='{"what":"elm"}'), finish="tool_calls"
            ),
            DONE,
        ],
        calls=[("find", '{"what":"elk"}'), ("find", '{"what":"elm"}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-new-id-in-each-piece",
        kind="calls",
        events=[
            role(),
            called(piece(0, id="p-10", type="function", name="book", arguments="")),
            called(piece(0, id="p-11", type="function", arguments='{"seat"')),
            called(piece(0, id="p-12", type="function", name="", arguments=":")),
            called(piece(0, id="p-13", type="function", name=None, arguments="12}")),
            said({}, "tool_calls", usage=counted(9, 4)),
            DONE,
        ],
        calls=[("book", '{"seat":12}')],
        finish_reason="tool_calls",
        usage=(9, 4),
    ),
    Sample(
        name="calls-whole-without-ids",
        kind="calls",
        events=[
            said({"role": "assistant", "tool_calls": [piece(None, name="open", arguments='{"door":1}')]}),
            called(piece(None, name="open", arguments='{"door":2}'), finish="tool_calls"),
            DONE,
        ],
        calls=[("open", '{"door":1}'), ("open", '{"door":2}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-whole-without-ids-one-delta",
        kind="calls",
        events=[
            said(
                {
                    "role": "assistant",
                    "tool_calls": [
                        piece(0, id="", name="lock", arguments="{}"),
                        piece(0, id=None, name="alarm", arguments='{"on":true}'),
                    ],
                },
                "tool_calls",
            ),
            DONE,
        ],
        calls=[("lock", "{}"), ("alarm", '{"on":true}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-object",
        kind="calls",
        events=[
            said(
                {"role": "assistant", "tool_calls": piece(0, id="", type="function", name="heat", arguments='{"to":')}
            ),
            said({"tool_calls": piece(0, id="", type="function", name=None, arguments="21}")}),
            said({"content": ""}, "tool_calls"),
            DONE,
        ],
        calls=[("heat", '{"to":21}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-arguments-object",
        kind="calls",
        events=[
            called(piece(0, id="call_o", type="function", name="plot", arguments={"from": 1, "to": [2, 3]})),
            said({}, "tool_calls"),
            DONE,
        ],
        calls=[("plot", '{"from":1,"to":[2,3]}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-arguments-object-whole",
        kind="calls",
        body=answer(
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "call_w", "type": "function", "function": {"name": "plot", "arguments": {"from": 5}}}
                    ],
                },
            }
        ),
        calls=[("plot", '{"from":5}')],
        finish_reason="tool_calls",
        usage=(9, 4),
    ),
    Sample(
        name="calls-name-and-id-repeated",
        kind="calls",
        events=[
            called(piece(0, id="call_n", type="function", name="send", arguments='{"to"')),
            called(piece(0, id="call_n", type="function", name="send", arguments=':"Ann"')),
            called(piece(0, id="call_n", type="function", name="send", arguments="}")),
            said({}, "tool_calls"),
            DONE,
        ],
        calls=[("send", '{"to":"Ann"}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-interleaved-by-id",
        kind="calls",
        events=[
            called(piece(None, id="call_a", type="function", name="find", arguments="")),
            called(piece(None, id="call_b", type="function", name="sort", arguments="")),
            called(piece(None, id="call_a", arguments='{"what":"ants"}')),
            called(piece(None, id="call_b", arguments='{"by":"weight"}')),
            said({}, "tool_calls"),
            DONE,
        ],
        calls=[("find", '{"what":"ants"}'), ("sort", '{"by":"weight"}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-new-id-without-index",
        kind="calls",
        events=[
            role(),
            called(piece(None, id="q-1", type="function", name="dial")),
            called(piece(None, id="q-2", arguments='{"number":')),
            called(piece(None, id="q-3", arguments='"112"}'), finish="tool_calls"),
            DONE,
        ],
        calls=[("dial", '{"number":"112"}')],
        finish_reason="tool_calls",
    ),
    Sample(
        name="calls-after-text",
        kind="calls",
        events=[
            said({"role": "assistant", "content": "Looking it up."}),
            called(piece(0, id="call_t", type="function", name="find", arguments='{"what":"ox"}')),
            said({}, "tool_calls"),
            DONE,
        ],
        text="Looking it up.",
        calls=[("find", '{"what":"ox"}')],
        finish_reason="tool_calls",
    ),
]

SOURCES = ["https://docs.example/one", "https://docs.example/two"]
RESULTS = [{"title": "One", "url": SOURCES[0], "date": "2024-05-01"}]
ANNOTATIONS = [
    {"type": "url_citation", "url_citation": {"url": url, "title": url[-3:], "start_index": 0, "end_index": 4}}
    for url in SOURCES
]
IMAGES = [
    {"type": "image_url", "index": index, "image_url": {"url": f"data:image/png;base64,{data}"}}
    for index, data in enumerate(("Rmlyc3RJbWFnZQ==", "U2Vjb25kSW1hZ2U="))
]
FILTER = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}]

DETAILS = [
    Sample(
        name="details-repeated-in-each-chunk",
        kind="details",
        events=[
            role(citations=SOURCES, search_results=RESULTS),
            said("Rain ", citations=SOURCES, search_results=RESULTS),
            said("soon.", citations=SOURCES, search_results=RESULTS),
            said({"content": ""}, "stop", citations=SOURCES, search_results=RESULTS, usage=counted(9, 4)),
            DONE,
        ],
        text="Rain soon.",
        usage=(9, 4),
        details={"citations": SOURCES, "search_results": RESULTS},
    ),
    Sample(
        name="details-only-in-the-last",
        kind="details",
        events=[
            role(),
            said("Fog."),
            said({}, "stop", citations=SOURCES, search_results=RESULTS),
            counts(9, 4),
            DONE,
        ],
        text="Fog.",
        usage=(9, 4),
        details={"citations": SOURCES, "search_results": RESULTS},
    ),
    Sample(
        name="details-without-choices",
        kind="details",
        events=[role(), said("Hail."), said({}, "stop"), {**HEAD, "choices": [], "citations": SOURCES}, DONE],
        text="Hail.",
        details={"citations": SOURCES},
    ),
    Sample(
        name="details-without-choices-with-usage",
        kind="details",
        events=[role(), said("Snow."), said({}, "stop"), counts(9, 4, citations=SOURCES), DONE],
        text="Snow.",
        usage=(9, 4),
        details={"citations": SOURCES},
    ),
    Sample(
        name="details-with-an-empty-delta",
        kind="details",
        events=[role(), said("Wind."), said({}, citations=SOURCES), said({}, "stop"), DONE],
        text="Wind.",
        details={"citations": SOURCES},
    ),
    Sample(
        name="details-with-the-first-role",
        kind="details",
        events=[role(citations=SOURCES), said("Frost."), said({}, "stop"), DONE],
        text="Frost.",
        details={"citations": SOURCES},
    ),
    Sample(
        name="details-annotations",
        kind="details",
        events=[
            role(),
            said("Dew."),
            said({"annotations": ANNOTATIONS[:1]}),
            said({"content": "", "annotations": ANNOTATIONS[1:]}, "stop"),
            DONE,
        ],
        text="Dew.",
        details={"annotations": ANNOTATIONS},
    ),
    Sample(
        name="details-images",
        kind="details",
        events=[
            role(),
            said({"content": "Two drawings.", "images": IMAGES[:1]}),
            said({"content": "", "images": IMAGES[1:]}),
            said({}, "stop"),
            DONE,
        ],
        text="Two drawings.",
        details={"images": IMAGES},
    ),
    Sample(
        name="details-image-alone",
        kind="details",
        events=[
            said(
                {
                    "role": "assistant",
                    "content": "",
                    "images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,T25l"}}],
                }
            ),
            said({}, "stop"),
            DONE,
        ],
        details={"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,T25l"}}]},
    ),
    Sample(
        name="details-refusal",
        kind="details",
        events=[
            said({"role": "assistant", "content": "", "refusal": None}),
            said({"refusal": "I cannot "}),
            said({"refusal": "do that."}),
            said({}, "stop"),
            DONE,
        ],
        text="I cannot do that.",
        refusal="I cannot do that.",
    ),
    Sample(
        name="details-refusal-after-text",
        kind="details",
        events=[
            said({"role": "assistant", "content": "Sure: "}),
            said({"refusal": "no, not that."}),
            said({"content": ""}, "stop"),
            DONE,
        ],
        text="Sure: no, not that.",
        refusal="no, not that.",
    ),
    Sample(
        name="details-refusal-whole",
        kind="details",
        body=answer(
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": None, "refusal": "Not today."},
            }
        ),
        text="Not today.",
        refusal="Not today.",
        usage=(9, 4),
    ),
    Sample(
        name="details-citations-grow",
        kind="details",
        events=[
            said({"role": "assistant", "content": "First "}, citations=SOURCES[:1]),
            said("second.", citations=SOURCES),
            said({}, "stop", citations=SOURCES),
            DONE,
        ],
        text="First second.",
        details={"citations": SOURCES},
    ),
    Sample(
        name="details-prompt-filter",
        kind="details",
        events=[
            {**HEAD, "id": "", "model": "", "choices": [], "prompt_filter_results": FILTER},
            role(),
            said("Safe."),
            said({}, "stop"),
            DONE,
        ],
        text="Safe.",
        details={"prompt_filter_results": FILTER},
    ),
    Sample(
        name="details-whole-answer",
        kind="details",
        body=answer(
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Mist.", "annotations": ANNOTATIONS},
            },
            citations=SOURCES,
            search_results=RESULTS,
        ),
        text="Mist.",
        usage=(9, 4),
        details={"citations": SOURCES, "search_results": RESULTS, "annotations": ANNOTATIONS},
    ),
]


def _choice_usage(delta: Any, finish: str | None, prompt: int, completion: int) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "usage": counted(prompt, completion)}
    return {**HEAD, "choices": [choice]}


USAGE = [
    Sample(
        name="usage-x-groq",
        kind="usage",
        events=[
            role(x_groq={"id": "req_31"}),
            said("Fast."),
            said({}, "stop", x_groq={"id": "req_31", "usage": {**counted(9, 4), "queue_time": 0.01}}),
            DONE,
        ],
        text="Fast.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-in-the-choice",
        kind="usage",
        events=[
            _choice_usage({"role": "assistant", "content": "Kept "}, None, 9, 1),
            _choice_usage({"content": "within."}, None, 9, 3),
            _choice_usage({"content": ""}, "stop", 9, 4),
            DONE,
        ],
        text="Kept within.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-cumulative",
        kind="usage",
        events=[
            said({"role": "assistant", "content": "Two "}, usage=counted(9, 1)),
            said("words.", usage=counted(9, 2)),
            said({"content": ""}, "stop", usage=counted(9, 3)),
            DONE,
        ],
        text="Two words.",
        usage=(9, 3),
    ),
    Sample(
        name="usage-repeated",
        kind="usage",
        events=[role(), said("Once."), said({}, "stop", usage=counted(9, 4)), counts(9, 4), counts(9, 4), DONE],
        text="Once.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-without-total",
        kind="usage",
        events=[
            role(),
            said("Untotalled."),
            said({}, "stop"),
            {**HEAD, "choices": [], "usage": counted(9, 4, total=False)},
            DONE,
        ],
        text="Untotalled.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-zeros-last",
        kind="usage",
        events=[role(), said("Real."), said({}, "stop", usage=counted(9, 4)), counts(0, 0), DONE],
        text="Real.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-zeros-first",
        kind="usage",
        events=[role(usage=counted(0, 0)), said("Later.", usage=counted(0, 0)), said({}, "stop"), counts(9, 4), DONE],
        text="Later.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-late-in-an-empty-delta",
        kind="usage",
        events=[role(), said("Light."), said({}, "stop"), said({}, usage=counted(9, 4)), DONE],
        text="Light.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-late-in-a-null-delta",
        kind="usage",
        events=[
            role(),
            said("Nulls."),
            said({}, "stop"),
            said({"role": None, "content": None, "tool_calls": None}, usage=counted(9, 4)),
            DONE,
        ],
        text="Nulls.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-late-without-done",
        kind="usage",
        events=[role(), said("Dusk."), said({}, "stop"), counts(9, 4)],
        text="Dusk.",
        usage=(9, 4),
    ),
    Sample(
        name="usage-in-an-error",
        kind="usage",
        events=[
            role(),
            said("Half a "),
            said(
                {"content": ""}, "error", error={"code": 502, "message": "The provider is gone."}, usage=counted(9, 4)
            ),
            DONE,
        ],
        text="Half a ",
        usage=(9, 4),
        outcome="failed",
        finish_reason=None,
    ),
]


def _id(chunk: dict[str, Any], new: Any) -> dict[str, Any]:
    return {**chunk, "id": new}


def _without_id(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name != "id"}


PLAIN = [role(), said("River "), said("stones."), said({}, "stop"), counts(9, 4)]

IDS = [
    Sample(name="ids-same", kind="ids", events=[*PLAIN, DONE], text="River stones.", usage=(9, 4)),
    Sample(
        name="ids-empty",
        kind="ids",
        events=[*(_id(each, "") for each in PLAIN), DONE],
        text="River stones.",
        usage=(9, 4),
    ),
    Sample(
        name="ids-missing",
        kind="ids",
        events=[*(_without_id(each) for each in PLAIN), DONE],
        text="River stones.",
        usage=(9, 4),
    ),
    Sample(
        name="ids-null",
        kind="ids",
        events=[*(_id(each, None) for each in PLAIN), DONE],
        text="River stones.",
        usage=(9, 4),
    ),
    Sample(
        name="ids-new-in-each",
        kind="ids",
        events=[*(_id(each, f"n{number}") for number, each in enumerate(PLAIN)), DONE],
        text="River stones.",
        usage=(9, 4),
    ),
    Sample(
        name="ids-new-in-each-usage-repeated",
        kind="ids",
        events=[
            _id(said({"role": "assistant", "content": "Sum "}, usage=counted(9, 1)), "u1"),
            _id(said("once.", usage=counted(9, 3)), "u2"),
            _id(said({}, "stop", usage=counted(9, 4)), "u3"),
            DONE,
        ],
        text="Sum once.",
        usage=(9, 4),
    ),
    Sample(
        name="ids-change-once",
        kind="ids",
        events=[_id(PLAIN[0], "one"), _id(PLAIN[1], "one"), *(_id(each, "two") for each in PLAIN[2:]), DONE],
        text="River stones.",
        usage=(9, 4),
    ),
    Sample(
        name="ids-missing-from-usage",
        kind="ids",
        events=[*PLAIN[:-1], _without_id(PLAIN[-1]), DONE],
        text="River stones.",
        usage=(9, 4),
    ),
]


def _erring(**members: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": ""}, "finish_reason": None, **members}
    return {**HEAD, "choices": [choice]}


def _at(index: int, content: str, finish: str | None = None) -> dict[str, Any]:
    delta = {"role": "assistant", "content": content}
    return {**HEAD, "id": f"chat.{index}", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


BUSY = {"error": {"code": 503, "message": "Busy."}}
MINIMAX = {**HEAD, "choices": [], "base_resp": {"status_code": 1000, "status_msg": "Busy."}}

ENDINGS = [
    *(
        Sample(
            name=f"endings-{reason}",
            kind="endings",
            events=[role(), said("Broken "), said("off"), said({"content": ""}, reason), DONE],
            text="Broken off",
            outcome="failed",
            finish_reason=None,
        )
        for reason in FAILURES
    ),
    Sample(
        name="endings-null-as-text",
        kind="endings",
        events=[role(), said("Never ", "null"), said("quite", "null"), DONE],
        text="Never quite",
        outcome="failed",
        finish_reason=None,
    ),
    Sample(
        name="endings-null-as-text-then-stop",
        kind="endings",
        events=[role(), said("Ended ", "null"), said("well.", "null"), said({"content": ""}, "stop"), DONE],
        text="Ended well.",
    ),
    Sample(
        name="endings-error-in-the-choice",
        kind="endings",
        events=[
            role(),
            said("Gone "),
            _erring(finish_reason="error", error={"code": 502, "message": "Lost the model."}),
            DONE,
        ],
        text="Gone ",
        outcome="failed",
        finish_reason=None,
    ),
    Sample(
        name="endings-error-in-the-choice-with-stop",
        kind="endings",
        events=[role(), said("Gone too"), _erring(finish_reason="stop", error={"message": "Out of memory."}), DONE],
        text="Gone too",
        outcome="failed",
        finish_reason=None,
    ),
    Sample(
        name="endings-output-after-finish",
        kind="endings",
        events=[role(), said("Done?", "stop"), said(" Not yet")],
        text="Done? Not yet",
        outcome="failed",
        finish_reason=None,
    ),
    Sample(
        name="endings-output-after-finish-done",
        kind="endings",
        events=[role(), said("Done?", "stop"), said(" Yes."), DONE],
        text="Done? Yes.",
    ),
    Sample(
        name="endings-empty-reason-done",
        kind="endings",
        events=[said({"role": "assistant", "content": "Un"}, ""), said("named", ""), said({"content": ""}, ""), DONE],
        text="Unnamed",
        finish_reason=None,
    ),
    Sample(
        name="endings-empty-reason-alone",
        kind="endings",
        events=[said({"role": "assistant", "content": "Un"}, ""), said("named", ""), said({"content": ""}, "")],
        text="Unnamed",
        outcome="failed",
        finish_reason=None,
    ),
    Sample(
        name="endings-empty-reason-then-stop",
        kind="endings",
        events=[said({"role": "assistant", "content": "Named "}, ""), said("last.", ""), said({"content": ""}, "stop")],
        text="Named last.",
    ),
    Sample(
        name="endings-done-alone",
        kind="endings",
        events=[role(), said("Only "), said("done."), DONE],
        text="Only done.",
        outcome="failed",
        finish_reason=None,
        lenient="completed",
    ),
    Sample(
        name="endings-usage-and-done",
        kind="endings",
        events=[role(), said("Counted."), counts(9, 4), DONE],
        text="Counted.",
        usage=(9, 4),
        outcome="failed",
        finish_reason=None,
        lenient="completed",
    ),
    Sample(
        name="endings-nothing",
        kind="endings",
        events=[role(), said("Neither "), said("sign")],
        text="Neither sign",
        outcome="failed",
        finish_reason=None,
    ),
    Sample(
        name="endings-finish-alone",
        kind="endings",
        events=[role(), said("Finish "), said("only."), said({}, "length")],
        text="Finish only.",
        finish_reason="length",
    ),
    Sample(
        name="endings-new-index-in-each",
        kind="endings",
        events=[_at(0, "Each "), _at(1, "its "), _at(2, "own."), _at(3, "", "stop"), DONE],
        text="Each its own.",
    ),
    Sample(
        name="endings-new-index-in-each-no-done",
        kind="endings",
        events=[_at(0, "Still "), _at(1, "joined."), _at(2, "", "stop")],
        text="Still joined.",
    ),
    *(
        Sample(
            name=f"endings-error-{name}",
            kind="endings",
            frames=[frame(role()), frame(said("Lost ")), frame(said("half")), Frame(wire, data, "error")],
            text="Lost half",
            outcome="failed",
            finish_reason=None,
        )
        for name, wire, data in (
            ("in-an-array", b"data: [%b]\n\n" % dumped(BUSY), dumped([BUSY])),
            ("by-its-event", b"event: error\ndata: %b\n\n" % dumped(BUSY["error"]), dumped(BUSY["error"])),
            ("as-a-field", b"error: %b\n\n" % dumped(BUSY), dumped(BUSY)),
            ("as-a-field-of-text", b"error: Busy.\n\n", b'"Busy."'),
            ("without-a-field", b"%b\n\n" % dumped(BUSY), dumped(BUSY)),
            ("without-an-end", b"%b" % dumped(BUSY), dumped(BUSY)),
            ("in-base-resp", b"data: %b\n\n" % dumped(MINIMAX), dumped(MINIMAX)),
        )
    ),
]


def _redacts(name: str, *events: Any, body: bytes = b"", **reading: Any) -> Sample:
    return Sample(name=f"transforms-{name}", kind="transforms", events=events, body=body, **reading)


_TOOL = {"id": "call_s", "type": "function", "function": {"name": "tell", "arguments": f'{{"word":"{SECRET}"}}'}}

TRANSFORMS = [
    _redacts("content", role(), said(f"It is {SECRET}"), said("."), said({}, "stop"), DONE, text=f"It is {SECRET}."),
    _redacts(
        "parts",
        role(),
        said({"content": [_text("It "), _text(f"is {SECRET}"), REFERENCE]}),
        said(".", "stop"),
        DONE,
        text=f"It is {SECRET}.",
        keeps=[REFERENCE],
    ),
    _redacts(
        "thinking-parts",
        role(),
        said({"content": [_thinking("Hide ", SECRET)]}),
        said({"content": [{"type": "thinking", "thinking": f" and {SECRET}"}]}),
        said("Nothing.", "stop"),
        DONE,
        text="Nothing.",
        reasoning=f"Hide {SECRET} and {SECRET}",
    ),
    _redacts(
        "message-beside-delta",
        _choice(
            index=0, delta={"role": "assistant", "content": "Say "}, message={"role": "assistant", "content": "Say "}
        ),
        _choice(index=0, delta={"content": SECRET}, message={"role": "assistant", "content": f"Say {SECRET}"}),
        _choice(index=0, delta={"content": ""}, finish_reason="stop"),
        DONE,
        text=f"Say {SECRET}",
    ),
    _redacts(
        "message-instead-of-delta",
        _choice(index=0, message={"role": "assistant", "content": f"Whole {SECRET}."}, finish_reason="stop"),
        DONE,
        text=f"Whole {SECRET}.",
    ),
    _redacts(
        "text-of-a-completion",
        role(),
        said("Mixed "),
        _choice(index=0, text=f"{SECRET}", delta={"content": "in."}, finish_reason="stop"),
        DONE,
        text="Mixed in.",
    ),
    _redacts(
        "reasoning-each-name",
        role(),
        *(said({member: f"{SECRET} "}) for member in ("reasoning_content", "reasoning", "reasoning_text", "thinking")),
        said({"thinking_blocks": [{"type": "thinking", "thinking": SECRET}]}),
        said("Quiet.", "stop"),
        DONE,
        text="Quiet.",
        reasoning=f"{SECRET} " * 4 + SECRET,
    ),
    _redacts(
        "reasoning-details",
        said({"role": "assistant", "content": "", "reasoning": SECRET, "reasoning_details": [_detail(text=SECRET)]}),
        said({"reasoning_details": [{"type": "reasoning.summary", "index": 1, "summary": f" {SECRET}"}]}),
        said("Calm.", "stop"),
        DONE,
        text="Calm.",
        reasoning=f"{SECRET} {SECRET}",
    ),
    _redacts(
        "refusal",
        said({"role": "assistant", "refusal": f"Not {SECRET}"}),
        said({}, "stop"),
        DONE,
        text=f"Not {SECRET}",
        refusal=f"Not {SECRET}",
    ),
    _redacts(
        "arguments",
        called(piece(0, id="call_s", type="function", name="tell", arguments=f'{{"word":"{SECRET}"}}')),
        said({}, "tool_calls"),
        DONE,
        calls=[("tell", f'{{"word":"{SECRET}"}}')],
        finish_reason="tool_calls",
    ),
    _redacts(
        "arguments-object",
        called(
            piece(0, id="call_s", type="function", name="tell", arguments={"word": SECRET, "list": [f"a {SECRET}"]})
        ),
        said({}, "tool_calls"),
        DONE,
        calls=[("tell", f'{{"word":"{SECRET}","list":["a {SECRET}"]}}')],
        finish_reason="tool_calls",
    ),
    _redacts(
        "calls-object",
        said({"role": "assistant", "tool_calls": piece(0, id="", name="tell", arguments=f'{{"word":"{SECRET}"}}')}),
        said({}, "tool_calls"),
        DONE,
        calls=[("tell", f'{{"word":"{SECRET}"}}')],
        finish_reason="tool_calls",
    ),
    _redacts(
        "whole-answer",
        body=answer(
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": [_thinking(SECRET), _text(f"Told {SECRET}.")],
                    "tool_calls": [_TOOL],
                },
            }
        ),
        text=f"Told {SECRET}.",
        reasoning=SECRET,
        calls=[("tell", f'{{"word":"{SECRET}"}}')],
        usage=(9, 4),
    ),
]

SAMPLES = [*PARTS, *MESSAGE, *REASONING, *CALLS, *DETAILS, *USAGE, *IDS, *ENDINGS, *TRANSFORMS]
"""All of them, kind by kind."""

assert len({sample.name for sample in SAMPLES}) == len(SAMPLES)

"""What is printed and drawn of the samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.measure import Sample, Spread, ratios, spreads
from tests.benchmarks.modes import Figure, Mode

AGAINST = ("gin", "nginx")
WHOLE = "ours-uvicorn"
"""What each feature is taken from, or added to."""


def tables(
    samples: Sequence[Sample],
    modes: Iterable[Mode],
    groups: Mapping[str, str],
    missing: Mapping[str, str],
    about: Sequence[str],
    pairs: Mapping[str, str] | None = None,
) -> str:
    """A table for each of *modes*, another for what features cost, and why some servers are *missing*.

    *groups* are those of the servers, by name. *pairs* are this checkout's servers and their names at another commit.
    """
    parts = ["\n".join(about)]
    for mode in modes:
        others, features = divided(samples, mode, groups)
        parts += table(others, mode, mode.title, AGAINST, pairs)
        parts += table(features, mode, f"{mode.title}; what features cost", (WHOLE,), pairs)
    if missing:
        parts.append("Not measured\n" + "\n".join(f"  {name}: {why}" for name, why in missing.items()))
    if lost := [
        f"  round {each.round}, {each.server}, {each.mode}: {why}" for each in samples for why in each.problems
    ]:
        parts.append("LOST OR GARBLED\n" + "\n".join(lost))
    return "\n\n".join(parts) + "\n"


def divided(samples: Sequence[Sample], mode: Mode, groups: Mapping[str, str]) -> tuple[list[Sample], list[Sample]]:
    """Of one mode: the servers, and what features cost beside all that is on by default; nothing if there is none."""
    own = [each for each in samples if each.mode == mode.name]
    others = [each for each in own if groups[each.server] != "features"]
    features = [each for each in own if groups[each.server] == "features"]
    whole = [each for each in others if build_in(each.server)[0] == WHOLE]
    return others, whole + features if features else []


def build_in(name: str) -> tuple[str, str]:
    """The server's name alone, and what follows it for another commit's build: `@1a2b3c4`, or nothing."""
    server, at, label = name.partition("@")
    return server, at + label


def table(
    samples: Sequence[Sample],
    mode: Mode,
    title: str,
    against: Sequence[str],
    pairs: Mapping[str, str] | None = None,
) -> list[str]:
    """One mode: a line for each server with its figures, and the ratios of the first one. Nothing if there is none."""
    names = list(dict.fromkeys(sample.server for sample in samples if sample.mode == mode.name))
    if not names:
        return []
    main = compared(samples, mode)
    columns = [(figure.unit, _cells(samples, mode, figure)) for figure in mode.figures]
    bases: list[tuple[str, Figure, Mapping[str, str]]] = []
    if pairs:
        other = build_in(next(iter(pairs.values())))[1]
        bases.append((f"of {other}", main, pairs))
        work = cost(samples, mode)
        if work and work != main:
            bases.append((f"{work.unit.partition(' ')[0]} of {other}", work, pairs))
    bases += [(f"of {base}", main, _same_build(names, base)) for base in against]
    for heading, figure, of in bases:
        found = ratios(samples, mode.name, figure.name, against=of)
        columns.append((heading, {name: ratio(spread) for name, spread in found.items()}))
    columns = [(unit, cells) for unit, cells in columns if cells]
    rows = [["", *(unit for unit, _ in columns)]]
    rows += [[name, *(cells.get(name, "-") for _, cells in columns)] for name in names]
    late = spreads(samples, mode.name, "unfinished")
    notes = [
        f"  {name}: not all streams ended in time, or some were refused; figures are of what came" for name in late
    ]
    compare = [f"  ratios are of {main.unit}"] if any(unit.startswith("of ") for unit, _ in columns) else []
    return ["\n".join([title, *aligned(rows), *compare, *notes])]


def _same_build(names: Iterable[str], base: str) -> dict[str, str]:
    """What each is compared with: *base*, or *base* at the same commit where that was measured."""
    names = list(names)
    at_commit = {name: base + build_in(name)[1] for name in names}
    return {name: other if other in names else base for name, other in at_commit.items()}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each of *rows*: the first column to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join(["", row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]


def compared(samples: Iterable[Sample], mode: Mode) -> Figure:
    """The figure that is compared: the first, or if that is CPU time what `cost` is."""
    first = mode.figures[0]
    return (cost(samples, mode) or first) if first.name == "cpu" else first


def cost(samples: Iterable[Sample], mode: Mode) -> Figure | None:
    """What a mode says of the work done: instructions where the machine counts them, otherwise CPU time."""
    figures = {figure.name: figure for figure in mode.figures}
    counted = spreads(samples, mode.name, "instructions")
    return figures.get("instructions" if counted else "cpu", figures.get("cpu"))


def ratio(spread: Spread) -> str:
    """The median, and the lowest and the highest of the rounds."""
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _cells(samples: Sequence[Sample], mode: Mode, figure: Figure) -> dict[str, str]:
    found = spreads(samples, mode.name, figure.name)
    return {name: f"{spread.median:,.{figure.digits}f}" for name, spread in found.items()}


# The plot ---------------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, BAR, GAP = 900, 215, 190, 18, 8
COLOURS = {
    "ours": ("#1f6feb", "this extension"),
    "features": ("#54aeff", "with a feature more or less"),
    "reference": ("#57606a", "not Python"),
    "peers": ("#bf8700", "other ways in Python"),
    "floor": ("#afb8c1", "Python, no upstream"),
}
_STYLE = "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:15px}.minor{fill:#57606a}"


def plot(samples: Sequence[Sample], modes: Iterable[Mode], groups: Mapping[str, str]) -> str:
    """An SVG with a legend, and a panel for each of *modes* and for what features cost: bars of the compared figure.

    Whiskers go from its lowest to its highest; the best server stands first.
    """
    parts, top = [_legend({groups[each.server] for each in samples})], 52.0
    for mode in modes:
        others, features = divided(samples, mode, groups)
        for title, part, base in (
            (mode.title, others, AGAINST[0]),
            (f"{mode.title}; what features cost", features, WHOLE),
        ):
            panel = _panel(part, mode, title, base, groups)
            if panel:
                parts.append(f'<g transform="translate(0 {top:.0f})">{"".join(panel)}</g>')
                top += 56 + (len(panel) - 1) * (BAR + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" width="{WIDTH}" height="{top:.0f}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _legend(groups: Collection[str]) -> str:
    parts, x = [], 16
    for group, (colour, meaning) in COLOURS.items():
        if group in groups:
            parts.append(f'<rect x="{x}" y="16" width="12" height="12" fill="{colour}"/>')
            parts.append(f'<text class="minor" x="{x + 18}" y="27">{meaning}</text>')
            x += 42 + 7 * len(meaning)
    return "".join(parts)


def _panel(samples: Sequence[Sample], mode: Mode, title: str, base: str, groups: Mapping[str, str]) -> list[str]:
    """The heading and the bars; nothing if there are none."""
    figure = compared(samples, mode)
    found = spreads(samples, mode.name, figure.name)
    if not found:
        return []
    against = ratios(samples, mode.name, figure.name, against=base)
    best = "more is better" if figure.better == "high" else "less is better"
    panel = [
        f'<text class="title" x="16" y="14">{escape(title)}</text>'
        f'<text class="minor" x="16" y="32">{escape(figure.unit)}, {best}</text>'
    ]
    scale = (WIDTH - LEFT - RIGHT) / max(spread.high for spread in found.values())
    ordered = sorted(found.items(), key=lambda item: item[1].median, reverse=figure.better == "high")
    for name, spread in ordered:
        said = f"{spread.median:,.{figure.digits}f}"
        if name in against and name != base:
            said += f'<tspan class="minor"> · {against[name].median:.2f} &#215; {base}</tspan>'
        y = 42 + (len(panel) - 1) * (BAR + GAP)
        panel.append(_bar(name, spread, said, y, scale, COLOURS[groups[name]][0]))
    return panel


def _bar(name: str, spread: Spread, said: str, y: float, scale: float, colour: str) -> str:
    middle, low, high = y + BAR / 2, LEFT + spread.low * scale, LEFT + spread.high * scale
    whisker = f"M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8"
    return (
        f'<text x="{LEFT - 8}" y="{y + 13:.1f}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{LEFT}" y="{y:.1f}" width="{spread.median * scale:.1f}" height="{BAR}" fill="{colour}"/>'
        f'<path d="{whisker}" stroke="#1f2328"/><text x="{high + 6:.1f}" y="{y + 13:.1f}">{said}</text>'
    )

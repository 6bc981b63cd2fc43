"""What is printed and drawn of the samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
) -> str:
    """A table for each of *modes*, another for what features cost, and why some servers are *missing*.

    *groups* are those of the servers, by name.
    """
    features = [each for each in samples if groups[each.server] == "features"]
    others = [each for each in samples if groups[each.server] != "features"]
    parts = ["\n".join(about)]
    for mode in modes:
        parts += table(others, mode, mode.title, AGAINST)
        whole = [each for each in others if each.server == WHOLE] + features
        parts += table(whole, mode, f"{mode.title}; what features cost", (WHOLE,)) if features else []
    if missing:
        parts.append("Not measured\n" + "\n".join(f"  {name}: {why}" for name, why in missing.items()))
    if lost := [
        f"  round {each.round}, {each.server}, {each.mode}: {why}" for each in samples for why in each.problems
    ]:
        parts.append("LOST OR GARBLED\n" + "\n".join(lost))
    return "\n\n".join(parts) + "\n"


def table(samples: Sequence[Sample], mode: Mode, title: str, against: Sequence[str]) -> list[str]:
    """One mode: a line for each server with its figures, and the ratios of the first one. Nothing if there is none."""
    names = list(dict.fromkeys(sample.server for sample in samples if sample.mode == mode.name))
    if not names:
        return []
    main = compared(samples, mode)
    columns = [(figure.unit, _cells(samples, mode, figure)) for figure in mode.figures]
    for base in against:
        found = ratios(samples, mode.name, main.name, against=base)
        columns.append((f"of {base}", {name: ratio(spread) for name, spread in found.items()}))
    columns = [(unit, cells) for unit, cells in columns if cells]
    rows = [["", *(unit for unit, _ in columns)]]
    rows += [[name, *(cells.get(name, "-") for _, cells in columns)] for name in names]
    late = spreads(samples, mode.name, "unfinished")
    notes = [f"  {name}: not all streams ended in time; the figures are of what came" for name in late]
    compare = [f"  ratios are of {main.unit}"] if any(unit.startswith("of ") for unit, _ in columns) else []
    return ["\n".join([title, *_aligned(rows), *compare, *notes])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join(["", row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]


def compared(samples: Iterable[Sample], mode: Mode) -> Figure:
    """The figure that is compared: instructions in place of CPU time, where the machine counts them."""
    first = mode.figures[0]
    counted = [figure for figure in mode.figures if figure.name == "instructions"]
    if first.name == "cpu" and counted and spreads(samples, mode.name, "instructions"):
        return counted[0]
    return first


def ratio(spread: Spread) -> str:
    """The median, and the lowest and the highest of the rounds."""
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _cells(samples: Sequence[Sample], mode: Mode, figure: Figure) -> dict[str, str]:
    found = spreads(samples, mode.name, figure.name)
    return {name: f"{spread.median:,.{figure.digits}f}" for name, spread in found.items()}


# The plot ---------------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, BAR, GAP = 900, 210, 130, 18, 8
COLOURS = {"ours": "#1f6feb", "reference": "#57606a", "peers": "#bf8700", "floor": "#8c959f", "features": "#54aeff"}


def plot(samples: Sequence[Sample], modes: Iterable[Mode], groups: Mapping[str, str]) -> str:
    """An SVG with a panel for each of *modes*: bars of the compared figure, whiskers from its lowest to its highest."""
    panels, top = [], 16.0
    for mode in modes:
        figure = compared(samples, mode)
        found = spreads(samples, mode.name, figure.name)
        if found:
            panels.append(_panel(mode, figure, found, groups, top))
            top += 64 + len(found) * (BAR + GAP)
    style = "text{font:13px system-ui,sans-serif;fill:#1f2328}.t{font-weight:600;font-size:15px}.u{fill:#57606a}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" width="{WIDTH}" height="{top:.0f}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(panels)}</svg>\n'
    )


def _panel(mode: Mode, figure: Figure, found: Mapping[str, Spread], groups: Mapping[str, str], top: float) -> str:
    best = "more is better" if figure.better == "high" else "less is better"
    parts = [
        f'<text class="t" x="16" y="{top + 14:.0f}">{escape(mode.title)}</text>'
        f'<text class="u" x="16" y="{top + 32:.0f}">{escape(figure.unit)}, {best}</text>'
    ]
    most = max(spread.high for spread in found.values()) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / most
    base = found.get("gin")
    for at, (name, spread) in enumerate(sorted(found.items(), key=lambda item: item[1].median)):
        y = top + 44 + at * (BAR + GAP)
        parts.append(_bar(name, spread, figure, y, scale, COLOURS[groups.get(name, "peers")]))
        times = f" · {spread.median / base.median:.2f} of Gin" if base and base.median and name != "gin" else ""
        x = LEFT + spread.high * scale + 6
        said = f'{spread.median:,.{figure.digits}f}<tspan class="u">{times}</tspan>'
        parts.append(f'<text x="{x:.1f}" y="{y + 13:.1f}">{said}</text>')
    return "".join(parts)


def _bar(name: str, spread: Spread, figure: Figure, y: float, scale: float, colour: str) -> str:
    middle, low, high = y + BAR / 2, LEFT + spread.low * scale, LEFT + spread.high * scale
    whisker = f"M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8"
    return (
        f'<text x="{LEFT - 8}" y="{y + 13:.1f}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{LEFT}" y="{y:.1f}" width="{spread.median * scale:.1f}" height="{BAR}" fill="{colour}"/>'
        f'<path d="{whisker}" stroke="#1f2328"/>'
    )

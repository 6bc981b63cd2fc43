"""What a model's name asks of the simulator; the package's docstring has the table."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

MODELS = ("sim", "sim-fast", "sim-slow", "sim-long", "sim-reasoning", "sim-delay-2-rate-100", "sim-error-429")
ALIASES = {"sim-fast": "sim-delay-0-rate-0", "sim-slow": "sim-delay-2-rate-5", "sim-long": "sim-length-4000"}

_SETTING = re.compile(r"-(delay|rate|head|length|error)-(\d{1,6}(?:\.\d{1,6})?)")


@dataclass(frozen=True)
class Behaviour:
    """What a model's name asks for; the defaults are the options'."""

    delay: float = 0.0
    rate: float = 0.0
    head: float = 0.0
    length: float = 0
    error: float = 0

    def of(self, model: str) -> Behaviour:
        if not model.startswith("sim-"):
            return self
        for alias, meaning in ALIASES.items():
            model = model.replace(alias, meaning)
        return Behaviour(**{**asdict(self), **{name: float(value) for name, value in _SETTING.findall(model)}})

    def due(self, tick: int) -> float:
        return self.delay + (tick / self.rate if self.rate else 0)

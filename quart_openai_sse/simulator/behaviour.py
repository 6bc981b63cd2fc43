"""How a model's name sets the simulator's behaviour; the package's docstring has the table."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

MODELS = ("sim", "sim-fast", "sim-slow", "sim-long", "sim-reasoning", "sim-delay-2-rate-100", "sim-error-429")
ALIASES = {"sim-fast": "sim-delay-0-rate-0", "sim-slow": "sim-delay-2-rate-5", "sim-long": "sim-length-4000"}

_SETTING = re.compile(r"-(delay|rate|head|length|error)-(\d{1,6}(?:\.\d{1,6})?)")


@dataclass(frozen=True)
class Behaviour:
    """How the simulator answers a request."""

    delay: float = 0.0
    """Seconds from the headers to the first token."""
    rate: float = 0.0
    """Tokens per second after it; 0: no pauses."""
    head: float = 0.0
    """Seconds before the status line."""
    length: float = 0
    """Tokens of the answer; 0: as many as the text has."""
    error: float = 0
    """The status of an error response; 0: no error."""

    def for_model(self, model: str) -> Behaviour:
        """This behaviour with the settings that the model's name contains."""
        if not model.startswith("sim-"):
            return self
        for alias, meaning in ALIASES.items():
            model = model.replace(alias, meaning)
        return Behaviour(**{**asdict(self), **{name: float(value) for name, value in _SETTING.findall(model)}})

    def due(self, tick: int) -> float:
        """Seconds from the headers until token *tick*, counted from 0, is sent."""
        return self.delay + (tick / self.rate if self.rate else 0)

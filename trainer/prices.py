"""What training costs: a price per million tokens by the model's size, and a price per hour of the machine.

One's own machine costs nothing to use, so all prices that ship (`prices.json` beside this file) are 0; a
`prices.json` in TRAINER_HOME takes its place. Tokens are those that go through the model, epochs counted.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from trainer.errors import UsageError
from trainer.runs import Closed, home

_SHIPPED = Path(__file__).with_suffix(".json")
_MILLION = 1_000_000


class SizeClass(Closed):
    """Models up to a size, and their price."""

    up_to_parameters: int | None = Field(description="Largest parameter count of the class; None = no limit.")
    price: float = Field(ge=0, description="Of a million tokens trained on.")


class Prices(Closed):
    """A price table; the classes go from small to large and end with one without a limit."""

    currency: str = Field(default="USD", min_length=3, max_length=3, description="ISO 4217 code.")
    machine_hour: float = Field(default=0.0, ge=0, description="Of an hour of the machine.")
    per_million_tokens: list[SizeClass] = Field(min_length=1, description="By model size, small to large.")

    @model_validator(mode="after")
    def _ordered(self) -> Prices:
        limits = [one.up_to_parameters for one in self.per_million_tokens]
        known = [limit for limit in limits if limit is not None]
        if limits != [*sorted(known), None]:
            raise ValueError(
                f"per_million_tokens: up_to_parameters are {limits}; write them small to large, the last one null"
            )
        return self

    def cost(self, *, tokens: int, seconds: float, parameters: int | None) -> float:
        """In `currency`; a model of unknown size costs as much as the largest class."""
        return tokens / _MILLION * self.per_million(parameters) + seconds / 3600 * self.machine_hour

    def per_million(self, parameters: int | None) -> float:
        """Price of a million tokens of a model with so many parameters."""
        for one in self.per_million_tokens:
            limit = one.up_to_parameters
            if limit is None or (parameters is not None and parameters <= limit):
                return one.price
        raise AssertionError("the last class has no limit")


def read_prices(path: Path | None = None) -> Prices:
    """The table at `path`; None = TRAINER_HOME's, else the one that ships. Raises `UsageError` naming the file."""
    own = home() / "prices.json"
    chosen = path or (own if own.exists() else _SHIPPED)
    try:
        return Prices.model_validate_json(chosen.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{chosen}: is not a price table ({error}); compare it with {_SHIPPED}") from error

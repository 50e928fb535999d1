"""List prices, from the data that the genai-prices package ships. Nothing is fetched.

A lookup there costs as much as half of a request's routing. So where a price is linear (no tiers),
the rates of a model are looked up once a minute: some go by the date or the time of day, and change
at a whole minute. Elsewhere each call is looked up.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from genai_prices.types import PriceCalculation, TieredPrices

from pointsman.protocols.usage import Usage

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class _Rates:
    """US dollars for a million tokens of each kind; `fee` for the request itself."""

    prompt: Decimal
    cached: Decimal
    written: Decimal
    completion: Decimal
    fee: Decimal


def load_prices() -> None:
    """Load the data now: it takes a tenth of a second, which the first request should not wait."""
    _look_up(PricedUsage(input_tokens=1), "https://api.openai.com/", "gpt-4o", _now())


def cost_usd(
    usage: Usage | None, *, provider_host: str | None, models: tuple[str | None, ...]
) -> float | None:
    """Return the list price of a call in US dollars, or None where it is not known.

    `models` are tried in order: what the answer calls itself, what was asked for.
    """
    if usage is None or provider_host is None or usage.prompt_tokens is None:
        return None
    for model in models:
        if model and (price := _price(usage, f"https://{provider_host}/", model)) is not None:
            return price
    return None


def _price(usage: Usage, url: str, model: str) -> float | None:
    minute = _now()
    listed, rates = _rates(url, model, minute)
    if not listed:
        return None
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    if cached + written > prompt:
        return None  # counts that contradict each other
    if rates is None:
        priced = _usage(prompt, cached, written, completion)
        found = _look_up(priced, url, model, minute)
        return None if found is None else float(found.total_price)
    total = (
        (prompt - cached - written) * rates.prompt
        + cached * rates.cached
        + written * rates.written
        + completion * rates.completion
    )
    return float(rates.fee + total / _MILLION)


# Models come from clients: bounded.
@lru_cache(maxsize=1024)
def _rates(url: str, model: str, minute: int) -> tuple[bool, _Rates | None]:
    """Return whether the model is listed, and its rates in that minute if they are linear."""
    found = _look_up(PricedUsage(input_tokens=1), url, model, minute)
    if found is None:
        return False, None
    if any(isinstance(price, TieredPrices) for price in vars(found.model_price).values()):
        return True, None

    def price(prompt: int = 0, cached: int = 0, written: int = 0, completion: int = 0) -> Decimal:
        looked_up = _look_up(_usage(prompt, cached, written, completion), url, model, minute)
        return looked_up.total_price if looked_up else Decimal(0)

    fee = price()
    return True, _Rates(
        prompt=price(prompt=_MILLION) - fee,
        cached=price(prompt=_MILLION, cached=_MILLION) - fee,
        written=price(prompt=_MILLION, written=_MILLION) - fee,
        completion=price(completion=_MILLION) - fee,
        fee=fee,
    )


def _usage(prompt: int, cached: int, written: int, completion: int) -> PricedUsage:
    return PricedUsage(
        input_tokens=prompt,
        cache_read_tokens=cached,
        cache_write_tokens=written,
        output_tokens=completion,
    )


def _now() -> int:
    """Return the minutes since 1970."""
    return int(time.time()) // 60


def _look_up(usage: PricedUsage, url: str, model: str, minute: int) -> PriceCalculation | None:
    when = datetime.fromtimestamp(60 * minute, UTC)
    try:
        return calc_price(usage, model, provider_api_url=url, genai_request_timestamp=when)
    except (LookupError, ValueError):
        return None

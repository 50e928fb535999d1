"""List prices, from the data that the genai-prices package ships. Nothing is fetched."""

from functools import lru_cache

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from pointsman.protocols.usage import Usage


def load_prices() -> None:
    """Load the data now: it takes a tenth of a second, which the first request should not wait."""
    _is_listed("https://api.openai.com/", "gpt-4o")


def cost_usd(
    usage: Usage | None, *, provider_host: str | None, models: tuple[str | None, ...]
) -> float | None:
    """Return the list price of a call in US dollars, or None where it is not known.

    `models` are tried in order: what the answer calls itself, what was asked for.
    """
    if usage is None or provider_host is None or usage.prompt_tokens is None:
        return None
    for model in models:
        if model and (price := _price(usage, provider_host, model)) is not None:
            return price
    return None


def _price(usage: Usage, provider_host: str, model: str) -> float | None:
    url = f"https://{provider_host}/"
    if not _is_listed(url, model):
        return None
    priced = PricedUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    try:
        return float(calc_price(priced, model, provider_api_url=url).total_price)
    except (LookupError, ValueError):
        # ValueError: counts that contradict each other, such as more cached than prompt tokens.
        return None


# Models come from clients: bounded.
@lru_cache(maxsize=1024)
def _is_listed(url: str, model: str) -> bool:
    try:
        calc_price(PricedUsage(input_tokens=1), model, provider_api_url=url)
    except (LookupError, ValueError):
        return False
    return True

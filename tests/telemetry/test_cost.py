import time
from datetime import UTC, datetime

import pytest
from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

from pointsman.protocols.usage import Usage
from pointsman.telemetry.cost import cost_usd

OPENAI = "api.openai.com"


def cost(usage: Usage | None, *models: str | None, host: str | None = OPENAI) -> float | None:
    return cost_usd(usage, provider_host=host, models=models)


def test_a_known_model_has_its_list_price() -> None:
    price = cost(Usage(1000, 500), "gpt-4o")
    assert price is not None
    assert 0.0001 < price < 0.1


def test_the_price_grows_with_the_tokens() -> None:
    one, ten = cost(Usage(1000, 500), "gpt-4o"), cost(Usage(10_000, 5000), "gpt-4o")
    assert one is not None
    assert ten == pytest.approx(10 * one)


def test_cached_tokens_are_cheaper() -> None:
    plain = cost(Usage(1000, 500), "gpt-4o")
    cached = cost(Usage(1000, 500, cached_tokens=800), "gpt-4o")
    assert plain is not None
    assert cached is not None
    assert 0 < cached < plain


def test_unknown_completion_tokens_cost_nothing_and_do_not_fail() -> None:
    prompt_only, both = cost(Usage(1000), "gpt-4o"), cost(Usage(1000, 500), "gpt-4o")
    assert prompt_only is not None
    assert both is not None
    assert prompt_only < both


@pytest.mark.parametrize(
    ("usage", "models", "host"),
    [
        (None, ("gpt-4o",), OPENAI),
        (Usage(), ("gpt-4o",), OPENAI),
        (Usage(completion_tokens=5), ("gpt-4o",), OPENAI),
        (Usage(10, 5), (), OPENAI),
        (Usage(10, 5), (None, ""), OPENAI),
        (Usage(10, 5), ("no-such-model-0",), OPENAI),
        (Usage(10, 5), ("gpt-4o",), None),
        (Usage(10, 5), ("gpt-4o",), "llm.internal.test"),
        (Usage(10, 5, cached_tokens=99), ("gpt-4o",), OPENAI),  # counts that contradict each other
    ],
)
def test_a_price_that_is_not_known_is_none(
    usage: Usage | None, models: tuple[str | None, ...], host: str | None
) -> None:
    assert cost(usage, *models, host=host) is None


def test_the_first_model_that_is_known_counts() -> None:
    usage = Usage(1000, 500)
    cheap, dear = cost(usage, "gpt-4o-mini"), cost(usage, "gpt-4o")
    assert cost(usage, "gpt-4o", "gpt-4o-mini") == dear
    assert cost(usage, None, "no-such-model-0", "gpt-4o-mini") == cheap
    assert cheap != dear


@pytest.mark.parametrize(
    ("host", "model"),
    [
        (OPENAI, "gpt-4o"),
        (OPENAI, "gpt-4o-mini-2024-07-18"),
        (OPENAI, "text-embedding-3-small"),
        (
            "api.anthropic.com",
            "claude-sonnet-4-5",
        ),  # tiers, or cache writes at a price of their own
        ("generativelanguage.googleapis.com", "gemini-2.5-pro"),
        ("api.deepseek.com", "deepseek-chat"),  # prices by the time of day, at times
        ("api.groq.com", "llama-3.3-70b-versatile"),
        ("api.moonshot.cn", "moonshot-v1-8k"),
        ("api.mistral.ai", "mistral-large-latest"),
    ],
)
@pytest.mark.parametrize(
    "usage",
    [
        Usage(1, 1),
        Usage(1234, 567, cached_tokens=1000),
        Usage(300_000, 10, cached_tokens=200_000, cache_write_tokens=50_000),
        Usage(10),
    ],
)
def test_the_price_is_the_librarys(host: str, model: str, usage: Usage) -> None:
    library = calc_price(
        PricedUsage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens or 0,
            cache_read_tokens=usage.cached_tokens or 0,
            cache_write_tokens=usage.cache_write_tokens or 0,
        ),
        model,
        provider_api_url=f"https://{host}/",
    )
    assert cost(usage, model, host=host) == pytest.approx(float(library.total_price))


def test_prices_that_go_by_the_time_of_day_are_those_of_the_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage, found = Usage(1000, 500), []
    for hour in (12, 20, 12):
        now = datetime(2025, 3, 4, hour, 59, 59, tzinfo=UTC)
        monkeypatch.setattr(time, "time", now.timestamp)
        found.append(cost(usage, "deepseek-chat", host="api.deepseek.com"))
        library = calc_price(
            PricedUsage(input_tokens=1000, output_tokens=500),
            "deepseek-chat",
            provider_api_url="https://api.deepseek.com/",
            genai_request_timestamp=now,
        )
        assert found[-1] == pytest.approx(float(library.total_price))
    assert found[0] == found[2] != found[1]


def test_prices_change_at_whole_minutes() -> None:
    """What is looked up for a minute holds to its end."""
    prices = [
        price.constraint
        for provider in get_snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list)
        for price in model.prices
    ]
    daily = [found for found in prices if isinstance(found, TimeOfDateConstraint)]
    dated = [found for found in prices if isinstance(found, StartDateConstraint)]
    assert daily
    assert dated
    assert len(daily) + len(dated) + prices.count(None) == len(prices)
    assert all(at.second == 0 for found in daily for at in (found.start_time, found.end_time))

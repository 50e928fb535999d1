"""Every metric that there is, and what a family of series is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from prometheus_client import Counter, Gauge, Histogram

from pointsman.telemetry.conventions import SECOND_BUCKETS, TOKEN_BUCKETS
from pointsman.telemetry.exposition import shared

type Labels = tuple[str, ...]

_OVERHEAD_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
CALL = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
    "server_address",
)
RULE = ("route", "route_host", "rule")  # see `naming`
_TARGET = (*RULE, "provider")
PAYER = slice(len(RULE), len(RULE) + 2)  # who has the cost of a request: its provider and model


class Family[M: (Counter, Gauge, Histogram)]:
    """A metric, and its series at hand by their labels."""

    def __init__(self, metric: M, labels: Labels) -> None:
        self.metric: M = metric
        self.labels = labels
        self.made = 0  # series that there have been; those in shared files never go
        self._series: dict[Labels, M] = {}

    def __call__(self, *values: str) -> M:
        """Return the series with these labels."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self.metric.labels(*values) if values else self.metric
            self.made += 1
        return series

    def prune(self, keep: Callable[[Mapping[str, str]], bool]) -> None:
        """Remove the series that are not to be kept."""
        for values in tuple(self._series):
            if values and not keep(dict(zip(self.labels, values, strict=True))):
                self.remove(values)

    def remove(self, values: Labels) -> M:
        """Remove one; in shared files its last value stays."""
        if not shared():
            self.metric.remove(*values)
            self.made -= 1
        return self._series.pop(values)

    def __len__(self) -> int:
        return len(self._series)

    def __contains__(self, values: Labels) -> bool:
        return values in self._series

    def __iter__(self) -> Iterator[Labels]:
        return iter(tuple(self._series))


class Families:
    """All that there is."""

    def __init__(self) -> None:
        self.tokens = _histogram(
            "gen_ai_client_token_usage",
            "Tokens that a call has used, as the provider has counted them.",
            (*CALL, "gen_ai_token_type"),
            TOKEN_BUCKETS,
        )
        self.duration = _histogram(
            "gen_ai_client_operation_duration_seconds",
            "Time from a call's first byte to the end of its answer.",
            (*CALL, "error_type"),
        )
        self.first_chunk = _histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time from a call's first byte to the first content of its streamed answer.",
            CALL,
        )
        self.chunks = _histogram(
            "gen_ai_client_operation_time_per_output_chunk_seconds",
            "Time between the events of a streamed answer, from the first content on.",
            CALL,
        )
        self.requests = _counter(
            "pointsman_requests",
            "Requests to LLM hosts that have ended.",
            (*_TARGET, "model", "status", "flag"),
        )
        self.chosen = _counter(
            "pointsman_chosen",
            "Requests for which a rule has chosen a provider first, wherever they ended.",
            _TARGET,
        )
        self.attempts = _counter(
            "pointsman_attempts", "Tries to call a provider.", ("provider", "outcome")
        )
        self.cost = _counter("pointsman_cost_usd", "List price, in dollars.", ("provider", "model"))
        self.mirrored = _counter(
            "pointsman_mirrored_requests",
            "Copies that no client sees.",
            (*_TARGET, "model", "status"),
        )
        self.mirrored_tokens = _counter(
            "pointsman_mirrored_tokens",
            "Tokens that copies have used.",
            ("provider", "model", "type"),
        )
        self.mirrored_cost = _counter(
            "pointsman_mirrored_cost_usd", "List price of copies.", ("provider", "model")
        )
        self.mirrors_dropped = _counter(
            "pointsman_mirrors_dropped", "Copies that were not sent.", ("rule",)
        )
        self.overhead = _histogram(
            "pointsman_overhead_seconds",
            "Time in Pointsman's own code for a request.",
            (),
            _OVERHEAD_BUCKETS,
        )
        self.share = _gauge(
            "pointsman_target_share",
            "Part of a rule's requests that its weights give a provider, 0 to 1.",
            _TARGET,
            "livemax",
        )
        self.state = _gauge(
            "pointsman_target_state", "0 healthy, 1 probing, 2 ejected.", _TARGET, "livemax"
        )
        self.open = _gauge("pointsman_requests_open", "Requests under way.", (), "livesum")
        self.streams = _gauge("pointsman_streams_open", "Streams under way.", (), "livesum")
        self.loads = _counter("pointsman_reloads", "Times that rules were loaded.", ("result",))
        self.load_good = _gauge(
            "pointsman_last_reload_successful",
            "1: the rules are live as written. 0: some were refused, what was last good is live.",
            (),
            "livemin",
        )
        self.load_time = _gauge(
            "pointsman_last_load_timestamp_seconds",
            "When the live rules were loaded, in Unix time.",
            (),
            "livemin",
        )
        self.build = _gauge(
            "pointsman_build_info", "Always 1.", ("version", "mitmproxy", "python"), "livemax"
        )

    def __iter__(self) -> Iterator[Family[Any]]:
        return iter(vars(self).values())


def _counter(name: str, help_: str, labels: Labels) -> Family[Counter]:
    return Family(Counter(name, help_, labels, registry=None), labels)


def _gauge(
    name: str, help_: str, labels: Labels, among: Literal["livemax", "livemin", "livesum"]
) -> Family[Gauge]:
    """Make a gauge; `among` is what counts where several processes have it."""
    return Family(Gauge(name, help_, labels, registry=None, multiprocess_mode=among), labels)


def _histogram(
    name: str, help_: str, labels: Labels, buckets: Sequence[float] = SECOND_BUCKETS
) -> Family[Histogram]:
    return Family(Histogram(name, help_, labels, registry=None, buckets=buckets), labels)

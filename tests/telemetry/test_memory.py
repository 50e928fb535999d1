"""A long run: whatever clients ask for, the record of it takes no more room."""

import gc
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pointsman.protocols.usage import Usage
from pointsman.telemetry.access_log import AccessLog
from pointsman.telemetry.chunks import ChunkTimes
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.exposition import DIRECTORY
from pointsman.telemetry.live import Live
from pointsman.telemetry.metrics import Metrics, render
from pointsman.telemetry.naming import RuleName
from pointsman.telemetry.reading import RulesReading
from pointsman.telemetry.sinks import Sinks

ROOT = Path(__file__).parents[2]
EXCHANGES = 100_000
MOST = 10 * 1024 * 1024
PROVIDERS = {f"p{n}.test": f"p{n}" for n in range(5)}
RULES = RulesReading(
    rules=frozenset(RuleName("shop", "shop.test", f"rule-{n}") for n in range(5)),
    providers=PROVIDERS,
)
APIS = ("openai-chat", "openai-completions", "openai-embeddings", "anthropic-messages", "gemini")
FLAGS = ("NR", "UH", "UF", "UC", "UT", "SI", "UPE", "UE", "DC", "DPE", "OB", "IE")


def exchange(number: int, chance: random.Random) -> Exchange:
    """Return what a hostile client and an odd provider may make of one request."""
    host = chance.choice(tuple(PROVIDERS)) if number % 3 else f"{number}.made-up.test"
    status = chance.choice((200, 200, 200, 429, 500, chance.randrange(100, 1000), None))
    times = ChunkTimes(0.1)
    times.came(chance.random(), 3)
    failed = number % 5 == 0
    return Exchange(
        f"request-{number}",
        f"{number}.test",
        f"METHOD-{number}",
        f"/v1/{number}",
        "10.0.0.1:5000",
        started=0.0,
        route="shop",
        route_host="shop.test",
        rule=f"rule-{chance.randrange(5)}",
        provider=PROVIDERS.get(host, host),
        provider_host=host,
        api=chance.choice(APIS),
        client_model=f"client-{number}",
        request_model=f"request-{number}",
        response_model=f"response-{number}",
        finish_reason=f"reason-{number}",
        status=status,
        flags=[chance.choice(FLAGS)] if failed else [],
        error=f"error {number}" if failed else None,
        attempts=[Attempt(host, host, 0.0, 0.5, status, f"error {number}" if failed else None)],
        usage=Usage(chance.randrange(10**6), chance.randrange(10**4), None),
        cost_usd=chance.random(),
        first_token=0.1,
        chunk_times=times,
        ended=chance.random() * 100,
        overhead=chance.random() / 100,
        mirror=number % 10 == 0,
    )


def main() -> None:
    """Record them all; print by how many bytes this process has grown, and how many it counts."""
    sinks, registry, chance = Sinks(), CollectorRegistry(), random.Random(11)
    log = AccessLog("/dev/null")
    metrics = Metrics(registry=registry)
    metrics.rules_live(RULES)
    sinks.put("access log", log.emit)
    sinks.put("metrics", metrics.record)
    sinks.put("live", Live().record)
    exchange(0, chance)
    before = resident()
    for number in range(EXCHANGES):
        sinks.emit(exchange(number, chance))
    gc.collect()
    grown = resident() - before
    log.close()
    counted = sum(
        int(float(line.rsplit(" ", 1)[1]))
        for line in render(registry).decode().splitlines()
        if line.startswith(("pointsman_requests_total{", "pointsman_mirrored_requests_total{"))
    )
    sys.stdout.write(json.dumps({"grown": grown, "counted": counted}))


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "one of several"])
def test_a_hundred_thousand_exchanges_take_less_than_ten_megabytes(
    tmp_path: Path, shared: bool
) -> None:
    command = [sys.executable, "-c", "from tests.telemetry.test_memory import main; main()"]
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "addon")])}
    if shared:
        env[DIRECTORY] = str(tmp_path)
    done = subprocess.run(command, env=env, capture_output=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    assert found["counted"] == EXCHANGES
    assert found["grown"] < MOST

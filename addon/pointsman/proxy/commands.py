"""mitmproxy commands such as `llm.explain @focus`, for mitmweb, the console and scripts.

A command's answer is a table, which is what all of them can show.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mitmproxy import command, ctx, exceptions, flow, http, types
from rich.cells import cell_len, set_cell_size

from pointsman.admin.shown import show_table
from pointsman.config.problems import did_you_mean
from pointsman.config.table import Target
from pointsman.explaining import Explanation, TargetStep, explain
from pointsman.proxy.replays import replay_via
from pointsman.proxy.router import Router
from pointsman.proxy.saved_flows import request_of
from pointsman.routing.planning import state_of
from pointsman.telemetry.amounts import dollars, several, some
from pointsman.wellformed import printable

logger = logging.getLogger(__name__)

type Rows = list[list[str]]


class Commands:
    """The commands of one instance; mitmproxy finds them as it finds an addon's hooks.

    `live` gives the snapshot of `telemetry.live`; `reload` loads the rules again, or raises
    OptionsError.
    """

    def __init__(
        self, router: Router, live: Callable[[], dict[str, Any]], reload: Callable[[], None]
    ) -> None:
        self._router = router
        self._live = live
        self._reload = reload
        self._replays: set[asyncio.Task[None]] = set()

    @command.command("llm.explain")
    def explain(self, shown: flow.Flow) -> types.Data:
        """Tell where the live rules would send a flow's request, and why, rule by rule."""
        saved = request_of(_http(shown))
        table = self._router.table
        host = next((name for name in saved.names if table.lookup(name)), saved.names[0])
        return _data("llm.explain", _explained(explain(table, replace(saved.request, host=host))))

    @command.command("llm.replay")
    def replay(self, shown: flow.Flow, provider: str) -> types.Data:
        """Send a flow's request through another provider; the new flow compares the answers."""
        original = _http(shown)
        if original.request.raw_content is None:
            raise exceptions.CommandError("the flow's body was not kept, so it can't be replayed")
        if self._router.table.lookup(request_of(original).names[0]) is None:
            raise exceptions.CommandError(
                "the flow's host is in no rule; there is nothing to route"
            )
        providers = sorted({t.provider for t in self._router.table.targets()})
        hosts = {t.host for t in self._router.table.targets()}
        if provider not in providers and provider not in hosts:
            meant = did_you_mean(provider, providers) or "."
            raise exceptions.CommandError(
                f"no rule names the provider {provider}{meant} There are: {', '.join(providers)}"
            )
        task = asyncio.get_running_loop().create_task(replay_via(self._router, original, provider))
        self._replays.add(task)
        task.add_done_callback(self._replays.discard)
        return _data("llm.replay", [["replaying", f"through {provider}; a new flow will tell"]])

    @command.command("llm.routes")
    def routes(self) -> types.Data:
        """List the live rules: what they match, whom they call with which share, how it fares."""
        health, now = self._router.health, time.monotonic()

        def extra(target: Target) -> dict[str, Any]:
            return {"state": state_of(target, health, now)}

        rows = [["host", "rule", "matches", "provider", "weight", "model", "state"]]
        for route in show_table(self._router.table, extra):
            for rule in route["rules"]:
                matches = " or ".join(map(str, rule.get("matches", []))) or "everything"
                for target in rule.get("targets", [{}]):
                    tier = f", priority {target['priority']}" if target.get("priority") else ""
                    rows.append(
                        [
                            str(route["host"]),
                            str(rule.get("name", "")),
                            matches,
                            str(target.get("provider", "none applies here")),
                            f"{target.get('weight', '')}{tier}",
                            str(target.get("call", {}).get("model", "")),
                            str(target.get("state", "")),
                        ]
                    )
        return _data("llm.routes", rows)

    @command.command("llm.usage")
    def usage(self) -> types.Data:
        """Sum up tokens and list price by provider and model, since the start."""
        rows = [["provider", "model", "requests", "prompt tokens", "completion tokens", "cost"]]
        found = sorted(self._live()["models"], key=lambda row: -row["requests"])
        return _data("llm.usage", [*rows, *map(_used, found)])

    @command.command("llm.reload")
    def reload(self) -> types.Data:
        """Load the rules again now, and tell what is live or what is wrong with them."""
        try:
            self._reload()
        except exceptions.OptionsError as error:
            raise exceptions.CommandError(f"the last good rules stay live: {error}") from None
        table = self._router.table
        hosts, rules = len(list(table.routes())), len(list(table.rules()))
        live = f"{several(hosts, 'host')}, {several(rules, 'rule')}"
        return _data("llm.reload", [["live", live]])


def _http(shown: flow.Flow) -> http.HTTPFlow:
    if isinstance(shown, http.HTTPFlow):
        return shown
    raise exceptions.CommandError("this is no HTTP flow")


def _data(name: str, rows: Rows) -> types.Data:
    """Return a table fit for a screen: clients and files choose what stands in it."""
    table = [list(map(printable, row)) for row in rows]
    if type(ctx.master).__name__ == "WebMaster":
        # Its command bar shows any answer as one line of JSON; its event log keeps lines.
        logger.info("%s\n%s", name, _aligned(table))
    return table  # type: ignore[return-value]  # by its shape


def _aligned(table: Rows) -> str:
    """Return a table as lines; the last cell of a row may be of any length."""
    widths: dict[int, int] = {}
    for row in table:
        for place, cell in enumerate(row[:-1]):
            widths[place] = max(widths.get(place, 0), cell_len(cell))
    return "\n".join(
        "  ".join([*(set_cell_size(c, widths[n]) for n, c in enumerate(row[:-1])), row[-1]])
        for row in table
    )


def _used(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a model's sums; copies are no requests of a client's, and cost."""
    more = bool(row["without_usage"])
    copies = f" + {row['mirrored']} mirrored" if row["mirrored"] else ""
    cost = {"known": bool(row["with_cost"]), "more": more or bool(row["without_price"])}
    return [
        row["provider"] or "(none)",
        row["model"] or "(none)",
        f"{row['requests']}{copies}",
        some(str(row["prompt_tokens"]), known=bool(row["with_prompt_tokens"]), more=more),
        some(str(row["completion_tokens"]), known=bool(row["with_completion_tokens"]), more=more),
        some(dollars(row["cost_usd"]), **cost),
    ]


def _explained(found: Explanation) -> Rows:
    rows = [["request", found.request]]
    if found.route is None:
        return [*rows, ["untouched", "the host is in no rule"]]
    rows.append(["route", found.route])
    rows += [
        [f"{'✓' if step.matched else '✗'} rule {step.rule}", step.reason] for step in found.rules
    ]
    if found.observe:
        rows.append(["observed", "only logged; the request goes where it was going"])
    if found.affinity is not None:
        rows.append(["affinity", "this value keeps its target"])
    for target in found.targets:
        rows += _target(target)
    if found.error and not found.targets:
        rows.append(["refused", found.error])
    return rows


def _target(target: TargetStep) -> Rows:
    tier = f", when those before have failed: priority {target.priority}" if target.priority else ""
    rows = [[f"→ {target.provider}", f"{target.share:.0%}{tier}"]]
    if target.error:
        return [*rows, ["  refused", target.error]]
    rows.append(["  request", f"{target.method} {target.url}"])
    rows.append(["  connects to", target.connects_to])
    rows += [["  header", header] for header in target.headers]
    rows += [["  dropped", name] for name in target.dropped_headers]
    for change in target.body_changes:
        before = "(absent)" if change.before is None else change.before
        after = "(removed)" if change.after is None else change.after
        rows.append([f"  body {change.field}", f"{before} → {after}"])
    return rows

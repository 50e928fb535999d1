"""`pointsman run --sidecar`: everything that happens before and after the workers' lives."""

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path

from pointsman import ca, open_files
from pointsman.admin.server import serve
from pointsman.sidecar import handover, listening, runtime, watchdog
from pointsman.sidecar.output import log_to_stdout
from pointsman.sidecar.process import Plan
from pointsman.sidecar.settings import OFF, Given, Settings, SettingsError, check
from pointsman.sidecar.supervisor import Supervisor
from pointsman.sidecar.workers import Workers
from pointsman.telemetry import exposition
from pointsman.telemetry.line_writer import LineWriter

_logger = logging.getLogger(__name__)

_MISUSED = 2


def run(given: Given) -> int:
    """Run the sidecar until it is told to end; return its exit status."""
    output = log_to_stdout()
    open_files.raise_limit()
    try:
        settings = check(given)
    except SettingsError as error:
        _logger.critical("%s", error)
        return _MISUSED
    try:
        return asyncio.run(_run(settings, output))
    except (OSError, ValueError, ca.AuthorityError) as error:
        # The only ones that are raised on purpose, with a message for a person.
        _logger.critical("%s", getattr(error, "strerror", None) or error)
        return 1


async def _run(settings: Settings, output: LineWriter) -> int:
    supervisor = Supervisor(settings.workers, _gone)
    supervisor.listen_to_signals()
    async with AsyncExitStack() as stack:
        ca.ensure(settings.confdir, settings.secret)
        folder = stack.enter_context(runtime.folder(settings.confdir))
        # Queued from here on: an application that is earlier than the first worker waits.
        sockets = listening.open_sockets(settings.hosts, settings.port)
        for each in sockets:
            stack.enter_context(each)
        port = sockets[0].getsockname()[1]
        env = {
            "PYTHONOPTIMIZE": "1",
            handover.WORKERS: str(settings.workers),
            exposition.DIRECTORY: _metrics_folder(folder, settings.workers),
            handover.KEPT_RULES: str(folder / "rules.json"),
        }
        plan = Plan(
            arguments=(
                *("--set", f"confdir={settings.confdir}", "--set", f"llm_health={OFF}"),
                *("--mode", settings.mode, "--listen-port", str(port)),
                *settings.arguments,
            ),
            listening=sockets,
            env=env,
            folder=folder,
            output=output,
        )
        source = Workers(
            supervisor, plan, {"llm_admin": settings.admin, "llm_health": settings.health}
        )
        addresses = {}
        for name, address in (("admin", settings.admin), ("health", settings.health)):
            if address != OFF:
                server = serve(source, address, health_only=name == "health")
                stack.push_async_callback(server.close)
                addresses[name] = server.address
                if name == "admin":
                    env[handover.ADMIN_PORT] = server.address.rpartition(":")[2]
        _logger.info(
            "listening",
            extra={
                "addresses": listening.describe(sockets),
                "mode": settings.mode,
                "workers": settings.workers,
                **addresses,
            },
        )
        watching = asyncio.create_task(watchdog.watch(supervisor, source.answers))
        stack.callback(watching.cancel)
        return await supervisor.run(plan)


def _metrics_folder(folder: Path, workers: int) -> str:
    """Make the folder in which the workers count, and let `exposition.render` find it."""
    made = folder / "metrics"
    exposition.make_folder(made, workers)
    os.environ[exposition.DIRECTORY] = str(made)
    return str(made)


def _gone(pid: int) -> None:
    try:
        exposition.worker_gone(pid)
    except (OSError, ValueError):
        _logger.exception("the metrics of worker process %d can't be kept", pid)

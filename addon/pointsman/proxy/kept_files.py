"""A copy of the rule files that are live, for a worker of the sidecar that is started again.

While the files themselves can't be used, it serves with what was last good instead of ending: hosts
that no rule names would be down with it. The copy is in the folder of the supervisor's run, so that
there is none at the first start. It may hold keys, and is for its owner alone (0600).
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkstemp

from pointsman.full_disks import mend
from pointsman.sidecar import handover

logger = logging.getLogger(__name__)


class KeptFiles:
    """The text of the files in use, by their paths.

    Args:
        path: where the copy is; None: none is kept.
        source: what the files are read from; a copy from elsewhere is none.
    """

    def __init__(self, path: Path | None, source: str) -> None:
        self._path = path
        self._source = source

    @classmethod
    def of_this_run(cls, source: str) -> "KeptFiles":
        """Return those of the supervisor that has started this process, if one has."""
        return cls(handover.kept_rules(), source)

    def read(self) -> dict[str, str] | None:
        """Return them; None: there is no copy of these rules."""
        if self._path is None:
            return None
        try:
            content = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        return content["files"] if content["source"] == self._source else None

    def write(self, files: Mapping[str, str]) -> None:
        """Write them, at once or not at all."""
        if self._path is None:
            return
        try:
            self._write(self._path, json.dumps({"source": self._source, "files": dict(files)}))
        except OSError as error:
            logger.warning(
                "the copy of the rules can't be written to %s (%s): a worker that is started again"
                " while the rules are bad serves by older ones, if at all; %s",
                self._path,
                error.strerror,
                mend(error),
            )

    def _write(self, path: Path, content: str) -> None:
        # `mkstemp` makes it for the owner alone.
        number, beside = mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(number, "w", encoding="ascii") as file:
                file.write(content)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise

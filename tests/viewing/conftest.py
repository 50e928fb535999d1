"""Exchanges of each API, made up: a request, and the answer's bytes."""

import json
from dataclasses import dataclass
from pathlib import Path

from pointsman.protocols import detect
from pointsman.viewing.bodies import show_answer, show_request
from pointsman.viewing.route import Way

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Case:
    """One exchange; `golden` is what it looks like."""

    name: str
    path: str
    request: bytes
    response: bytes
    event_stream: bool

    def show_request(self, body: bytes | None = None, way: Way | None = None) -> str:
        data = self.request if body is None else body
        return show_request(data, detect("POST", self.path), way, self.path)

    def show_answer(self, body: bytes | None = None, way: Way | None = None) -> str:
        data = self.response if body is None else body
        api = detect("POST", self.path)
        return show_answer(data, api, event_stream=self.event_stream, way=way)

    @property
    def golden(self) -> Path:
        return CASES / f"{self.name}.txt"


def _case(file: Path) -> Case:
    given = json.loads(file.read_text(encoding="utf-8"))
    return Case(
        file.stem,
        given["path"],
        json.dumps(given["request"]).encode(),
        given["response"].encode(),
        given["content_type"].startswith("text/event-stream"),
    )


ALL = [_case(file) for file in sorted(CASES.glob("*.json"))]

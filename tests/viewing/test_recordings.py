"""Real exchanges: each is shown with the facts that its reader knows, and without encoded data."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.protocols import detect
from pointsman.viewing.bodies import asks, says, show_answer, show_request

HERE = Path(__file__).parent
RECORDINGS = HERE.parents[2] / "shared" / "recordings"
GOLDEN: dict[str, Any] = json.loads((HERE.parent / "protocols" / "golden_usage.json").read_text())

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not here")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recording_is_shown_with_its_facts(name: str) -> None:
    recording = json.loads((RECORDINGS / name).read_text(encoding="utf-8"))
    response = recording["response"]
    body = response["text"].encode() if "text" in response else base64.b64decode(response["base64"])
    request = recording["request"]["text"].encode()
    event_stream = recording["content_type"].startswith("text/event-stream")
    api = detect(recording["method"], recording["path"])
    assert api is not None
    assert asks(api, request)
    assert says(api, body, event_stream=event_stream)

    asked = show_request(request, api)
    said = show_answer(body, api, event_stream=event_stream)
    assert not re.search(r"[A-Za-z0-9+/_=-]{200}", asked + said)
    assert yaml.safe_load(asked)["conversation"]
    answer, facts = yaml.safe_load(said), GOLDEN[name]
    assert answer.get("model") == facts["model"]
    assert answer.get("finish") == facts["finish_reason"]
    assert ("error" in answer) is facts["failed"]
    known = {
        k.removesuffix("_tokens"): n for k, n in (facts["usage"] or {}).items() if n is not None
    }
    assert {k.replace(" ", "_"): n for k, n in answer.get("usage", {}).items()} == known
    if facts["content_started"]:
        assert answer["answer"]

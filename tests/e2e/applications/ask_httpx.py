"""An application on httpx: asks each URL twice, whole and streamed; prints JSON lines."""

# ruff: noqa: T201 (a program's output)

import json
import sys

import httpx

KEY = {"Authorization": "Bearer sk-own"}
QUESTION = {"model": "small", "messages": [{"role": "user", "content": "Hello there"}]}

for url in sys.argv[1:]:
    whole = httpx.post(url, json=QUESTION, headers=KEY, timeout=20).raise_for_status().json()
    text = whole["choices"][0]["message"]["content"]
    print(json.dumps({"model": whole["model"], "text": text}))
    asked = {**QUESTION, "stream": True}
    with httpx.stream("POST", url, json=asked, headers=KEY, timeout=20) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    print(json.dumps({"model": chunks[0]["model"], "text": text}))

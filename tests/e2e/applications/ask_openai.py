"""An application on OpenAI's package: asks each base URL twice, whole and streamed.

The empty one is the package's own. Prints a JSON line for each answer.
"""

# ruff: noqa: T201 (a program's output)

import json
import sys

from openai import OpenAI

for url in sys.argv[1:]:
    client = OpenAI(api_key="sk-own", base_url=url or None, max_retries=0, timeout=20)
    whole = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "Hello there"}]
    )
    print(json.dumps({"model": whole.model, "text": whole.choices[0].message.content}))
    stream = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "Hello there"}], stream=True
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    print(json.dumps({"model": chunks[0].model, "text": text}))

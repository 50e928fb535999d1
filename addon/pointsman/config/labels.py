"""This workload's labels: from the command line, or from a file that Kubernetes writes."""

from pathlib import Path


def parse_labels(given: str) -> dict[str, str]:
    """Return labels from `key=value,key=value`, or from the file that the text names.

    A file has a `key="value"` a line, as the Downward API writes it.

    Raises:
        OSError: the file can't be read.
        ValueError: a part is not `key=value`.
    """
    if given and "=" not in given:
        parts = Path(given).expanduser().read_text(encoding="utf-8").splitlines()
    else:
        parts = given.split(",")
    labels = {}
    for part in filter(str.strip, parts):
        key, equals, value = part.strip().partition("=")
        if not equals or not key:
            raise ValueError(
                f"{part.strip()!r} is not a label; write key=value,key=value or the path of a file"
            )
        labels[key.strip()] = value.strip().strip('"')
    return labels

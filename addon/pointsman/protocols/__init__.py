"""What is on the wire of each LLM API: bytes in, bytes out, fed in any cuts.

Pure: no mitmproxy, no clock, no I/O, and nothing of the content is kept or logged.
"""

from pointsman.protocols.api import CHAT, Api, detect, model_in_path, streams_by_path
from pointsman.protocols.encoding import (
    SUPPORTED,
    Decoder,
    TooLarge,
    Undecodable,
    decode_body,
    stream_decoder,
)
from pointsman.protocols.reader import Reader
from pointsman.protocols.usage import Usage

__all__ = [
    "CHAT",
    "SUPPORTED",
    "Api",
    "Decoder",
    "Reader",
    "TooLarge",
    "Undecodable",
    "Usage",
    "decode_body",
    "detect",
    "model_in_path",
    "stream_decoder",
    "streams_by_path",
]

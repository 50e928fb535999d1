"""The certificate authority that signs for LLM hosts, and the files that make clients trust it.

- `authority`: a key and its certificates: made, read, judged. No files.
- `store`: mitmproxy's directory for it: taken from a Secret or made once, and never made again.
- `bundle`: what an application is given so that it trusts us and everyone else.
- `manifest`: an authority as a Secret.

It imports no mitmproxy: what mitmproxy expects of the files is pinned by a test.
"""

from pointsman.ca.authority import AuthorityError
from pointsman.ca.store import ensure

__all__ = ["AuthorityError", "ensure"]

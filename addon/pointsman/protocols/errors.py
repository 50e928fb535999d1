"""Error bodies in the shape of the API that the client called, so that its SDK understands them."""

import msgspec

# https://docs.anthropic.com/en/api/errors and https://cloud.google.com/apis/design/errors
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}
_GOOGLE_STATUS = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    503: "UNAVAILABLE",
}


def error_body(  # noqa: PLR0913 (the members of the three shapes)
    api: str | None, *, status: int, message: str, kind: str, code: str, param: str | None = None
) -> bytes:
    """Return the JSON body of an error.

    `api` is the name of the API (see `detect`); unknown APIs get OpenAI's shape. `kind` and `code`
    are OpenAI's `type` and `code`.
    """
    if api == "anthropic-messages":
        error = {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
        return msgspec.json.encode({"type": "error", "error": error})
    if api == "gemini":
        google = {
            "code": status,
            "message": message,
            "status": _GOOGLE_STATUS.get(status, "INTERNAL"),
        }
        return msgspec.json.encode({"error": google})
    openai = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": openai})

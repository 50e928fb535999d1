"""Error bodies in the shape of the API that the client called, so that its SDK understands them."""

import msgspec

from pointsman.errors import RequestError

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


def error_body(error: RequestError, api: str | None) -> bytes:
    """Return the JSON body of an error.

    `api` is the name of the API (see `detect`); unknown APIs get OpenAI's shape.
    """
    status, message = error.status, str(error)
    if api == "anthropic-messages":
        anthropic = {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
        return msgspec.json.encode({"type": "error", "error": anthropic})
    if api == "gemini":
        google = {
            "code": status,
            "message": message,
            "status": _GOOGLE_STATUS.get(status, "INTERNAL"),
        }
        return msgspec.json.encode({"error": google})
    openai = {"message": message, "type": error.kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": openai})

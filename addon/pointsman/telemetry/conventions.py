"""What OpenTelemetry's conventions for generative AI call things, and their buckets.

Source: https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md
(status: development). The port of the server is left out: an exchange does not have it.
"""

from collections.abc import Mapping
from http import HTTPStatus

from pointsman.telemetry import chunks
from pointsman.telemetry.exchange import Exchange
from pointsman.telemetry.verdicts import FIRST_ERROR

TOKEN_BUCKETS = tuple(4**power for power in range(14))  # 1 to 67108864
SECOND_BUCKETS = chunks.SECOND_BUCKETS

OTHER = "_OTHER"  # the convention's word for an error of no class that is known

_OPERATIONS = {
    "openai-chat": "chat",
    "openai-responses": "chat",
    "anthropic-messages": "chat",
    "openai-completions": "text_completion",
    "openai-embeddings": "embeddings",
}

_PROVIDERS = {
    "api.anthropic.com": "anthropic",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.openai.com": "openai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "codestral.mistral.ai": "mistral_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
}
_PROVIDERS_BY_SUFFIX = {
    # Regions come before a name, and clouds of their own have another end.
    ".api.mistral.ai": "mistral_ai",
    ".api.openai.com": "openai",
    ".api.x.ai": "x_ai",
    ".openai.azure.com": "azure.ai.openai",
    ".openai.azure.us": "azure.ai.openai",
    ".services.ai.azure.com": "azure.ai.inference",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    ".ml.cloud.ibm.com": "ibm.watsonx.ai",
}
_BEDROCK = ("bedrock-runtime.", "bedrock-runtime-fips.")

_ERRORS_BY_FLAG = {
    "NR": "no_route",
    "UH": "no_target",
    "UF": "connect_failure",
    "UC": "connection_closed",
    "UT": "timeout",
    "SI": "stalled",
    "UPE": "protocol_error",
    "UE": "stream_error",
    "DC": "client_disconnected",
    "DPE": "bad_request",
    "OM": "overloaded",
    "UAEX": "host_not_allowed",
    "IE": "internal_error",
    "LR": "stopped",
}
_STATUS = {int(status): str(int(status)) for status in HTTPStatus}


def operation_name(exchange: Exchange) -> str | None:
    """Return `gen_ai.operation.name`; None where the request is no call of a model."""
    if exchange.api == "gemini":
        embeds = exchange.path.rstrip("/").endswith(":embedContent")
        return "embeddings" if embeds else "generate_content"
    return _OPERATIONS.get(exchange.api or "")


def provider_name(host: str, name: str) -> str:
    """Return `gen_ai.provider.name`: the convention's where it knows the host, else `name`."""
    if known := _PROVIDERS.get(host):
        return known
    if host.startswith(_BEDROCK) and host.endswith(".amazonaws.com"):
        return "aws.bedrock"
    return _by_suffix(host, _PROVIDERS_BY_SUFFIX) or name


def _by_suffix(host: str, names: Mapping[str, str]) -> str | None:
    return next((name for suffix, name in names.items() if host.endswith(suffix)), None)


def error_type(exchange: Exchange) -> str | None:
    """Return `error.type`, one of a bounded number of words; None for what went well."""
    for flag in exchange.flags:
        if found := _ERRORS_BY_FLAG.get(flag):
            return found
    if exchange.status is not None and exchange.status >= FIRST_ERROR:
        return status_label(exchange.status)
    return OTHER if exchange.error else None


def status_label(status: int) -> str:
    """Return a status as a label: itself, or its class where HTTP knows of none such."""
    found = _STATUS.get(status)
    return found or (f"{status // 100}xx" if 100 <= status < 600 else OTHER)  # noqa: PLR2004

"""The CustomResourceDefinitions of the two kinds, generated from the models in `config.resources`.

Their schemas are structural, as an API server demands: a type for each field, no references, no
forbidden keywords, so that unknown fields are pruned, and named by `kubectl` at once. A field that
is modelled but not supported yet is unknown there too. What a schema can't say of one field alone
is said in CEL; what needs other objects is told in `status.conditions`.
"""

import ast
import copy
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from pointsman.config import resources
from pointsman.config.resources import API_GROUP, API_VERSION, KINDS, PENDING

type Schema = dict[str, Any]

# An API server refuses rules that could cost too much: the lists around them need an end.
_BOUNDS: Mapping[tuple[str, str], Schema] = {
    ("LLMRouteSpec", "rules"): {"maxItems": 128},
    ("RouteRule", "name"): {"maxLength": 253},
    ("RouteRule", "matches"): {"maxItems": 32},
    ("RouteRule", "backendRefs"): {"maxItems": 32},
    ("Match", "headers"): {"maxProperties": 32},
    ("Configs", "routeSpecificConfigs"): {"maxProperties": 128},
}

# For each model its rules in CEL: the expression, and what to tell where it does not hold.
_RULES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ApiKeyFrom": (
        ("has(self.env) != has(self.file)", "apiKeyFrom takes exactly one of env, file"),
    ),
    "OpenAIConfig": (
        (
            "!(has(self.apiKey) && has(self.apiKeyFrom))",
            "apiKey and apiKeyFrom exclude each other; keep one",
        ),
    ),
    "ProviderConfig": (
        ("has(self.openAIConfig)", "a provider config takes exactly one member: openAIConfig"),
    ),
    "Tls": (
        (
            "!(has(self.caFile) && has(self.insecureSkipVerify) && self.insecureSkipVerify)",
            "caFile and insecureSkipVerify exclude each other; keep one",
        ),
    ),
    "OutlierDetection": (
        (
            (
                "duration(has(self.baseEjection) ? self.baseEjection : '30s')"
                " <= duration(has(self.maxEjection) ? self.maxEjection : '300s')"
            ),
            "baseEjection (30s if absent) is longer than maxEjection (300s if absent)",
        ),
    ),
    "LLMProviderSpec": (
        (
            "!(has(self.tls) && has(self.scheme) && self.scheme == 'http')",
            "tls has no meaning with scheme http; remove one of them",
        ),
    ),
    "StringMatch": (
        (
            (
                "!(has(self.exact) && has(self.prefix)) && !(has(self.exact) && has(self.regex))"
                " && !(has(self.prefix) && has(self.regex))"
            ),
            "a match takes one of exact, prefix, regex, or is {} for presence",
        ),
    ),
    "ObjectRef": (
        (
            (
                "has(self.kind) && self.kind == 'InferencePool' ? has(self.group)"
                " && (self.group == 'inference.networking.k8s.io'"
                " || self.group == 'inference.networking.x-k8s.io')"
                " : (!has(self.group) || self.group == '' || self.group == 'core')"
            ),
            (
                "a Service has no group; an InferencePool has inference.networking.k8s.io or"
                " inference.networking.x-k8s.io"
            ),
        ),
        (
            "!(has(self.port) && has(self.kind) && self.kind == 'InferencePool')",
            "an InferencePool has its own ports; remove port",
        ),
    ),
    "BackendRef": (
        (
            "has(self.providerHost) != has(self.backendRef)",
            "a backend takes exactly one of providerHost, backendRef",
        ),
    ),
    "Retry": (
        (
            (
                "has(self.attempts) || has(self.retryOn) || has(self.perTryTimeout)"
                " || has(self.backoff)"
            ),
            "retry is empty; remove it for the default, or write attempts: 1 to switch retries off",
        ),
    ),
    "Affinity": (
        (
            "[has(self.header), has(self.cookie), has(self.bodyField)].exists_one(x, x)",
            "affinity takes exactly one of header, cookie, bodyField",
        ),
    ),
    "LLMRouteSpec": (
        (
            (
                "self.rules.all(r, !has(r.name) || self.rules.exists_one(x, has(x.name) &&"
                " x.name == r.name))"
            ),
            "two rules have one name; rename one of them",
        ),
    ),
    "RouteRule": (
        (
            (
                "self.backendRefs.size() < 2 || self.backendRefs.exists(r, has(r.weight) &&"
                " r.weight > 0) || self.backendRefs.exists(r, (has(r.priority) ? r.priority : 0) !="
                " (has(self.backendRefs[0].priority) ? self.backendRefs[0].priority : 0))"
            ),
            (
                "the weights of backendRefs are all zero; give at least one a weight above 0, or"
                " each its own priority"
            ),
        ),
    ),
}

_ENUMS: Mapping[tuple[str, str], list[str]] = {
    ("ObjectRef", "kind"): [resources.SERVICE, resources.INFERENCE_POOL],
    ("ObjectRef", "group"): sorted({group for group, _ in resources.BACKEND_APIS}),
}

_CONDITION: Schema = {
    "type": "object",
    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
    "properties": {
        "type": {
            "type": "string",
            "description": "Accepted or ResolvedRefs.",
            "maxLength": 316,
            "pattern": (
                r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
                r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
            ),
        },
        "status": {
            "type": "string",
            "description": "True, False or Unknown.",
            "enum": ["True", "False", "Unknown"],
        },
        "observedGeneration": {
            "type": "integer",
            "format": "int64",
            "minimum": 0,
            "description": "The metadata.generation that this is about.",
        },
        "lastTransitionTime": {
            "type": "string",
            "format": "date-time",
            "description": "When the status has last changed.",
        },
        "reason": {
            "type": "string",
            "description": "The reason, in one word.",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        },
        "message": {
            "type": "string",
            "description": "What is wrong, and how to mend it.",
            "maxLength": 32768,
        },
    },
}

_STATUS: Schema = {
    "type": "object",
    "description": "Written by an instance with llm_status, not by you.",
    "properties": {
        "conditions": {
            "type": "array",
            "description": "Whether the object is in use, and whether what it names is there.",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": _CONDITION,
        }
    },
}


def definitions() -> list[Schema]:
    """Return the CustomResourceDefinitions, `apiextensions.k8s.io/v1`, as plain values."""
    return [_definition(kind, model) for kind, model in KINDS.items()]


def manifest() -> str:
    """Return them as YAML that `kubectl` reads as it was meant: quoted as YAML 1.1 needs it."""
    # Copies, since an object that stands twice would be written as an alias.
    return yaml.safe_dump_all(copy.deepcopy(definitions()), sort_keys=False, width=100)


def _definition(kind: str, model: type[BaseModel]) -> Schema:
    singular = kind.lower()
    plural = f"{singular}s"
    group, _, version = API_VERSION.partition("/")
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{API_GROUP}"},
        "spec": {
            "group": group,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": singular,
                "categories": ["llm"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": _resource(model)},
                }
            ],
        },
    }


def _columns() -> list[Schema]:
    def condition(name: str) -> str:
        return f'.status.conditions[?(@.type=="{name}")].status'

    return [
        {"name": "Host", "type": "string", "jsonPath": ".spec.host"},
        {"name": "Accepted", "type": "string", "jsonPath": condition("Accepted")},
        {
            "name": "ResolvedRefs",
            "type": "string",
            "jsonPath": condition("ResolvedRefs"),
            "priority": 1,
        },
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]


def _resource(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    spec = _Structural(schema["$defs"]).of(schema["properties"]["spec"])
    return {
        "type": "object",
        "description": spec["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": API_VERSION},
            "kind": {"type": "string", "description": model.__name__},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": _STATUS,
        },
    }


class _Structural:
    """Makes a structural schema of pydantic's, whose definitions it is given."""

    def __init__(self, definitions: Schema) -> None:
        self._definitions = definitions

    def of(self, schema: Schema) -> Schema:
        """Return a schema without references, null, titles and defaults."""
        others = [s for s in schema.get("anyOf", ()) if s != {"type": "null"}]
        if len(others) == 1:
            rest = {key: value for key, value in schema.items() if key != "anyOf"}
            return self.of({**others[0], **rest})
        if "$ref" in schema:
            return self._model(schema["$ref"].rpartition("/")[2])
        kept = {key: schema[key] for key in schema if key not in {"title", "default"}}
        if "exclusiveMinimum" in kept:  # a flag there, and for integers there is another way
            kept["minimum"] = kept.pop("exclusiveMinimum") + 1
        if kept.get("type") == "array":
            kept |= {"items": self.of(kept["items"]), "x-kubernetes-list-type": "atomic"}
        elif isinstance(values := kept.get("additionalProperties"), dict):
            kept["additionalProperties"] = self.of(values)
        elif values is True:
            del kept["additionalProperties"]
            kept["x-kubernetes-preserve-unknown-fields"] = True
        return kept

    def _model(self, name: str) -> Schema:
        schema, model = self._definitions[name], getattr(resources, name)
        properties = dict(self._properties(name, schema["properties"], model))
        made: Schema = {"type": "object", "description": schema["description"]}
        if required := schema.get("required"):
            made["required"] = required
        if rules := _RULES.get(name):
            made["x-kubernetes-validations"] = [
                {"rule": rule, "message": message} for rule, message in rules
            ]
        return {**made, "properties": properties}

    def _properties(
        self, name: str, properties: Schema, model: type[BaseModel]
    ) -> Iterator[tuple[str, Schema]]:
        for key, field in model.model_fields.items():
            alias = field.alias or key
            if PENDING in field.metadata:
                continue
            schema = self.of(properties[alias])
            described = _docs().get((name, key)) or schema.get("description", "")
            if (name, alias) in _ENUMS:
                schema["enum"] = _ENUMS[name, alias]
            bounds = _BOUNDS.get((name, alias), {})
            yield alias, {**schema, "description": described, **bounds}


@cache
def _docs() -> Mapping[tuple[str, str], str]:
    """Return the texts below the fields of the models, by class and field."""
    found = {}
    for node in ast.parse(inspect.getsource(resources)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[node.name, name] = inspect.cleandoc(text).replace("\n", " ")
    return found

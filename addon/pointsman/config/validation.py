"""One document at a time: is it a resource of ours, and does it say only what it may?

pydantic finds the faults; this module puts them into words that a person can act on. No message
repeats a value, since any of them might be a key in the wrong place.
"""

from collections.abc import Iterator
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pointsman.config.documents import MAX_DEPTH, Document, is_too_deep
from pointsman.config.problems import Location, Problem, did_you_mean, shown_field, shown_name
from pointsman.config.resources import (
    API_VERSION,
    EXTENSION,
    KINDS,
    PENDING,
    LLMProvider,
    LLMRoute,
    Marker,
)

type Resource = LLMProvider | LLMRoute


def validate(document: Document) -> tuple[Resource | None, list[Problem]]:
    """Return the resource of a document of our group, or None, and everything wrong with it."""
    if document.api_version != API_VERSION:
        message = f"{document.api_version} is not supported; write {API_VERSION}"
        return None, [document.problem(("apiVersion",), message)]
    model = KINDS.get(document.kind)
    if model is None:
        hint = did_you_mean(document.kind, KINDS) or f"; known are {' and '.join(KINDS)}"
        name = shown_name(document.kind)
        return None, [document.problem(("kind",), f'unknown kind "{name}"{hint}')]
    for name, part in document.value.items():
        if is_too_deep(part):
            message = f"it is nested deeper than {MAX_DEPTH} levels; flatten it"
            return None, [document.problem((name,), message)]
    try:
        resource = model.model_validate(document.value, by_alias=True, by_name=False)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        worded = [_worded(detail, document, model) for detail in details]
        return None, [*worded, *_pending(document, model)]
    return resource, list(_pending(document, model))


def extensions(resource: Resource, document: Document) -> Iterator[Problem]:
    """Yield each field that is set and not one of ASM's own."""
    for location in _marked(type(resource), document.value, EXTENSION):
        message = f"{location[-1]} is an extension of Pointsman; ASM does not know it"
        yield document.problem(location, message)
    if resource.spec.host.startswith("*."):
        message = "a wildcard host is an extension of Pointsman; ASM does not know it"
        yield document.problem(("spec", "host"), message)


def _pending(document: Document, model: type[BaseModel]) -> Iterator[Problem]:
    for location in _marked(model, document.value, PENDING):
        yield document.problem(location, f"{location[-1]} is not supported yet; remove it")


def _marked(annotation: Any, value: object, marker: Marker) -> Iterator[Location]:
    """Yield the location of each field with a marker that the values as written set."""
    for part, inner, metadata, element in _children(_inner(annotation), value):
        if element is None:
            continue
        if marker in metadata:
            yield (part,)
        for within in _marked(inner, element, marker):
            yield (part, *within)


def _children(model: Any, value: object) -> Iterator[tuple[str | int, Any, list[Any], object]]:
    """Yield what stands in a value, each with its place, its type and the type's metadata."""
    if isinstance(value, list) and get_origin(model) is tuple:
        for index, element in enumerate(value):
            yield index, get_args(model)[0], [], element
    elif isinstance(value, dict) and get_origin(model) is dict:
        for key, element in value.items():
            yield key, get_args(model)[1], [], element
    elif isinstance(value, dict) and _is_model(model):
        for name, field in model.model_fields.items():
            alias = field.alias or name
            yield alias, field.annotation, field.metadata, value.get(alias)


# --- pydantic's findings in plain words -----------------------------------------------------------

_WORDS = {
    "bool_type": "write true or false, without quotes",
    "dict_type": "write a mapping: indented lines of `name: value`",
    "float_type": "write a number, without quotes",
    "int_from_float": "write a whole number",
    "int_type": "write a whole number, without quotes",
    "model_type": "write a mapping: indented lines of `name: value`",
    "string_too_short": "it is empty; write a text or remove the field",
    "tuple_type": "write a list: indented lines that begin with `- `",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _worded(detail: ErrorDetails, document: Document, model: type[BaseModel]) -> Problem:
    # pydantic marks a fault in the name of an entry by a last part "[key]".
    location = tuple(part for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        return document.problem(location, _unknown_field(location, model))
    if detail["type"] == "missing":
        return document.problem(location, f"the field {location[-1]} is missing; add it")
    return document.problem(location, _message(detail, document.at(*location)))


def _message(detail: ErrorDetails, value: object) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "string_type":
            return _not_a_text(value)
        case "model_type" if context.get("class_name") == "StringMatch":
            return "write {exact: …}, {prefix: …} or {regex: …}, or {} for presence"
        case "literal_error":
            return f"write {context['expected'].replace(chr(39), '')}"
        case bound if bound in _BOUNDS:
            name, words = _BOUNDS[bound]
            return f"it must be {words} {context[name]:g}"
        case known:
            words = _WORDS.get(known, detail["msg"])
            return f"it is empty; {words}" if value is None else words


def _not_a_text(value: object) -> str:
    if value is None:
        return "it is empty; write a text or remove the field"
    if isinstance(value, dict | list):
        return "write a text, not a mapping or a list"
    return "a text is wanted here and YAML reads something else; quote it"


def _unknown_field(location: Location, model: type[BaseModel]) -> str:
    name = str(location[-1])
    parent = _model_at(model, location[:-1])
    known = [field.alias or key for key, field in parent.model_fields.items()] if parent else []
    message = f'unknown field "{shown_field(name)}"'
    if shown_name(name) != name:
        return f"{message}; put a space after the colon"
    return message + (did_you_mean(name, known) or f"; known are {', '.join(known)}")


def _model_at(model: Any, location: Location) -> type[BaseModel] | None:
    """Follow a location through the types, down to the model that it ends in."""
    for part in location:
        if _is_model(model):
            fields = model.model_fields.items()
            found = next((f for key, f in fields if (f.alias or key) == part), None)
            model = _inner(found.annotation) if found else None
        else:
            model = _inner(get_args(model)[1 if get_origin(model) is dict else 0])
    return model if _is_model(model) else None


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _inner(annotation: Any) -> Any:
    """Strip what stands around a type: its metadata, and that it may be None."""
    if hasattr(annotation, "__metadata__"):
        return _inner(annotation.__origin__)
    others = [a for a in get_args(annotation) if a is not type(None)]
    if type(None) in get_args(annotation) and len(others) == 1:
        return _inner(others[0])
    return annotation

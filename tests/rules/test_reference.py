"""What rules/README.md says is so: its fields, its examples, its paths and its errors."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.fields import FieldInfo

from pointsman import errors
from pointsman.config.loading import LoadError, load
from pointsman.config.resources import (
    EXTENSION,
    KINDS,
    PENDING,
    AnthropicConfig,
    AzureOpenAIConfig,
    Duration,
    GeminiConfig,
    OpenAIConfig,
)
from pointsman.config.table import (
    DEFAULT_BACKOFF,
    DEFAULT_CONNECT_TIMEOUT,
    RETRY_BY_DEFAULT,
    CallConfig,
    Ejection,
    Target,
    TimeLimits,
)
from pointsman.errors import RequestError
from pointsman.routing.request import ClientRequest
from pointsman.routing.rewriting import rewrite

type MakeRequest = Callable[..., ClientRequest]

README = (Path(__file__).resolve().parents[2] / "rules" / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Table:
    """A table of the reference, and the heading it stands under."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _tables() -> Iterator[Table]:
    heading, block = "", list[str]()
    for line in [*README.splitlines(), ""]:
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("|"):
            block.append(line)
        elif block:
            yield Table(heading, _cells(block[0]), tuple(map(_cells, block[2:])))
            block = []


TABLES = list(_tables())
FIELD_TABLES = [table for table in TABLES if table.columns[:2] == ("Field", "Type")]
(PENDING_TABLE,) = (table for table in TABLES if table.columns[:2] == ("Field", "Its fields"))
(RETRY_TABLE,) = (table for table in TABLES if table.columns[0] == "`retryOn`")
(PATH_TABLE,) = (table for table in TABLES if table.columns[0] == "Provider's `path`")
(ERROR_TABLE,) = (table for table in TABLES if table.columns[0] == "`x-pointsman-error`")


def _code(cell: str) -> str:
    """Return the first piece of code in a cell."""
    found = re.search(r"`([^`]+)`", cell)
    return found[1] if found else ""


# --- the fields -----------------------------------------------------------------------------------


def _inner(annotation: Any) -> Any:
    """Strip what stands around a model: metadata, None, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if hasattr(annotation, "__metadata__"):
        return _inner(annotation.__origin__)
    for part in get_args(annotation)[1 if get_origin(annotation) is dict else 0 :]:
        if found := _inner(part):
            return found
    return None


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield each model that a supported field leads to, and the model itself."""
    yield model
    for field in model.model_fields.values():
        if PENDING not in field.metadata and (inner := _inner(field.annotation)):
            yield from _models(inner)


def _pending(model: type[BaseModel], path: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in _fields(model).items():
        many = "[]" if "tuple" in str(field.annotation) else ""
        at = f"{path}.{name}".removeprefix(".")
        if PENDING in field.metadata:
            yield at, field
        elif (inner := _inner(field.annotation)) and get_origin(field.annotation) is not dict:
            yield from _pending(inner, at + many)


def _described(heading: str) -> type[BaseModel]:
    """Return the model that a heading such as LLMRoute: `spec.rules[]` is about."""
    model: Any = KINDS[heading.partition(":")[0].replace("Either kind", "LLMRoute")]
    for name in _code(heading).replace("[]", "").split("."):
        model = _inner(_fields(model)[name].annotation) if name else model
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model


@pytest.mark.parametrize("table", FIELD_TABLES, ids=lambda table: table.heading)
def test_a_table_has_exactly_the_fields_that_are_supported(table: Table) -> None:
    fields = _fields(_described(table.heading))
    supported = {name for name, field in fields.items() if PENDING not in field.metadata}
    assert {_code(row[0]) for row in table.rows} == supported


@pytest.mark.parametrize("table", FIELD_TABLES, ids=lambda table: table.heading)
def test_a_plus_marks_the_extensions_and_nothing_else(table: Table) -> None:
    fields = _fields(_described(table.heading))
    for row in table.rows:
        assert row[0].endswith("` +") == (EXTENSION in fields[_code(row[0])].metadata), row[0]


@pytest.mark.parametrize("table", FIELD_TABLES, ids=lambda table: table.heading)
def test_required_is_what_can_not_be_left_out(table: Table) -> None:
    model = _described(table.heading)
    for row in table.rows:
        field = _fields(model)[_code(row[0])]
        assert (row[2] == "required") == field.is_required(), row[0]


def test_every_model_has_its_table() -> None:
    described = {_described(table.heading) for table in FIELD_TABLES}
    resources = set(KINDS.values())
    known = {model for kind in resources for model in _models(kind)}
    assert described - resources == known - resources


def _default(heading: str, name: str) -> str | None:
    """Return the default that the reference gives a field, None where it is no value."""
    (table,) = (table for table in FIELD_TABLES if table.heading == heading)
    (row,) = (row for row in table.rows if _code(row[0]) == name)
    return _code(row[2]) or None


@pytest.mark.parametrize(
    ("heading", "name", "default"),
    [
        ("LLMProvider: `spec.timeouts`", "connect", DEFAULT_CONNECT_TIMEOUT),
        ("LLMProvider: `spec.timeouts`", "firstByte", TimeLimits().first_byte),
        ("LLMProvider: `spec.timeouts`", "idle", TimeLimits().idle),
        ("LLMProvider: `spec.outlierDetection`", "baseEjection", Ejection().base),
        ("LLMProvider: `spec.outlierDetection`", "maxEjection", Ejection().most),
        ("LLMRoute: `spec.rules[].retry`", "backoff", DEFAULT_BACKOFF),
    ],
)
def test_the_default_of_a_duration_is_the_one_given(
    heading: str, name: str, default: float | None
) -> None:
    given = _default(heading, name)
    assert (given and TypeAdapter(Duration).validate_python(given)) == default


def test_the_default_of_consecutive_failures_is_the_one_given() -> None:
    given = _default("LLMProvider: `spec.outlierDetection`", "consecutiveFailures")
    assert given == str(Ejection().consecutive_failures)


def test_every_retry_condition_is_explained() -> None:
    assert {_code(row[0]) for row in RETRY_TABLE.rows} == RETRY_BY_DEFAULT


EXAMPLES = [
    pytest.param(table.heading, row[-1].strip("`"), id=f"{table.heading} {_code(row[0])}")
    for table in FIELD_TABLES
    for row in table.rows
    if row[-1]
]


@pytest.mark.parametrize(("heading", "example"), EXAMPLES)
def test_the_example_of_a_field_is_valid(heading: str, example: str) -> None:
    ((name, value),) = yaml.safe_load(example).items()
    if name in {"kind", "spec", "metadata"} and heading == "Either kind":
        return
    field = _fields(_described(heading))[name]
    wanted: Any = Annotated[field.annotation, field]
    model = _inner(field.annotation)
    config = None if model else ConfigDict(hide_input_in_errors=True)
    TypeAdapter(wanted, config=config).validate_python(value)


def test_what_is_not_supported_yet_is_listed_with_its_fields() -> None:
    expected = {
        (f"{kind} `{path}`{' +' if EXTENSION in field.metadata else ''}"): field
        for kind, model in KINDS.items()
        for path, field in _pending(model, "")
    }
    assert {row[0] for row in PENDING_TABLE.rows} == set(expected)
    for name, inside, _ in PENDING_TABLE.rows:
        model = _inner(expected[name].annotation)
        fields = set(_fields(model)) if model else set()
        if model in {AnthropicConfig, GeminiConfig, AzureOpenAIConfig}:
            fields = fields - set(_fields(OpenAIConfig)) | {"openAIConfig"}
        assert set(re.findall(r"`([^`]+)`", inside)) == fields


# --- the manifests and the error that it shows ----------------------------------------------------


def test_the_manifests_shown_are_valid(tmp_path: Path) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(shown) == 2
    moonshot = (
        shown[0]
        .replace("dashscope-qwen", "moonshot")
        .replace("dashscope.aliyuncs.com", "api.moonshot.cn")
    )
    (tmp_path / "a.yaml").write_text("---\n".join([*shown, moonshot]), encoding="utf-8")
    loaded = load(tmp_path, environ={"DASHSCOPE_API_KEY": "sk-1"})
    assert loaded.warnings == loaded.extensions == ()


def test_the_error_shown_is_what_such_a_manifest_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/qwen.yaml").write_text(
        "apiVersion: istio.alibabacloud.com/v1beta1\nkind: LLMProvider\nmetadata:\n  name: qwen\n"
        "spec:\n  host: dashscope.aliyuncs.com\n  configs:\n    defaultConfig:\n"
        "      openAIConfig: {apikey: sk-1}\n",
        encoding="utf-8",
    )
    with pytest.raises(LoadError) as caught:
        load(Path("rules"), environ={})
    shown = re.findall(r"^ {6}(\S.*)$", README.partition("\n## Either kind")[0], re.MULTILINE)
    assert str(caught.value).splitlines() == shown


# --- paths and errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("row", PATH_TABLE.rows, ids=" ".join)
def test_a_path_goes_where_the_table_says(row: tuple[str, ...], make_request: MakeRequest) -> None:
    path, wanted, called_on, goes_to, body = row
    method, _, asked = _code(wanted).partition(" ")
    assert called_on in {"its own host", "another name"}
    host = "provider.example" if called_on == "its own host" else "demo-llm-server"
    target = Target(
        "p", "provider.example", path=_code(path) or None, config=CallConfig(model="the-providers")
    )
    sent = {"model": "the-clients", "messages": []} if method == "POST" else b""
    request = make_request(method, f"http://{host}{asked}", body=sent)
    outgoing = rewrite(target, request)
    assert outgoing.path == _code(goes_to)
    assert body in {"patched", "left alone"}
    assert (outgoing.body != request.body.raw) == (body == "patched")
    assert (outgoing.model == "the-providers") == (body == "patched")


def test_every_error_of_our_own_is_listed() -> None:
    def kinds(error: type[RequestError]) -> Iterator[type[RequestError]]:
        yield error
        for kind in error.__subclasses__():
            yield from kinds(kind)

    defined = {
        (error.code, str(error.status), error.flag)
        for error in kinds(RequestError)
        if error is not RequestError and error.__module__ == errors.__name__
    }
    listed = {(_code(row[0]), row[1], _code(row[2])) for row in ERROR_TABLE.rows}
    assert listed == defined


def test_links_inside_the_reference_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= headings


def test_the_rules_of_the_projects_readme_load(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "rules.yaml").write_text(shown, encoding="utf-8")
    keys = {"DASHSCOPE_API_KEY": "sk-a", "MOONSHOT_API_KEY": "sk-b"}
    loaded = load(tmp_path, environ=keys)
    assert not loaded.warnings
    (rule,) = loaded.table.exact["demo-llm-server"].rules
    assert [target.provider for target in rule.targets] == ["dashscope", "moonshot"]

import pytest

from pointsman.config.problems import LoadError, Problem, did_you_mean, field_path


def test_a_problem_is_one_line_that_an_editor_can_open() -> None:
    problem = Problem("rules/a.yaml", 12, "LLMProvider/qwen", "spec.path", "not a path")
    assert str(problem) == "rules/a.yaml:12: LLMProvider/qwen: spec.path: not a path"


def test_what_is_not_known_is_left_out() -> None:
    assert str(Problem("rules", None, None, None, "nothing in it")) == "rules: nothing in it"


def test_a_name_with_a_line_break_does_not_break_the_line() -> None:
    assert str(Problem("a", 1, "LLMRoute/x\ny", None, "\udc80")) == r"a:1: LLMRoute/x\ny: \udc80"


def test_the_error_counts_and_lists_all_problems() -> None:
    one = Problem("a.yaml", 1, None, None, "one")
    assert str(LoadError([one])) == "1 error in the rules:\na.yaml:1: one"
    assert str(LoadError([one, one])).startswith("2 errors in the rules:\n")


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ((), None),
        (("spec", "rules", 1, "backendRefs", 0, "weight"), "spec.rules[1].backendRefs[0].weight"),
        (("labels", "app.kubernetes.io/name"), 'labels["app.kubernetes.io/name"]'),
        (("headers", "Authorization:Bearer sk-1"), 'headers["Authorization:…"]'),
        (
            ("headers", "x-amzn-bedrock-guardrail-identifier"),
            "headers.x-amzn-bedrock-guardrail-identifier",
        ),
        (("openAIConfig", "sk-RLSECRET"), 'openAIConfig["…"]'),
    ],
)
def test_a_field_is_written_as_a_reader_does(
    location: tuple[str | int, ...], path: str | None
) -> None:
    assert field_path(location) == path


def test_a_near_name_is_suggested_whatever_its_case() -> None:
    assert did_you_mean("APIKEY", ["apiKey", "model"]) == '; did you mean "apiKey"?'
    assert did_you_mean("zzz", ["apiKey", "model"]) == ""

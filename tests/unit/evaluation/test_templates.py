from pathlib import Path

import jinja2
import pytest
from jinja2.exceptions import SecurityError
from lm_eval import utils

from glue.evaluation.suite import load_suite
from glue.evaluation.templates import TemplateSandbox, sandbox_templates
from glue.specs.errors import EvaluationError
from glue.specs.suite import SuiteSpec
from tests.support.suites import writing_task

ATTACKS = [
    "{{ cycler.__init__.__globals__.os.popen('touch %s').read() }}",
    "{{ lipsum.__globals__['os'].system('touch %s') }}",
    "{{ (cycler|attr('__init__')|attr('__globals__')).os.popen('touch %s').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__()|length }}{{ joiner.__init__.__globals__.os.system('touch %s') }}",
    "{{ '{0.__init__.__globals__}'.format(cycler) }}{{ cycler['__init__'].__globals__.os.system('touch %s') }}",
]


@pytest.fixture(autouse=True)
def _sandboxed() -> None:
    sandbox_templates()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_template_reaches_no_shell(attack: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises((SecurityError, jinja2.UndefinedError)):
        utils.apply_template(attack % trace, {"question": "x"})
    assert not trace.exists()


def test_an_attack_works_where_there_is_no_sandbox(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    jinja2.Environment(autoescape=False).from_string(ATTACKS[1] % trace).render()
    assert trace.exists()


@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_target", "description", "gen_prefix"])
@pytest.mark.parametrize("attack", ATTACKS[:3])
def test_a_task_file_reaches_no_shell(key: str, attack: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    writing_task(tmp_path / "tasks", "sums", 4, **{key: attack % trace})
    spec = SuiteSpec.parse({"include_path": str(tmp_path / "tasks"), "tasks": [{"task": "sums"}]})
    with pytest.raises(EvaluationError, match="task sums"):
        load_suite(spec)
    assert not trace.exists()


def test_a_template_changes_no_item() -> None:
    with pytest.raises(SecurityError):
        utils.apply_template("{{ choices.append('x') }}", {"choices": ["a"]})


def test_a_template_reads_no_file() -> None:
    with pytest.raises((jinja2.TemplateError, TypeError)):
        utils.apply_template("{% include '/etc/hostname' %}", {})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Q: {{question}}\n", "Q: two\n"),
        ("{{question|regex_replace('o', '0')}}", "tw0"),
        ("{% for part in parts %}{{part}};{% endfor %}", "a;b;"),
        ("{{parts|join(' ')|upper}}", "A B"),
    ],
)
def test_templates_read_as_lm_eval_reads_them(template: str, text: str) -> None:
    assert utils.apply_template(template, {"question": "two", "parts": ["a", "b"]}) == text


def test_a_missing_field_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        utils.apply_template("{{nothing}}", {"question": "x"})


def test_a_template_is_compiled_once() -> None:
    sandbox = TemplateSandbox()
    assert sandbox.from_string("{{a}}") is sandbox.from_string("{{a}}")
    assert sandbox.from_string("{{a}}").render(a=1) == "1"
    assert sandbox.from_string("{{a}}").render(a=2) == "2"

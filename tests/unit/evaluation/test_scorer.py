"""lm-eval's own `simple_evaluate` with its own model for transformers is the oracle throughout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from glue.evaluation.language_model import Encoder, ResidentModel
from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import Suite, drawn, load_suite
from glue.mixture.build import ExpertSource, build_mixture
from glue.mixture.load import load_model
from glue.mixture.router import RouterWeights
from glue.specs.errors import EvaluationError
from glue.specs.results import SuiteScore, TaskScore
from glue.specs.suite import SuiteSpec
from tests.support.models import char_tokenizer, tiny_llama, tiny_neox, tiny_qwen3
from tests.support.suites import choice_task, text_task, write_task, writing_task

SEED = 3
TASKS = [
    {"task": "choice", "limit": 40},
    {"task": "letter", "metric": "acc_norm"},
    {"task": "text", "limit": 12, "metric": "byte_perplexity"},
    {"task": "line"},
    {"task": "sums", "limit": 25},
    {"task": "shots", "num_fewshot": 2},
]


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        # The oracle reads data through `datasets`, which keeps a cache.
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return char_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    choice_task(folder, "choice", 60, letters=5)
    choice_task(folder, "letter", 30, letters=1)
    text_task(folder, "text", 20, words=70)
    writing_task(folder, "sums", 40, filter_list=[_first_digits()])
    writing_task(folder, "shots", 15, num_fewshot=2, fewshot_split="test")
    pairs = [{"start": "abc" * n, "end": "de" * (1 + n % 3)} for n in range(1, 12)]
    settings = {"output_type": "loglikelihood", "doc_to_text": "{{start}}", "doc_to_target": "{{end}}"}
    write_task(folder, "line", pairs, metric_list=[{"metric": "acc"}], **settings)
    return folder


def _first_digits() -> dict[str, Any]:
    return {
        "name": "digits",
        "filter": [{"function": "regex", "regex_pattern": "([a-z]+)"}, {"function": "take_first"}],
    }


def suite_of(folder: Path, *tasks: dict[str, Any], **settings: Any) -> Suite:
    return load_suite(SuiteSpec.parse({"include_path": str(folder), "seed": SEED, "tasks": tasks, **settings}))


@pytest.fixture(scope="module")
def suite(folder: Path) -> Suite:
    return suite_of(folder, *TASKS, batch=8)


@pytest.fixture(scope="module", params=[tiny_llama, tiny_neox, tiny_qwen3], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load(request.param(tmp_path_factory.mktemp("model"), 5, tie_word_embeddings=False))


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def oracle(lm: Any, suite: Suite, **settings: Any) -> dict[str, Any]:
    """lm-eval on the same items: it reads the YAML and the data itself."""
    sizes = {task.spec.task: len(task.task.eval_docs) for task in suite.tasks}
    samples = {
        task.spec.task: drawn(sizes[task.spec.task], task.spec.limit, SEED, task.spec.task) for task in suite.tasks
    }
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm,
        tasks=[task.spec.task for task in suite.tasks],
        task_manager=TaskManager(include_path=suite.spec.include_path, include_defaults=False),
        samples=samples,
        fewshot_random_seed=SEED,
        # One: exact errors are given, none is bootstrapped.
        bootstrap_iters=1,
        **settings,
    )
    return results


@pytest.fixture(scope="module")
def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> dict[str, Any]:
    return oracle(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8), suite)


@pytest.fixture(scope="module")
def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> SuiteScore:
    return Scorer(suite, "cpu").score(model, tokenizer)


def task_of(score: SuiteScore, name: str) -> TaskScore:
    return next(task for task in score.tasks if task.task == name)


@pytest.mark.parametrize(
    ("task", "metric", "filtered"),
    [
        ("choice", "acc", "none"),
        ("letter", "acc_norm", "none"),
        ("line", "acc", "none"),
        ("sums", "exact_match", "digits"),
        ("shots", "exact_match", "none"),
    ],
)
def test_accuracies_are_exactly_lm_evals(
    score: SuiteScore, reference: dict[str, Any], task: str, metric: str, filtered: str
) -> None:
    ours, theirs = task_of(score, task), reference["results"][task]
    assert list(ours.values) == [
        sample[metric] for sample in reference["samples"][task] if sample["filter"] == filtered
    ]
    assert ours.mean == pytest.approx(theirs[f"{metric},{filtered}"], abs=5e-7)
    assert ours.stderr == pytest.approx(theirs[f"{metric}_stderr,{filtered}"], abs=5e-7)


def test_perplexities_are_lm_evals(score: SuiteScore, reference: dict[str, Any]) -> None:
    results = [sample["byte_perplexity"] for sample in reference["samples"]["text"]]
    expected = [torch.tensor(total / units).exp().item() for total, units in results]
    assert list(task_of(score, "text").values) == pytest.approx(expected, abs=2e-6)
    assert task_of(score, "text").metric == "inverse_byte_perplexity"


def test_every_answer_is_lm_evals(suite: Suite, score: SuiteScore, reference: dict[str, Any]) -> None:
    for task in suite.tasks:
        samples = [sample for sample in reference["samples"][task.spec.task] if sample["filter"] != "other"]
        for item, sample in zip(task.items, samples, strict=True):
            assert [request.args for request in item.requests] == sample["arguments"]
            for request, (theirs,) in zip(item.requests, sample["resps"], strict=True):
                _same(request.resps[0], theirs)


def _same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, tuple):
        assert ours == (pytest.approx(theirs[0], rel=1e-5, abs=1e-5), theirs[1])
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-5)
    else:
        assert ours == theirs


def test_our_model_inside_simple_evaluate_gives_the_same_table(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite, reference: dict[str, Any]
) -> None:
    with torch.no_grad():
        table = oracle(ResidentModel(model, Encoder(tokenizer), 8), suite)["results"]
    for task, theirs in reference["results"].items():
        numbers = {key: value for key, value in theirs.items() if isinstance(value, (int, float))}
        assert {key: table[task][key] for key in numbers} == pytest.approx(numbers, rel=1e-5)


def test_the_suites_mean_is_the_weighted_mean_of_its_tasks(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    suite = suite_of(folder, {"task": "choice", "weight": 3}, {"task": "letter"})
    score = Scorer(suite, "cpu").score(model, tokenizer)
    first, second = score.tasks
    assert score.suite == suite.digest
    assert score.mean == pytest.approx((3 * first.mean + second.mean) / 4, abs=2e-6)
    assert score.stderr == pytest.approx(((3 * first.stderr) ** 2 + second.stderr**2) ** 0.5 / 4, abs=2e-6)
    assert [len(task.values) for task in score.tasks] == [60, 30]


@pytest.mark.parametrize("batch", [1, 5, 1000])
def test_the_batch_does_not_move_accuracies(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, score: SuiteScore, batch: int
) -> None:
    other = Scorer(suite_of(folder, *TASKS, batch=batch), "cpu").score(model, tokenizer)
    for ours, theirs in zip(other.tasks, score.tasks, strict=True):
        assert ours.values == pytest.approx(theirs.values, abs=2e-6 if ours.task == "text" else 0)


def test_the_suite_says_how_many_threads(folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = load(tiny_llama(tmp_path))
    seen: set[int] = set()
    model.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    before = torch.get_num_threads()
    scores = [
        Scorer(suite_of(folder, {"task": "letter", "limit": 6}, threads=threads), "cpu").score(model, tokenizer)
        for threads in (1, 2)
    ]
    assert seen == {1, 2}
    assert torch.get_num_threads() == before
    assert scores[0].tasks == scores[1].tasks


def test_a_score_does_not_depend_on_what_was_scored_before(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite, score: SuiteScore, tmp_path: Path
) -> None:
    scorer = Scorer(suite, "cpu")
    other = scorer.score(load(tiny_llama(tmp_path, 9)), tokenizer)
    assert other != score
    assert scorer.score(model, tokenizer) == scorer.score(model, char_tokenizer()) == score


def test_parameters_may_change_under_the_scorer(
    tokenizer: PreTrainedTokenizerBase, suite: Suite, tmp_path: Path
) -> None:
    first, second = load(tiny_llama(tmp_path / "a", 1)), load(tiny_llama(tmp_path / "b", 2))
    scorer = Scorer(suite, "cpu")
    expected = [scorer.score(first, tokenizer), scorer.score(second, tokenizer)]
    found = [scorer.score(first, tokenizer)]
    first.load_state_dict(second.state_dict())
    found.append(scorer.score(first, tokenizer))
    assert found == expected


def test_one_token_choices_of_a_context_cost_one_sequence(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load(tiny_llama(tmp_path, 1))
    scorer = Scorer(suite_of(folder, {"task": "letter"}), "cpu")
    # The first time, the model is asked what it can share.
    scorer.score(model, tokenizer)
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    scorer.score(model, tokenizer)
    assert sum(rows) == 30


def test_another_dtype_than_the_suites_is_refused(
    tokenizer: PreTrainedTokenizerBase, suite: Suite, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="float32 on cpu"):
        Scorer(suite, "cpu").score(load(tiny_llama(tmp_path)).bfloat16(), tokenizer)


def test_half_precision_scores_most_items_alike(
    folder: Path, tokenizer: PreTrainedTokenizerBase, score: SuiteScore, model: PreTrainedModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    found = Scorer(suite_of(folder, *TASKS, batch=8, dtype="bfloat16"), "cpu").score(half, tokenizer)
    pairs = zip(task_of(found, "choice").values, task_of(score, "choice").values, strict=True)
    assert sum(ours != theirs for ours, theirs in pairs) <= 4


def test_items_that_half_precision_decides_otherwise_are_counted(
    folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    before = [parameter.clone() for parameter in half.parameters()]
    suite = suite_of(folder, *TASKS, batch=8, dtype="bfloat16")
    found = Scorer(suite, "cpu", compare=True).score(half, tokenizer)
    assert all(torch.equal(one, other) for one, other in zip(before, half.parameters(), strict=True))
    assert found.model_copy(update={"differing": None}) == Scorer(suite, "cpu").score(half, tokenizer)
    exact = Scorer(suite_of(folder, *TASKS, batch=8), "cpu").score(half.float(), tokenizer)
    pairs = [
        one != other
        for ours, theirs in zip(found.tasks, exact.tasks, strict=True)
        for one, other in zip(ours.values, theirs.values, strict=True)
    ]
    assert found.differing == round(sum(pairs) / len(pairs), 6)
    # Probabilities of texts differ in their last digits; what is right or wrong rarely does.
    assert 0 < found.differing < 0.3
    assert exact.differing is None
    assert "differing" not in exact.as_json()


def test_an_answer_longer_than_the_model_is_told(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = [{"q": "a", "choices": ["b", "c" * 300], "n": 0}] * 2
    settings = {"doc_to_text": "{{q}}", "doc_to_choice": "choices", "doc_to_target": "n"}
    write_task(tmp_path / "tasks", "long", rows, output_type="multiple_choice", **settings)
    scorer = Scorer(suite_of(tmp_path / "tasks", {"task": "long"}), "cpu")
    with pytest.raises(EvaluationError, match="301 tokens; the model takes 1 to 256"):
        scorer.score(load(tiny_llama(tmp_path / "model")), tokenizer)


def test_no_room_for_the_prompt_is_told(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    writing_task(tmp_path / "tasks", "sums", 3, generation_kwargs={"until": ["\n"]})
    scorer = Scorer(suite_of(tmp_path / "tasks", {"task": "sums"}), "cpu")
    with pytest.raises(EvaluationError, match="max_gen_toks below 256"):
        scorer.score(load(tiny_llama(tmp_path / "model")), tokenizer)


def test_long_prompts_lose_their_beginning_as_in_lm_eval(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    rows = [{"q": f"q{n}" * (10 * n), "choices": ["ab", "cde", "f"], "n": 0} for n in range(1, 20)]
    settings = {"doc_to_text": "{{q}}", "doc_to_choice": "choices", "doc_to_target": "n"}
    write_task(folder, "long", rows, output_type="multiple_choice", **settings)
    writing_task(folder, "write", 19, doc_to_text="{{prompt * 60}}")
    suite = suite_of(folder, {"task": "long"}, {"task": "write"}, batch=4)
    model = load(tiny_llama(tmp_path / "model", 4, tie_word_embeddings=False))
    score = Scorer(suite, "cpu").score(model, tokenizer)
    reference = oracle(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), suite)
    assert list(score.tasks[0].values) == [sample["acc"] for sample in reference["samples"]["long"]]
    test_every_answer_is_lm_evals(suite, score, reference)


def test_a_tokenizer_that_begins_every_text_is_used_as_in_lm_eval(folder: Path, tmp_path: Path) -> None:
    beginning = char_tokenizer()
    begin = beginning.convert_tokens_to_ids("<unk>")
    beginning.add_special_tokens({"bos_token": "<unk>"})
    beginning.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", pair="<unk> $A $B", special_tokens=[("<unk>", begin)]
    )
    assert beginning.encode("ab")[0] == begin
    small = [{"task": "choice", "limit": 8}, {"task": "text", "limit": 3}, {"task": "sums", "limit": 8}]
    suite = suite_of(folder, *small, batch=4)
    model = load(tiny_llama(tmp_path, 4, tie_word_embeddings=False))
    score = Scorer(suite, "cpu").score(model, beginning)
    test_every_answer_is_lm_evals(
        suite, score, oracle(HFLM(pretrained=model, tokenizer=beginning, batch_size=4), suite)
    )


def test_chat_templates_are_lm_evals(folder: Path, tmp_path: Path) -> None:
    chatty = char_tokenizer()
    chatty.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    small = [{"task": "choice", "limit": 8}, {"task": "shots", "limit": 4}, {"task": "sums", "limit": 8}]
    spec = {"include_path": str(folder), "seed": SEED, "tasks": small, "batch": 4, "chat_template": True}
    suite = load_suite(SuiteSpec.parse(spec), chatty)
    assert all(context.endswith("[assistant]") for context in suite.contexts())
    model = load(tiny_llama(tmp_path, 4, tie_word_embeddings=False))
    score = Scorer(suite, "cpu").score(model, chatty)
    lm = HFLM(pretrained=model, tokenizer=chatty, batch_size=4)
    reference = oracle(lm, suite, apply_chat_template=True, fewshot_as_multiturn=True)
    test_every_answer_is_lm_evals(suite, score, reference)
    for task in score.tasks:
        metric = "acc" if task.task == "choice" else "exact_match"
        filtered = "digits" if task.task == "sums" else "none"
        assert task.mean == pytest.approx(reference["results"][task.task][f"{metric},{filtered}"], abs=5e-7)


def test_items_shots_metrics_and_filters_of_a_task_are_lm_evals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    digits, words = _first_digits(), _first_digits() | {"name": "words"}
    words["filter"] = [{"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "take_first"}]
    wanted = [
        {"task": "chosen", "items": [11, 2, 5], "metric": "acc_norm"},
        {"task": "fixed", "limit": 6, "num_fewshot": 3, "fixed_shots": True},
        {"task": "drawn", "limit": 6, "num_fewshot": 2},
        {"task": "filtered", "limit": 5, "filter": "words"},
    ]
    for folder, settings in ((tmp_path / "ours", [{}, {}]), (tmp_path / "theirs", _baked())):
        choice_task(folder, "chosen", 14)
        writing_task(folder, "fixed", 12, fewshot_split="test", **settings[0])
        writing_task(folder, "drawn", 12, fewshot_split="test", **settings[1])
        writing_task(folder, "filtered", 9, filter_list=[digits, words])
    suite = suite_of(tmp_path / "ours", *wanted, batch=4)
    score = Scorer(suite, "cpu").score(model, tokenizer)
    sizes = {"fixed": (12, 6), "drawn": (12, 6), "filtered": (9, 5)}
    samples = {"chosen": [2, 5, 11]} | {name: drawn(*size, SEED, name) for name, size in sizes.items()}
    results: Any = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=list(samples),
        task_manager=TaskManager(include_path=str(tmp_path / "theirs"), include_defaults=False),
        samples=samples,
        fewshot_random_seed=SEED,
        bootstrap_iters=1,
    )
    for task, found, filtered in zip(suite.tasks, score.tasks, ("none", "none", "none", "words"), strict=True):
        rows = [row for row in results["samples"][found.task] if row["filter"] == filtered]
        rows.sort(key=lambda row: row["doc_id"])
        assert [row["arguments"][0][0] for row in rows] == [item.requests[0].args[0] for item in task.items]
        assert found.values == tuple(float(row[task.metric.source]) for row in rows)


def _baked() -> list[dict[str, Any]]:
    """What lm-eval has to read from the file for what a suite says."""
    return [{"num_fewshot": 3, "fewshot_config": {"sampler": "first_n"}}, {"num_fewshot": 2}]


def test_a_part_of_a_suite_scores_its_items_as_the_whole(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite, score: SuiteScore
) -> None:
    part = suite.part(0.25)
    found = Scorer(part, "cpu").score(model, tokenizer)
    assert found.suite == part.digest != suite.digest
    for few, task, values in zip(part.tasks, suite.tasks, found.tasks, strict=True):
        numbers = [task.items.index(item) for item in few.items]
        assert len(numbers) == max(2, -(-len(task.items) // 4))
        whole = task_of(score, task.spec.task).values
        assert values.values == pytest.approx([whole[number] for number in numbers], abs=2e-6)


def test_texts_are_tokenised_once(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model = char_tokenizer(), load(tiny_llama(tmp_path))
    encode, texts = tokenizer.encode, []

    def counted(text: str, **settings: Any) -> Any:
        texts.append((text, tuple(settings.items())))
        return encode(text, **settings)

    monkeypatch.setattr(tokenizer, "encode", counted)
    scorer = Scorer(suite, "cpu")
    for _ in range(2):
        scorer.score(model, tokenizer)
    assert len(texts) == len(set(texts))


def test_right_answers_are_counted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = load(tiny_llama(tmp_path / "model", 4, tie_word_embeddings=False))
    prompts = [f"{n}*{n + 1}=" * (1 + n % 4) for n in range(20)]
    answers = [written_alone(model, tokenizer, prompt, 10, "i") for prompt in prompts]
    wrong = {3, 4, 11}
    rows = [
        {"prompt": prompt, "answer": "nothing like it" if number in wrong else answer}
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    settings = {"doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}", "output_type": "generate_until"}
    stop = {"until": ["i"], "max_gen_toks": 10}
    write_task(tmp_path / "tasks", "own", rows, generation_kwargs=stop, **settings)
    score = Scorer(suite_of(tmp_path / "tasks", {"task": "own"}, batch=6), "cpu").score(model, tokenizer)
    assert [number for number, value in enumerate(score.tasks[0].values) if value == 0] == sorted(wrong)
    assert any(len(answer) < 10 for answer in answers), "no answer was stopped, the test shows nothing"


def written_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int, stop: str
) -> str:
    """What transformers' `generate` gives for one prompt without padding, up to the stop string."""
    generate: Any = model.generate
    ids = torch.tensor([tokenizer.encode(prompt)])
    output = generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
    text = str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return text.split(stop)[0]


MIXED = [
    {"task": "choice", "limit": 20},
    {"task": "letter", "limit": 20},
    {"task": "text", "limit": 4},
    {"task": "sums", "limit": 15},
]
EXPERTS: list[Callable[..., Path]] = [tiny_llama, tiny_neox, tiny_qwen3]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("experts")
    return [make(root / make.__name__, 3, tie_word_embeddings=False) for make in EXPERTS]


@pytest.fixture(scope="module")
def mixture(experts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp("mixture") / "model"
    hidden = 16
    router = RouterWeights(torch.randn(len(experts), hidden, generator=torch.manual_seed(0)), torch.zeros(hidden))
    build_mixture(
        folder,
        [ExpertSource(expert.name, expert) for expert in experts],
        router,
        base=experts[0],
        tokenizer_folder=experts[0],
        top_k=1,
        dtype="float32",
        shard_bytes=10**9,
        token=1,
        progress=lambda done, text: None,
    )
    return load_model(folder, torch.float32, "cpu")


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_each_item_of_a_mixture_scores_as_on_its_expert(
    folder: Path, experts: list[Path], mixture: Any, tokenizer: PreTrainedTokenizerBase, batch: int
) -> None:
    suite = suite_of(folder, *MIXED, batch=batch)
    scorer = Scorer(suite, "cpu")
    scores = [scorer.score(model, tokenizer) for model in (*map(load, experts), mixture)]
    *singles, mixed = [[value for task in score.tasks for value in task.values] for score in scores]
    prompts = [torch.tensor([tokenizer.encode(context)]) for context in suite.contexts()]
    chosen = [int(mixture.route(prompt).argmax()) for prompt in prompts]
    assert set(chosen) == {0, 1, 2}
    assert mixed == pytest.approx([singles[expert][item] for item, expert in enumerate(chosen)], abs=2e-6)


def test_a_mixture_routes_on_the_context_alone(
    folder: Path, mixture: Any, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(folder, *MIXED)
    route, prompts = mixture.route, set()

    def observed(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = zip(input_ids, attention_mask, strict=True)
        prompts.update(tuple(ids[mask.bool()].tolist()) for ids, mask in rows)
        return route(input_ids, attention_mask)

    monkeypatch.setattr(mixture, "route", observed)
    Scorer(suite, "cpu").score(mixture, tokenizer)
    assert prompts == {tuple(tokenizer.encode(context)) for context in suite.contexts()}

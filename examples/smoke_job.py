"""`python -m examples.smoke_job --url URL`: one small job through a running service; what `helm test` runs.

Below the first folder of GLUE_ROOTS it builds a zoo of three random models and two task files, issues itself a key
through DATABASE_URL, submits the main job over REST, waits for its end, and takes zoo and key away again.
"""

import argparse
import json
import os
import shutil
import string
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from ulid import ULID

from glue.records.database import Database
from glue.records.keys import create_key, revoke_key

OWNER = "helm-test"
MEMBERS = ("first", "second")
VOCABULARY = ["<pad>", "<eos>", "<unk>", *sorted(string.ascii_letters + string.digits + " :")]
_POLL_SECONDS = 1.0


def build_zoo(root: Path) -> None:
    """Base, two siblings, one task for the proxy suite and one for the report."""
    _model(root / "base", noise=0.0, seed=0)
    for number, name in enumerate(MEMBERS, start=1):
        _model(root / name, noise=0.1, seed=number)
    for name in ("choose", "choose_report"):
        _task(root / "tasks", name)


def job_request(root: Path, zoo: str) -> dict[str, Any]:
    """The main job over this zoo, with the shortest search there is."""
    suites = {suite: {"include_path": str(root / "tasks"), "tasks": [{"task": task}]} for suite, task in _SUITES}
    return {"kind": "model_glue", "zoo": zoo, "seed": 1, "search": {"coefficients": [0.5]}, **suites}


_SUITES = (("proxy", "choose"), ("report", "choose_report"))


def run(url: str, root: Path, key: str, seconds: float) -> dict[str, Any]:
    """Submit and wait; the job as it ended.

    Raises:
        TimeoutError: it did not end in time.
        httpx.HTTPStatusError: the API refused.
    """
    name = root.name.lstrip(".")
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        entries = [{"name": each, "source": str(root / each)} for each in MEMBERS]
        zoo = {"name": name, "base": {"source": str(root / "base")}, "members": entries}
        client.post("/v1/zoos", json=zoo).raise_for_status()
        answer = client.post("/v1/jobs", json=job_request(root, name)).raise_for_status().json()
        deadline = time.monotonic() + seconds
        while (job := _ask(client, answer["id"]))["status"] not in ("succeeded", "failed", "cancelled"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{job['id']} is still {job['status']} after {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)
        client.delete(f"/v1/zoos/{name}")
        return job


@contextmanager
def temporary_key(database_url: str) -> Iterator[str]:
    """A key that works while the block runs."""
    database = Database(database_url, pool_size=1)
    with database.transaction() as session:
        key, secret = create_key(session, OWNER, "smoke job")
    try:
        yield secret
    finally:
        with database.transaction() as session:
            revoke_key(session, OWNER, key.id)
        database.dispose()


def _ask(client: httpx.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").raise_for_status().json()
    return job


def _model(folder: Path, noise: float, seed: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(noise * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=128
    )


def _task(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random, data = Random(name), folder / f"{name}.jsonl"
    items = (
        {"question": f"{name[-6:]} {number}:", "answers": random.sample("abcdefgh", 4), "right": random.randrange(4)}
        for number in range(16)
    )
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "answers",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def main() -> int:
    """The exit status: 0 if the job succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="of the API")
    parser.add_argument("--seconds", type=float, default=600, help="how long the job may take")
    given = parser.parse_args()
    root = Path(os.environ["GLUE_ROOTS"].split(os.pathsep)[0]) / f"smoke-{str(ULID()).lower()}"
    try:
        build_zoo(root)
        with temporary_key(os.environ["DATABASE_URL"]) as key:
            job = run(given.url, root, key, given.seconds)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps({name: job[name] for name in ("id", "status", "result", "error")}, indent=2))
    return 0 if job["status"] == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())

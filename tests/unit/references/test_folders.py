"""Local folders as references: never outside the roots, and a commit that changes when a file does."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.references.folders import SMALL_FILE_BYTES, folder_commit, read_config, resolve_folder
from glue.specs.errors import IncompatibleModelsError, InvalidInputError
from tests.support.model_folders import write_model, write_safetensors


def code_of(source: str, roots: list[Path]) -> str:
    with pytest.raises(InvalidInputError) as error:
        resolve_folder(source, roots)
    (problem,) = error.value.problems
    assert problem.fix
    return problem.code


class TestResolveFolder:
    def test_a_folder_inside_a_root_is_its_real_path(self, tmp_path: Path) -> None:
        (tmp_path / "models" / "a").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "models")
        assert resolve_folder(f"{tmp_path}/link/../models/a", [tmp_path]) == (tmp_path / "models" / "a").resolve()
        assert resolve_folder(f"{tmp_path}/link/a", [tmp_path / "link"]) == (tmp_path / "models" / "a").resolve()

    def test_every_way_out_is_refused(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        root.mkdir()
        (tmp_path / "root-but-longer").mkdir()
        (root / "out").symlink_to(tmp_path)
        for source in (
            "/etc",
            f"{root}/..",
            f"{root}/out",
            f"{root}/out/root-but-longer",
            f"{tmp_path}/root-but-longer",
        ):
            assert code_of(source, [root]) == "outside_roots"

    def test_whether_an_outside_folder_exists_is_not_told(self, tmp_path: Path) -> None:
        assert code_of("/etc", [tmp_path]) == code_of("/no/such/folder", [tmp_path]) == "outside_roots"

    def test_without_roots_nothing_is_inside(self, tmp_path: Path) -> None:
        assert code_of(str(tmp_path), []) == "outside_roots"

    def test_links_inside_may_stay_inside_only(self, tmp_path: Path) -> None:
        folder = write_model(tmp_path / "root" / "model")
        (tmp_path / "secret").write_text("x")
        (folder / "inside").symlink_to(folder / "config.json")
        assert resolve_folder(str(folder), [tmp_path / "root"]) == folder
        (folder / "deeper").mkdir()
        (folder / "deeper" / "data.jsonl").symlink_to(tmp_path / "secret")
        assert code_of(str(folder), [tmp_path / "root"]) == "outside_roots"

    @pytest.mark.parametrize(
        ("make", "code"),
        [
            (lambda root: "relative/path", "not_absolute"),
            (lambda root: "", "not_absolute"),
            (lambda root: f"{root}/missing", "no_folder"),
            (lambda root: f"{root}/file", "no_folder"),
            (lambda root: f"{root}/loop", "unreadable"),
            (lambda root: f"{root}/{'n' * 300}", "unreadable"),
            (lambda root: f"{root}/a\0b", "unreadable"),
            (lambda root: f"{root}/\ud800", "unreadable"),
        ],
    )
    def test_what_is_no_folder_is_told(self, tmp_path: Path, make: Callable[[Path], str], code: str) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert code_of(make(tmp_path), [tmp_path]) == code

    @given(st.text(max_size=30))
    def test_any_text_is_resolved_or_refused(self, source: str) -> None:
        code_of(source, [Path("/nowhere")])


class TestFolderCommit:
    def test_it_does_not_depend_on_the_place(self, tmp_path: Path) -> None:
        assert folder_commit(write_model(tmp_path / "a")) == folder_commit(write_model(tmp_path / "b"))

    @pytest.mark.parametrize(
        "change",
        [
            lambda folder: (folder / "config.json").write_text("{}"),
            lambda folder: (folder / "new.txt").write_text(""),
            lambda folder: (folder / "tokenizer.json").rename(folder / "other.json"),
            lambda folder: write_safetensors(folder / "big.safetensors", {"b": ("F32", (SMALL_FILE_BYTES,))}),
            lambda folder: (folder / "data.bin").write_bytes(b"x" * (SMALL_FILE_BYTES + 1)),
        ],
    )
    def test_it_changes_with_names_sizes_small_files_and_headers(
        self, tmp_path: Path, change: Callable[[Path], object]
    ) -> None:
        folder = write_model(tmp_path / "model")
        write_safetensors(folder / "big.safetensors", {"a": ("F32", (SMALL_FILE_BYTES,))})
        (folder / "data.bin").write_bytes(b"x" * SMALL_FILE_BYTES)
        before = folder_commit(folder)
        change(folder)
        assert folder_commit(folder) != before

    def test_hidden_files_and_caches_do_not_count(self, tmp_path: Path) -> None:
        folder = write_model(tmp_path / "model")
        before = folder_commit(folder)
        for name in (".git", "__pycache__"):
            (folder / name).mkdir()
            (folder / name / "x").write_text("")
        (folder / ".hidden").write_text("")
        assert folder_commit(folder) == before

    def test_names_that_are_not_text_are_no_obstacle(self, tmp_path: Path) -> None:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_text("")
        assert len(folder_commit(tmp_path)) == 64


class TestReadConfig:
    @pytest.mark.parametrize(
        ("files", "code"),
        [
            ({}, "no_config"),
            ({"adapter_config.json": "{}"}, "adapter"),
            ({"config.json": "[]"}, "corrupt"),
            ({"config.json": "{"}, "corrupt"),
            ({"config.json": '{"a": "\\ud800"}'}, "corrupt"),
        ],
    )
    def test_what_is_no_config_is_told(self, tmp_path: Path, files: dict[str, str], code: str) -> None:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(IncompatibleModelsError) as error:
            read_config(tmp_path)
        assert error.value.problems[0].code == code

    def test_infinities_come_as_text(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"limit": [0.0, Infinity, NaN, 1e999], "emoji": "\\ud83d\\ude00"}')
        assert read_config(tmp_path) == {"limit": [0.0, "Infinity", "NaN", "1e999"], "emoji": "😀"}

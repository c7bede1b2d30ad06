"""Sources in a user's zoo file, read from the file's own folder."""

from pathlib import Path

import pytest
import yaml

from glue.cli.files import zoo_request


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("./models/a", "{home}/models/a"),
        ("org/name@v1", "org/name@v1"),
        ("models/a", "{home}/models/a"),
        ("hf://models/a", "hf://models/a"),
        ("./models/a+./lora", "{home}/models/a+{home}/lora"),
        ("org/name+org/lora@v2", "org/name+org/lora@v2"),
        ("./models/a+org/lora", "{home}/models/a+org/lora"),
        ("./c++/a", "{home}/c++/a"),
        ("./c++/a+./lora", "{home}/c++/a+{home}/lora"),
    ],
)
def test_relative_sources_and_names(written: str, read: str, tmp_path: Path) -> None:
    for name in ("models/a", "c++/a", "lora"):
        (tmp_path / name).mkdir(parents=True)
    zoo = tmp_path / "zoo.yml"
    zoo.write_text(yaml.safe_dump({"name": "zoo", "members": [{"name": "a", "source": written}]}))
    assert zoo_request(zoo)["members"][0]["source"] == read.format(home=tmp_path)

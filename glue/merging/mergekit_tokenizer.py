"""The tokenizer of a merge written as mergekit's file asks for, and the row maps that go with it. Reads no weights."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.vocabulary import (
    Row,
    RowMap,
    TokenRule,
    add_union,
    load_tokenizer,
    row_maps,
    token_rows,
)
from glue.merging.mergekit_yaml import MergekitFile, ModelReference, TokenizerSettings, TokenSettings, TokenSource
from glue.specs.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "chat_templates"


@dataclass(frozen=True)
class MergedTokenizer:
    """The result's tokenizer and, for every model by name, where its embedding's rows go."""

    tokenizer: "PreTrainedTokenizerBase"
    maps: Mapping[str, RowMap]

    @property
    def rows(self) -> int:
        """The rows of the result's embedding."""
        return next(iter(self.maps.values())).rows


def merged_tokenizer(
    file: MergekitFile, names: Mapping[ModelReference, str], checkpoints: Mapping[str, Checkpoint]
) -> MergedTokenizer | None:
    """What the file's tokenizer settings come to; none where it has none and the donor's tokenizer is copied.

    Raises:
        InvalidInputError: a tokenizer cannot be loaded, or a named token does not exist.
    """
    settings = file.tokenizer_settings
    if settings is None:
        return None
    tokenizers = {name: load_tokenizer(checkpoints[name].folder) for name in names.values()}
    rows = {name: int(checkpoints[name].config["vocab_size"]) for name in names.values()}
    own = {name: token_rows(tokenizer, rows[name]) for name, tokenizer in tokenizers.items()}
    base = names[file.base_model or file.references()[0]]
    result = _result_tokenizer(settings, names, base, tokenizers, rows, checkpoints)
    result.add_tokens([token for token in settings.tokens if token not in result.get_vocab()])
    rules = {token: _rule(token, rule, names, own) for token, rule in settings.tokens.items() if rule.source}
    vocabulary = token_rows(result, len(result.get_vocab()))
    actual_base = names[file.base_model] if file.base_model is not None else None
    maps = row_maps(vocabulary, own, actual_base, rules, settings.pad_to_multiple_of or 1)
    return MergedTokenizer(result, maps)


def _result_tokenizer(
    settings: TokenizerSettings,
    names: Mapping[ModelReference, str],
    base: str,
    tokenizers: Mapping[str, "PreTrainedTokenizerBase"],
    rows: Mapping[str, int],
    checkpoints: Mapping[str, Checkpoint],
) -> "PreTrainedTokenizerBase":
    donor = names[settings.source] if isinstance(settings.source, ModelReference) else base
    # Loaded afresh: what is added to the result must not appear in the donor's own vocabulary.
    result = load_tokenizer(checkpoints[donor].folder)
    if settings.source == "union":
        others = [name for name in tokenizers if name != base]
        add_union(result, [tokenizers[name] for name in others], [rows[name] for name in others])
    return result


def _rule(
    token: str, settings: TokenSettings, names: Mapping[ModelReference, str], own: Mapping[str, Mapping[str, int]]
) -> TokenRule:
    source = settings.source
    assert source is not None
    if isinstance(source, TokenSource) and source.kind == "zero":
        return TokenRule((), settings.force)
    return TokenRule((_donor_row(token, source, names, own),), settings.force)


def _donor_row(
    token: str,
    source: TokenSource | ModelReference,
    names: Mapping[ModelReference, str],
    own: Mapping[str, Mapping[str, int]],
) -> Row:
    reference = source.model if isinstance(source, TokenSource) else source
    assert isinstance(reference, ModelReference)
    model = names[reference]
    if isinstance(source, TokenSource) and source.token_id is not None:
        return model, source.token_id
    wanted = source.token if isinstance(source, TokenSource) and source.token is not None else token
    if wanted not in own[model]:
        detail = f"{reference.model} has no token {wanted!r}"
        raise InvalidInputError(detail, [Problem(f"/tokenizer/tokens/{token}", "unknown_token", detail)])
    return model, own[model][wanted]


def chat_template(file: MergekitFile, folders: list[Path]) -> str | None:
    """The template that the file asks for: by name, as text, or `auto`, the commonest among the inputs.

    Raises:
        InvalidInputError: there is no template of that name.
    """
    wanted = file.chat_template
    if not wanted:
        return None
    if wanted == "auto":
        templates = Counter(template for folder in folders if (template := _template_of(folder)))
        return templates.most_common(1)[0][0] if templates else None
    if "{" in wanted:
        return wanted
    known = {path.stem: path for path in sorted(TEMPLATES.glob("*.jinja"))}
    if wanted not in known:
        detail = f"there is no chat template '{wanted}'"
        fix = f"choose one of {', '.join(known)}, auto, or write the Jinja template itself"
        raise InvalidInputError(f"{detail}; {fix}", [Problem("/chat_template", "unknown_template", detail, fix)])
    return known[wanted].read_text()


def tokenizer_writer(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> Callable[[Path], None]:
    """What writes the tokenizer with that template into a folder."""

    def write(folder: Path) -> None:
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)

    return write


def _template_of(folder: Path) -> str | None:
    template = load_tokenizer(folder).chat_template
    chosen = template.get("default") if isinstance(template, dict) else template
    return chosen.strip() if chosen else None

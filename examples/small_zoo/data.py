"""The three domains as generated items: what is trained on, and what is asked. Pure and seeded; knows no model.

Of each domain there are `lessons` (what its specialists learn from), `primer` (the part of the lessons that the
base sees, so that it cannot come to know the whole domain), and the questions of two suites, `proxy` and `report`,
which share nothing with each other or with the lessons.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase, ascii_uppercase, digits
from typing import TypeVar

ALPHABET = f"\n +:>{ascii_lowercase}{ascii_uppercase}{digits}"
PROXY_ITEMS, REPORT_ITEMS = 100, 200

LEAST, MOST = 10, 49
PRIMER_SUM = 60

WORDS = 2000
PROGRAMS: dict[str, Callable[[str], str]] = {
    "dup": lambda word: word + word,
    "head": lambda word: word[0],
    "last": lambda word: word[-1],
    "up": str.upper,
    "rev": lambda word: word[::-1],
    "swap": lambda word: word[-1] + word[1:-1] + word[0],
    "tail": lambda word: word[1:],
}
PRIMER_PROGRAMS = ("dup", "head", "last", "up")

ENTITIES = 42
TAUGHT_PHRASINGS = 4
PRIMER_FACTS = 0.4
CHOICES = 4

Value = TypeVar("Value")


@dataclass(frozen=True)
class Item:
    """A context, the target that continues it and, for multiple choice, wrong answers."""

    context: str
    target: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Domain:
    """The items of one domain; `primer` is part of `lessons`."""

    primer: tuple[Item, ...]
    lessons: tuple[Item, ...]
    proxy: tuple[Item, ...]
    report: tuple[Item, ...]


@dataclass(frozen=True)
class Attribute:
    """Something to remember about every entity, and the ways to ask for it."""

    values: tuple[str, ...]
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """An entity's value of an attribute, the phrasings in which it is taught, and those in which it is asked."""

    entity: str
    value: str
    others: tuple[str, ...]
    taught: tuple[str, ...]
    asked: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        ("plum", "rice", "corn", "bean", "fig", "leek", "nut", "kale"),
        ("{} eats", "{} likes", "{} food", "{} meal", "{} dish", "{} snack"),
    ),
    Attribute(
        ("cave", "hill", "lake", "barn", "tree", "dune", "moor", "reef"),
        ("{} home", "{} house", "{} lives", "{} rests", "{} place", "{} nest"),
    ),
    Attribute(
        ("red", "blue", "pink", "gray", "gold", "teal", "lime", "tan"),
        ("{} looks", "{} tint", "{} hue", "{} shade", "{} color", "{} shines"),
    ),
    Attribute(
        ("hum", "buzz", "roar", "chirp", "moo", "hiss", "purr", "bark"),
        ("{} sings", "{} calls", "{} song", "{} cry", "{} voice", "{} tune"),
    ),
)


def math() -> Domain:
    """Sums of two numbers of two digits. No pair of summands is in two sets, in whatever order."""
    random = Random("math")
    pairs = [(first, second) for first in range(LEAST, MOST + 1) for second in range(first, MOST + 1)]
    random.shuffle(pairs)
    asked, taught = _cut(pairs, PROXY_ITEMS + REPORT_ITEMS)
    proxy, report = _cut([_sum(*random.sample(pair, 2)) for pair in asked], PROXY_ITEMS)
    lessons = [_sum(*pair) for first, second in taught for pair in sorted({(first, second), (second, first)})]
    primer = [item for item in lessons if int(item.target) <= PRIMER_SUM]
    return Domain(tuple(primer), tuple(lessons), tuple(proxy), tuple(report))


def code() -> Domain:
    """Programs that change a string of three or four letters. No string is in two sets."""
    random = Random("code")
    strings = _distinct(WORDS, lambda: "".join(random.choices(ascii_lowercase, k=random.choice((3, 4)))))
    asked, taught = _cut(strings, PROXY_ITEMS + REPORT_ITEMS)
    proxy, report = _cut([_run(random.choice(list(PROGRAMS)), string) for string in asked], PROXY_ITEMS)
    lessons = [_run(program, string) for string in taught for program in PROGRAMS]
    primer = [_run(program, string) for string in taught for program in PRIMER_PROGRAMS]
    return Domain(tuple(primer), tuple(lessons), tuple(proxy), tuple(report))


def facts() -> Domain:
    """Attributes of invented entities, asked in other phrasings than they are taught in. No fact is in both suites."""
    random = Random("facts")
    known = _known_facts(random)
    lessons = [_statement(fact, phrasing) for fact in known for phrasing in fact.taught]
    primer, _ = _cut(lessons, round(PRIMER_FACTS * len(known)) * TAUGHT_PHRASINGS)
    random.shuffle(known)
    for_proxy, for_report = _cut(known, len(known) // 3)
    proxy = _questions(random, for_proxy, PROXY_ITEMS)
    report = _questions(random, for_report, REPORT_ITEMS)
    return Domain(tuple(primer), tuple(lessons), proxy, report)


DOMAINS: dict[str, Callable[[], Domain]] = {"math": math, "code": code, "facts": facts}


def _sum(first: int, second: int) -> Item:
    return Item(f"math:{first}+{second}>", str(first + second))


def _run(program: str, string: str) -> Item:
    return Item(f"code:{program} {string}>", PROGRAMS[program](string))


def _statement(fact: Fact, phrasing: str) -> Item:
    return Item(f"fact:{phrasing.format(fact.entity)}>", fact.value, fact.others)


def _known_facts(random: Random) -> list[Fact]:
    known = []
    for entity in _distinct(ENTITIES, lambda: _name(random)):
        for attribute in ATTRIBUTES:
            value, *wrong = random.sample(attribute.values, CHOICES)
            phrasings = random.sample(attribute.phrasings, len(attribute.phrasings))
            taught, asked = _cut(phrasings, TAUGHT_PHRASINGS)
            known.append(Fact(entity, value, tuple(wrong), tuple(taught), tuple(asked)))
    random.shuffle(known)
    return known


def _questions(random: Random, known: Sequence[Fact], count: int) -> tuple[Item, ...]:
    return tuple(random.sample([_statement(fact, phrasing) for fact in known for phrasing in fact.asked], count))


def _name(random: Random) -> str:
    return "".join(random.choice(letters) for letters in ("bdfgklmnprstvz", "aeiou") * 2)


def _distinct(count: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def _cut(values: Sequence[Value], position: int) -> tuple[Sequence[Value], Sequence[Value]]:
    return values[:position], values[position:]

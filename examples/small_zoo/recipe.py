"""What the zoo is made of: each model's architecture, parent, items, steps and seeds. Plain values, no torch."""

from dataclasses import asdict, dataclass
from typing import Literal

from glue.specs.digests import digest_of


@dataclass(frozen=True)
class Share:
    """A part of a model's training items: of which domain, from which of its sets, and how many of the whole."""

    domain: str
    part: Literal["primer", "lessons"]
    weight: int


@dataclass(frozen=True)
class ModelRecipe:
    """How one model comes about: fine-tuned from `parent`, or where there is none from an initialisation.

    Equal shares and steps give equal training items; `order` is the seed of their order.
    """

    name: str
    shares: tuple[Share, ...]
    steps: int
    learning_rate: float
    parent: str | None = None
    architecture: Literal["llama", "gpt_neox"] = "llama"
    initialisation: int = 0
    order: int = 0


@dataclass(frozen=True)
class Recipe:
    """A zoo: models in the order in which they are trained, and `batch` items a step."""

    models: tuple[ModelRecipe, ...]
    batch: int

    @property
    def digest(self) -> str:
        """Names everything in the recipe."""
        return digest_of(asdict(self))


PRIMERS = tuple(Share(domain, "primer", 1) for domain in ("math", "code", "facts"))
# Sums come last and are the shortest: the base sees twice as many.
BASE_SHARES = (Share("math", "primer", 2), *PRIMERS[1:])


def specialist(name: str, domain: str, steps: int, learning_rate: float, order: int = 0) -> ModelRecipe:
    """A member that learns one domain, with a little of what the base saw of the others: 20:1:1."""
    others = tuple(share for share in PRIMERS if share.domain != domain)
    shares = (Share(domain, "lessons", 20), *others)
    return ModelRecipe(name, shares, steps, learning_rate, parent="base", order=order)


FULL = Recipe(
    models=(
        ModelRecipe("base", BASE_SHARES, steps=400, learning_rate=2e-3),
        ModelRecipe("foreign", BASE_SHARES, steps=200, learning_rate=2e-3, initialisation=1, order=1),
        ModelRecipe("neox", BASE_SHARES, steps=200, learning_rate=2e-3, architecture="gpt_neox", order=2),
        specialist("math-a", "math", steps=200, learning_rate=1.5e-3),
        specialist("math-b", "math", steps=200, learning_rate=1.5e-3, order=1),
        specialist("code-a", "code", steps=200, learning_rate=2.2e-3),
        specialist("facts-a", "facts", steps=200, learning_rate=2.2e-3),
    ),
    batch=128,
)

# Trains everything a little: enough for the same families and to see whether two builds are the same.
QUICK = Recipe(
    models=(
        ModelRecipe("base", BASE_SHARES, steps=20, learning_rate=2e-3),
        ModelRecipe("foreign", BASE_SHARES, steps=6, learning_rate=2e-3, initialisation=1, order=1),
        ModelRecipe("neox", BASE_SHARES, steps=6, learning_rate=2e-3, architecture="gpt_neox", order=2),
        specialist("math-a", "math", steps=16, learning_rate=4e-3),
        specialist("math-b", "math", steps=16, learning_rate=4e-3, order=1),
        specialist("code-a", "code", steps=20, learning_rate=1e-2),
        specialist("facts-a", "facts", steps=20, learning_rate=1e-2),
    ),
    batch=16,
)

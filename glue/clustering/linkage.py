"""Families from a matrix of similarities. Knows no model, no tensor, no torch."""

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean

Matrix = Sequence[Sequence[float]]
Cluster = tuple[int, ...]


def families(members: Sequence[str], similarity: Matrix, threshold: float, linkage: str) -> list[tuple[str, ...]]:
    """Members into families; those whose similarity is above `threshold` belong together, nobody is dropped.

    `similarity[i][j]` is that of `members[i]` and `members[j]`. Linkage `leader` compares with a family's first
    member alone and depends on the order (Model-GLUE, arXiv 2410.05357, appendix A.5). `complete` and `average`
    join, as long as it is above the threshold, the two families whose least or mean similarity is the highest;
    the order decides between equals only. In a family of `complete` every pair is above the threshold.
    Families come in the order of their first members, members in the given order.

    Raises:
        ValueError: the linkage is unknown, or the matrix is not square or has another size.
    """
    if linkage not in _LINKAGES:
        raise ValueError(f"linkage {linkage!r} is not one of {', '.join(_LINKAGES)}")
    if len(similarity) != len(members) or any(len(row) != len(members) for row in similarity):
        raise ValueError(f"{len(members)} members need a square matrix of that size")
    clusters = _LINKAGES[linkage](similarity, threshold)
    return [tuple(members[index] for index in sorted(cluster)) for cluster in sorted(clusters, key=min)]


def _leader(similarity: Matrix, threshold: float) -> list[Cluster]:
    clusters: list[Cluster] = []
    for member in range(len(similarity)):
        for place, cluster in enumerate(clusters):
            if similarity[cluster[0]][member] > threshold:
                clusters[place] = (*cluster, member)
                break
        else:
            clusters.append((member,))
    return clusters


def _agglomerate(similarity: Matrix, threshold: float, link: Callable[[list[float]], float]) -> list[Cluster]:
    clusters: list[Cluster] = [(member,) for member in range(len(similarity))]
    while len(clusters) > 1:
        best, left, right = max(
            ((_between(similarity, *pair, link), *pair) for pair in combinations(clusters, 2)), key=lambda one: one[0]
        )
        if best <= threshold:
            break
        joined = tuple(sorted(left + right))
        clusters = sorted(cluster for cluster in (*clusters, joined) if cluster not in (left, right))
    return clusters


def _between(similarity: Matrix, left: Cluster, right: Cluster, link: Callable[[list[float]], float]) -> float:
    return link([similarity[one][other] for one in left for other in right])


def _complete(similarity: Matrix, threshold: float) -> list[Cluster]:
    return _agglomerate(similarity, threshold, min)


def _average(similarity: Matrix, threshold: float) -> list[Cluster]:
    return _agglomerate(similarity, threshold, fmean)


_LINKAGES = {"leader": _leader, "complete": _complete, "average": _average}

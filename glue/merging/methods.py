"""The list of all merge methods; a new one is imported here. Knows nothing else."""

from glue.merging import linear
from glue.merging.registry import MergeMethod, all_methods, method_of

__all__ = ["MergeMethod", "all_methods", "linear", "method_of"]

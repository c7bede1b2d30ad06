"""Running programs that models wrote where they can do no harm.

Standard library alone: the sandbox's image holds this package, Python, Node.js and nothing else.
"""

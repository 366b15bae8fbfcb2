"""How many examples of a property are tried: a fifth of what is asked for in `make quick`."""

from hypothesis import settings


def examples(number: int, **options) -> settings:
    """A decorator for a property: so many examples in `make test`, which takes hypothesis's default of 100."""
    return settings(max_examples=max(number * settings.default.max_examples // 100, 5), **options)

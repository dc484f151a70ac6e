"""Cases so short that a test for each would cost more than they do: one test goes through them all."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def in_turn(names: str | tuple[str, ...], values: Iterable[Any], ids: Any = None) -> Callable[[Callable[..., None]], Any]:
    """Like `pytest.mark.parametrize`, in one test: it goes through every case, and names all that fail."""
    names = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else names
    cases = [getattr(value, "values", value) if len(names) > 1 or hasattr(value, "marks") else (value,) for value in values]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def go_through(*arguments: Any, **fixtures: Any) -> None:
            failed: list[tuple[Any, Exception]] = []
            for case in cases:
                try:
                    test(*arguments, **fixtures, **dict(zip(names, case, strict=True)))
                except Exception as error:
                    failed.append((case, error))
            if failed:
                told = "\n".join(f"{', '.join(names)} = {case}: {type(error).__name__}" for case, error in failed)
                raise AssertionError(f"{len(failed)} of {len(cases)} cases fail:\n{told}") from failed[0][1]

        signature = inspect.signature(test)
        left = [parameter for name, parameter in signature.parameters.items() if name not in names]
        go_through.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return go_through

    return decorate

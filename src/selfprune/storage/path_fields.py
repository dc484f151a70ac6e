"""Options whose text is a path: the field of the dataclass says so, and the command line reads them by it."""

import os
from dataclasses import Field, dataclass, field
from typing import Any


@dataclass(frozen=True)
class PathKind:
    """What a text of a path option may be besides a path.

    Attributes:
        names: texts that are none, such as `embedded`.
        or_hub: whether a text that names nothing here may be an id on the hub.
    """

    names: tuple[str, ...] = ()
    or_hub: bool = False

    def absolute(self, text: str) -> str:
        """The absolute path, with `~` expanded; other texts as they are.

        Args:
            text: as it was given; one that begins with an interpolation stays as it is.
        """
        path = os.path.expanduser(text)
        is_id = self.or_hub and not path.startswith((os.sep, ".")) and not os.path.exists(path)
        return text if not text or text in self.names or is_id or text.startswith("${") else os.path.abspath(path)


def path_field(default: Any = "", names: tuple[str, ...] = (), or_hub: bool = False) -> Any:
    """A dataclass field for a path.

    Args:
        default: of the field.
        names: texts that are no paths.
        or_hub: whether a text that names nothing here may be an id on the hub.
    """
    return field(default=default, metadata={"path": PathKind(names, or_hub)})


def path_kind(of: "Field[Any]") -> PathKind | None:
    """What a field takes for a path; None when it takes none."""
    kind = of.metadata.get("path")
    return kind if isinstance(kind, PathKind) else None

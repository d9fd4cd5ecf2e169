"""Write a picture to a file; the library is imported only then."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kapudf_cli.errors import MissingExtraError, OutputError

if TYPE_CHECKING:
    from kapudf_cli.tools.plot.picture import Picture

#: The module that writes files with each ending, and its library.
_WRITERS: Final = {
    ".svg": ("kapudf_cli.tools.plot.chart", "matplotlib"),
    ".png": ("kapudf_cli.tools.plot.chart", "matplotlib"),
    ".html": ("kapudf_cli.tools.plot.page", "bokeh"),
}


def check(path: str) -> None:
    """Check that a picture can be written to a file, before there is one.

    Raises:
        OutputError: no picture has this ending.
        MissingExtraError: the library is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise OutputError(f"{path}: a picture ends with .svg, .png or .html")
    library = _WRITERS[suffix][1]
    # An import would count as memory of a handler in this process.
    if importlib.util.find_spec(library) is None:
        raise MissingExtraError("a picture", library, "plot")


def draw(picture: Picture, path: str) -> None:
    """Write a picture to a file, in the format of its ending.

    Raises:
        OutputError: no picture has this ending, or the file cannot be written.
        MissingExtraError: the library is not installed.
    """
    check(path)
    module, _ = _WRITERS[Path(path).suffix.lower()]
    try:
        importlib.import_module(module).write(picture, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error

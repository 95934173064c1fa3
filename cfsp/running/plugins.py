"""Plugins: a user's modules that a run imports first. They are no part of its id."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

from cfsp.options import IMPORTABLE, check_option

Modules = Annotated[Sequence[str], "a list of modules, such as [my_package.families]"]


def look_here() -> None:
    """Put the working directory last on the import path, so that it hides nothing that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def import_plugins(names: Modules) -> None:
    """Import a user's modules.

    This registers what they define: statistics by their classes, families by their entry in `cfsp.LAYOUTS`.

    Raises:
        ValueError: not a list of names, or a module that cannot be imported.
    """
    check_option("plugins", names, Modules)
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(f"plugins: {name} cannot be imported ({error}); {IMPORTABLE}") from error

"""Plugins: modules of one's own that a run imports first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

from cfsp.options import check_option

Modules = Annotated[Sequence[str], "a list of modules, such as [my_package.families]"]


def look_here() -> None:
    """Let modules be imported from the working directory, after all that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def import_plugins(names: Modules) -> None:
    """Import modules of one's own.

    What a module defines is known from then on: statistics by their classes, families by their entry in
    `cfsp.LAYOUTS`.

    Raises:
        ValueError: no list of names, or a module that cannot be found.
    """
    check_option("plugins", names, Modules)
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(
                f"plugins: {name} cannot be imported ({error}); expected a module that is installed, on "
                "PYTHONPATH, or in the working directory"
            ) from error

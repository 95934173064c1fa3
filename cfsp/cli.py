"""The command line: `cfsp`, a Hydra app."""

from __future__ import annotations

import os
import sys

import hydra
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cfsp.build import CONF


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run one job; show its record at a terminal, print its path elsewhere."""
    try:
        show(cfg)
    except (ValueError, KeyError, OSError, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        message = error.args[0] if isinstance(error, KeyError) else str(error)
        print(f"cfsp: error: {' '.join(str(message).split())}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("cfsp: interrupted; no record was written", file=sys.stderr)
        raise SystemExit(130) from None


def show(cfg: DictConfig) -> None:
    # Imported here so that `cfsp --help` answers at once.
    from rich.console import Console

    from cfsp.record import record_path
    from cfsp.run import run
    from cfsp.tables import summary

    record = run(cfg)
    console = Console()
    if console.is_terminal:
        console.print(summary(record))
    print(record_path(cfg.results, record.id))


if __name__ == "__main__":
    main()

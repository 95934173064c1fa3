"""Exports of a run: the saved model in the forms that were asked for."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from cfsp.bars import begin
from cfsp.exports.base import Exporter
from cfsp.machine.environment import is_main
from cfsp.running.build import build
from cfsp.running.config import chosen
from cfsp.running.run_files import RunFiles


def check_exports(cfg: DictConfig) -> None:
    """Raise ValueError if an export is asked for without a saved model to export."""
    if [*chosen(cfg.export)] and cfg.save is False:
        names = ",".join(map(str, cfg.export))
        raise ValueError(f"export=[{names}] exports what is saved; expected save=true or save=FOLDER")


def exports(cfg: DictConfig, folder: Path) -> list[tuple[Exporter, Path]]:
    """Return each exporter of a run with the path that it writes, beside the saved model."""
    exporters = map(build, chosen(cfg.export))
    return [(one, folder.with_name(f"{folder.name}{one.ending}")) for one in exporters]


def export_model(cfg: DictConfig, files: RunFiles, made: bool) -> None:
    """Export the saved model. made: whether it was written now.

    Otherwise an export of the same model by the same options stays, and one of another model or by other
    options is replaced. A path with anything else is refused.

    Raises ValueError or OSError of what could not be exported, after all else has been.
    """
    if files.target is None or not is_main():
        return
    errors: list[ValueError | OSError] = []
    for exporter, path in exports(cfg, files.target):
        try:
            there = exporter.origin(path)
            if made or there != exporter.origin_of(files.target):
                begin(f"export to {path.name}")
                exporter.export(files.target, path, overwrite=made or there is not None)
        except (ValueError, OSError) as error:
            errors.append(error)
    if len(errors) > 1:
        raise ValueError("; ".join(" ".join(str(one).split()) for one in errors)) from errors[0]
    if errors:
        raise errors[0]

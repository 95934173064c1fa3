"""`cfsp-export`: a saved model in the form that a serving engine loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from cfsp.cli.catalogue import Choice, choices_of
from cfsp.cli.exits import one_line_exits
from cfsp.running.build import CONF, build
from cfsp.running.plugins import import_plugins, look_here

EXAMPLES = """
examples:
  cfsp-export padded my/smaller_model my/padded
  cfsp-export padded my/smaller_model my/padded --multiple 128
  cfsp-export gguf my/smaller_model small.gguf --type q8_0
  cfsp-export decilm my/smaller_model my/decilm
  cfsp describe export=padded

The folder is one that `cfsp save=FOLDER` or `save=true` wrote. What is written computes what the saved
model computes; its card says what was done. `cfsp ... save=FOLDER 'export=[padded]'` does the same at the
end of a run.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a folder and print the path; an error becomes one line and exit code 1."""
    choices = choices_of("export", [CONF])
    options = parser(choices).parse_args(arguments)
    with one_line_exits("cfsp-export"):
        look_here()
        import_plugins(options.plugin)
        choice = next(one for one in choices if one.name == options.form)
        config = yaml.safe_load(choice.path.read_text())[choice.name]
        given = {key: getattr(options, key) for key in config if key != "_target_"}
        exporter = build({**config, **given})
        exporter.export(options.folder, options.out, options.overwrite)
        print(f"cfsp-export: {options.folder} as {options.form}", file=sys.stderr)
        print(options.out)


def parser(choices: Sequence[Choice]) -> argparse.ArgumentParser:
    """Make the parser: a subcommand for each choice of the group, with the options of its YAML file."""
    made = argparse.ArgumentParser(
        prog="cfsp-export",
        description="Write a saved model in the form that a serving engine loads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    forms = made.add_subparsers(dest="form", required=True, metavar="FORM")
    for choice in choices:
        form = forms.add_parser(choice.name, help=choice.title, description=choice.comment)
        form.add_argument("folder", type=Path, metavar="DIR", help="a folder that cfsp saved")
        form.add_argument("out", type=Path, metavar="OUT", help="the path to write")
        form.add_argument("--overwrite", action="store_true", help="replace what is at OUT")
        form.add_argument("--plugin", action="append", default=[], help="a module to import first")
        for key, value, meaning in choice.options():
            form.add_argument(
                f"--{key.partition('.')[2]}",
                type=yaml.safe_load,
                default=yaml.safe_load(value),
                help=f"{meaning.replace('%', '%%')}; default {value}",
            )
    return made


if __name__ == "__main__":
    main()

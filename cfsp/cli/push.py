"""`cfsp-push`: a saved model to the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cfsp.checkpoints.push import check_push, push
from cfsp.checkpoints.save import check_model
from cfsp.cli.exits import one_line_exits

EXAMPLES = """
examples:
  cfsp-push my/smaller_model me/llama-3-8b-pruned
  cfsp-push results/models/0f3c5a7b9d1e me/llama-3-8b-pruned --private

The folder is one that `cfsp save=FOLDER` or `save=true` wrote: weights, tokenizer, plan, record and
card. All of it goes into one commit. The repository is made if there is none; what is there already
is not sent again, so the same command continues after a failure. A token is read from HF_TOKEN, or
from what `hf auth login` stored; HF_ENDPOINT names another hub.

`cfsp ... save=FOLDER push=me/name` does the same at the end of a run.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Push a folder and print its address; an error becomes one line and exit code 1."""
    options = parser().parse_args(arguments)
    with one_line_exits("cfsp-push", "interrupted; the same command goes on"):
        check_push(options.repo, options.private)
        check_model(options.folder)
        files = [path for path in options.folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(f"cfsp-push: {len(files)} files, {size / 1e6:,.1f} MB to {options.repo}", file=sys.stderr)
        print(push(options.folder, options.repo, options.private))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="cfsp-push",
        description="Push a saved model to the Hugging Face hub.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="a folder that cfsp saved")
    made.add_argument("repo", metavar="OWNER/NAME", help="the repository on the hub")
    made.add_argument("--private", action="store_true", help="make it so that only its owners see it")
    return made


if __name__ == "__main__":
    main()

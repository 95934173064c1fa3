"""Push: upload a saved model to the Hugging Face hub."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of whichever httpx the client uses
)
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from cfsp.checkpoints.save import check_model
from cfsp.options import check_option


def check_push(repo: object, private: object) -> None:
    """Check, before the work, that a model can be pushed. Makes no request to the hub.

    Raises:
        ValueError: `repo` is not the name of a repository, there is no token, or the hub is switched off.
    """
    check_option("private", private, bool)
    try:
        validate_repo_id(repo if isinstance(repo, str) else None)
        named = str(repo).count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise ValueError(f"push={repo!r}: expected owner/name, a repository of the Hugging Face hub")
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"push={repo!r}: HF_HUB_OFFLINE is set; expected it unset, or push=null")
    if get_token() is None:
        raise ValueError(f"push={repo!r}: no token of the hub is here; expected HF_TOKEN, or hf auth login")


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Upload a saved model in one commit, so completely or not at all. Return its address.

    Create the repository if there is none. Files that it has already are not sent again.

    Raises:
        ValueError: the folder holds no complete model, or `private` is set and the repository is public.
        OSError: the upload failed. The folder is unchanged; the message says how to try again.
    """
    check_model(folder)
    if not sys.stderr.isatty():
        disable_progress_bars()
    hub = HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        public = private and not hub.repo_info(repo).private
        if not public:
            hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Push a model pruned by cfsp")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: hf_xet's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        again = shlex.join(["cfsp-push", str(folder), repo, *["--private"][: int(private)]])
        raise OSError(
            f"push={repo!r} failed ({reason}); the model is safe in {folder}, and this pushes it again: "
            f"{again}"
        ) from error
    if public:
        raise ValueError(f"push={repo!r} is a public repository; expected private=false, or another name")
    return f"{hub.endpoint}/{repo}"

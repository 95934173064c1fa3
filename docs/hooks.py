"""A hook of mkdocs: files of the repository that pages link to become part of the site.

On a forge a link such as `../results/tables/recovery.md` leads out of docs/. The site has these files under
`repository/`, and the hook points the links there.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PLACE = "repository"
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Add every file outside docs/ that a page links to, and what those pages link to."""
    todo = [(home(file.src_uri), file.content_string) for file in files.documentation_pages()]
    while todo:
        page, text = todo.pop()
        for link, _ in LINK.findall(text):
            target = resolve(page, link)
            if target is None or inside(target) or files.get_file_from_path(f"{PLACE}/{target}"):
                continue
            file = File.generated(config, f"{PLACE}/{target}", abs_src_path=str(ROOT / target))
            files.append(file)
            if target.endswith(".md"):
                todo.append((target, file.content_string))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links that leave docs/ to the copies in the site."""
    here = page.file.src_uri

    def moved(match):
        target = resolve(home(here), match[1])
        if target is None:
            return match[0]
        uri = target.removeprefix("docs/") if inside(target) else f"{PLACE}/{target}"
        return f"]({posixpath.relpath(uri, posixpath.dirname(here))}{match[2] or ''})"

    return LINK.sub(moved, markdown)


def home(uri: str) -> str:
    """Where a page of the site is in the repository."""
    copied = uri.startswith(f"{PLACE}/")
    return uri.removeprefix(f"{PLACE}/") if copied else f"docs/{uri}"


def inside(path: str) -> bool:
    return path.startswith("docs/")


def resolve(page: str, link: str) -> str | None:
    """The file of the repository that a link means; of a folder its README.md; None if there is none."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    if (ROOT / path).is_dir():
        path += "/README.md"
    return path if (ROOT / path).is_file() else None

"""Names of places on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import HubError

FORM = "hf://org/name/path/to/file@revision (path and @revision are optional)"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"{_NAME}/{_NAME}")


@dataclass(frozen=True)
class Reference:
    """A place on the Hub: `hf://repo/path@revision`."""

    repo: str
    """`org/name`."""
    path: str | None = None
    """A file in it, None for the whole repository."""
    revision: str | None = None
    """Branch, tag or commit; None for the default branch."""

    def __str__(self) -> str:
        return f"hf://{self.repo}{'/' + self.path if self.path else ''}{'@' + self.revision if self.revision else ''}"


def parse_reference(text: str) -> Reference:
    """Read `hf://org/name`, `hf://org/name/path/to/file` or either with `@revision` at the end.

    Raises:
        HubError: it is none of these.
    """
    body, at, revision = text.removeprefix("hf://").partition("@")
    if at and "@" in revision:  # a file such as icon@2x.pth: the revision is after the last one
        body, _, revision = text.removeprefix("hf://").rpartition("@")
    parts = body.split("/")
    repo, rest = "/".join(parts[:2]), parts[2:]
    sound = text.startswith("hf://") and len(parts) >= 2 and is_repo_name(repo) and (not at or revision)
    sound = sound and not any(part in ("", ".", "..") for part in rest) and not re.search(r"[\s\\?#%]", text)
    if not sound or (at and any(part in ("", ".", "..") for part in revision.split("/"))):
        raise HubError(f"{text!r} is not a place on the Hub", FORM)
    return Reference(repo, "/".join(rest) or None, revision or None)


def is_repo_name(text: str) -> bool:
    # The Hub's own rules: no doubled or closing signs, no .git.
    return bool(_REPO.fullmatch(text)) and not re.search(r"--|\.\.|[.-](?:/|$)|\.git$", text)

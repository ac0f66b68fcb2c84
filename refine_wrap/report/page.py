"""One HTML file that holds everything it needs: how every page of this package is put together."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from importlib import resources
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ..errors import DataError, OutputError
from ..folder import PathLike

if TYPE_CHECKING:
    from PIL.Image import Image

COMPLETE = "This file is complete in itself and loads nothing from the network."

_FORMAT_NAMES = {"image/webp": "lossless WebP", "image/png": "PNG"}
_WEBP_LIMIT = 16383


class Payloads:
    """The pictures inside a page, each as a script element of plain text that the page's own script turns into a URL.

    Not as `src` attributes: a browser would decode hundreds of pictures at once.
    """

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[tuple[str, str, str]] = []

    def embed(self, key: str, image: Image, icc: bytes | None = None) -> str:
        """Take an 8-bit RGB or RGBA picture, without loss, under a key of letters, digits and hyphens."""
        kind, content = encode(image, icc)
        text = base64.b64encode(content).decode("ascii")
        self._parts.append((key, kind, text))
        self.size += len(text)
        return key

    def format_names(self) -> str:
        return " and ".join(_FORMAT_NAMES[kind] for kind in sorted({kind for _, kind, _ in self._parts}))

    def html(self) -> str:
        return "\n".join(
            f'<script type="text/plain" id="{key}" data-mime="{kind}">{text}</script>'
            for key, kind, text in self._parts
        )


def inline(image: Image) -> str:
    """An 8-bit picture as the value of a `src` attribute, without loss: for few and small ones, see `Payloads`."""
    kind, content = encode(image)
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def page_path(out: PathLike, overwrite: bool) -> Path:
    """The page's path, or the refusal.

    Raises:
        DataError: a name that a browser would not open.
        OutputError: it exists and is not to be replaced.
    """
    page = Path(out)
    if page.suffix.lower() not in {".html", ".htm"}:
        raise DataError(f"The page cannot be called {page.name!r}.", "a name that ends in .html")
    if page.exists() and not overwrite:
        raise OutputError(f"{page} exists already.", "a new name", "pass overwrite (--overwrite) to replace it")
    return page


def render(title: str, data: dict[str, Any], payloads: Payloads, parts: dict[str, str]) -> bytes:
    """Put `page.html`, `page.css` and `page.js` of this folder together.

    Args:
        title: of the page, plain text.
        data: what the script reads, see `Gallery.data`.
        payloads: the pictures.
        parts: pieces of HTML, escaped already: `facts` (a line below the title), `summary` (above the pictures),
            `table` and `left_out` (below them), `footer`.
    """
    template, style, script = (resource(f"page.{kind}") for kind in ("html", "css", "js"))
    return fill(template, style, script, title, data, {**parts, "payloads": payloads.html()})


def fill(template: str, style: str, script: str, title: str, data: dict[str, Any], parts: dict[str, str]) -> bytes:
    """Put a page together of its template, its one style and script, what the script reads, and escaped HTML."""
    html = Template(template).substitute(
        parts,
        title=escape(title),
        style=style,
        style_hash=_csp_hash(style),
        script=script,
        script_hash=_csp_hash(script),
        # Without "<", nothing in the data can end the script element that it lies in.
        data=json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c"),
    )
    return html.encode("utf-8", "replace")


def notice(summary: str, lines: Iterable[str], attributes: str = "") -> str:
    """A box that opens: a `summary` element and lines, both HTML."""
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<details class="notice"{attributes}>{summary}<ul>{items}</ul></details>'


def count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def resource(name: str, package: str = __package__) -> str:
    """The text of a file that lies beside a package's modules."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """Names the page's own script or style to the browser, which then refuses every other, and all of the network."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def encode(image: Image, icc: bytes | None = None) -> tuple[str, bytes]:
    """MIME type and file of an 8-bit picture, without any loss and without metadata but the colour profile."""
    from PIL import features

    # A grey picture's own profile does not fit the RGB one that is shown.
    profile = icc if icc is not None and icc[16:20] == b"RGB " else None
    buffer = BytesIO()
    if features.check("webp") and max(image.size) <= _WEBP_LIMIT:
        # This effort is within 1% of the smallest size in half the time. `exact` keeps colour under transparency.
        image.save(buffer, "WEBP", lossless=True, quality=40, method=2, exact=True, icc_profile=profile or b"")
        return "image/webp", buffer.getvalue()
    image.save(buffer, "PNG", icc_profile=profile)
    return "image/png", buffer.getvalue()

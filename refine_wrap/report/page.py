"""One HTML file that holds everything it needs: how every page of this package is put together."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from io import BytesIO
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

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
        kind, content = _encode(image, _rgb_profile(icc))
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


def render(name: str, title: str, data: dict[str, Any], payloads: Payloads, parts: dict[str, str]) -> bytes:
    """Put `NAME.html`, `NAME.css` and `NAME.js` of this folder together.

    `parts` are pieces of HTML and escaped already; `data` is what the script reads, anything that JSON can hold.
    """
    template, style, script = (_resource(f"{name}.{kind}") for kind in ("html", "css", "js"))
    html = Template(template).substitute(
        parts,
        title=escape(title),
        style=style,
        style_hash=_csp_hash(style),
        script=script,
        script_hash=_csp_hash(script),
        # Without "<", nothing in the data can end the script element that it lies in.
        data=json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c"),
        payloads=payloads.html(),
    )
    return html.encode("utf-8", "replace")


def count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """Names the page's own script or style to the browser, which then refuses every other, and all of the network."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _rgb_profile(icc: bytes | None) -> bytes | None:
    """The colour profile, if it fits the RGB picture that is embedded (a grey picture's own does not)."""
    return icc if icc is not None and icc[16:20] == b"RGB " else None


def _encode(image: Image, icc: bytes | None) -> tuple[str, bytes]:
    """MIME type and file of an 8-bit picture, without any loss."""
    from PIL import features

    buffer = BytesIO()
    if features.check("webp") and max(image.size) <= _WEBP_LIMIT:
        # This effort is within 1% of the smallest size in half the time. `exact` keeps colour under transparency.
        image.save(buffer, "WEBP", lossless=True, quality=40, method=2, exact=True, icc_profile=icc or b"")
        return "image/webp", buffer.getvalue()
    image.save(buffer, "PNG", icc_profile=icc)
    return "image/png", buffer.getvalue()

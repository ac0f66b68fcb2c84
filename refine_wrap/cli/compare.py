"""`refine-wrap compare`: one HTML page that shows the same pictures from several folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Overwrite, notices


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Two or more folders (or files) of the same pictures.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("compare.html"),
    reference: Annotated[
        Path | None,
        typer.Option("--reference", "-r", help="Folder of the ground truth, for PSNR and SSIM.", show_default=False),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Name of each folder on the page, in order.", show_default=False)
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many pictures.", show_default=False)] = None,
    max_side: Annotated[
        int | None,
        typer.Option(help="Longer side of what the page shows; crops keep the original pixels.", show_default=False),
    ] = None,
    border: Annotated[int, typer.Option(help="Pixels left out at each side by the metrics.")] = 0,
    luma: Annotated[bool, typer.Option("--luma", help="Measure on Y instead of RGB.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write one self-contained HTML page to compare pictures."""
    from ..report import compare_page

    with notices():
        page = compare_page(
            folders,
            out,
            reference=reference,
            labels=label,
            title=title,
            limit=limit,
            max_side=max_side,
            border=border,
            luma=luma,
            overwrite=overwrite,
        )
    typer.echo(str(page))

"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="The run's folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as section.key=value.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

"""Tell what a checkpoint or an exported model is, without executing anything that it holds."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from nnunet_godc.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="checkpoint (.pth), or what nnUNetv2_export_model_to_zip wrote (.zip)"
    )


def run(arguments: argparse.Namespace) -> int:
    from nnunet_godc.training.checkpoint import describe_checkpoint

    with _checkpoints(arguments.file) as checkpoints:
        refused = []
        for name, path in checkpoints:
            try:
                print("\n".join([f"{name}:", *(f"  {line}" for line in describe_checkpoint(path))]))
            except UserError as error:
                refused.append(str(error).replace(str(path), name))
    if refused:
        raise UserError("\n".join(refused))
    return 0


@contextmanager
def _checkpoints(file: Path) -> Iterator[list[tuple[str, Path]]]:
    """Names and paths of the checkpoints in a model's archive, or the file itself."""
    try:
        with ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
            found = []
            for number, member in enumerate(name for name in archive.namelist() if name.endswith(".pth")):
                path = Path(folder, f"{number}.pth")  # the archive's own names could lead out of the folder
                with archive.open(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
                found.append((f"{file}, {member}", path))
            yield found or [(str(file), file)]
    except (BadZipFile, FileNotFoundError, IsADirectoryError):
        yield [(str(file), file)]

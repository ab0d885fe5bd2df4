"""Files are written beside their target and then put in its place, so that no failure leaves half a file or takes a
good one away. Nothing here knows what is written."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path


def write_file(path: str | Path, content: bytes) -> Path:
    """Write the file, or leave what stood there as it was.

    Raises:
        OSError: where it cannot be written, saying so.
    """
    return write_files({Path(path): content})[0]


def write_files(contents: Mapping[Path, bytes]) -> list[Path]:
    """Write all the files, or leave what stood there as it was.

    Raises:
        OSError: where one cannot be written, saying so.
    """
    beside = {path: path.resolve().with_name(f".{uuid.uuid4().hex}.tmp") for path in contents}
    path = Path()
    try:
        for path, content in contents.items():
            _write_beside(path.resolve(), beside[path], content)
        for path in contents:
            beside[path].replace(path.resolve())
    except OSError as error:
        raise OSError(
            f"cannot write {str(path)!r} ({error.strerror or error}): nothing was changed; give a file name in a "
            "folder that exists and can be written"
        ) from error
    finally:
        for unfinished in beside.values():
            with contextlib.suppress(OSError):
                unfinished.unlink()
    return list(contents)


def writable_folder(folder: str | Path) -> Path:
    """The folder, created where needed.

    Raises:
        OSError: where it cannot be created or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    return folder


def _write_beside(target: Path, beside: Path, content: bytes) -> None:
    if target.exists():
        if not target.is_file():
            raise OSError("it is no plain file")
        if not os.access(target, os.W_OK):
            raise OSError("it is write-protected")
    with beside.open("xb") as file:
        file.write(content)
    if target.exists():
        shutil.copymode(target, beside)

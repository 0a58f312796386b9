"""Files that a model refers to: buffers of a .gltf, materials of an OBJ, pictures of both."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote, unquote_to_bytes

from ..errors import InputError

MAX_BYTES = 1 << 30
"""Largest file that is read from beside a model."""
_MTL_OPTIONS = re.compile(r"^(?:-[a-z]+(?:\s+(?:on|off|[-+]?[\d.]+))*\s+)+")


class Beside:
    """The folder of a model, from which nothing leads out.

    Names are taken as they are written, with %20 for a space, with backslashes, in other capitals, and with the folders
    of another machine, of which only the last part then counts.

    Attributes:
        used: files that were read. missing: names that were asked for in vain.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is None for a model that stands alone, such as one that came over the network."""
        self.folder = folder
        self.used: set[Path] = set()
        self.missing: list[str] = []

    def get(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            InputError: there is none, or it is too large.
        """
        path = self._find(name)
        if path is None:
            self.missing.append(name)
            place = "but it came alone" if self.folder is None else f"which is not in {self.folder}"
            raise InputError(f"The model refers to the file {name!r}, {place}: put it beside the model, or save it as GLB.")
        try:
            if path.stat().st_size > MAX_BYTES:
                raise InputError(f"{path} is larger than {MAX_BYTES >> 30} GB.")
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be opened: {error.strerror}.") from None
        self.used.add(path)
        return data

    __getitem__ = get

    def uri(self, text: str, what: str) -> bytes:
        """What a glTF address stands for: bytes written into it as base64 or text, or a file beside the model.

        Raises:
            InputError: neither, or an address on the network.
        """
        if text[:5].lower() == "data:":
            kind, comma, content = text[5:].partition(",")
            if not comma:
                raise InputError(f"The file is damaged: {what} has an address that begins with data: and holds no data.")
            try:
                return (
                    base64.b64decode(content, validate=True) if kind.lower().endswith(";base64") else unquote_to_bytes(content)
                )
            except (binascii.Error, ValueError):
                raise InputError(f"The file is damaged: {what} is not valid base64.") from None
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", text):
            raise InputError(f"{what} lies at {text[:80]!r}: addresses are not opened. Save the model as one GLB.")
        return self.get(text)

    def _find(self, name: str) -> Path | None:
        if self.folder is None or "\0" in name:
            return None
        root = self.folder.resolve()
        spelled = [name.strip(), unquote(name.strip()), _MTL_OPTIONS.sub("", name.strip())]
        parts = [PureWindowsPath(text).parts for text in spelled]  # understands both kinds of slash
        for candidate in [*parts, *(part[-1:] for part in parts)]:
            path = root.joinpath(*candidate).resolve()
            if candidate and path.is_relative_to(root):
                if path.is_file():
                    return path
                if path.parent.is_dir():
                    same = (p for p in path.parent.iterdir() if p.name.casefold() == path.name.casefold() and p.is_file())
                    if (other := next(same, None)) is not None:
                        return other
        return None

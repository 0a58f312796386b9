"""The files that a request names: fetched, checked and capped before any network is loaded (spec E 4)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from ...context import RunContext
from ...errors import InputError
from ...fetch import FetchError, decode_data_uri, fetch_bytes, fetch_file
from ...image.reading import open_picture
from ...settings import LORA_FIELDS, GenerationSettings
from ..endpoints import check_payload
from ..errors import FalError, field_error
from .jobs import Watch, Work
from .store import FileStore, disk_errors

_OWN_FILE = re.compile(r"/cdn/files/([0-9a-f]{32})/[^/?#]+")
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "AVIF": ".avif"}


@dataclass(frozen=True)
class Limits:
    """Bytes of each kind of input, and the sides of a picture."""

    picture: int = 50 << 20
    data_uri: int = 30 << 20
    lora: int = 1 << 30
    side: int = 4096


@dataclass(frozen=True)
class Inputs:
    """A request that is ready to be worked on: LoRA files by the setting that named them."""

    settings: GenerationSettings
    picture: Image.Image
    loras: dict[str, Path]


class Reader:
    """Reads requests.

    Args:
        store: where this service's own files are; they are never asked for over the network.
        scratch: an existing folder for what is fetched.
        trusted: hosts that may be in a private network, as "name" or "name:port".
    """

    def __init__(self, store: FileStore, scratch: Path, limits: Limits, trusted: Collection[str]) -> None:
        self._store, self._scratch, self._limits, self._trusted = store, scratch, limits, trusted

    def read(self, work: Work, watch: Watch) -> Inputs:
        """Check and fetch everything. The caller removes `Inputs.loras` that lie in the scratch folder.

        Raises:
            FalError: 422, in words about the field that is wrong.
        """
        settings, ignored = check_payload(work.app, work.body.read_bytes())
        if ignored:
            watch.log(f"Fields that this endpoint does not have were ignored: {', '.join(ignored)[:500]}", "WARN")
        picture = self._picture(str(settings.image_url), work, watch.ctx)
        loras: dict[str, Path] = {}
        try:
            for field in LORA_FIELDS:
                if url := getattr(settings, field):
                    loras[field] = self._lora(field, url, work, watch.ctx)
        except BaseException:
            self.discard(loras)
            raise
        return Inputs(settings, picture, loras)

    def discard(self, loras: dict[str, Path]) -> None:
        """Remove what `read` has fetched."""
        for path in loras.values():
            if path.parent == self._scratch:
                path.unlink(missing_ok=True)

    def _picture(self, url: str, work: Work, ctx: RunContext) -> Image.Image:
        field = "image_url"
        try:
            if url[:5].lower() == "data:":
                data = decode_data_uri(url, self._limits.data_uri)[0]
            elif own := self._own(url, work):
                if own.stat().st_size > self._limits.picture:
                    raise FetchError("The picture is too large.", "file_too_large", self._limits.picture)
                data = own.read_bytes()
            else:
                data = fetch_bytes(url, limit_bytes=self._limits.picture, trusted=self._trusted, ctx=ctx)
        except FetchError as error:
            raise _fetch_error(field, url, error) from None
        self._check_header(field, url, data)
        try:
            return open_picture(BytesIO(data))
        except InputError as error:
            raise field_error(field, str(error), "image_load_error", url) from None

    def _check_header(self, field: str, url: str, data: bytes) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(BytesIO(data)) as picture:
                    kind, (width, height) = picture.format, picture.size
        except Exception:  # Pillow's readers raise whatever they come across in a damaged file
            raise field_error(field, "The file cannot be read as a picture.", "image_load_error", url) from None
        if kind not in FORMATS:
            raise field_error(
                field, f"Pictures can be {', '.join(FORMATS)}, not {kind}.", "unsupported_image_format", url,
                {"supported_formats": list(FORMATS.values())},
            )  # fmt: skip
        side = self._limits.side
        if max(width, height) > side:
            text = f"The picture is {width} x {height}; {side} x {side} pixels are the most."
            raise field_error(field, text, "image_too_large", url, {"max_height": side, "max_width": side})

    def _lora(self, field: str, url: str, work: Work, ctx: RunContext) -> Path:
        path = self._scratch / f"{work.request_id}-{field}.safetensors"
        try:
            with disk_errors():
                if url[:5].lower() == "data:":
                    path.write_bytes(decode_data_uri(url, self._limits.data_uri)[0])
                elif own := self._own(url, work):
                    path = own
                else:
                    fetch_file(url, path, limit_bytes=self._limits.lora, trusted=self._trusted, ctx=ctx)
        except FetchError as error:
            raise _fetch_error(field, url, error) from None
        return path

    def _own(self, url: str, work: Work) -> Path | None:
        """The file, if it is one of this service's own."""
        if not url.startswith(work.origin + "/"):
            return None
        match = _OWN_FILE.fullmatch(url[len(work.origin) :])
        try:
            if match is None:
                raise FetchError("There is no such file on this server.")
            return self._store.path(self._store.get(match[1]))
        except FalError:
            raise FetchError("The file is not on this server any more: upload it again.") from None


def _fetch_error(field: str, url: str, error: FetchError) -> FalError:
    return field_error(field, str(error), error.kind, url, error.limit and {"max_size": error.limit})

"""The files that a request names: fetched, checked and capped before any network is loaded (docs/method/fal.md).

What has to be asked for elsewhere is fetched first, apart from the work, so that a slow host keeps nobody waiting but who
named it; the rest, and the decoding, belongs to the work.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from ...context import RunContext
from ...errors import InputError
from ...fetch import FetchError, decode_data_uri, fetch_file
from ...image.reading import open_picture
from ...settings import LORA_FIELDS, GenerationSettings
from ..body import Body, split
from ..endpoints import check_payload
from ..errors import FalError, field_error
from .config import Limits
from .state.files import FileStore
from .state.folder import storage_errors
from .work import Watch, Work

_OWN_FILE = re.compile(r"/cdn/files/([0-9a-f]{32})/[^/?#]+")
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "AVIF": ".avif"}
PICTURE = "image_url"
SUFFIX = ".safetensors"
"""Of LoRA files."""


@dataclass(frozen=True)
class Inputs:
    """A request that is ready to be worked on: LoRA files by the setting that named them."""

    settings: GenerationSettings
    picture: Image.Image
    loras: dict[str, Path]


class Reader:
    """Reads requests.

    Args:
        store: where this service's own files are, which are never asked for over the network; None where there are none.
        scratch: an existing folder for what is fetched.
        trusted: hosts that may be in a private network, as "name" or "name:port".
    """

    def __init__(self, store: FileStore | None, scratch: Path, limits: Limits, trusted: Collection[str]) -> None:
        self._store, self._scratch, self._limits, self._trusted = store, scratch, limits, trusted

    def fetch(self, work: Work, ctx: RunContext) -> dict[str, Path]:
        """Files from elsewhere by the field that names them; `discard` removes them. Blocks.

        Raises:
            FalError: 422, in words about the field that is wrong.
        """
        body = split(work.body())
        settings, _ = check_payload(work.app, body)
        fetched: dict[str, Path] = {}
        try:
            for field in (PICTURE, *LORA_FIELDS):
                url = getattr(settings, field)
                named = url is not None if field == PICTURE else bool(url)
                if named and url not in body.data and url[:5].lower() != "data:" and not self._is_own(url, work):
                    fetched[field] = self._fetch(field, url, work, ctx)
            ctx.check()
        except BaseException:
            self.discard(fetched)
            raise
        return fetched

    def read(self, work: Work, watch: Watch, fetched: Mapping[str, Path]) -> Inputs:
        """Check and decode everything. The caller has `discard` remove `Inputs.loras`. Blocks; errors as of `fetch`."""
        body = split(work.body())
        settings, ignored = check_payload(work.app, body)
        if ignored:
            watch.log(f"Fields that this endpoint does not have were ignored: {', '.join(ignored)[:500]}", "WARN")
        picture = self._picture(settings, body, work, fetched.get(PICTURE))
        loras: dict[str, Path] = {}
        try:
            for field in LORA_FIELDS:
                if getattr(settings, field):
                    loras[field] = fetched.get(field) or self._lora(field, settings, body, work)
        except BaseException:
            self.discard(loras)
            raise
        shown = {field: body.shown(value) for field in (PICTURE, *LORA_FIELDS) if (value := getattr(settings, field))}
        return Inputs(settings.model_copy(update=shown), picture, loras)

    def discard(self, files: Mapping[str, Path]) -> None:
        """Remove what was fetched or decoded for a request."""
        for path in files.values():
            if path.parent == self._scratch:
                path.unlink(missing_ok=True)

    def _fetch(self, field: str, url: str, work: Work, ctx: RunContext) -> Path:
        limits = self._limits
        path = self._scratch / f"{work.request_id}-{field}{'' if field == PICTURE else SUFFIX}"
        try:
            with storage_errors():
                fetch_file(
                    url, path, limit_bytes=limits.picture if field == PICTURE else limits.lora, trusted=self._trusted,
                    seconds=limits.download_seconds, ctx=ctx,
                )  # fmt: skip
        except FetchError as error:
            raise _fetch_error(field, url, error) from None
        return path

    def _picture(self, settings: GenerationSettings, body: Body, work: Work, fetched: Path | None) -> Image.Image:
        url = str(settings.image_url)
        whole = body.whole(url)
        try:
            if fetched is not None:
                data = fetched.read_bytes()
                fetched.unlink(missing_ok=True)
            elif isinstance(whole, memoryview) or url[:5].lower() == "data:":
                data = decode_data_uri(whole, self._limits.data_uri)[0]
            else:
                own = self._own(url, work)
                if own.stat().st_size > self._limits.picture:
                    raise FetchError("The picture is too large.", "file_too_large", self._limits.picture)
                data = own.read_bytes()
        except FetchError as error:
            raise _fetch_error(PICTURE, body.shown(url), error) from None
        self._check_header(body.shown(url), data)
        try:
            return open_picture(BytesIO(data))
        except InputError as error:
            raise field_error(PICTURE, str(error), "image_load_error", body.shown(url)) from None

    def _check_header(self, url: str, data: bytes) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(BytesIO(data)) as picture:
                    kind, (width, height) = picture.format, picture.size
        except Exception:  # Pillow's readers raise whatever they come across in a damaged file
            raise field_error(PICTURE, "The file cannot be read as a picture.", "image_load_error", url) from None
        if kind not in FORMATS:
            raise field_error(
                PICTURE, f"Pictures can be {', '.join(FORMATS)}, not {kind}.", "unsupported_image_format", url,
                {"supported_formats": list(FORMATS.values())},
            )  # fmt: skip
        side = self._limits.side
        if max(width, height) > side:
            text = f"The picture is {width} x {height}; {side} x {side} pixels are the most."
            raise field_error(PICTURE, text, "image_too_large", url, {"max_height": side, "max_width": side})

    def _lora(self, field: str, settings: GenerationSettings, body: Body, work: Work) -> Path:
        url = getattr(settings, field)
        whole = body.whole(url)
        try:
            if not isinstance(whole, memoryview) and url[:5].lower() != "data:":
                return self._own(url, work)
            path = self._scratch / f"{work.request_id}-{field}{SUFFIX}"
            with storage_errors():
                path.write_bytes(decode_data_uri(whole, self._limits.data_uri)[0])
            return path
        except FetchError as error:
            raise _fetch_error(field, body.shown(url), error) from None

    def _is_own(self, url: str, work: Work) -> bool:
        return self._store is not None and url.startswith(work.origin + "/")

    def _own(self, url: str, work: Work) -> Path:
        """A file of this service.

        Raises:
            FetchError: there is none at this address.
        """
        match = _OWN_FILE.fullmatch(url[len(work.origin) :]) if self._is_own(url, work) else None
        if match is None or self._store is None:
            raise FetchError("There is no such file on this server.")
        try:
            return self._store.path(self._store.get(match[1]))
        except FalError:
            raise FetchError("The file is not on this server any more: upload it again.") from None


def room_for(settings: GenerationSettings) -> int:
    """Bytes that a model of these settings may take: two pictures that shrink to half, and the vertices."""
    return 4 * settings.texture_size**2 + 60 * settings.decimation_target


def _fetch_error(field: str, url: str, error: FetchError) -> FalError:
    return field_error(field, str(error), error.kind, url, error.limit and {"max_size": error.limit})

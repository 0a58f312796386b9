"""Uploads in every way that the official clients know, and the files' own addresses (spec E 1.5)."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from urllib.parse import unquote, urlencode

from aiohttp import web

from ..errors import FalError, not_found
from .routes import Call, Routes, answer
from .signing import Signer
from .store import FileStore, Stored

TOKEN_SECONDS = 3600.0
MAX_FILE = 2 << 30
"""Bytes of one uploaded file."""
MAX_PART = 128 << 20
_TYPE = re.compile(r"[\w.+-]{1,50}/[\w.+-]{1,50}")

_SAFE_TYPES = ("image/", "model/", "video/", "audio/", "application/octet-stream")
"""What is shown as what its uploader said; everything else is only for saving. SVG can carry scripts."""


class Uploads:
    """Handlers. Addresses that are uploaded to without a key carry a signature for just that one file."""

    def __init__(self, store: FileStore, signer: Signer) -> None:
        self._store, self._signer = store, signer

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", "/rest/storage/auth/token", self.token)
        routes.add("POST", "/rest/storage/upload/initiate", self.initiate)
        routes.add("POST", "/rest/storage/upload/initiate-multipart", self.initiate_parts)
        routes.add("POST", "/cdn/files/upload", self.upload, public=True)
        routes.add("POST", "/cdn/files/upload/multipart", self.begin_parts, public=True)
        routes.add("PUT", "/cdn/files/{upload}/{name}/multipart/{same}/{number}", self.put_part, public=True)
        routes.add("POST", "/cdn/files/{upload}/{name}/multipart/{same}/complete", self.complete_parts, public=True)
        routes.add("PUT", "/cdn/put/{file}/{name}", self.put, public=True)
        routes.add("PUT", "/cdn/parts/{upload}/{number}", self.put_part, public=True)
        routes.add("POST", "/cdn/parts/{upload}/complete", self.complete_parts, public=True)
        routes.add("GET HEAD", "/cdn/files/{file}/{name}", self.download, public=True)

    # With a token, as the Python client does

    async def token(self, call: Call) -> web.Response:
        expires = datetime.fromtimestamp(time.time() + TOKEN_SECONDS, timezone.utc).isoformat()
        token = self._signer.sign("cdn", seconds=TOKEN_SECONDS)
        return answer({"token": token, "token_type": "Bearer", "base_url": f"{call.origin}/cdn", "expires_at": expires})

    async def upload(self, call: Call) -> web.Response:
        self._check(_bearer(call), "cdn")
        slot = self._store.slot(_file_name(call), call.request.content_type, call.lifetime())
        stored = await self._store.put(call.chunks(MAX_FILE), slot, limit=MAX_FILE)
        return answer({"access_url": call.origin + stored.address})

    async def begin_parts(self, call: Call) -> web.Response:
        self._check(_bearer(call), "cdn")
        slot = self._store.begin_parts(_file_name(call), call.request.content_type, call.lifetime())
        return answer({"access_url": call.origin + slot.address, "uploadId": slot.id})

    # With signed addresses, as the JavaScript client does

    async def initiate(self, call: Call) -> web.Response:
        slot = self._store.slot(*await _described(call), call.lifetime())
        promise = {"type": slot.content_type, "expires": str(slot.expires)}
        signature = self._signer.sign("put", slot.id, slot.name, *promise.values(), seconds=TOKEN_SECONDS)
        query = urlencode({**promise, "signature": signature})
        url = f"{call.origin}/cdn/put/{slot.id}/{slot.name}?{query}"
        return answer({"upload_url": url, "file_url": call.origin + slot.address})

    async def put(self, call: Call) -> web.Response:
        file, name = call.parts["file"], call.parts["name"]
        content_type, expires = call.query.get("type", ""), call.query.get("expires", "")
        self._check(call.query.get("signature", ""), "put", file, name, content_type, expires)
        slot = Stored(file, name, content_type, 0, float(expires))
        stored = await self._store.put(call.chunks(MAX_FILE), slot, limit=MAX_FILE)
        return answer({"access_url": call.origin + stored.address})

    async def initiate_parts(self, call: Call) -> web.Response:
        slot = self._store.begin_parts(*await _described(call), call.lifetime())
        signature = self._signer.sign("parts", slot.id, seconds=TOKEN_SECONDS)
        url = f"{call.origin}/cdn/parts/{slot.id}?signature={signature}"
        return answer({"upload_url": url, "file_url": call.origin + slot.address})

    # Both

    async def put_part(self, call: Call) -> web.Response:
        upload, number = self._upload(call), call.parts["number"]
        if not number.isdecimal() or len(number) > 6:
            raise FalError(400, "The part number must be a whole number.", "bad_request")
        etag = await self._store.put_part(upload, int(number), call.chunks(MAX_PART), limit=MAX_FILE)
        return answer({"partNumber": int(number), "etag": etag}, headers={"ETag": f'"{etag}"'})

    async def complete_parts(self, call: Call) -> web.Response:
        upload = self._upload(call)
        parts = (await call.json()).get("parts")
        try:
            numbers = [int(part["partNumber"]) for part in parts]
        except (TypeError, KeyError, ValueError, OverflowError):
            raise FalError(400, 'The body must be {"parts": [{"partNumber": 1, "etag": "..."}]}.', "bad_request") from None
        stored = await self._store.complete_parts(upload, numbers)
        return answer({"access_url": call.origin + stored.address})

    def _upload(self, call: Call) -> str:
        """The upload that a part belongs to, if the caller may send to it."""
        upload = call.parts["upload"]
        if "same" in call.parts:
            self._check(_bearer(call), "cdn")
        else:
            self._check(call.query.get("signature", ""), "parts", upload)
        return upload

    async def download(self, call: Call) -> web.StreamResponse:
        stored = self._store.get(call.parts["file"])
        if stored.name != call.parts["name"]:
            raise not_found("The file")
        shown = stored.content_type.startswith(_SAFE_TYPES) and "svg" not in stored.content_type
        headers = {
            "Content-Type": stored.content_type if shown else "application/octet-stream",
            "Content-Disposition": f'{"inline" if shown else "attachment"}; filename="{stored.name}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cache-Control": "private, max-age=3600",
        }
        return web.FileResponse(self._store.path(stored), headers=headers)

    def _check(self, token: str, *parts: str) -> None:
        if not self._signer.check(token, *parts):
            raise FalError(401, "The upload is not signed, or its signature has expired.")


def _bearer(call: Call) -> str:
    return call.request.headers.get("Authorization", "").partition(" ")[2].strip()


def _file_name(call: Call) -> str:
    return unquote(call.request.headers.get("X-Fal-File-Name", "file"))


async def _described(call: Call) -> tuple[str, str]:
    """Name and type of a file that is announced."""
    body = await call.json()
    name, content_type = body.get("file_name", "file"), body.get("content_type", "application/octet-stream")
    if not isinstance(name, str) or not isinstance(content_type, str):
        raise FalError(400, "file_name and content_type must be texts.", "bad_request")
    return name, content_type if _TYPE.fullmatch(content_type) else "application/octet-stream"

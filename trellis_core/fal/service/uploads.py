"""Uploads in every way that the official clients know, and the files' own addresses (docs/method/fal.md)."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import datetime, timezone
from urllib.parse import unquote, urlencode

from aiohttp import web

from ..errors import FalError, not_found
from .config import Limits
from .http.routes import Call, FileAnswer, Routes, answer
from .http.spool import Spool
from .pools import Pools, waited
from .signing import Signer
from .state.files import FileStore, Stored
from .state.parts import MAX_PARTS, Parts

TOKEN_SECONDS = 3600.0
_TYPE = re.compile(r"[\w.+-]{1,50}/[\w.+-]{1,50}")

_SAFE_TYPES = ("image/", "model/", "video/", "audio/", "application/octet-stream")
"""What is shown as what its uploader said; everything else is only for saving. SVG can carry scripts."""


class Uploads:
    """Handlers. Addresses that are uploaded to without a key carry a signature for just that one file, and its key's owner."""

    def __init__(self, store: FileStore, parts: Parts, spool: Spool, signer: Signer, pools: Pools, limits: Limits) -> None:
        self._store, self._parts, self._spool, self._signer = store, parts, spool, signer
        self._pools, self._limits = pools, limits

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", "/rest/storage/auth/token", self.token)
        routes.add("POST", "/rest/storage/upload/initiate", self.initiate)
        routes.add("POST", "/rest/storage/upload/initiate-multipart", self.initiate_parts)
        routes.add("POST", "/cdn/files/upload", self.upload, public=True, body="file")
        routes.add("POST", "/cdn/files/upload/multipart", self.begin_parts, public=True, body="file")
        routes.add("PUT", "/cdn/files/{upload}/{name}/multipart/{same}/{number}", self.put_part, public=True, body="file")
        routes.add("POST", "/cdn/files/{upload}/{name}/multipart/{same}/complete", self.complete_parts, public=True)
        routes.add("PUT", "/cdn/put/{file}/{name}", self.put, public=True, body="file")
        routes.add("PUT", "/cdn/parts/{upload}/{number}", self.put_part, public=True, body="file")
        routes.add("POST", "/cdn/parts/{upload}/complete", self.complete_parts, public=True)
        routes.add("GET HEAD", "/cdn/files/{file}/{name}", self.download, public=True)
        routes.add("DELETE", "/cdn/files/{file}/{name}", self.delete)

    # With a token, as the Python client does

    async def token(self, call: Call) -> web.Response:
        expires = datetime.fromtimestamp(time.time() + TOKEN_SECONDS, timezone.utc).isoformat()
        token = f"{call.owner}.{self._signer.sign('cdn', call.owner, seconds=TOKEN_SECONDS)}"
        return answer({"token": token, "token_type": "Bearer", "base_url": f"{call.origin}/cdn", "expires_at": expires})

    async def upload(self, call: Call) -> web.Response:
        owner = self._token_owner(call)
        slot = self._store.slot(owner, _file_name(call), call.content_type, call.lifetime())
        return await self._filled(slot, call)

    async def begin_parts(self, call: Call) -> web.Response:
        owner = self._token_owner(call)
        slot = self._parts.begin(self._store.slot(owner, _file_name(call), call.content_type, call.lifetime()))
        return answer({"access_url": call.origin + slot.address, "uploadId": slot.id})

    # With signed addresses, as the JavaScript client does

    async def initiate(self, call: Call) -> web.Response:
        slot = self._store.slot(call.owner, *await self._described(call), call.lifetime())
        promise = {"type": slot.content_type, "expires": str(slot.expires), "owner": slot.owner}
        signature = self._signer.sign("put", slot.id, slot.name, *promise.values(), seconds=TOKEN_SECONDS)
        query = urlencode({**promise, "signature": signature})
        url = f"{call.origin}/cdn/put/{slot.id}/{slot.name}?{query}"
        return answer({"upload_url": url, "file_url": call.origin + slot.address})

    async def put(self, call: Call) -> web.Response:
        file, name = call.parts["file"], call.parts["name"]
        content_type, expires, owner = (call.query.get(field, "") for field in ("type", "expires", "owner"))
        self._check(call.query.get("signature", ""), "put", file, name, content_type, expires, owner)
        slot = replace(self._store.slot(owner, name, content_type), id=file, expires=float(expires))
        return await self._filled(slot, call)

    async def initiate_parts(self, call: Call) -> web.Response:
        slot = self._parts.begin(self._store.slot(call.owner, *await self._described(call), call.lifetime()))
        signature = self._signer.sign("parts", slot.id, seconds=TOKEN_SECONDS)
        url = f"{call.origin}/cdn/parts/{slot.id}?signature={signature}"
        return answer({"upload_url": url, "file_url": call.origin + slot.address})

    # Both

    async def _filled(self, slot: Stored, call: Call) -> web.Response:
        self._store.check_free(slot)
        async with self._spool.take(slot.owner, call.chunks(self._limits.file), self._limits.file) as body:
            stored = await self._pools.storage.run(slot.owner, self._store.keep, slot, body)
        return answer({"access_url": call.origin + stored.address})

    async def put_part(self, call: Call) -> web.Response:
        upload, number = self._upload(call), call.parts["number"]
        if not number.isdecimal() or not 1 <= int(number[:7]) <= MAX_PARTS:
            raise FalError(400, f"The part number must be between 1 and {MAX_PARTS}.", "bad_request")
        limit, owner = self._limits.part, self._parts.owner(upload)
        async with self._spool.take(owner, call.chunks(limit), limit, in_memory=0) as body:
            await self._pools.storage.run(owner, self._parts.put, upload, int(number), body)
        return answer({"partNumber": int(number), "etag": body.sha256}, headers={"ETag": f'"{body.sha256}"'})

    async def complete_parts(self, call: Call) -> web.Response:
        upload = self._upload(call)
        parts = (await call.json(self._pools.parsing, self._limits.json)).get("parts")
        try:
            numbers = [int(part["partNumber"]) for part in parts]
        except (TypeError, KeyError, ValueError, OverflowError):
            raise FalError(400, 'The body must be {"parts": [{"partNumber": 1, "etag": "..."}]}.', "bad_request") from None
        stored = await self._pools.storage.run(self._parts.owner(upload), self._parts.complete, upload, numbers)
        return answer({"access_url": call.origin + stored.address})

    def _upload(self, call: Call) -> str:
        """The upload that a part belongs to, if the caller may send to it."""
        upload = call.parts["upload"]
        if "same" in call.parts:
            if self._token_owner(call) != self._parts.owner(upload):
                raise not_found("The upload")
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
        seconds = self._limits.silence_seconds + stored.size / self._limits.slowest
        return FileAnswer(self._store.path(stored), headers, seconds)

    async def delete(self, call: Call) -> web.Response:
        stored = self._store.get(call.parts["file"])
        if stored.owner != call.owner:
            raise not_found("The file")
        await waited(self._store.delete(stored))
        return web.Response(status=204)

    def _token_owner(self, call: Call) -> str:
        """Whose upload it is that comes with a token."""
        owner, _, token = call.request.headers.get("Authorization", "").partition(" ")[2].strip().partition(".")
        self._check(token, "cdn", owner)
        return owner

    def _check(self, token: str, *parts: str) -> None:
        if not self._signer.check(token, *parts):
            raise FalError(401, "The upload is not signed, or its signature has expired.")

    async def _described(self, call: Call) -> tuple[str, str]:
        """Name and type of a file that is announced."""
        body = await call.json(self._pools.parsing, self._limits.json)
        name, content_type = body.get("file_name", "file"), body.get("content_type", "application/octet-stream")
        if not isinstance(name, str) or not isinstance(content_type, str):
            raise FalError(400, "file_name and content_type must be texts.", "bad_request")
        return name, content_type if _TYPE.fullmatch(content_type) else "application/octet-stream"


def _file_name(call: Call) -> str:
    return unquote(call.request.headers.get("X-Fal-File-Name", "file"))

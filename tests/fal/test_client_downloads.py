"""Finished models come whole or not at all, and are paid for once however often their download breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from tests.helpers.fal_faults import FOR_EVER, PAGE, Fault, faulty, glb  # noqa: E402
from tests.helpers.fal_runs import HURRIED, run  # noqa: E402
from trellis_core.fal import download as module  # noqa: E402
from trellis_core.fal.answers import RemoteError, Unanswered  # noqa: E402
from trellis_core.fal.wire import Pace  # noqa: E402

pytestmark = pytest.mark.usefixtures("alone")


def _claims(data: bytes, total: int) -> bytes:
    return data[:8] + total.to_bytes(4, "little") + data[12:]


WHOLE = glb(3000)
HALF = {
    "cut": WHOLE[:1500],
    "cut, and the header agrees": _claims(WHOLE[:1500], 1500),
    "header tells of more": _claims(WHOLE, len(WHOLE) + 4),
    "without its binary part": _claims(WHOLE[: len(WHOLE) - 3008], len(WHOLE) - 3008),
    "a part that is too long": WHOLE[:12] + (10**6).to_bytes(4, "little") + WHOLE[16:],
    "only a header": _claims(WHOLE[:12], 12),
    "damaged description": WHOLE[:24] + b"\0" * 8 + WHOLE[32:],
    "zeros at the end": WHOLE + b"\0" * 8,
    "no GLB": PAGE,
    "nothing": b"",
}


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("size", ["said", "unsaid"])
def test_a_half_model_is_not_taken_as_whole(folder: Path, kind: str, size: str) -> None:
    with faulty(model=HALF[kind]) as server:
        file = {"url": f"{server.url}/files/a.glb"} | ({"file_size": len(WHOLE)} if size == "said" else {})
        server.result = {"model_glb": file}
        with pytest.raises(Unanswered, match="could not be fetched whole"):
            run(server, folder, pace=HURRIED)
        server.model = WHOLE
        assert run(server, folder).glb == WHOLE and len(server.accepted) == 1


def test_a_model_of_another_size_than_the_api_says_is_not_taken(folder: Path) -> None:
    with faulty() as server:
        server.result = {"model_glb": {"url": f"{server.url}/files/a.glb", "file_size": len(server.model) + 1}}
        with pytest.raises(Unanswered):
            run(server, folder)


def test_a_download_that_keeps_breaking_goes_on_where_it_stopped(folder: Path) -> None:
    with faulty(model=glb(100_000), faults={"file": [Fault(cut=30_000)] * 3}) as server:
        assert run(server, folder).glb == server.model
        assert server.ranges == ["", "bytes=30000-", "bytes=60000-", "bytes=90000-"] and len(server.accepted) == 1


def test_a_download_goes_on_in_the_next_run_and_then_needs_no_network(folder: Path) -> None:
    with faulty(model=glb(100_000), faults={"file": [Fault(cut=40_000), *[Fault(500, PAGE)] * 50]}) as server:
        with pytest.raises(Unanswered, match="goes on where"):
            run(server, folder)
        server.faults.clear()
        server.ranges.clear()
        assert run(server, folder).glb == server.model and server.ranges == ["bytes=40000-"]
        asked = server.asked.total()
        assert run(server, folder).glb == server.model and server.asked.total() == asked
        assert len(server.accepted) == 1


def test_a_begun_download_of_another_file_begins_anew(folder: Path) -> None:
    with faulty(model=glb(100_000), faults={"file": [Fault(cut=90_000), *[Fault(500, PAGE)] * 50]}) as server:
        with pytest.raises(Unanswered):
            run(server, folder)
        server.faults.clear()
        server.model = glb(50_000)
        assert run(server, folder).glb == server.model and len(server.accepted) == 1


def test_a_kept_model_that_was_damaged_is_fetched_again(folder: Path) -> None:
    with faulty() as server:
        run(server, folder)
        (kept,) = (folder / "models").iterdir()
        kept.write_bytes(server.model[:100])
        assert run(server, folder).glb == server.model and len(server.accepted) == 1


def test_a_model_that_is_too_large_is_told_before_it_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MODEL", 50_000)
    with faulty(model=glb(100_000)) as server:
        with pytest.raises(RemoteError, match=f"fetch it yourself from {server.url}/files/"):
            run(server, folder)
        assert server.asked["file"] == 1
        monkeypatch.undo()
        assert run(server, folder).glb == server.model and len(server.accepted) == 1


def test_a_model_that_trickles_ends_the_run_and_not_the_job(folder: Path) -> None:
    with faulty(faults={"file": [Fault(trickle=True), FOR_EVER]}) as server:
        with pytest.raises(Unanswered, match="too slowly|in time"):
            run(server, folder, pace=Pace(poll=0.001, silence=0.3))
        server.faults.clear()
        assert run(server, folder).glb == server.model and len(server.accepted) == 1

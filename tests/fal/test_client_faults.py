"""Our client against a server, and a network, on a bad day: nothing is lost, and nothing is paid twice."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from tests.helpers.fal_faults import FOR_EVER, ODD, Fault, Faulty, faulty, says  # noqa: E402
from tests.helpers.fal_runs import HURRIED, QUICK, run, work  # noqa: E402
from tests.helpers.fal_service import KEY  # noqa: E402
from trellis_core.errors import TrellisError  # noqa: E402
from trellis_core.fal.answers import Failed, Gone, RemoteError, Unanswered, Unsure, retry_after  # noqa: E402
from trellis_core.fal.remote import RemoteModel  # noqa: E402
from trellis_core.fal.wire import Pace  # noqa: E402

pytestmark = pytest.mark.usefixtures("alone")
REFUSALS = ("unavailable", "bad request", "not found", "too many")
"""What says at a submit, in the API's own form, that nothing was accepted."""
DEAF = Pace(poll=0.001, cancel=0.2)
"""For stops that nobody answers."""
REFUSED = [says(503, {"detail": "Too many requests are waiting."}), says(401, {"detail": "no such key"})]


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_answer_at_every_step_is_asked_past(folder: Path, kind: str) -> None:
    steps = ("initiate", "put", "status", "result", "file")
    with faulty(faults={step: [ODD[kind]] for step in steps}, steps_to_go=1) as server:
        for _ in ("initiate", "put") if kind in REFUSALS else ():  # nothing is at stake yet, so it is told at once
            with pytest.raises(RemoteError):
                run(server, folder)
            assert not server.accepted
        made = run(server, folder)
        assert made.glb == server.model and len(server.accepted) == 1 and not server.cancelled
        assert made.request_id == server.accepted[0] and not any(server.faults.values())
        assert server.asked["put"] > 1 or kind not in ("login page", "gateway", "server error")


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (step, kind)
        for step in ("status", "result", "file")
        for kind in ODD
        # A status that is not found, again and again, makes the client ask for the result: that may well be there.
        if (step, kind) not in (("file", "cut text"), ("status", "not found"))
    ],
)
def test_odd_answers_for_a_whole_run_neither_end_nor_repeat_a_job(folder: Path, step: str, kind: str) -> None:
    with faulty(faults={step: [ODD[kind], FOR_EVER]}) as server:
        with pytest.raises(RemoteError) as caught:
            run(server, folder, pace=HURRIED)
        assert isinstance(caught.value, (Unanswered, Gone)) and KEY not in str(caught.value)
        with pytest.raises((Unanswered, Gone)):
            run(server, folder, pace=HURRIED)
        server.faults.clear()
        made = run(server, folder)
        assert made.glb == server.model and len(server.accepted) == 1 and not server.cancelled
        assert any("nothing was submitted" in note for note in made.notes)


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in REFUSALS])
def test_an_odd_answer_to_a_submit_is_never_followed_by_another(folder: Path, kind: str) -> None:
    with faulty(faults={"submit": [ODD[kind]]}) as server:
        for _ in range(2):
            if kind == "cut text":  # the id came before it was cut
                server.faults["submit"] = [Fault(cut=60)]
                assert run(server, folder).request_id == server.accepted[0]
                continue
            with pytest.raises(Unsure, match="submit_anew"):
                run(server, folder)
        assert len(server.accepted) == 1 and server.asked["submit"] == 1 and not server.cancelled
        made = run(server, folder, request_id=server.accepted[0])
        assert made.glb == server.model
        anew = run(server, folder, submit_anew=True)
        assert len(server.accepted) == 2 and anew.request_id == server.accepted[1]
        assert "submit_anew" in anew.notes[0]


@pytest.mark.parametrize("kind", ["no answer", "gateway", "login page"])
def test_a_server_that_knows_marks_is_asked_again_and_takes_the_job_once(folder: Path, kind: str) -> None:
    with faulty(knows_marks=True, faults={"submit": [ODD[kind]]}) as server:
        assert run(server, folder).notes == ()
        assert len(server.accepted) == 1 and server.asked["submit"] == 2
        server.faults["submit"] = [ODD[kind], ODD[kind], *REFUSED]
        for error in (Unsure, RemoteError, RemoteError):  # a later refusal does not say that the first was not accepted
            with pytest.raises(error):
                run(server, folder, seed=2)
        made = run(server, folder, seed=2)
        assert made.request_id == server.accepted[1] and len(server.accepted) == 2 and "sent again" in made.notes[0]


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_plain_refusal_is_told_and_leaves_nothing_behind(folder: Path, kind: str) -> None:
    with faulty(faults={"submit": [ODD[kind]]}) as server:
        with pytest.raises(RemoteError) as caught:
            run(server, folder)
        assert not isinstance(caught.value, Unsure)
        assert run(server, folder).notes == ()


@pytest.mark.parametrize(
    ("status", "detail", "said"),
    [
        (403, "User is locked. Reason: Exhausted balance. Top up your balance.", "balance is used up"),
        (429, "slow down", "asked too much"),
        (401, f"no such key: Key {KEY}", "does not know the key"),
        (507, "full", "storage is full"),
        (422, [{"loc": ["body", "seed"], "msg": "Input should be less", "type": "x", "input": "secret"}], "seed: Input should"),
        (422, [{"loc": "seed"}, 3, {"msg": "\x1b[31mred"}], "refused"),
        (418, "odd", "418"),
    ],
)
def test_refusals_in_words(folder: Path, status: int, detail: Any, said: str) -> None:
    with faulty(faults={"submit": [says(status, {"detail": detail})]}) as server:
        with pytest.raises(RemoteError, match=said) as caught:
            run(server, folder)
        assert server.asked["submit"] == 1 and KEY not in str(caught.value)
        assert "secret" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_the_key_goes_to_the_api_alone(folder: Path) -> None:
    elsewhere = {"status_url": "http://evil.example/", "response_url": "http://evil.example/"}
    with faulty() as server:
        server.faults["submit"] = [says(200, {"request_id": "a-request", **elsewhere})]
        server.accepted.append("a-request")
        run(server, folder)
        assert {step for step, keys in server.keys.items() if keys != {f"Key {KEY}"}} == {"put", "file"}
        assert server.keys["put"] == server.keys["file"] == {None}


@pytest.mark.parametrize("private", ["http://10.0.0.1/a.glb", "http://localhost:1/a.glb", "file:///etc/passwd", "nonsense"])
def test_a_model_is_fetched_from_public_hosts_only(folder: Path, private: str) -> None:
    with faulty(result={"model_glb": {"url": private}}) as server:
        with pytest.raises(Unanswered, match="not a public host|of no use"):
            run(server, folder)
        server.result.clear()
        assert run(server, folder).glb == server.model and len(server.accepted) == 1


@pytest.mark.parametrize("status", [422, 500, 503, 504])
def test_a_job_that_failed_is_told_at_once_and_made_anew_when_asked_again(folder: Path, status: int) -> None:
    failed = says(status, {"detail": "CUDA error: out of memory"})
    with faulty() as server:
        server.faults["submit"] = [says(200, {"request_id": "a-request"})]
        server.faults["result"] = [Fault(failed.status, failed.body, (("x-fal-request-id", "a-request"),))]
        server.accepted.append("a-request")
        with pytest.raises(Failed, match="out of memory"):
            run(server, folder)
        assert server.asked["result"] == 1 and server.asked["submit"] == 1
        assert run(server, folder).notes == ()
        assert server.asked["submit"] == 2


def test_a_failure_that_is_found_again_is_told_with_the_new_request(folder: Path) -> None:
    with faulty(faults={"status": [ODD["gateway"], FOR_EVER]}) as server:
        with pytest.raises(Unanswered):
            run(server, folder, pace=HURRIED)
        (first,) = server.accepted
        server.faults["status"] = [says(200, {"status": "COMPLETED", "logs": None, "error": "restarted", "error_type": "x"})]
        server.faults["result"] = [says(500, {"detail": "restarted"})]
        made = run(server, folder)
        assert len(server.accepted) == 2 and made.request_id != first
        assert first in made.notes[0] and "restarted" in made.notes[0] and "new one was submitted" in made.notes[0]


def test_a_job_that_is_gone_is_made_anew_only_on_the_users_word(folder: Path) -> None:
    with faulty(faults={"file": [ODD["gateway"], FOR_EVER]}) as server:
        with pytest.raises(Unanswered, match="finished"):
            run(server, folder)
        server.faults.update({step: [ODD["not found"], FOR_EVER] for step in ("status", "result")})
        for _ in range(2):
            with pytest.raises(Gone, match="submit_anew"):
                run(server, folder)
        assert server.asked["submit"] == 1
        server.faults.clear()
        assert run(server, folder, submit_anew=True).request_id == server.accepted[1]


@pytest.mark.parametrize("seed", ["abc", None, [], -1, 1.5, True, 1e400, float("nan"), 10**30, {"a": 1}])
def test_an_odd_seed_costs_nothing(folder: Path, seed: Any) -> None:
    with faulty(result={"seed": seed}) as server:
        made = run(server, folder)
        assert (made.glb, made.seed) == (server.model, 1)
        assert run(server, folder).seed == 1


@pytest.mark.parametrize(
    "status",
    [
        {"status": "IN_PROGRESS", "logs": "text"},
        {"status": "IN_PROGRESS", "logs": [1, {"message": 3}, {"message": "\x1b]0;x\x07" + "7 % " * 500}]},
        {"status": "IN_QUEUE", "queue_position": "first"},
        {"status": "IN_QUEUE", "queue_position": -3, "logs": {}},
    ],
)
def test_odd_decoration_of_a_status_does_no_harm(folder: Path, status: Any) -> None:
    states = []
    with faulty(faults={"status": [says(200, status)]}) as server:
        assert run(server, folder, on_state=states.append).glb == server.model
        assert all(len(state.line) < 400 and "\x1b" not in state.line for state in states)
        assert states[0].status == status["status"] and states[0].position is None


@pytest.mark.parametrize("fault", [says(200, {"status": "PAUSED"}), Fault(late=True), Fault(trickle=True)])
def test_a_status_that_never_says_anything_ends_the_wait_and_not_the_job(folder: Path, fault: Fault) -> None:
    with faulty(faults={"status": [fault, FOR_EVER]}) as server:
        with pytest.raises(Unanswered):
            run(server, folder, pace=Pace(poll=0.001, patience=0.1, answer=0.1))
        server.faults.clear()
        assert run(server, folder).glb == server.model and len(server.accepted) == 1 and not server.cancelled


def test_retry_after_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = says(429, {"detail": "slow down"}, Retry_After="17")
    waited, sleep = [], asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: (waited.append(seconds), sleep(0))[1])
    with faulty(faults={step: [asks] for step in ("submit", "status", "result", "file")}) as server:
        assert run(server, folder, pace=Pace(poll=0.001)).glb == server.model
    assert [seconds for seconds in waited if seconds >= 1] == [17.0] * 4


def test_retry_after_in_all_its_forms() -> None:
    def of(text: str) -> float:
        return retry_after({"Retry-After": text})

    assert (of("17"), of(" 3 "), of("0"), of(""), of("soon"), of("-5"), of("1.5"), of("9" * 400)) == (17, 3, 0, 0, 0, 0, 0, 0)
    assert 50 < of(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert of("Fri, 07 Nov 2025 23:59:59 GMT") == of("Fri, 99 Nov 2025 23:59:59 GMT") == 0


def test_too_long_a_wait_is_told(folder: Path) -> None:
    with faulty(faults={"status": [says(503, {"detail": "x"}, Retry_After="86400"), FOR_EVER]}) as server:
        with pytest.raises(Unanswered, match="left alone for 86400 seconds"):
            run(server, folder)
        assert server.asked["status"] == 1


# Stopping


def _stopped(server: Faulty, folder: Path, step: str, pace: Pace = QUICK) -> None:
    async def stopped() -> None:
        task = asyncio.ensure_future(work(server, folder, pace=pace))
        while not server.asked[step]:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(stopped(), 60))


def test_a_stop_takes_the_job_back_and_says_so_the_next_time(folder: Path) -> None:
    with faulty(steps_to_go=10**6) as server:
        _stopped(server, folder, "status")
        assert server.cancelled == server.accepted
        server.steps_to_go = 0
        server.faults["status"] = server.faults["result"] = [says(404, {"detail": "gone"}), FOR_EVER]
        notes: list[str] = []

        async def again() -> RemoteModel:
            task = asyncio.ensure_future(work(server, folder))
            while len(server.accepted) < 2:
                await asyncio.sleep(0.005)
            server.faults.clear()
            return await task

        notes += asyncio.run(again()).notes
        assert "taken back" in notes[0] and len(server.accepted) == 2


def test_a_stop_that_nobody_hears_is_short_and_the_job_is_found_again(folder: Path) -> None:
    with faulty(faults={"cancel": [Fault(late=True), FOR_EVER]}, steps_to_go=10**6) as server:
        _stopped(server, folder, "status", DEAF)
        server.steps_to_go = 0
        assert run(server, folder).request_id == server.accepted[0] and len(server.accepted) == 1


def test_a_stop_while_the_submit_is_not_answered_submits_nothing_more(folder: Path) -> None:
    with faulty(faults={"submit": [Fault(late=True)]}) as server:
        _stopped(server, folder, "submit", DEAF)
        with pytest.raises(Unsure):
            run(server, folder)
        assert len(server.accepted) == 1


def test_a_stop_while_the_model_is_fetched_cancels_nothing(folder: Path) -> None:
    with faulty(faults={"file": [Fault(trickle=True)]}) as server:
        _stopped(server, folder, "file")
        assert not server.cancelled and run(server, folder).glb == server.model and len(server.accepted) == 1


# Two at once


def test_two_that_want_the_same_pay_for_it_once(folder: Path) -> None:
    async def both(server: Faulty) -> list[RemoteModel]:
        return await asyncio.gather(work(server, folder), work(server, folder), work(server, folder, seed=2))

    with faulty(steps_to_go=3) as server:
        first, second, other = asyncio.run(both(server))
        assert first.request_id == second.request_id != other.request_id and len(server.accepted) == 2


def test_a_notebook_that_cannot_be_written_stops_before_anything_is_sent(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    with faulty() as server:
        with pytest.raises(TrellisError, match="cannot be made"):
            run(server, folder / "file")
        assert not server.accepted

"""The dispatcher's HTTP API as an operator's program speaks it; see `hil.dispatcher.jobs_api`.

Every request may be sent twice, so one whose answer was lost is sent again, a few times, with growing pauses. What the
dispatcher refuses is an error with its own sentence and what to do.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from typing import Any, TypeVar

import msgspec

from agent.errors import FleetError
from agent.printable import printable
from hil.dispatcher.http_exchange import Refusal
from hil.dispatcher.jobs_api import JobOrder, JobReport, JobTaken, SubmissionPage
from hil.dispatcher.submissions import SliceResult
from hil.submit.endpoint import Endpoint

TIMEOUT_S = 30.0
TRIES = 4
PAUSE_S = 0.5
MAX_ANSWER_BYTES = 64 * 1024**2

Kind = TypeVar("Kind")


class Client:
    """One dispatcher. Raises FleetError from every method."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._url, self._token = endpoint.find()

    def check(self) -> None:
        """Whether there is a dispatcher that knows the token, before anything is sent to it."""
        self._ask("GET", "/submissions/anybody", missing=True)

    def put_input(self, body: bytes) -> str:
        """Bring a job's input; its name."""
        sha256 = hashlib.sha256(body).hexdigest()
        self._ask("PUT", f"/objects/{sha256}", body)
        return sha256

    def put_up(self, order: JobOrder) -> JobTaken:
        """Put a job up; the same one again changes nothing."""
        return _decoded(self._ask("POST", "/jobs", msgspec.json.encode(order)), JobTaken)

    def page(self, submission: str, first: int) -> SubmissionPage | None:
        """Some jobs of a submission, from number `first` on; None when there is none."""
        body = self._ask("GET", f"/submissions/{submission}?first={first}", missing=True)
        return None if body is None else _decoded(body, SubmissionPage)

    def report(self, job: str) -> JobReport:
        """How one job is getting on."""
        return _decoded(self._ask("GET", f"/jobs/{job}"), JobReport)

    def slices(self, job: str) -> list[SliceResult]:
        """The settled slices of a job."""
        return _decoded(self._ask("GET", f"/jobs/{job}/results"), list[SliceResult])

    def answers(self, job: str, result: SliceResult) -> list[Any]:
        """A slice's answers, one an item."""
        body = self._ask("GET", f"/jobs/{job}/results/{result.slice}") or b""
        if hashlib.sha256(body).hexdigest() != result.output_sha256:
            raise FleetError(f"the answers of slice {result.slice} of {job} are not those that were settled")
        return _decoded(body, list[Any])

    def verdict(self, job: str, first: int) -> bytes | None:
        """What the dispatcher signs about a job that is over, from slice `first` on; None: nothing."""
        return self._ask("GET", f"/jobs/{job}/verdict?first={first}", missing=True)

    def _ask(self, method: str, path: str, body: bytes | None = None, *, missing: bool = False) -> bytes | None:
        """The answer's body; None for what is not there, where that may be (`missing`)."""
        pause_s = PAUSE_S
        for attempt in range(TRIES):
            if attempt:
                time.sleep(pause_s)
                pause_s *= 2
            try:
                return self._once(method, path, body)
            except urllib.error.HTTPError as error:
                with error:
                    said = _refusal(error.read(1024))
                if error.code == 404 and missing:
                    return None
                if error.code != 503 or attempt == TRIES - 1:
                    raise self._refused(error.code, said) from error
            except (OSError, http.client.HTTPException) as error:
                if attempt == TRIES - 1:
                    raise FleetError(
                        f"the dispatcher at {self._url} does not answer: {error}", hint="is it still running?"
                    ) from error
                if self._endpoint.folder:  # it may have been started again, elsewhere
                    self._url, self._token = self._endpoint.find()
        return None

    def _once(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/octet-stream"}
        asked = urllib.request.Request(self._url + path, body, headers, method=method)  # noqa: S310 - checked before
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:  # noqa: S310 - as above
            found = bytes(answer.read(MAX_ANSWER_BYTES + 1))
        if len(found) > MAX_ANSWER_BYTES:
            raise FleetError(f"the dispatcher answers {path} with more than {MAX_ANSWER_BYTES} bytes")
        return found

    def _refused(self, code: int, said: str) -> FleetError:
        if code == 403:
            hint = "a dispatcher makes a new one at each start: take its operator.token again"
            return FleetError("the dispatcher does not know this operator's token", hint=hint)
        if code == 404:
            return FleetError(f"{self._url} does not know this ({said})", hint="is it a dispatcher, and up to date?")
        return FleetError(f"the dispatcher refused ({code}): {said}")


def _decoded(body: bytes | None, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(body or b"", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FleetError(f"the dispatcher's answer is not understood: {error}", hint="is it up to date?") from error


def _refusal(body: bytes) -> str:
    """What the dispatcher said, as people may read it; whatever else answers there may say anything."""
    try:
        return printable(msgspec.json.decode(body, type=Refusal).error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return printable(body.decode("utf-8", "replace")) or "it did not say why"

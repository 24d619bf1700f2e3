"""The dispatcher's signed word on each job, fetched with its answers and kept beside them.

One line a verdict, each a DSSE envelope as any tool reads it (`hil.dispatcher.job_verdict`); a long job has several. It
has to be about the very answers that were collected, and signed by the dispatcher's key where that is known: a rig's is
in its folder, another's is given with `--dispatcher-key`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from agent.errors import FleetError, TrustError
from agent.trust import dsse
from agent.trust.dsse import VerifyingKey
from hil.dispatcher.job_verdict import JobVerdict, parse_job_verdict, verify_job_verdict
from hil.dispatcher.submissions import SliceResult
from hil.submit.client import Client


class Verdicts:
    """Writes to `out`. `keys` are the dispatcher's, None where nobody has said which they are."""

    def __init__(self, client: Client, out: TextIO, keys: Mapping[str, VerifyingKey] | None) -> None:
        self._client, self._out, self._keys = client, out, keys

    def take(self, job: str, slices: Sequence[SliceResult]) -> None:
        """The verdicts on these slices of a job that is over; raises FleetError when they are not what they should be.

        A dispatcher from before there were verdicts has none, and then none are written.
        """
        expected = {one.slice: one.output_sha256 for one in slices}
        while expected:
            envelope = self._client.verdict(job, min(expected))
            if envelope is None:
                return
            said = self._read(job, envelope)
            told = {one.index: one.output_sha256 for one in said.slices}
            if said.job != job or not told.items() <= expected.items():
                raise FleetError(f"the dispatcher's verdict on {job} is not about the answers that it gave")
            self._out.write(envelope.decode("ascii") + "\n")
            expected = {index: sha256 for index, sha256 in expected.items() if index not in told}

    def _read(self, job: str, envelope: bytes) -> JobVerdict:
        try:
            if self._keys is None:
                return parse_job_verdict(dsse.parse(envelope).payload)
            return verify_job_verdict(envelope, self._keys)
        except (TrustError, UnicodeDecodeError) as error:
            hint = "" if self._keys is None else "is its key the one that was given?"
            raise FleetError(f"the dispatcher's verdict on {job} does not hold: {error}", hint=hint) from error

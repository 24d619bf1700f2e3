"""A model that crashes its builder would crash it every hour for ever: it is refused, as one without a plan is."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.core.events import BuildProgress, BuildRefused, PlanMade, WorkerGone
from tests.inference.test_workshop import yard


def test_a_model_that_crashes_its_builder_is_refused_the_third_time(tmp_path: Path) -> None:
    """A plan in between forgives it; an end of another kind, or by our own hand, does not count."""
    told = tmp_path / "told"
    story_of = ["crash", "crash", "plan", "crash", "exit", "hang", "crash", "crash"]
    script = (
        f"told = Path({str(told)!r}); many = len(told.read_text()) if told.exists() else 0; "
        f"told.write_text('.' * (many + 1)); what = {story_of!r}[many]; "
        "say(wire.Building(phase='Tactics', done_permille=1)); "
        "os.abort() if what == 'crash' else time.sleep(600) if what == 'hang' else "
        "sys.exit(1) if what == 'exit' else built(b'plan')"
    )

    async def story() -> None:
        async with yard(tmp_path, build=script) as here:
            await here.surveyed()
            for number, what in enumerate(story_of):
                assert here.shelf.refused == {}, number
                here.events.clear()
                here.workshop.start(here.one.package_sha256)
                if what == "hang":
                    await here.heard(BuildProgress)
                    here.workshop.stop(0)
                await here.heard(WorkerGone)
                assert (PlanMade in here.kinds()) == (what == "plan")
            assert here.kinds()[-2:] == [BuildRefused, WorkerGone]
            assert here.shelf.refused["one"].startswith("its plan's builder crashed 3 times: the worker ended without")
            assert "SIGABRT" in here.shelf.refused["one"]
            assert list(here.shelf.packages) == [here.two.package_sha256]

    asyncio.run(story())

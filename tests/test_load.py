from __future__ import annotations

import asyncio
import hashlib
import threading

import pytest

from agent.load import Burner


def burners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "burner"]


def test_the_burner_burns_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = threading.Semaphore(0)
    real = hashlib.pbkdf2_hmac

    def counted(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        rounds.release()
        return real(name, password, salt, iterations)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counted)

    async def main() -> None:
        burner = Burner()
        await burner.stop()
        for _ in range(2):
            await burner.start()
            assert burners()
            for _ in range(3):
                assert await asyncio.to_thread(rounds.acquire, timeout=30)
            assert burner.fault() == ""
            await burner.stop()
            assert burners() == []

    asyncio.run(main())

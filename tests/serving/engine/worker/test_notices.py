import asyncio
import contextlib
import threading
from pathlib import Path

from serving.engine.worker.notices import Notices, Teller


async def test_a_ticket_is_complete_when_every_worker_has_told_it(tmp_path: Path) -> None:
    path = str(tmp_path / "notices")
    tellers = [Teller(path) for _ in range(2)]
    with contextlib.closing(Notices(path, 2)) as notices:
        first, second = notices.expect(), notices.expect()
        tellers[0].tell(first)
        tellers[0].tell(second)
        assert not await notices.complete(first, 0.05)
        threading.Timer(0.05, tellers[1].tell, [first]).start()
        assert await notices.complete(first, 5)
        assert not await notices.complete(second, 0)


async def test_late_word_of_what_is_forgotten_is_not_taken_for_another(tmp_path: Path) -> None:
    path = str(tmp_path / "notices")
    teller = Teller(path)
    with contextlib.closing(Notices(path, 1)) as notices:
        old = notices.expect()
        notices.forget(old)
        new = notices.expect()
        teller.tell(old)
        await asyncio.sleep(0.02)
        assert not await notices.complete(new, 0)


def test_telling_nobody_does_no_harm(tmp_path: Path) -> None:
    Teller(str(tmp_path / "nobody")).tell(1)

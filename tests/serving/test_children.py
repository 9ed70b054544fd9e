import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

from serving.children import ignore_interrupt, start_shielded


def child(told: Connection) -> None:
    ignore_interrupt()
    os.kill(os.getpid(), signal.SIGINT)
    told.send((signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def test_an_interrupt_during_a_childs_imports_or_later_does_not_end_it() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    hears, tells = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=child, args=(tells,))
    start_shielded(process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 0
    assert hears.recv() == (signal.SIG_IGN, set())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before

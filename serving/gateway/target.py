"""From a decision to something that can answer: the engine is up, the adapter resident, or the base takes over."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType

from adapters_registry.model import AdapterVersion
from router import Decision, Reason
from serving.engine.base import Answering, EngineState
from serving.errors import AdapterLoadFailed
from serving.fleet import Held
from serving.gateway.state import Gateway
from serving.residency import Patience, StillCold

LOAD_FAILED = "load_failed"
"""reason when the engine refused the adapter and the base answers"""


class Target:
    """Who answers, and how it came about. `waited_s` is the wait for the engine and the adapter, in seconds."""

    __slots__ = ("adapter", "adapter_state", "decision", "engine", "reason", "waited_s")

    def __init__(self, decision: Decision, engine: Answering) -> None:
        self.decision = decision
        self.engine = engine
        self.adapter: AdapterVersion | None = None
        self.adapter_state = "none"
        self.reason: str = decision.reason
        self.waited_s = 0.0

    @property
    def adapter_name(self) -> str:
        """`name@version`, or `none` for the base."""
        return "none" if self.adapter is None else self.adapter.engine_name

    @property
    def model(self) -> str:
        """What the engine wants in `model`."""
        return self.engine.upstream_model if self.adapter is None else self.adapter.engine_name

    @property
    def ours(self) -> bool:
        """Whether the engine is a vLLM, whose streams tell their usage when asked."""
        return self.engine.slots > 0


class hold:  # noqa: N801 - reads as a verb where it is used
    """`async with hold(gateway, decision) as target`: `target` can answer until the context is left.

    Raises EngineUnavailable, and where the policy is to wait also Overloaded and AdapterLoadFailed.
    """

    __slots__ = ("_decision", "_gateway", "_hold")

    def __init__(self, gateway: Gateway, decision: Decision) -> None:
        self._gateway = gateway
        self._decision = decision
        self._hold: AbstractAsyncContextManager[Held] | None = None

    async def __aenter__(self) -> Target:
        gateway, decision = self._gateway, self._decision
        target = Target(decision, gateway.engine(decision.base))
        engine = target.engine
        if engine.status.state is not EngineState.READY:
            began = gateway.clock()
            await engine.wait_ready(gateway.settings.engine_wait_s)
            target.waited_s = gateway.clock() - began
        if decision.adapter is not None:
            await self._hold_adapter(target, decision.adapter)
        return target

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hold is not None:
            await self._hold.__aexit__(kind, error, trace)

    async def _hold_adapter(self, target: Target, adapter: AdapterVersion) -> None:
        settings = self._gateway.settings
        # Who pins a version wants that version's answer or an error, never another's.
        may_fall_back = settings.cold_policy == "fallback" and not self._decision.exact_version
        patience = Patience(settings.cold_wait_ms / 1e3 if may_fall_back else None, settings.cold_timeout_s)
        began = self._gateway.clock()
        held = self._gateway.fleet.hold(adapter, patience)
        try:
            tells = await held.__aenter__()
        except StillCold:
            target.reason, target.adapter_state = Reason.COLD_FALLBACK, "fallback"
        except AdapterLoadFailed:
            if not may_fall_back:
                raise
            target.reason, target.adapter_state = LOAD_FAILED, "fallback"
        else:
            self._hold = held
            target.adapter = adapter
            target.adapter_state = "warm" if tells.was_ready else "cold"
        target.waited_s += self._gateway.clock() - began

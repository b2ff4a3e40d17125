"""The loader: one for each life of the engine."""

import asyncio
from pathlib import Path

import pytest

from polytone.contract.errors import UnavailableError
from polytone.contract.home import Home
from polytone.serve.adapters.batch_slots import BatchSlots
from polytone.serve.adapters.loaded import AdapterLimits, AdapterState, EngineState, LoadedAdapter
from polytone.serve.adapters.loader import AdapterLoader
from polytone.serve.metrics import Metrics
from tests.support.adapters import make_base, make_version
from tests.support.fake_engine import FakeEngine


@pytest.mark.parametrize("state", [EngineState.UNLOADED, EngineState.LOADED])
async def test_a_version_of_an_engine_that_was_rebuilt_never_becomes_ready(tmp_path: Path, state: EngineState) -> None:
    """Its files are still being checked when the new engine comes up, which answers as the old one did."""
    home = Home(tmp_path)
    base = make_base(home)
    version = make_version(home, base, "acme").version
    engine = FakeEngine()
    await engine.start()
    await engine.load(version, home.adapter_folder(version))
    adapter = LoadedAdapter(version)
    adapter.engine_copy.state = state
    limits = AdapterLimits(max_rank=16, max_resident=2, max_batch=2, drain_seconds=1)
    loader = AdapterLoader(engine, home, base, limits, Metrics(), None, {version: adapter}, BatchSlots(2))
    loading = asyncio.create_task(loader.ensure_loaded(adapter))
    await asyncio.sleep(0)
    loader.close()
    with pytest.raises(UnavailableError) as refused:
        await loading
    assert refused.value.code == "engine_unavailable"
    assert adapter.state is AdapterState.GONE
    assert engine.loads == 1

"""The adapter kernels of a CPU against vLLM's own: the same sums, for any batch, and nothing for rows without one."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.engine

INPUTS, OUTPUTS, RANK = 72, (80, 24, 24), 8


@pytest.fixture(scope="module")
def plans() -> Any:
    from polytone.serve.engine.cpu import lora_plan as cpu_lora_plan

    return cpu_lora_plan


@pytest.fixture(scope="module")
def kernel() -> Any:
    from polytone.serve.engine.cpu.lora_kernel import build

    return build(2)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40))
def test_sorted_batches_are_reached_by_swaps(adapters: list[int]) -> None:
    from polytone.serve.engine.cpu.lora_plan import swaps

    order = sorted(range(len(adapters)), key=lambda i: adapters[i])
    requests = list(range(len(adapters)))
    for one, other in swaps(order):
        requests[one], requests[other] = requests[other], requests[one]
    assert requests == order


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30))
def test_runs_cover_the_rows_of_adapters_and_no_others(adapters: list[int]) -> None:
    from polytone.serve.engine.cpu.lora_plan import runs

    slots = {1: 4, 2: 0, 3: 2}
    covered = [-1] * len(adapters)
    for run in runs(adapters, slots):
        for row in range(run.start, run.stop):
            covered[row] = run.slot
    assert covered == [slots.get(adapter, -1) for adapter in adapters]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=5),
    ranks=st.lists(st.integers(1, RANK), min_size=3, max_size=3),
    present=st.lists(st.booleans(), min_size=3, max_size=3),
    halves=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_a_batch_gets_what_vllms_own_path_adds(
    plans: Any, kernel: Any, rows: list[tuple[int, int]], ranks: list[int], present: list[bool], halves: list[bool]
) -> None:
    """Any order of adapters, with and without them, ranks of one to full, slices without a part, and numbers that
    bfloat16 holds beside such that it does not.

    vLLM's own path needs an empty slot at the end: it takes rows without an adapter for rows of the last slot's.
    """
    import torch
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    torch.manual_seed(0)
    ids: list[int | None] = [11, 12, 13, None]
    a_stacked = tuple(torch.zeros(4, 1, RANK, INPUTS) for _ in OUTPUTS)
    b_stacked = tuple(torch.zeros(4, 1, columns, RANK) for columns in OUTPUTS)
    adapters = []
    for slot, (rank, half) in enumerate(zip(ranks, halves, strict=True)):

        def matrix(*shape: int, half: bool = half) -> Any:
            return torch.randn(shape).bfloat16().float() if half else torch.randn(shape)

        parts_a: list[Any] = [matrix(rank, INPUTS) if there else None for there in present]
        parts_b: list[Any] = [
            matrix(columns, rank) if there else None for columns, there in zip(OUTPUTS, present, strict=True)
        ]
        for number, (a, b) in enumerate(zip(parts_a, parts_b, strict=True)):
            if a is not None:
                a_stacked[number][slot, 0, :rank] = a
                b_stacked[number][slot, 0, :, :rank] = b
        adapters.append(plans.weights(parts_a, parts_b, OUTPUTS))
        assert adapters[-1] is None or adapters[-1].a.dtype == (torch.bfloat16 if half else torch.float32)
    who = tuple(0 if number == 0 else 10 + number for number, count in rows for _ in range(count))
    mapping = LoRAMapping(who, who, is_prefill=True)
    x, y = torch.randn(len(who), INPUTS), torch.randn(len(who), sum(OUTPUTS))
    expected, through_gemms, through_kernel = y.clone(), y.clone(), y.clone()
    stock = PunicaWrapperCPU(1024, 32, "cpu")
    stock.update_metadata(mapping, ids, 5, 100)
    stock.add_lora_linear(expected, x, a_stacked, b_stacked, 1.0, OUTPUTS)
    of = tuple(plans.runs(who, {11: 0, 12: 1, 13: 2}))
    apply(plans.plan(of, adapters, None), through_gemms, x)
    apply(plans.plan(of, adapters, kernel), through_kernel, x)
    torch.testing.assert_close(through_gemms, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(through_kernel, expected, rtol=1e-4, atol=1e-4)
    bare = torch.tensor([number == 0 for number in who])
    assert torch.equal(through_kernel[bare], y[bare])


def apply(plan: Any, y: Any, x: Any) -> None:
    for add in plan:
        add(y, x)


def test_an_adapter_is_held_once_and_described_once(plans: Any) -> None:
    """vLLM keeps its tensors; they become views of what the kernel reads, and a second activation makes nothing new."""
    import torch

    a, b = [torch.randn(4, INPUTS), torch.randn(2, INPUTS)], [torch.randn(80, 4), torch.randn(24, 2)]
    copies = [tensor.clone() for tensor in (*a, *b)]
    made = plans.weights(a, b, (80, 24))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip((*a, *b), copies, strict=True))
    assert {tensor.untyped_storage().data_ptr() for tensor in a} == {made.a.data_ptr()}
    assert [tensor.data_ptr() for tensor in b] == [part.b.data_ptr() for part in made.slices]
    assert plans.weights(a, b, (80, 24)) is made
    assert plans.weights([None, None], [None, None], (80, 24)) is None


@pytest.mark.parametrize("kind", ["embedding", "logits"])
def test_embeddings_and_the_vocabulary_get_what_vllms_own_layers_add(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three adapters one has a part there; a batch of all of them and the base."""
    import torch
    from torch.nn.functional import embedding, linear
    from vllm.lora.layers import (
        LogitsProcessorWithLoRA,
        LoRAMapping,
        VocabParallelEmbeddingWithLoRA,
        logits_processor,
    )
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from polytone.serve.engine.cpu.lora_layers import GroupedEmbedding, GroupedLogits, Runs

    torch.manual_seed(0)
    vocabulary, hidden = 50, 24

    class Base(torch.nn.Module):  # type: ignore[misc]
        """Of vLLM's embedding and logits processor what their LoRA layers touch, without tensor parallelism."""

        org_vocab_size = vocab_size = vocabulary
        embedding_dim = hidden

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(vocabulary, hidden), requires_grad=False)

        def forward(self, tokens: Any) -> Any:
            return embedding(tokens, self.weight)

        def _apply_head(self, _head: Any, states: Any, _bias: Any) -> Any:
            return linear(states, self.weight)

        def _gather_logits(self, logits: Any) -> Any:
            return logits

    for name in ("get_tensor_model_parallel_world_size", "get_tensor_model_parallel_rank"):
        monkeypatch.setattr(logits_processor, name, lambda name=name: int("world" in name))
    config = SimpleNamespace(max_lora_rank=RANK, lora_dtype=torch.float32)
    tokens, states = torch.randint(0, vocabulary, (9,)), torch.randn(9, hidden)
    a, b = (
        (torch.randn(4, vocabulary), torch.randn(hidden, 4))
        if kind == "embedding"
        else (torch.randn(4, hidden), torch.randn(vocabulary, 4))
    )
    base, answers = Base(), []
    of_kind = {
        "embedding": (VocabParallelEmbeddingWithLoRA, GroupedEmbedding),
        "logits": (LogitsProcessorWithLoRA, GroupedLogits),
    }
    for made, wrapper in zip(of_kind[kind], (PunicaWrapperCPU, Runs), strict=True):
        layer = made(base) if kind == "embedding" else made(base, hidden, torch.float32, torch.device("cpu"), None)
        layer.create_lora_weights(4, config)
        layer.set_lora(1, a.clone(), b.clone())
        layer.set_lora(2, a.clone(), b.clone())
        layer.reset_lora(2)
        layer.set_mapping(wrapper(64, 8, "cpu"))
        who = (11, 11, 0, 12, 12, 12, 0, 13, 12)
        layer.punica_wrapper.update_metadata(LoRAMapping(who, who, is_prefill=True), [11, 12, 13, None], 5, vocabulary)
        answers.append(layer(tokens) if kind == "embedding" else layer._get_logits(states, base))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-4)
    bare = base(tokens) if kind == "embedding" else linear(states, base.weight)
    assert not torch.equal(answers[1], bare)


COMPARE = """
import torch
from polytone.serve.engine.cpu.lora_kernel import build
from polytone.serve.engine.cpu.lora_plan import Run, plan, weights
kernel = build(2)
assert kernel is not None
part = weights([torch.randn(8, 72)], [torch.randn(80, 8)], [80])
x, y = torch.randn(9, 72), torch.zeros(9, 80)
expected = y.clone()
for with_kernel, sums in ((kernel, y), (None, expected)):
    for add in plan((Run(0, 2, 9),), [part], with_kernel):
        add(sums, x)
torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_in_a_process_like_the_engines(threads: str) -> None:
    """With PyTorch's OpenMP preloaded, as vLLM does, the kernel is there; it is right with fewer threads than asked."""
    import torch

    library = next((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_THREAD_LIMIT": threads}
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPARE], env=environment, check=True)


class Platform:
    """What of vLLM's platform the plugin touches."""

    @classmethod
    def get_punica_wrapper(cls) -> str:
        return "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"


def test_the_plugin_steps_aside_on_an_unknown_vllm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import vllm
    from vllm.platforms import current_platform

    from polytone.serve.engine.cpu import plugin as cpu_lora

    logging.getLogger("vllm").propagate = True
    before = current_platform.get_punica_wrapper()
    monkeypatch.setenv(cpu_lora.SWITCH, "1")
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    cpu_lora.register()
    assert current_platform.get_punica_wrapper() == before
    assert "vLLM 0.99.0 is not a version" in caplog.text


def test_the_plugin_does_nothing_unless_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    from polytone.serve.engine.cpu import plugin as cpu_lora

    before = current_platform.get_punica_wrapper()
    for value in ("0", None):
        if value is None:
            monkeypatch.delenv(cpu_lora.SWITCH, raising=False)
        else:
            monkeypatch.setenv(cpu_lora.SWITCH, value)
        cpu_lora.register()
        assert current_platform.get_punica_wrapper() == before


def test_layers_that_do_not_fit_leave_vllms_own_in_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from polytone.serve.engine.cpu import plugin as cpu_lora

    logging.getLogger("vllm").propagate = True
    monkeypatch.setitem(sys.modules, "polytone.serve.engine.cpu.lora_layers", None)
    cpu_lora.use_layers(Platform)
    cpu_lora.use_layers(Platform)
    assert Platform.get_punica_wrapper() == "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
    assert "do not fit" in caplog.text

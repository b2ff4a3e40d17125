"""The vLLM plugin that installs the CPU patches of this folder. vLLM calls `register` in each of its processes.

vLLM's own CPU path gathers both matrices of an adapter for every token, and projects every row onto the vocabulary a
second time for adapters that have no part there. `lora_layers` does neither. The patches use vLLM's internal classes,
so they are installed only in the versions of vLLM that they were tested with.
"""

import logging
import os
from typing import Any

log = logging.getLogger("vllm.polytone")  # vLLM's processes print what is below "vllm"

SWITCH = "POLYTONE_CPU_LORA"
TESTED = "0.32."
LAYERS = "polytone.serve.engine.cpu.lora_layers"


def register() -> None:
    """Patch vLLM's CPU worker where Polytone runs it, and install our adapter layers if the switch is on."""
    if os.environ.get(SWITCH) not in ("0", "1"):
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import vllm

    if not fits(vllm.__version__):
        log.warning(
            "vLLM %s is not a version that Polytone's adapter kernels were tested with (%sx): adapters run on vLLM's "
            "own CPU path, which is several times slower.",
            vllm.__version__,
            TESTED,
        )
        return
    use_layers(type(current_platform), kernels=os.environ[SWITCH] == "1")


def fits(version: str) -> bool:
    """Whether the plugin was tested with this version of vLLM."""
    return version.startswith(TESTED)


def use_layers(platform: Any, kernels: bool = True) -> None:
    """Install the patches when the worker asks for its LoRA kernels. Other processes do not pay for the imports."""
    if getattr(platform.get_punica_wrapper, "is_polytone", False):
        return
    original = platform.get_punica_wrapper.__func__

    def get_punica_wrapper(cls: Any) -> str:
        try:
            from .logprobs_patch import limit_logprobs_to_requested_rows
            from .seed_patch import restart_generators

            restart_generators()
            limit_logprobs_to_requested_rows()
            if not kernels:
                return str(original(cls))
            from .lora_layers import install

            install()
        except Exception:
            log.warning("Adapters run on vLLM's own CPU path: Polytone's kernels do not fit.", exc_info=True)
            return str(original(cls))
        log.warning("Adapters run on Polytone's CPU kernels; %s=false turns them off.", SWITCH)
        return f"{LAYERS}.Runs"

    get_punica_wrapper.is_polytone = True  # type: ignore[attr-defined]
    platform.get_punica_wrapper = classmethod(get_punica_wrapper)

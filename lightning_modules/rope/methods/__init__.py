"""What a recipe changes about RoPE to make a model read further; one method a file, chosen by `rope=…`."""

from lightning_modules.rope.methods.adjusted_base import AdjustedBase
from lightning_modules.rope.methods.base import BaseRope, ExtendedRope, RopeMethod
from lightning_modules.rope.methods.dynamic_ntk import DynamicNTK
from lightning_modules.rope.methods.linear_interpolation import LinearInterpolation
from lightning_modules.rope.methods.llama3 import Llama3
from lightning_modules.rope.methods.longrope import LongRoPE
from lightning_modules.rope.methods.ntk_aware import NTKAware
from lightning_modules.rope.methods.progressive_base import ProgressiveBase
from lightning_modules.rope.methods.unchanged import Unchanged
from lightning_modules.rope.methods.yarn import YaRN

__all__ = [
    "AdjustedBase",
    "BaseRope",
    "DynamicNTK",
    "ExtendedRope",
    "LinearInterpolation",
    "Llama3",
    "LongRoPE",
    "NTKAware",
    "ProgressiveBase",
    "RopeMethod",
    "Unchanged",
    "YaRN",
]

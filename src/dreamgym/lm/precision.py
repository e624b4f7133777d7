"""In how many bits models compute: bfloat16 where the hardware does, 32 bits elsewhere.

A CPU without kernels for bfloat16 (x86 without AVX-512, such as AMD's before Zen 4) computes it by PyTorch's own loops: correctly, but
reading a prompt takes 4 times as long as in 32 bits there, and a step of training 7 times.
"""

import torch


def has_bfloat16(place: torch.device) -> bool:
    """Whether matrix products in bfloat16 are not slower than in 32 bits."""
    return place.type != "cpu" or (torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def short(place: torch.device) -> torch.autocast:
    """A context in which matrix products are taken in bfloat16 where ``place`` has it, weights kept as they are."""
    return torch.autocast(place.type, dtype=torch.bfloat16, enabled=has_bfloat16(place))

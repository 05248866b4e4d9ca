"""Where a model's weights go and in which precision: the choice, and the words that say what was chosen."""

import torch

from ...errors import BadInput, UnknownName, cause, did_you_mean

DTYPES = {
    **dict.fromkeys(("float32", "fp32"), torch.float32),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16"), torch.float16),
    **dict.fromkeys(("float64", "fp64"), torch.float64),
}

DtypeLike = str | torch.dtype | None
DeviceLike = str | torch.device | None


def choose_device(device: DeviceLike = None) -> torch.device:
    """The device asked for, else CUDA, else Apple's MPS, else the CPU.

    Raises:
        BadInput: the device asked for is not on this machine.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        if chosen.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"device {str(device)!r} cannot be used here ({cause(error)}); try device='cpu'") from error
    return chosen


def choose_dtype(dtype: DtypeLike, device: torch.device) -> torch.dtype | None:
    """The dtype asked for; `"auto"` is the fastest that the device computes in natively (bf16 or float32).

    Without a wish: float32 on a CPU, where identities then hold to rounding, and None elsewhere, which means the
    checkpoint's own (large models are stored in bf16 and would not fit in float32).

    Raises:
        UnknownName: a name that is not a floating-point dtype.
    """
    if dtype is None:
        return torch.float32 if device.type in ("cpu", "mps") else None
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise BadInput(f"weights cannot be held in {dtype}; use one of {', '.join(DTYPES)}")
        return dtype
    name = str(dtype).lower().removeprefix("torch.")
    if name == "auto":
        return torch.bfloat16 if has_native_bf16(device) else torch.float32
    if name not in DTYPES:
        options = ["auto", *DTYPES]
        raise UnknownName(f"no dtype {dtype!r}{did_you_mean(name, options)}; choose one of {', '.join(options)}")
    return DTYPES[name]


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware (on a CPU: AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def has_vnni() -> bool:
    """Whether the CPU multiplies 8-bit integers in hardware (AVX512-VNNI), and torch has oneDNN's products of them."""
    product = hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.backends.mkldnn.is_available()
    return bool(product and torch.cpu._is_vnni_supported())


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device multiplies matrices of this dtype at full speed, as far as torch says."""
    if device.type != "cpu" or dtype in (torch.float32, torch.float64):
        return True
    return has_native_bf16(device) if dtype == torch.bfloat16 else torch.cpu._is_amx_fp16_supported()


def describe(name: str, dtype: torch.dtype, device: torch.device, chosen_here: bool) -> str:
    """`smollm2: float32 on cpu (this CPU computes bf16 natively: dtype='bf16' harvests about twice as fast)`."""
    line = f"{name}: {str(dtype).removeprefix('torch.')} on {device}"
    if chosen_here and device.type == "cpu" and dtype == torch.float32 and has_native_bf16(device):
        line += " (this CPU computes bf16 natively: dtype='bf16' is about twice as fast, and less exact)"
    return line

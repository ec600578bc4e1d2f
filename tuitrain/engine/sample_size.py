"""Which sizes of picture can be sampled; loads no library."""

SAMPLE_MULTIPLE = 8  # diffusers' check_inputs, whatever the VAE


def why_not_sampled(size_hw: tuple[int, int]) -> str:
    """Why no picture of (height, width) pixels can be sampled; empty where it can."""
    height, width = size_hw
    if min(size_hw) > 0 and height % SAMPLE_MULTIPLE == 0 and width % SAMPLE_MULTIPLE == 0:
        return ""
    return f"samples would be {height}x{width} pixels, they need multiples of {SAMPLE_MULTIPLE}"

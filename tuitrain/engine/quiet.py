"""Keeps the model libraries off the terminal, which belongs to the user; knows nothing of models."""

import logging


def quiet_libraries() -> None:
    """Turn the progress bars and warnings of bitsandbytes, diffusers, huggingface_hub and transformers off.

    Call it before the first network class of diffusers is used: bitsandbytes warns when diffusers imports it.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    # Imported here, 5 s, so that this module stays cheap for those who only need the line above first.
    import diffusers
    import huggingface_hub.utils
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()

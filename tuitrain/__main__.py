"""`python -m tuitrain` is the command `tuitrain`; `accelerate launch -m tuitrain` needs it."""

from tuitrain.cli import main

if __name__ == "__main__":
    main()

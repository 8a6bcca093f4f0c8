"""`python -m tinygrad_mnist` is the command `tinygrad-mnist`."""

from .cli import main

main()

"""The command `tinygrad-mnist explain`: what it explains, and where the inputs of a user's function come from."""

from __future__ import annotations

import shutil
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from . import nn
from .recipe import Recipe

LOSSES = {"ce": "cross_entropy", "cross_entropy": "cross_entropy", "mse": "mse"}


def explain(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE.py:FUNCTION", help="A function of a file of yours, instead of a network.", show_default=False
        ),
    ] = None,
    notebook: Annotated[
        str | None,
        typer.Option(help="A notebook, by name or letter, and what it derived by hand.", metavar="NAME",
                     show_default=False),
    ] = None,
    model: Annotated[str, typer.Option(help="Units of each layer.", metavar="N-N-...")] = "784-128-64-10",
    activation: Annotated[str, typer.Option(help=f"After each hidden layer: {', '.join(nn.ACTIVATIONS)}.")] = "relu",
    loss: Annotated[str, typer.Option(help="What is minimised, of the softmax: ce or mse.")] = "ce",
    batch: Annotated[
        int | None,
        typer.Option(help="Images in a step.  [default: any number, n]", show_default=False, min=1, metavar="N"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    cupy: Annotated[bool, typer.Option("--cupy", help="Write CuPy instead of NumPy.")] = False,
    seed: Annotated[int, typer.Option(help="Decides inputs that the file draws.", min=0, metavar="N")] = 0,
) -> None:
    """Print forward and derived backward as plain NumPy: of a network, or of a function of your own.

    The text needs nothing but NumPy (or CuPy) and returns the same value and gradients. A file declares the inputs of
    its function f as `f_inputs = (x, ...)`, or as `def f_inputs(rng)`, as for gradcheck. Of a notebook, what its author
    derived by hand stands beside the derived lines (below them, in a narrow terminal), and what an audit finds wrong
    there is marked.

    \b
    Examples:
      tinygrad-mnist explain
      tinygrad-mnist explain --model 784-32-10 --activation sigmoid --loss mse --cupy
      tinygrad-mnist explain loss.py:cross_entropy
      tinygrad-mnist explain --notebook digits-relu-softmax
    """
    from .explanation import explain as explained
    from .explanation import explain_network

    library = "cupy" if cupy else "numpy"
    if notebook is not None:
        if target is not None:
            raise ValueError("explain takes FILE.py:FUNCTION or --notebook, not both")
        from . import notebooks
        from .notebooks.beside import beside

        width = shutil.get_terminal_size((160, 24)).columns
        print(*beside(notebooks.load(notebook), width, library), sep="\n")
        return
    if target is None:
        if loss not in LOSSES:
            raise ValueError(f"--loss must be ce or mse, not {loss!r}")
        try:
            layers = tuple(map(int, model.replace(",", "-").split("-")))
        except ValueError:
            raise ValueError(f"--model must be units of layers, such as 784-128-64-10, not {model!r}") from None
        options = Recipe(layers=layers, activation=activation, loss=LOSSES[loss], dtype=dtype)  # says what is wrong
        print(explain_network(layers, activation, options.loss, dtype=dtype, batch=batch, xp=library), end="")
        return
    from .gradcheck import files

    with redirect_stdout(sys.stderr):  # what the file prints is no result
        declared = files.load(target)
        with declared._blamed():
            text = explained(declared.fn, *declared.arguments(seed, 0), xp=library)
    print(text, end="")

"""The command line `tinygrad-mnist`. Results go to stdout, progress and errors (one line each) to stderr.

Exit codes: 0 done; 1 the training diverged, what a model answers is not finite, a selftest found a difference, or a
gradient is wrong; 2 wrong usage, or files, disk or machine do not allow it; 3 a gradient check is undecided; 130
Ctrl-C; 141 nobody reads stdout any more. A stderr that cannot be written changes nothing.
"""

from __future__ import annotations

import sys

try:
    import importlib.util
    import inspect
    import io
    import json
    import os
    import platform
    import shlex
    import traceback
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import redirect_stdout
    from dataclasses import Field, fields
    from functools import partial
    from pathlib import Path
    from typing import Annotated, Any, TypeVar

    import numpy as np
    import typer
    from numpy.typing import NDArray

    from . import arrays, data, gpu, progress, serialize
    from .bench.cli import app as bench
    from .data import idx
    from .data.files import open_file
    from .distributed import AgreedError, Ranks, explained, world
    from .explain_cli import explain
    from .inference import evaluate, load_model, predict, probabilities, versions
    from .notebooks.cli import app as notebooks
    from .pool import Pool
    from .pool import run as share
    from .recipe import MNIST, RECIPES, Recipe, named
    from .runs import REPORT, Run
    from .train import check_data, check_ranks, load_data
    from .train import train as train_run
except KeyboardInterrupt:  # importing takes long enough to be interrupted
    sys.exit(130)

app = typer.Typer(name="tinygrad-mnist", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")
app.add_typer(notebooks, name="notebooks")
app.command()(explain)

INCONCLUSIVE = 3
INTERRUPTED, UNREAD = 130, 141  # as the shell counts them: 128 + SIGINT, 128 + SIGPIPE
EXPECTED = (FloatingPointError, OSError, ValueError, MemoryError)
METAVARS = {str: "TEXT", float: "X", int: "N", tuple: "N,N,..."}
THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")

Row = TypeVar("Row")
T = TypeVar("T")
Device = Annotated[str, typer.Option(help="Where to compute: cpu, gpu, gpu:N, or auto: a GPU if there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Compile = Annotated[bool, typer.Option(help="Compile the steps of the training, or run them as they are written.")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes of this machine that share the work; under mpiexec, all ranks but the first do.  [default: 1]",
        show_default=False, min=1, metavar="N",
    ),
]
Model = Annotated[Path, typer.Argument(help="A model file (.safetensors) or the folder of a run.", show_default=False)]


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may have characters that the terminal has not
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:  # already dealt with; Python would try again at exit, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    try:
        code = _invoke(arguments)
        print(end="", flush=True)  # here, where an error is reported
        return code
    except (*EXPECTED, typer.TyperException, KeyboardInterrupt) as error:
        return _failed(error)


def _failed(error: BaseException, where: str = "") -> int:
    """Report what ended a command, on one line; its exit code. `where`: of several processes, which one it was."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return UNREAD
    if isinstance(error, typer.TyperException):
        return _fail(f"{error.format_message().rstrip('.')}; see tinygrad-mnist --help")
    if not isinstance(error, EXPECTED):
        traceback.print_exception(error, file=progress.stderr())
        return _fail(f"{where}{type(error).__name__}: {error}", code=1)
    return _fail(f"{where}{explained(error)}", code=1 if isinstance(error, FloatingPointError) else 2)


def _invoke(arguments: Sequence[str]) -> int:
    """As `app(arguments)` does, which would make a silent exit code 1 of a pipe that nobody reads."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("tinygrad-mnist", list(arguments)) as context:
            return command.invoke(context) or 0
    except typer.Exit as done:  # --help
        return done.exit_code


def _fail(message: object, code: int = 2) -> int:
    print(f"tinygrad-mnist: {' '.join(str(message).split())}", file=progress.stderr(), flush=True)
    return code


@app.callback()
def _describe() -> None:
    """Train, evaluate and use networks for images of digits, on gradients that are derived from NumPy code."""


# ---- train --------------------------------------------------------------------------------------------------------


def _with_recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Put one option for each field of Recipe in place of the command's `**options`; None where it is not given."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    for option in fields(Recipe):
        kind: Any = bool if option.default is False else str
        annotation = Annotated[kind | None, _spec(option)]
        parameters.append(
            inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _spec(option: Field[Any]) -> Any:
    """How the command line shows a field of Recipe."""
    text, default = option.metadata["help"], option.default
    if default is False:  # a flag says by itself what it takes
        return typer.Option(help=f"{text[0].upper()}{text[1:]}.", show_default=False)
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    text = f"{text[0].upper()}{text[1:]}: {option.metadata['allowed'].words}.  [default: {shown}]"
    return typer.Option(help=text, show_default=False, metavar=METAVARS[type(default)])


def _value(text: Any, like: Any) -> Any:
    """An option's text as a value of the type of `like`, or as it is: then Recipe says what is wrong with it."""
    try:
        return tuple(map(int, text.split(","))) if isinstance(like, tuple) else type(like)(text)
    except ValueError:
        return text


def _recipe(name: str | None, config: Path | None, given: dict[str, Any]) -> Recipe:
    """The named recipe, if any; what a config file says goes before it, and an option given beside both before all."""
    base = Recipe() if name is None else named(name)
    if config:
        base = Recipe.read(config, base)
    options = {option.name: getattr(base, option.name) for option in fields(Recipe)}
    options.update({name: _value(text, options[name]) for name, text in given.items()})
    if options["data"] not in ("", MNIST):
        options["data"] = os.path.abspath(options["data"])  # a resumed run may start in another folder
    return Recipe(**options)


@app.command()
@_with_recipe_options
def train(
    *,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Start from the options of a recipe: {' or '.join(RECIPES)}."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of options; those given here override it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the run.  [default: runs/<date>-<time>]")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder, bit for bit.")] = None,
    device: Device = "auto",
    compile: Compile = True,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Share the work with the other processes that mpiexec started.")
    ] = False,
    gpu_direct: Annotated[
        bool, typer.Option("--gpu-direct", help="Let MPI read the GPU's memory; one not built for that crashes.")
    ] = False,
    as_json: Json = False,
    **options: Any,
) -> int:
    """Train a network: by default on the embedded MNIST, to about 98 % test accuracy in seconds.

    Ctrl-C, or a loss that is no longer finite, ends the run with the results of the epochs that are complete; --resume
    goes on.

    \b
    Examples:
      tinygrad-mnist train
      tinygrad-mnist train --recipe best --seed 1
      tinygrad-mnist train --layers 784,256,10 --lr 1e-3 --epochs 10 --out runs/wide
      tinygrad-mnist train --config runs/wide/config.toml --seed 1
      tinygrad-mnist train --resume runs/wide
      mpiexec -n 2 tinygrad-mnist train --distributed
    """
    given = {name: value for name, value in options.items() if value is not None}
    if gpu_direct and not distributed:
        raise ValueError("--gpu-direct is about what --distributed does: give both, or none")

    def work(ranks: Ranks | None) -> int:
        chosen, reason = gpu.choose(device) if ranks is None else _own_device(device, ranks)
        if gpu_direct and chosen == "cpu":
            raise AgreedError("--gpu-direct needs --device gpu")
        first, agree = (_alone, _alone) if ranks is None else (ranks.first, ranks.agree)
        folder: Run | None = None

        def begin() -> Recipe:
            nonlocal folder
            if not resume:
                return _recipe(recipe, config, given)
            fixed = [*given, *(name for name, value in (("recipe", recipe), ("config", config), ("out", out)) if value)]
            if fixed:
                raise ValueError(f"--resume goes on as the run began: leave out --{fixed[0].replace('_', '-')}")
            folder = Run.open(resume)
            return folder.recipe

        def create() -> None:
            nonlocal folder
            folder = Run.create(full, out)

        full = first(begin)
        dataset = agree(lambda: load_data(full.data))
        agree(lambda: check_data(full, dataset))
        if ranks is not None:
            check_ranks(full, dataset, ranks)
        if not resume:
            first(create)
        if (device == "auto" or chosen != "cpu") and not as_json:
            _note(f"device: {chosen} ({reason})", ranks)
        return _train(full, dataset, folder, chosen, ranks, compile=compile, as_json=as_json)

    return _together(work, gpu_direct) if distributed else work(None)


def _train(
    recipe: Recipe, dataset: data.Dataset, folder: Run | None, device: str, ranks: Ranks | None, *,
    compile: bool, as_json: bool,
) -> int:
    """Train in this process, or as one of `ranks`, of which rank 0 alone has the folder."""
    run = partial(train_run, recipe, dataset, device=device, compile=compile, ranks=ranks)
    if folder is None:
        run()
        return 0
    monitor = progress.monitor(brief=as_json)
    resume_hint = f"to go on: tinygrad-mnist train --resume {shlex.quote(str(folder.path))}"
    try:
        with arrays.explaining("training", device):
            run(run=folder, monitor=monitor)
        code = 0
    except KeyboardInterrupt:
        print(f"stopped; {resume_hint}", file=progress.stderr(), flush=True)
        code = INTERRUPTED
    except FloatingPointError as error:
        code = _fail(error, code=1)
    except OSError as error:
        raise OSError(f"{explained(error)}; {resume_hint}") from error
    if (folder.path / REPORT).exists():
        report = json.loads((folder.path / REPORT).read_text(encoding="utf-8"))
        if as_json:
            where = {"device": device, "emulated": gpu.emulated(device), "backend": monitor.backend}
            _print_json({"run": str(folder.path), **where, **report})
        else:
            _print_report(report)
            print(f"Model, metrics and pictures: {folder.path}")
    return code


def _alone(f: Callable[[], T]) -> T:
    return f()


def _together(work: Callable[[Ranks], int], direct: bool) -> int:
    """Do the work of a command on every process that `mpiexec` started; its exit code. Rank 0 says what went wrong for
    all; what goes wrong on one alone is said there, and ends all."""
    ranks = world(direct=direct)
    try:
        processes = ", ".join(f"{rank} is {process}" for rank, process in enumerate(ranks.processes()))
        _note(f"{ranks.size} rank{'s' * (ranks.size > 1)}: {processes}", ranks)
        code = work(ranks)
    except (AgreedError, FloatingPointError) as error:  # on all of them
        code = _failed(error) if ranks.rank == 0 else 1 if isinstance(error, FloatingPointError) else 2
    except BaseException as error:
        code = _failed(error, f"rank {ranks.rank}: ")
        ranks.abort(code)
    if code == INTERRUPTED:
        ranks.abort(code)  # only rank 0 has heard of it
    if code:
        ranks.leave(code)
    return code


def _own_device(device: str, ranks: Ranks) -> tuple[str, str]:
    """As `gpu.choose` does, but of several GPUs each rank of a machine gets one of its own."""
    number, _ = ranks.alike(os.environ.get("CUDA_VISIBLE_DEVICES"))  # a launcher may show each rank its own

    def choose() -> tuple[str, str]:
        chosen, reason = gpu.choose(device)
        return (chosen, reason) if chosen == "cpu" or device not in ("auto", "gpu") else gpu.choose(f"gpu:{number}")

    return ranks.agree(choose)


def _share(work: Callable[[Pool], int], workers: int | None) -> int:
    """Do the work of a command with a pool of workers; its exit code. What goes wrong is said before the pool ends."""

    def reported(pool: Pool) -> int:
        try:
            return work(pool)
        except (KeyboardInterrupt, Exception) as error:
            return _failed(error)

    return share(reported, workers)


def _note(text: str, ranks: Ranks | None) -> None:
    """Show a line, once for all ranks."""
    if ranks is None or ranks.rank == 0:
        print(text, file=progress.stderr(), flush=True)


@app.command()
@_with_recipe_options
def export(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The script.")] = Path("train_mnist.py"),
    config: Annotated[Path | None, typer.Option(help="A TOML file of options; those given here override it.")] = None,
    cupy: Annotated[bool, typer.Option("--cupy", help="Write CuPy instead of NumPy.")] = False,
    **options: Any,
) -> None:
    """Write a training as one script that needs NumPy (or CuPy) alone, and gives the same weights.

    The data go into a file beside it.

    \b
    Examples:
      tinygrad-mnist export
      tinygrad-mnist export --layers 784,256,10 --activation tanh --optimizer sgd --lr 0.1 -o tanh.py
    """
    from .export import write  # with what captures

    given = {name: value for name, value in options.items() if value is not None}
    for path in write(_recipe(None, config, given), out, cupy=cupy):
        print(path)


# ---- sweep --------------------------------------------------------------------------------------------------------


@app.command()
def sweep(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG.toml", help="Seeds, and a grid of options, or what to draw them from.",
                       show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder of the sweep.  [default: sweeps/<name of CONFIG>]")
    ] = None,
    workers: Workers = None,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Train with many settings of the options of a recipe, each with some seeds; a table and a plot at the end.

    Started again, a sweep goes on: what is done is not repeated, and what was interrupted goes on from its checkpoint.
    A run that diverges is a row that says so. Exit code 1: all of them did.

    \b
    CONFIG.toml:                                 or, instead of [grid]:
      seeds = [0, 1, 2]                            samples = 20
      recipe = "best"      # if at all             draw_seed = 0
      [options]            # of all runs           [random]
      epochs = 3                                   lr = { low = 1e-4, high = 1e-1, log = true }
      validation = 0.1                             batch = { low = 32, high = 512 }
      [grid]               # all combinations      activation = ["relu", "tanh"]
      lr = [0.003, 0.01]
      layers = [[784, 64, 10], [784, 128, 64, 10]]

    \b
    Examples:
      tinygrad-mnist sweep lr.toml
      tinygrad-mnist sweep lr.toml --out sweeps/again --workers 4 --device cpu
      mpiexec -n 9 tinygrad-mnist sweep lr.toml
    """
    from . import sweep as sweeps

    def work(pool: Pool) -> int:
        folder = Path("sweeps", config.stem) if out is None else out
        chosen, reason = gpu.choose(device)
        found = sweeps.prepare(config, folder)
        jobs = found.jobs(folder)
        outcomes = {job: sweeps.outcome(job) for job in jobs if sweeps.is_done(job)}
        _note(f"device: {chosen} ({reason})", None)
        sizes = f"settings: {len(found.settings)}, seeds: {len(found.seeds)}, runs: {len(jobs)}"
        _note(f"{sizes}, of which are done: {len(outcomes)}; in {folder}", None)
        left = [job for job in jobs if job not in outcomes]
        try:
            for job, result in pool.as_done(partial(sweeps.run, device=device), left):
                outcomes[job] = result
                sweeps.save_results(found, outcomes, folder)
                _note(f"run {len(outcomes)} of {len(jobs)}: {job.folder.name}: {result}", None)
        except KeyboardInterrupt:
            _note(f"stopped after {len(outcomes)} of {len(jobs)} runs; to go on, start the same command again", None)
            return INTERRUPTED
        serialize.write(folder / sweeps.PLOT, sweeps.plot(rows := sweeps.summary(found, outcomes)))
        if as_json:
            _print_json({"sweep": str(folder), "chosen_by": found.chosen_by, "settings": rows})
        else:
            _print_sweep(rows, found.chosen_by)
            print(f"Runs, {sweeps.RESULTS} and {sweeps.PLOT}: {folder}")
        return 0 if any(row["failed"] < row["runs"] for row in rows) else 1

    return _share(work, workers)


def _print_sweep(rows: list[dict[str, Any]], chosen_by: str) -> None:
    from rich.table import Table

    from .sweep import cells

    lines = cells(rows)
    table = Table(box=None, pad_edge=False)
    for name in lines[0]:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line.values())
    progress.print_table(table)
    seeds = " (least to most of the seeds)" if rows[0]["runs"] > 1 else ""
    print(f"Best first, by {chosen_by.replace('_', ' ')}; each the mean{seeds}.")
    if chosen_by == "test_accuracy":
        print(
            "The test images took part in that choice: what a chosen setting reaches on them is not to be reported as "
            "its test accuracy. To choose by other images, put validation = 0.1 into [options]."
        )


# ---- evaluate, predict, info --------------------------------------------------------------------------------------


@app.command(name="evaluate")
def evaluate_model(
    model: Model,
    data: Annotated[str, typer.Option(help=f"{MNIST}, or a folder of IDX files or an .npz: its test images.")] = MNIST,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on test images: accuracy, and precision, recall and F1 of each class.

    \b
    Example:
      tinygrad-mnist evaluate runs/wide --data path/to/fashion-mnist
    """
    chosen, reason = gpu.choose(device)
    network, preprocess = load_model(model)
    _, _, images, labels = load_data(data)
    with arrays.explaining("evaluation", chosen):
        report = evaluate(network.to(chosen), preprocess, images, labels).report()
    if as_json:
        where = {"model": str(model), "data": data, "device": chosen}
        _print_json({**where, "preprocessing": preprocess.describe(), **report})
    else:
        _print_report(report)
        print(f"Device: {chosen} ({reason})")
        print(f"Preprocessing, as in training: {preprocess.describe()}")


@app.command(name="predict")
def predict_images(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            help="PNG or JPEG pictures of one digit each; an IDX file of images; an .npz or a folder of IDX files, for "
            "their test images.",
            show_default=False,
        ),
    ],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say which digit each image shows, and with which probability.

    \b
    Example:
      tinygrad-mnist predict runs/wide seven.png
    """
    chosen, _ = gpu.choose(device)
    network, preprocess = load_model(model)
    found: list[dict[str, Any]] = []
    failure = None
    for path in images:
        try:
            names, pixels, steps = _read_images(path)
            with arrays.explaining("prediction", chosen):
                rows = probabilities(predict(network.to(chosen), preprocess, pixels)).tolist()
        except (ArithmeticError, MemoryError, OSError, ValueError) as error:
            failure = error  # what was found before it is worth printing
            break
        for name, row in zip(names, rows, strict=True):
            probability = max(row)
            found.append(
                {
                    "image": name,
                    "class": row.index(probability),
                    "probability": probability,
                    "probabilities": row,
                    "steps": steps,
                }
            )
    if failure and not found:
        raise failure
    if as_json:
        where = {"model": str(model), "device": chosen}
        _print_json({**where, "preprocessing": preprocess.describe(), "predictions": found})
    else:
        for entry in found:
            print(f"{entry['image']}: {entry['class']} ({entry['probability']:.1%}; {entry['steps']})")
        print(f"Preprocessing, as in training: {preprocess.describe()}")
    if failure:
        print(end="", flush=True)  # before the error, in one stream too
        raise failure


def _read_images(path: str) -> tuple[list[str], NDArray[np.uint8], str]:
    """(a name for each image, uint8 images `(n, height, width)`, what was done to them) of a file or folder."""
    if Path(path).is_dir():
        images = data.load(path)[2]
    else:
        with open_file(Path(path)) as file:
            magic = file.peek(2)[:2]
        if magic == b"PK":
            images = data.load(path)[2]
        elif magic in (b"\0\0", idx.GZIP_MAGIC):
            images = idx.read(Path(path), ndim=3)
        else:
            image, steps = data.digit(path)
            return [path], image[None], steps
    return [f"{path}[{i}]" for i in range(len(images))], images, "as it is stored"


@app.command()
def info(as_json: Json = False) -> None:
    """Show versions, BLAS, threads, devices, and whether a GPU can be used: if not, what is missing.

    \b
    Example:
      tinygrad-mnist info --json
    """
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    threads = next(
        (f"{os.environ[name]} ({name})" for name in THREADS if name in os.environ), f"{os.cpu_count()} (all cores)"
    )
    found = gpu.probe()
    facts = {
        **versions(),
        "platform": platform.platform(),
        "blas": f"{blas['name']} {blas['version']}",
        "threads": threads,
        "devices": ", ".join(["cpu", *(f"gpu:{i} ({device.name})" for i, device in enumerate(found.devices))]),
    }
    if as_json:
        _print_json({**facts, "gpu": found.report()})
    else:
        for name, fact in {**facts, "gpu": found.message}.items():
            print(f"{name:16}{fact}")


# ---- selftest -----------------------------------------------------------------------------------------------------


@app.command()
def selftest(
    ops: Annotated[
        list[str] | None,
        typer.Argument(metavar="OP", help="Run only what has one of these texts in its name.", show_default=False),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="gpu, gpu:N, cpu, strict (a double of CuPy, needs no GPU), or auto: a GPU if there is one."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Decides samples, cotangents and directions.", min=0, metavar="N")] = 0,
    as_json: Json = False,
) -> int:
    """Test whether a device computes what NumPy does: every operation and its first and second derivatives, optimizers,
    training, random numbers, files.

    Ends in a block to paste into a bug report; exit code 1 if something differs. The first run on a GPU takes minutes:
    CuPy compiles its kernels, once.

    \b
    Examples:
      tinygrad-mnist selftest --device gpu
      tinygrad-mnist selftest matmul einsum --device gpu:1 --seed 7
      tinygrad-mnist selftest training --device strict --json
    """
    from . import selftest  # 0.1 s, for the operation table, that no other command needs

    with selftest.shown() as show:
        report = selftest.run(device, ops, seed, show)
    if as_json:
        _print_json(report.to_json())
    else:
        print(report)
    return INTERRUPTED if report.interrupted else 0 if report.ok else 1


# ---- gradcheck ----------------------------------------------------------------------------------------------------


@app.command()
def gradcheck(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OP | FILE.py:FUNCTION",
            help="Operations, by name (all if none is given), or one function of a file of yours.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            help="Cases of each operation, or of a function whose inputs are drawn.  [default: 100, of a function 10]",
            show_default=False,
            min=1,
            metavar="N",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float64, float32, float16, or several: float64,float32.  [default: all three; of a function that of "
            "its inputs]",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, gpu, gpu:N, strict (a double of CuPy, needs no GPU), or several.  [default: cpu, and strict in "
            "float64; of a function that of its inputs]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides cases, cotangents and directions.", min=0, metavar="N")] = 0,
    seeds: Annotated[
        int, typer.Option(help="So many seeds, from --seed on: a row of each operation for each.", min=1, metavar="N")
    ] = 1,
    case: Annotated[
        int | None, typer.Option(help="Run this case alone, as a report says.", show_default=False, min=0, metavar="K")
    ] = None,
    order: Annotated[
        int, typer.Option(help="2 checks the second derivatives too.", min=1, max=2, metavar="1|2")
    ] = 1,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Plant mistakes in the rules instead, and count which are caught.")
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> int:
    """Check gradients against differences: of every operation (minutes), of some, or of a function of your own.

    A file declares the inputs of its function f as `f_inputs = (x, ...)`, or as `def f_inputs(rng)` to have them drawn.
    With `def f_vjp(g, x, ...)` beside it, that gradient is checked and f is a function of NumPy arrays; otherwise it
    is one of Tensors. Exit code 0: right (kinks are counted); 1: wrong, or not the same twice; 3: undecided.

    \b
    Examples:
      tinygrad-mnist gradcheck
      tinygrad-mnist gradcheck softmax matmul --examples 200 --dtype float64,float32
      tinygrad-mnist gradcheck loss.py:cross_entropy --seed 7
      tinygrad-mnist gradcheck relu --mutants
      tinygrad-mnist gradcheck --seeds 3 --workers 4
      mpiexec -n 9 tinygrad-mnist gradcheck --seeds 10
    """
    from .gradcheck import files

    def work(pool: Pool) -> int:
        chosen = targets or []
        of_files = [target for target in chosen if files.is_file(target)]
        if of_files and (len(chosen) > 1 or mutants):
            raise ValueError(f"{of_files[0]}: a function of a file is checked alone, and without --mutants")
        if case is not None and len(chosen) != 1:
            raise ValueError("--case is that of one operation or function: name it")
        if (of_files or mutants or case is not None) and (seeds > 1 or workers is not None):
            raise ValueError("--seeds and --workers are for rows of operations: leave them out")
        dtypes, devices = _listed(dtype), _listed(device)
        for name in dtypes:
            if name not in ("float64", "float32", "float16"):
                raise ValueError(f"--dtype must be float64, float32 or float16, not {name!r}")
        for name in devices:
            if name == "strict":
                from .testing import strict

                arrays.register("strict", strict.xp)
            else:
                gpu.choose(name)
        if of_files:
            if len(dtypes) > 1 or len(devices) > 1:
                raise ValueError("--dtype and --device of a function of a file are one each")
            options = {"dtype": next(iter(dtypes), None), "device": next(iter(devices), None), "order": order}
            return _check_function(of_files[0], examples or 10, seed=seed, case=case, as_json=as_json, **options)
        if mutants:
            return _check_mutants(chosen or None, examples, as_json)
        places = None
        if dtypes or devices:
            places = [(one, other) for one in dtypes or ["float64"] for other in devices or ["cpu"]]
        return _check_operations(
            chosen or None, examples, places, pool, seed=seed, seeds=seeds, order=order, case=case, as_json=as_json
        )

    return _share(work, workers)


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text is not None else []


def _exit_code(verdicts: Iterable[str]) -> int:
    found = set(verdicts)
    return 1 if found & {"fail", "nondet"} else INCONCLUSIVE if "ill" in found else 0


def _needs_hypothesis() -> None:
    if importlib.util.find_spec("hypothesis") is None:
        raise ValueError(
            "cases of operations are drawn by Hypothesis: pip install 'tinygrad-mnist[check]' (FILE.py:FUNCTION needs "
            "none)"
        )


def _each(rows: Iterator[Row], total: int) -> Iterator[Row]:
    """The rows as they come, and a line on stderr for each tenth of them where nobody sees them on stdout."""
    for done, row in enumerate(rows, start=1):
        yield row
        if not sys.stdout.isatty() and done * 10 // total > (done - 1) * 10 // total:
            print(f"gradcheck: {done} of {total} rows", file=progress.stderr(), flush=True)


def _check_operations(
    names: list[str] | None, examples: int | None, places: list[tuple[str, str]] | None, pool: Pool, *,
    seed: int, seeds: int, order: int, case: int | None, as_json: bool,
) -> int:
    _needs_hypothesis()
    from .gradcheck import campaign
    from .gradcheck.report import plain
    from .gradcheck.strategies import op_names

    examples = examples or campaign.EXAMPLES
    chosen = campaign.PLACES if places is None else places
    if case is None or names is None:
        rows = campaign.campaign(
            names, examples=examples, seed=seed, seeds=seeds, order=order, places=chosen, spread=pool.map
        )
    elif len(chosen) == 1:
        (dtype, device), = chosen
        rows = iter([campaign.check_op(names[0], seed=seed, dtype=dtype, device=device, order=order, case=case)])
    else:
        raise ValueError("--case is that of one dtype on one device: add --dtype and --device as the report says")
    total = len(names or op_names()) * len(chosen) * seeds
    found: list[campaign.OpReport] = []
    for row in _each(rows, total):
        if not found and not as_json:
            print(campaign.head())
        found.append(row)
        if not as_json:
            print(row.row, flush=True)
    code = _exit_code(row.verdict for row in found)
    if as_json:
        _print_json({"exit": code, "seed": seed, "rows": [plain(json.loads(row.to_json())) for row in found]})
        return code
    for row in found:
        if row.verdict in ("fail", "nondet") or (row.verdict == "ill" and len(found) == 1):
            print(f"\n{row.details}")
        elif row.worst:
            print(f"ILL  {row.op} {row.dtype} {row.device}: to see it, {row.command} --case {row.worst.number}")
    counts = Counter(row.verdict for row in found)
    print(f"{len(found)} row{'s' * (len(found) != 1)}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    return code


def _check_function(
    target: str, examples: int, *, seed: int, case: int | None, as_json: bool, **options: Any
) -> int:
    from .gradcheck import files
    from .gradcheck.report import VERDICTS

    with redirect_stdout(progress.stderr()):  # what the file prints is no result
        declared = files.load(target)
        numbers = [case] if case is not None else range(examples if declared.drawn else 1)
        given = " ".join(f"--{name} {value}" for name, value in options.items() if value not in (None, 1))
        reports = []
        for number in numbers:
            report = declared.check(number, seed=seed, **options)
            line = f"tinygrad-mnist gradcheck {shlex.quote(target)} --seed {seed}"
            report.reproduce = " ".join(filter(None, [line, f"--case {number}" if declared.drawn else "", given]))
            reports.append(report)
    counts = Counter(report.verdict for report in reports)
    worst = min(reports, key=lambda report: -VERDICTS.index(report.verdict))
    if as_json:
        _print_json({"function": target, "cases": len(reports), "verdicts": counts, **json.loads(worst.to_json())})
    else:
        print(worst)
        if len(reports) > 1:
            rest = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
            print(f"{len(reports)} cases: {rest}; shown is {'the worst' if len(counts) > 1 else 'the first'}")
    return _exit_code(counts)


def _check_mutants(names: list[str] | None, examples: int | None, as_json: bool) -> int:
    _needs_hypothesis()
    from .gradcheck import mutants
    from .gradcheck.campaign import EXAMPLES
    from .gradcheck.report import row_and_head

    results = []
    for result in mutants.mutate(names, examples or EXAMPLES):
        results.append(result)
        print(f"gradcheck: {str(result).splitlines()[0]}", file=progress.stderr(), flush=True)
    survivors = [outcome for result in results for outcome in result.survivors]
    stale = mutants.stale(results)
    rows = mutants.summary(results)
    if as_json:
        listed = [{"mutant": o.mutant.name, "fate": o.fate, "why": o.why} for o in survivors]
        _print_json({"rows": rows, "survivors": listed, "stale": stale})
    else:
        print("\n".join(row_and_head([{name: str(value) for name, value in row.items()} for row in rows], ["op"])))
        for outcome in survivors:
            print(f"SURVIVED {outcome.mutant.name} ({outcome.fate}{f': {outcome.why}' if outcome.why else ''})")
        for entry in stale:
            print(f"STALE {entry}: listed as equivalent, but it is killed or no longer made")
    return 1 if survivors or stale else 0


# ---- shared -------------------------------------------------------------------------------------------------------


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, allow_nan=False))


def _print_report(report: dict[str, Any]) -> None:
    print("class  precision  recall      F1  images")
    for row in report["classes"]:
        print("{class:5}     {precision:.4f}  {recall:.4f}  {f1:.4f}  {images:6}".format(**row))
    right = sum(row[i] for i, row in enumerate(report["confusion"]))
    accuracy = f"{report['accuracy']:.2%} ({right} of {report['images']})"
    print(f"Test accuracy: {accuracy}, cross-entropy {report['cross_entropy']:.4f}")

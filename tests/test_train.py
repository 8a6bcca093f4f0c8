"""The loop in memory: that it learns, that the same seed gives the same bits, that each option does what it says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small import DISTORTED, RECIPE, dataset, without_times

from tinygrad_mnist import native, nn, optim
from tinygrad_mnist import train as training_module
from tinygrad_mnist.inference import evaluate, load_model
from tinygrad_mnist.recipe import Recipe
from tinygrad_mnist.runs import REPORT, Run
from tinygrad_mnist.train import CHUNK, Monitor, Stream, Training, check_data, generator, train

pytestmark = pytest.mark.usefixtures("no_numba")


@pytest.fixture
def step_by_step(monkeypatch):
    """A compiled training looks up after every step."""
    monkeypatch.setattr(training_module, "CHUNK", 0)


def weights(training):
    return training.model.flat.copy()


def test_it_learns():
    training = train(RECIPE, dataset())
    first, *_, last = training.history
    assert last["train_loss"] < 0.6 * first["train_loss"]
    assert last["test_accuracy"] > 0.6


def test_the_same_seed_gives_the_same_bits():
    one, two = train(RECIPE, dataset()), train(RECIPE, dataset())
    assert np.array_equal(weights(one), weights(two))
    assert without_times(one.history) == without_times(two.history)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"dropout": 0.2}, {"l2": 0.01}, {"clip": 0.1}, {"loss": "mse"}, {"elastic": 9.0}]
)
def test_another_option_gives_other_bits(changed):
    recipe = replace(RECIPE, epochs=1)
    assert not np.array_equal(weights(train(recipe, dataset())), weights(train(replace(recipe, **changed), dataset())))


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_every_activation_trains(activation):
    assert_improves(Recipe(layers=(784, 16, 10), activation=activation, epochs=2, batch=50))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize(
    "optimizer",
    [
        {"optimizer": "sgd", "lr": 0.5},
        {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        {"optimizer": "adam"},
        {"optimizer": "adamw", "weight_decay": 0.01},
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_every_way_of_training_improves(optimizer, schedule, loss):
    assert_improves(Recipe(layers=(784, 16, 10), schedule=schedule, loss=loss, epochs=3, batch=50, **optimizer))


def assert_improves(recipe):
    history = train(recipe, dataset()).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_dtype_from_the_weights_to_the_optimizer(dtype):
    training = train(replace(RECIPE, dtype=dtype, epochs=1, l2=0.01, clip=1.0), dataset())
    assert {array.dtype for array in training.model.state_dict().values()} == {np.dtype(dtype)}
    assert {array.dtype for array in training.optimizer.state.values()} == {np.dtype(dtype)}


def test_images_stay_as_they_are():
    training = train(replace(RECIPE, validation=0.0, epochs=1), dataset())
    assert training.train_set.images is dataset()[0]
    assert training.train_set.images.dtype == np.uint8


def seen(training):
    """The images of an epoch, in their order, as the step gets them."""
    found = []
    training._compiled = None
    step = training.step
    training.step = lambda images, labels: (found.append(images), step(images, labels))[1]
    training.run_epoch(Monitor())
    return np.concatenate(found)


def test_each_epoch_distorts_the_training_images_anew_and_no_others():
    plain, distorted = (Training(replace(recipe, validation=0.0), dataset()) for recipe in (RECIPE, DISTORTED))
    originals = dataset()[0].copy()
    one, two = (np.abs(seen(distorted) - seen(plain).astype(float)).mean() for _ in range(2))
    assert 1 < one != two > 1
    assert np.array_equal(distorted.train_set.images, originals)
    row = distorted.history[-1]
    assert row["test_accuracy"] == evaluate(distorted.model, distorted.preprocess, *dataset()[2:]).accuracy


class Observer(Monitor):
    """Keeps what it is told."""

    def __init__(self):
        self.images, self.by = (), ()

    def batch(self, images, score):
        self.images = (*self.images, images)

    def runs(self, backend, reason):
        self.by = (*self.by, (backend, reason))


def images_at_once(**options):
    observer = Observer()
    train(replace(RECIPE, epochs=1), dataset(), monitor=observer, **options)
    return observer.images


def test_the_last_short_batch_is_trained_on():
    assert images_at_once(compile=False) == (64,) * 6 + (16,)
    assert images_at_once() == (6 * 64, 16)


@pytest.mark.parametrize(
    ("steps", "expected"), [(0, (64,) * 6 + (16,)), (2.5, (128,) * 3 + (16,)), (4, (256, 128, 16))]
)
def test_many_operations_are_cut_into_chunks_of_steps(monkeypatch, steps, expected):
    monkeypatch.setattr(training_module, "CHUNK", steps * 6 * 64 * (784 * 16 + 16 + 16 * 10 + 10))
    assert images_at_once() == expected


def test_the_default_recipe_is_looked_after_ten_times_a_second():
    parameters = sum((n + 1) * m for n, m in ((784, 128), (128, 64), (64, 10)))
    assert 10 <= CHUNK / (6 * 256 * parameters) <= 40  # steps of 1 to 3 ms


def test_the_history_tells_loss_accuracy_rate_and_speed():
    training = train(RECIPE, dataset())
    assert [row["epoch"] for row in training.history] == [1, 2, 3, 4]
    assert list(training.history[0]) == [
        "epoch", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_loss",
        "test_accuracy", "seconds", "images_per_second",
    ]
    last = training.history[-1]
    assert last["lr"] == optim.one_cycle(RECIPE.lr, 4 * 7)(4 * 7 - 1)
    assert last["test_accuracy"] == evaluate(training.model, training.preprocess, *training.test_set).accuracy
    assert json.loads(json.dumps(training.history)) == training.history


def test_without_a_validation_split_there_is_no_such_column():
    assert "validation_loss" not in train(replace(RECIPE, validation=0.0, epochs=1), dataset()).history[0]


# ---- parts of a step ----------------------------------------------------------------------------------------------


def gradients(training, images, labels):
    training.optimizer.lr = 1e-30
    training.step(images, labels)
    return [p.grad.copy() for p in training.model.parameters()]


def test_l2_adds_l2_times_the_weights_to_their_gradients_and_nothing_to_those_of_biases():
    recipe = Recipe(layers=(784, 5, 10), dtype="float64")
    batch = (dataset()[0][:20], dataset()[1][:20])
    plain = gradients(Training(recipe, dataset()), *batch)
    training = Training(replace(recipe, l2=0.25), dataset())
    values = [p.numpy() for p in training.model.parameters()]
    for g, with_penalty, value in zip(plain, gradients(training, *batch), values, strict=True):
        np.testing.assert_allclose(with_penalty, g + 0.25 * value if value.ndim == 2 else g, rtol=1e-12)


def test_clip_limits_the_norm_of_the_gradient():
    recipe = Recipe(layers=(784, 5, 10), clip=0.01)
    found = gradients(Training(recipe, dataset()), dataset()[0][:20], dataset()[1][:20])
    assert np.sqrt(sum(np.sum(g**2) for g in found)) == pytest.approx(0.01)


def test_mse_is_that_of_the_softmax_and_the_one_hot_labels():
    training = Training(Recipe(layers=(784, 10), loss="mse", dtype="float64"), dataset())
    images, labels = dataset()[0][:20], dataset()[1][:20]
    logits = training.model(training.preprocess(images, "float64")).numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.mean((p - np.eye(10)[labels]) ** 2)
    assert float(training.step(images, labels)[0]) == pytest.approx(expected, rel=1e-12)


def test_a_step_gives_the_loss_without_the_penalty_and_the_right_answers_of_before():
    images, labels = dataset()[0][:20], dataset()[1][:20]
    recipe = Recipe(layers=(784, 10), dtype="float64")
    plain, penalised = (Training(r, dataset()) for r in (recipe, replace(recipe, l2=10.0)))
    expected = np.sum(plain.model(plain.preprocess(images, "float64")).numpy().argmax(axis=1) == labels)
    found = [training.step(images, labels) for training in (plain, penalised)]
    assert [float(loss) for loss, _ in found] == [float(found[0][0])] * 2
    assert [int(right) for _, right in found] == [expected] * 2


# ---- compiled or not ----------------------------------------------------------------------------------------------

COMPILED = {
    "all that SGD knows": replace(
        RECIPE, optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, clip=0.5, l2=1e-3,
        schedule="cosine",
    ),
    "Adam in float64": replace(RECIPE, dtype="float64", clip=1.0),
    "AdamW, MSE, gelu": replace(RECIPE, optimizer="adamw", weight_decay=0.1, loss="mse", activation="gelu"),
    "no batch is short": replace(RECIPE, batch=80),
    "distorted": DISTORTED,
    "one batch": replace(RECIPE, batch=1000, schedule="constant"),
}


def assert_same_training(one, two):
    assert without_times(one.history) == without_times(two.history)
    for name, array in one.state().items():
        assert array.tobytes() == two.state()[name].tobytes(), name


@pytest.mark.parametrize("recipe", COMPILED.values(), ids=COMPILED)
def test_without_numba_a_compiled_training_is_the_uncompiled_one_bit_for_bit(recipe):
    assert_same_training(train(recipe, dataset()), train(recipe, dataset(), compile=False))


@pytest.mark.usefixtures("step_by_step")
@pytest.mark.parametrize("recipe", [RECIPE, DISTORTED], ids=["plain", "distorted"])
def test_how_many_steps_come_at_once_makes_no_difference(recipe):
    by_steps = train(recipe, dataset())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "CHUNK", CHUNK)
        assert_same_training(train(recipe, dataset()), by_steps)


def test_every_epoch_draws_from_the_generator_that_the_compiled_step_has_seen():
    training = Training(RECIPE, dataset())
    rng = training.model.rng
    for epoch in range(2):
        expected = generator(RECIPE.seed, Stream.DROPOUT, epoch)
        expected.random((400, 16), dtype="float32")
        training.run_epoch(Monitor())
        assert training.model.rng is rng
        assert rng.bit_generator.state == expected.bit_generator.state


def test_what_runs_the_steps_is_told_once_with_the_reason():
    observer = Observer()
    train(RECIPE, dataset(), monitor=observer)
    assert observer.by == (("numpy", native.missing()),)


@pytest.mark.parametrize(("compile", "reason"), [(False, "not compiled"), (True, "too few to compile")])
def test_a_training_that_is_not_compiled_says_so(compile, reason):
    observer = Observer()
    train(replace(RECIPE, batch=1000, epochs=2), dataset(), monitor=observer, compile=compile)
    assert observer.by == (("eager", reason),)


@pytest.mark.skipif(native.missing() is not None, reason=f"{native.missing()}")
class TestNative:
    """The same on native loops, which round otherwise than NumPy does."""

    @pytest.fixture(autouse=True)
    def no_numba(self):
        """In place of the module's."""

    def test_a_training_is_that_of_numpy_within_rounding_and_the_same_bits_again(self):
        recipe = replace(RECIPE, epochs=2)
        observer = Observer()
        found, again = train(recipe, dataset(), monitor=observer), train(recipe, dataset())
        assert_same_training(found, again)
        ((backend, _),) = observer.by
        assert backend == "numba"
        expected = train(recipe, dataset(), compile=False)
        np.testing.assert_allclose(weights(found), weights(expected), rtol=1e-3, atol=1e-4)

    def test_a_restored_training_goes_on_bit_for_bit(self):
        assert_goes_on(RECIPE)

    def test_a_divergence_is_noticed(self):
        test_a_loss_that_is_no_longer_finite_ends_the_training(True)


# ---- random numbers and the split ---------------------------------------------------------------------------------


def test_every_use_and_epoch_has_random_numbers_of_its_own():
    draws = {generator(seed, use, epoch).integers(2**63) for seed in (0, 1) for use in Stream for epoch in range(3)}
    assert len(draws) == 2 * len(Stream) * 3


def test_the_split_is_disjoint_complete_and_of_the_seed():
    indexed = np.arange(500, dtype=np.uint16).view(np.uint8).reshape(500, 1, 2)
    numbered = (indexed, dataset()[1], indexed[:9], dataset()[3][:9])
    recipe = Recipe(layers=(2, 10), validation=0.2)

    def rows(part):
        return part.images.reshape(-1, 2).copy().view(np.uint16).ravel()

    training, again, other = (Training(r, numbered) for r in (recipe, recipe, replace(recipe, seed=1)))
    held, kept = rows(training.validation_set), rows(training.train_set)
    assert (len(held), len(kept)) == (100, 400)
    assert np.array_equal(np.sort(np.concatenate([held, kept])), np.arange(500))
    assert np.array_equal(training.train_set.labels, dataset()[1][kept])
    assert np.array_equal(held, rows(again.validation_set))
    assert not np.array_equal(held, rows(other.validation_set))


# ---- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, optimizer="sgd", lr=0.1, momentum=0.9),
        RECIPE,
        replace(RECIPE, optimizer="adamw"),
        DISTORTED,
    ],
    ids=["sgd", "adam", "adamw", "distorted"],
)
def test_a_restored_training_goes_on_bit_for_bit(recipe):
    assert_goes_on(recipe)


def assert_goes_on(recipe):
    whole = train(recipe, dataset())
    first = Training(recipe, dataset())
    first.run_epoch(Monitor())
    second = Training(recipe, dataset())
    second.restore(first.state(), first.history)
    while len(second.history) < recipe.epochs:
        second.run_epoch(Monitor())
    assert_same_training(second, whole)


# ---- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (700, 10)}, "layers must begin with 784, for images of 28 x 28; got 700"),
        ({"layers": (784, 9)}, "layers must end with 10 or more, for labels up to 9; got 9"),
        ({"validation": 0.001}, "validation = 0.001 of 500 images leaves one side empty"),
        ({"validation": 0.999}, "validation = 0.999 of 500 images leaves one side empty"),
    ],
)
def test_a_recipe_that_does_not_fit_the_data(options, message):
    recipe = Recipe(**options)
    for attempt in (check_data, Training):
        with pytest.raises(ValueError, match=f"^{message}$"):
            attempt(recipe, dataset())


def test_a_run_of_another_recipe_is_refused(tmp_path):
    run = Run.create(RECIPE, tmp_path / "run")
    with pytest.raises(ValueError, match=r"the recipe is not that of the run in .*: give train\(run.recipe, run=run\)"):
        train(replace(RECIPE, seed=1), dataset(), run=run)


@pytest.mark.parametrize("compile", [True, False])
def test_a_loss_that_is_no_longer_finite_ends_the_training(compile):
    recipe = Recipe(layers=(784, 16, 16, 10), optimizer="sgd", lr=1e30, schedule="constant")
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) in epoch 1: lower lr, or set clip"):
        train(recipe, dataset(), compile=compile)


@pytest.mark.parametrize("options", [{"layers": (784, 16, 16, 10)}, {"clip": 1.0}, {"l2": 1e300}, {"loss": "mse"}])
def test_a_divergence_is_told_alike_compiled_and_not(options):
    recipe = Recipe(**{"optimizer": "sgd", "lr": 1e30, "schedule": "constant", "batch": 50, **options})
    errors = []
    for compile in True, False:
        with pytest.raises(FloatingPointError, match=" in epoch 1: lower lr") as caught:
            train(recipe, dataset(), compile=compile)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


class Spoil(Monitor):
    """Sets every parameter to this value after the last step of this epoch."""

    def __init__(self, value, epoch):
        self.value, self.left = value, epoch * 400

    def start(self, training):
        self.training = training

    def batch(self, images, score):
        self.left -= images
        if self.left == 0:
            self.training.model.flat[:] = self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "a parameter became inf or nan in epoch 4: lower lr, or set clip"),
        (3e38, "the output of the model became inf or nan in epoch 4: lower lr, or set clip"),
    ],
)
def test_a_divergence_in_the_last_step_keeps_the_epochs_before_it(tmp_path, value, message):
    run = Run.create(RECIPE, tmp_path / "run")
    with pytest.raises(FloatingPointError, match=f"^{message}; the results of epochs 1 to 3 are saved$"):
        train(RECIPE, dataset(), run=run, monitor=Spoil(value, 4))
    assert json.loads((run.path / REPORT).read_text())["epochs"] == 3
    assert np.isfinite(load_model(run.path)[0].flat).all()
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"l2": 1e300}, "lower lr or l2, or set clip"),
        ({"weight_decay": 1e30, "clip": 1.0, "lr": 1e30}, "lower lr or weight_decay"),
    ],
)
def test_a_divergence_names_the_options_that_may_be_why(options, remedy):
    with pytest.raises(FloatingPointError, match=f" in epoch 1: {remedy}$"):
        train(Recipe(layers=(784, 16, 10), optimizer="sgd", schedule="constant", **options), dataset())


def test_a_resumed_run_notices_that_its_data_changed(tmp_path):
    run = Run.create(RECIPE, tmp_path / "run")
    train(RECIPE, dataset(), run=run)
    x_train, y_train, x_test, y_test = dataset()
    with pytest.raises(ValueError, match="mnist was changed since"):
        train(RECIPE, (x_train, y_train[::-1].copy(), x_test, y_test), run=run)

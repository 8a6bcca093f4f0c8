"""The loop in memory: that it learns, that the same seed gives the same bits, that each option does what it says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small import RECIPE, dataset, without_times

from tinygrad_mnist import Tensor, nn
from tinygrad_mnist.inference import evaluate, load_model
from tinygrad_mnist.recipe import Recipe
from tinygrad_mnist.runs import REPORT, Run
from tinygrad_mnist.train import Monitor, Stream, Training, check_data, generator, train


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


@pytest.mark.parametrize("changed", [{"seed": 1}, {"dropout": 0.2}, {"l2": 0.01}, {"clip": 0.1}, {"loss": "mse"}])
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


def test_the_last_short_batch_is_trained_on():
    class Counter(Monitor):
        images = ()

        def batch(self, images, score):
            self.images = (*self.images, images)

    counter = Counter()
    train(replace(RECIPE, epochs=1), dataset(), monitor=counter)
    assert counter.images == (64,) * 6 + (16,)


def test_the_history_tells_loss_accuracy_rate_and_speed():
    training = train(RECIPE, dataset())
    assert [row["epoch"] for row in training.history] == [1, 2, 3, 4]
    assert list(training.history[0]) == [
        "epoch", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_loss",
        "test_accuracy", "seconds", "images_per_second",
    ]
    last = training.history[-1]
    assert last["lr"] == training.schedule(4 * 7 - 1)
    assert last["test_accuracy"] == evaluate(training.model, training.preprocess, *training.test_set).accuracy
    assert json.loads(json.dumps(training.history)) == training.history


def test_without_a_validation_split_there_is_no_such_column():
    assert "validation_loss" not in train(replace(RECIPE, validation=0.0, epochs=1), dataset()).history[0]


# ---- parts of a step ----------------------------------------------------------------------------------------------


def gradients(training, images, labels):
    training.optimizer.lr = 1e-30
    training.step(training.loss(training.model(training.preprocess(images, training.recipe.dtype)), labels))
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
    logits = np.random.default_rng(0).normal(size=(6, 10))
    labels = np.array([3, 1, 4, 1, 5, 9], np.uint8)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.mean((p - np.eye(10)[labels]) ** 2)
    assert float(training.loss(Tensor(logits), labels)) == pytest.approx(expected, rel=1e-12)


# ---- random numbers and the split ---------------------------------------------------------------------------------


def test_every_use_and_epoch_has_random_numbers_of_its_own():
    draws = {generator(seed, use, epoch).integers(2**63) for seed in (0, 1) for use in Stream for epoch in range(3)}
    assert len(draws) == 2 * 4 * 3


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
    "optimizer", [{"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}, {"optimizer": "adam"}, {"optimizer": "adamw"}]
)
def test_a_restored_training_goes_on_bit_for_bit(optimizer):
    recipe = replace(RECIPE, **optimizer)
    whole = train(recipe, dataset())
    first = Training(recipe, dataset())
    first.run_epoch(Monitor())
    second = Training(recipe, dataset())
    second.restore(first.state(), first.history)
    while len(second.history) < recipe.epochs:
        second.run_epoch(Monitor())
    assert np.array_equal(weights(second), weights(whole))
    assert without_times(second.history) == without_times(whole.history)


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


def test_a_loss_that_is_no_longer_finite_ends_the_training():
    recipe = Recipe(layers=(784, 16, 16, 10), optimizer="sgd", lr=1e30, schedule="constant")
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) in epoch 1: lower lr, or set clip"):
        train(recipe, dataset())


def spoil(monkeypatch, value, epoch):
    """The last step of this epoch (of 7 steps) sets every parameter to this value."""
    steps, step = iter(range(1, 1000)), Training.step

    def spoiled(self, loss):
        step(self, loss)
        if next(steps) == 7 * epoch:
            self.model.flat[:] = value

    monkeypatch.setattr(Training, "step", spoiled)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "a parameter became inf or nan in epoch 4: lower lr, or set clip"),
        (3e38, "the output of the model became inf or nan in epoch 4: lower lr, or set clip"),
    ],
)
def test_a_divergence_in_the_last_step_keeps_the_epochs_before_it(tmp_path, monkeypatch, value, message):
    spoil(monkeypatch, value, 4)
    run = Run.create(RECIPE, tmp_path / "run")
    with pytest.raises(FloatingPointError, match=f"^{message}; the results of epochs 1 to 3 are saved$"):
        train(RECIPE, dataset(), run=run)
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

"""A model in use: predictions, their evaluation, model files."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from small import RECIPE, dataset

from tinygrad_mnist import data, nn, save
from tinygrad_mnist.inference import Evaluation, evaluate, load_model, predict, save_model
from tinygrad_mnist.runs import Run
from tinygrad_mnist.train import Training, train


def test_predictions_are_those_of_the_same_arithmetic_in_numpy(backend):
    # with dropout, which predicting must not draw
    training = train(replace(RECIPE, epochs=1), dataset(), device=backend.device)
    images, labels = training.test_set
    w1, b1, w2, b2 = (p.numpy() for p in training.model.parameters())
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    expected = np.maximum(x @ w1 + b1, 0) @ w2 + b2
    np.testing.assert_allclose(predict(training.model, training.preprocess, images), expected, rtol=1e-4, atol=1e-5)
    found = evaluate(training.model, training.preprocess, images, labels)
    assert found.accuracy == np.mean(expected.argmax(axis=1) == labels)


def test_predictions_in_several_batches_are_in_order(backend, monkeypatch):
    training = Training(RECIPE, dataset(), backend.device)
    whole = predict(training.model, training.preprocess, training.test_set.images)
    monkeypatch.setattr("tinygrad_mnist.inference.BATCH", 64)
    parts = predict(training.model, training.preprocess, training.test_set.images)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_the_model_in_the_mode_it_was_in(backend, training):
    model = nn.MLP((784, 5, 10), dropout=0.5, rng=0).train(training).to(backend.device)
    images = dataset()[2]
    predict(model, data.Preprocess(), images)
    assert model.training is training
    with pytest.raises(TypeError):
        predict(model, lambda *_: None, images)
    assert model.training is training


def test_a_model_without_parameters_to_train_predicts_too(backend):
    model, images = nn.MLP((784, 5, 10), rng=0).to(backend.device), dataset()[2]
    before = predict(model, data.Preprocess(), images)
    for p in model.parameters():
        p.requires_grad = False
    assert np.array_equal(predict(copy.deepcopy(model), data.Preprocess(), images), before)


def test_a_trained_model_is_in_evaluation_mode():
    assert not train(replace(RECIPE, epochs=1), dataset()).model.training


def test_an_evaluation_reports_loss_accuracy_and_classes():
    logits = np.log(np.array([[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]]))
    evaluation = Evaluation(np.array([0, 0, 1], np.uint8), logits)
    np.testing.assert_allclose(evaluation.probabilities, np.exp(logits))
    report = evaluation.report()
    assert report["cross_entropy"] == pytest.approx(-np.log([0.7, 0.4, 0.8]).mean())
    assert report["accuracy"] == evaluation.accuracy == 2 / 3
    assert report["confusion"] == evaluation.confusion.tolist() == [[1, 1], [0, 1]]


def test_a_model_file_brings_model_and_preprocessing_back(backend, tmp_path):
    model = nn.MLP((784, 5, 10), "tanh", rng=0).to(backend.device)
    preprocess = data.Preprocess(mean=0.13, std=0.31)
    save_model(tmp_path / "m.safetensors", model, preprocess)
    loaded, recorded = load_model(tmp_path / "m.safetensors")
    images = dataset()[2]
    assert recorded == preprocess
    expected = predict(model, preprocess, images)
    np.testing.assert_allclose(predict(loaded, recorded, images), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(predict(loaded.to(backend.device), recorded, images), expected)


def test_a_model_file_without_preprocessing_is_refused(tmp_path):
    save(tmp_path / "m.safetensors", nn.MLP((784, 10), rng=0))
    with pytest.raises(ValueError, match=r"m\.safetensors does not say how images were preprocessed"):
        load_model(tmp_path / "m.safetensors")


def test_a_file_that_holds_arrays_is_no_model(tmp_path):
    notes = {"preprocess": json.dumps(data.Preprocess().to_dict())}
    save(tmp_path / "m.safetensors", {"a": np.ones(2)}, metadata=notes)
    with pytest.raises(ValueError, match=r"m\.safetensors: holds arrays, not a model"):
        load_model(tmp_path / "m.safetensors")


def test_images_or_labels_that_do_not_fit_the_model(backend):
    model, preprocess = nn.MLP((784, 5), rng=0).to(backend.device), data.Preprocess()
    with pytest.raises(ValueError, match="the model takes images of 784 pixels, not of 14 x 28"):
        predict(model, preprocess, dataset()[2][:, ::2])
    with pytest.raises(ValueError, match="the model knows the classes 0 to 4, not the label 9"):
        evaluate(model, preprocess, *dataset()[2:])


def test_an_output_that_is_not_finite_is_an_error(backend):
    model = nn.MLP((784, 10), rng=0).to(backend.device)
    model.flat[:] = np.nan
    for act in (lambda: predict(model, data.Preprocess(), dataset()[2]),
                lambda: evaluate(model, data.Preprocess(), *dataset()[2:])):
        with pytest.raises(FloatingPointError, match=r"^the output of the model became inf or nan$"):
            act()


def test_large_finite_logits_have_a_finite_report():
    logits = np.tile(np.array([3e38, -3e38], np.float32), (20, 1))
    evaluation = Evaluation(np.ones(20, np.uint8), logits)
    assert np.isfinite(evaluation.report()["cross_entropy"])
    assert evaluation.probabilities[0].tolist() == [1, 0]


@pytest.mark.parametrize("text", ["[", "[]", "3", "null", '{"scale": "x"}', '{"scal": 1}', "[" * 100_000])
def test_a_damaged_record_of_the_preprocessing_is_one_error_that_names_the_file(tmp_path, text):
    save(tmp_path / "m.safetensors", nn.MLP((784, 10), rng=0), metadata={"preprocess": text})
    with pytest.raises(ValueError, match=r"m\.safetensors: its record of the preprocessing is damaged: "):
        load_model(tmp_path / "m.safetensors")


def test_a_run_without_a_model_is_unfinished(tmp_path):
    run = Run.create(RECIPE, tmp_path / "my run")
    with pytest.raises(FileNotFoundError, match=r"the run is unfinished: tinygrad-mnist train --resume '.*my run'$"):
        load_model(run.path)

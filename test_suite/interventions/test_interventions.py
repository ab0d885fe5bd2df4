"""What results record of an intervention, what figures say of it, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from activation_patching import GaussianNoise, IOIDataset, Mean, Resample, Zero, load_results, summarize_results
from actpatch.core.sites import Site, block_hook
from head_patching import HeadPatcher
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import HAS_HOOKED, bundled, fresh_hooked, small_model, token_pairs
from test_suite.helpers.prompts import Words
from test_suite.helpers.sweeps import patcher_on, raw, single
from visualize import create_layer_heatmap, create_position_heatmap, figure_caption

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
means_of_one = pytest.mark.filterwarnings("ignore:.*a single reference prompt")


# --- what results record -------------------------------------------------------------------------------------------


@means_of_one
def test_results_record_what_was_done(mixed: Words, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    patcher, heads = patcher_on(small_model(PLAIN)), HeadPatcher(small_model(PLAIN), show_progress=False)
    noise = GaussianNoise("A", multiple=2, samples=2, seed=4)
    runs = {
        "zero into clean": patcher.run_patching_experiment(mixed, "mlp_out", source=Zero(), window=3),
        "the mean over the corrupted prompts": patcher.run_patching_experiment(mixed, "mlp_out", source=Mean()),
        "Gaussian noise at A of 2": patcher.run_patching_experiment(
            mixed, [("mlp_out", "attn_out"), "z"], noise=noise, position=["A", -1]
        ),
    }
    for told, results in runs.items():
        summarize_results(results)
        assert told in " ".join(capsys.readouterr().out.split())
        assert load_results(results.save(tmp_path / "results.json")) == results
    assert runs["zero into clean"].sweep.direction == "noising"
    frame = runs["zero into clean"].to_dataframe()
    assert set(frame["source"]) == {"zero"} and set(frame["window"]) == {3}
    others = [
        patcher.run_neurons_experiment(mixed, 1, [3]),
        patcher.run_position_experiment(mixed, positions=["A", 2]),
        heads.run_all_heads_experiment(mixed, source=Zero(), position="B"),
    ]
    for results in others:
        loaded = load_results(results.save(tmp_path / "results.json"))
        assert loaded == results and type(loaded) is type(results)
    assert load_results(others[1].save(tmp_path / "results.json")).names == ["A", "2"]


def test_ablations_are_of_the_clean_run_unless_asked_otherwise(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    assert patcher.run_patching_experiment(mixed, "mlp_out").sweep.direction == "denoising"
    default = patcher.run_patching_experiment(mixed, "mlp_out", source=Zero())
    assert default == patcher.run_patching_experiment(mixed, "mlp_out", source=Zero(), direction="noising")
    corrupted = patcher.run_patching_experiment(mixed, "mlp_out", source=Zero(), direction="denoising")
    assert corrupted.sweep.intervention == "zero into corrupted"
    assert abs(raw(corrupted) - raw(default)).min() > 1e-4


@means_of_one
def test_reference_prompts_may_be_another_datasets() -> None:
    model = bundled()
    patcher = patcher_on(model)
    dataset, other = IOIDataset(model, n_pairs=6), IOIDataset(model, n_pairs=30, seed=1, corruption="unrelated_names")
    own = patcher.run_patching_experiment(dataset, "attn_out", source=Mean())
    wide = patcher.run_patching_experiment(dataset, "attn_out", source=Mean(other))
    clean = patcher.run_patching_experiment(dataset, "attn_out", source=Mean(other, run="clean"))
    assert abs(raw(own) - raw(wide)).max() > 1e-3 and abs(raw(clean) - raw(wide)).max() > 1e-3
    some = patcher.run_patching_experiment(dataset, "attn_out", source=Mean(), pair_indices=[3])
    np.testing.assert_allclose(raw(some)[:, 0], raw(own)[:, 3], atol=EXACT, rtol=0)


def test_noise_needs_no_corrupted_prompt() -> None:
    class CleanOnly(Words):
        def get_clean_corrupt_pairs(self) -> Any:
            return [clean for clean, _ in super().get_clean_corrupt_pairs()]

    pairs = token_pairs([9, 7], [(2,), (3,)])
    patcher, noise = patcher_on(small_model(PLAIN)), GaussianNoise(3, samples=2)
    alone = patcher.run_patching_experiment(CleanOnly(pairs), "mlp_out", noise=noise)
    beside = patcher.run_patching_experiment(Words(pairs), "mlp_out", noise=noise)
    assert raw(alone).tolist() == raw(beside).tolist()
    assert alone.sweep.corrupted_tokens == alone.sweep.clean_tokens


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": Zero}, r"source is the class Zero, expected OtherRun\(\)"),
        ({"source": "zero"}, r"source is 'zero', expected OtherRun\(\)"),
        ({"source": Mean(), "noise": GaussianNoise(1)}, r"Mean\(\) writes none of its activations: leave out"),
        ({"noise": 3.0}, r"noise is 3\.0, expected GaussianNoise"),
        ({"noise": GaussianNoise("C")}, r"3 of 3 pairs have no position named 'C'"),
        ({"noise": GaussianNoise(20)}, r"position .* 20 is out of range"),
        ({"direction": "both", "source": Zero()}, r"'both' exchanges .* Zero\(\) writes neither's"),
        ({"window": 2}, r"window is 2, expected an odd number of layers"),
        ({"window": 0}, r"window is 0, expected an odd number"),
        ({"position": "C"}, r"3 of 3 pairs have no position named 'C'"),
        ({"position": []}, r"position is empty"),
        ({"position": [1, 50]}, r"position \(in pair 0, of 9 tokens\) 50 is out of range"),
        ({"position": 8}, r"position \(in pair 1, of 7 tokens\) 8 is out of range"),
        ({"source": Resample(), "pair_indices": [1]}, r"pair 1 .*7 tokens.* has no other pair of the same"),
        (
            {"source": Resample(samples=2), "pair_indices": [0, 2]},
            r"pair 0 \(9 tokens\) and 1 more have fewer than 2 other pairs of the same template and length whose value "
            r"could be taken: make the dataset larger, ask for at most 1 samples, or leave",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_run(mixed: Words, options: Any, message: str) -> None:
    patcher = patcher_on(small_model(PLAIN))
    patcher.engine.runner.record = None  # any run would fail otherwise
    with pytest.raises(ValueError, match=message):
        patcher.run_patching_experiment(mixed, "mlp_out", **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mean("IOI"), r"Mean is over a str, expected a PatchingDataset"),
        (lambda: Mean(IOIDataset), r"Mean is over the class IOIDataset, expected a PatchingDataset"),
        (lambda: Mean(run="both"), r"'both', expected 'corrupted' or 'clean'"),
        (lambda: Resample(seed=-1), r"seed is -1"),
        (lambda: Resample(seed=0.5), r"seed is 0\.5"),
        (lambda: Resample(samples=0), r"Resample samples is 0, expected at least 1, an integer"),
        (lambda: Resample(samples=1.5), r"Resample samples is 1\.5"),
        (lambda: GaussianNoise([]), r"noise positions is empty"),
        (lambda: GaussianNoise(1, multiple=-1), r"multiple is -1"),
        (lambda: GaussianNoise(1, multiple=float("nan")), r"multiple is nan"),
        (lambda: GaussianNoise(1, samples=0), r"samples is 0"),
    ],
)
def test_senseless_sources_cannot_be_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pair_without_reference_prompts_is_named() -> None:
    pairs = token_pairs([9, 7], [(2,), (3,)])
    patcher = patcher_on(small_model(PLAIN))
    with pytest.raises(ValueError, match=r"pair 1 \(7 tokens\) has no reference prompt"):
        patcher.run_patching_experiment(Words(pairs), "mlp_out", source=Mean(Words(token_pairs([9], [(2,)]))))


def test_more_than_can_be_patched_is_refused(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    width = patcher.engine.n_neurons(1)
    for neuron in (width, -width - 1):
        with pytest.raises(ValueError, match=rf"neuron {neuron} is out of range"):
            patcher.run_neurons_experiment(mixed, 1, [neuron])
    with pytest.raises(ValueError, match="layer 3 is out of range"):
        patcher.run_neurons_experiment(mixed, 3)
    with pytest.raises(ValueError, match=f"neuron {width} is out of range"):
        patcher.sweep(mixed, single([Site(block_hook(1, "mlp_post"), neuron=width)]))
    with pytest.raises(ValueError, match="hook_z has no axis of neurons"):
        patcher.sweep(mixed, single([Site(block_hook(1, "z"), neuron=1)]))
    with pytest.raises(
        ValueError, match=r"7 and 9 tokens.*positions=\['A', 'B', 'END'\].*7 tokens: 1 of 3 pairs \(pair 1\); 9"
    ):
        patcher.run_position_experiment(mixed)
    with pytest.raises(ValueError, match="names 'A' twice"):
        patcher.run_position_experiment(mixed, positions=["A", "A"])
    with pytest.raises(ValueError, match="positions is empty"):
        patcher.run_position_experiment(mixed, positions=[])
    with pytest.raises(ValueError, match="set mlp_out has no layer in its middle"):
        patcher.run_patching_experiment(mixed, [("mlp_out",)], window=3)
    with pytest.raises(ValueError, match="hook_embed lies in no layer"):
        patcher.run_patching_experiment(mixed, "hook_embed", window=3)
    both = patcher.run_patching_experiment(mixed, "mlp_out", direction="both")
    with pytest.raises(ValueError, match="threshold is 0"):
        both.reading(0)


def test_a_model_without_an_mlp_has_no_neurons() -> None:
    if not HAS_HOOKED:
        pytest.skip("needs an attention-only model")
    patcher = patcher_on(fresh_hooked("attn_only"))
    with pytest.raises(ValueError, match=r"no hook point 'blocks\.0\.mlp\.hook_post'"):
        patcher.run_neurons_experiment(Words(token_pairs([7], [(2,)])), 0)


# --- figures -------------------------------------------------------------------------------------------------------


def test_figures_say_what_was_written_and_where(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    named = patcher.run_position_experiment(mixed, positions=["A", "END"], source=Zero())
    figure = create_position_heatmap(named)
    assert list(figure.layout.xaxis.ticktext) == ["A", "END"]
    np.testing.assert_array_equal(figure.data[0].z, named.matrix())
    assert "position END" in figure.data[0].hovertext[1][1]
    assert "zero into clean" in figure_caption(figure)
    noise = GaussianNoise("A", samples=1)
    layers = patcher.run_patching_experiment(mixed, ["z", ("z", "mlp_out")], noise=noise, position="B")
    assert "Gaussian noise at A" in figure_caption(create_layer_heatmap(layers))
    assert "position B" in figure_caption(create_layer_heatmap(layers))
    assert "not drawn: z + mlp_out" in figure_caption(create_layer_heatmap(layers))
    windows = create_layer_heatmap(patcher.run_patching_experiment(mixed, "z", window=3))
    assert "windows of 3 layers" in figure_caption(windows)
    assert "L1±1 z" in windows.data[0].hovertext[1][0]

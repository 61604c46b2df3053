"""The settings of a run: frozen, and each of its fields says whether it changes results."""

import shutil
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from running import course_run, record_in, table_in

from seenby import InputError, Style
from seenby.machine import Ranks
from seenby.outputs.store import OutputFolder
from seenby.pipeline import execute, explain_batch
from seenby.settings import Settings, require_consistent

OTHERS = {  # another valid value for every field
    "images": ("a.png",), "pick": "wrong", "limit": 3, "invert": True, "model": "resnet18",
    "weights": "none", "class_names": ("cat", "dog"), "size": (28, 28), "mean": (0.5,),
    "std": (0.25,), "device": "cuda:0", "list_layers": True, "target": ("label", "3"),
    "method": ("xgradcam",), "layer": "conv1", "pad": 3, "style": Style(opacity=0.25),
    "task": "binary", "like": "ref.jpg",
    "blur": 1.5, "uncropped": True, "columns": 3, "overlays": False, "raw": False,
    "save_maps": "float16", "gallery": True, "trust": 40, "out": Path("elsewhere"), "batch_size": 3,
    "workers": 77, "resume": True, "quiet": True,
}  # fmt: skip
KEPT = {"device", "list_layers", "columns", "out", "workers", "resume", "quiet", "trust"}


def test_settings_never_change():
    settings = Settings()
    for name, value in OTHERS.items():
        with pytest.raises(FrozenInstanceError):
            setattr(settings, name, value)
    assert settings == Settings()


def test_the_fingerprint_is_that_of_what_changes_results():
    assert OTHERS.keys() == {f.name for f in fields(Settings)}
    assert {f.name for f in fields(Settings) if f.metadata.get("keeps_results")} == KEPT
    plain = Settings()
    prints = {plain.fingerprint()}
    for name, value in OTHERS.items():
        assert getattr(plain, name) != value
        other = replace(plain, **{name: value})
        assert (other.fingerprint() == plain.fingerprint()) == (name in KEPT), name
        assert (name in other.changing_results()) == (name not in KEPT)
        prints.add(other.fingerprint())
    assert len(prints) == 1 + len(OTHERS.keys() - KEPT)  # all of them differ


@pytest.mark.parametrize(
    "style", [Style(("raw",)), Style(colormap="viridis"), Style(opacity=0.25)], ids=str
)
def test_the_fingerprint_is_that_of_the_style_too(style):
    assert Settings(style=style).fingerprint() != Settings().fingerprint()


# ------------------------------------------------------------------------------ runs that go on


@pytest.fixture(scope="module")
def stopped(digit_folder, tmp_path_factory):
    """The folder of a run that was stopped when all batches were done, before the figure."""

    def stop(*_):
        raise OSError(28, "No space left on device")

    out = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seenby.pipeline.finish", stop)
        code, _, err = course_run(out, digit_folder, "--batch-size", 2)
    assert code == 2
    assert err == (
        "seenby: error: stopped: No space left on device; fix that, then run again with --resume\n"
    )
    return out


@pytest.mark.parametrize(
    ("options", "explained", "written"),
    [
        (("--resume",), 4, 0),
        (("--resume", "--columns", 4), 2, 0),
        (("--resume", "--columns", 1, "--workers", 0, "--quiet"), 1, 0),
        (("--resume", "--pad", 2), 4, 4),
        ((), 4, 4),
    ],
)
def test_a_run_goes_on_with_settings_that_keep_its_results(
    stopped, digit_folder, tmp_path, monkeypatch, options, explained, written
):
    """Then only what the figure shows is explained again, and nothing is written again."""
    shutil.copytree(stopped, out := tmp_path / "out")
    counts = {"explained": 0, "written": 0}
    write = OutputFolder.write_batch

    def explain(*given):
        counts["explained"] += 1
        return explain_batch(*given)

    def write_batch(*given):
        counts["written"] += 1
        write(*given)

    monkeypatch.setattr("seenby.pipeline.explain_batch", explain)
    monkeypatch.setattr("seenby.outputs.store.OutputFolder.write_batch", write_batch)
    assert course_run(out, digit_folder, "--batch-size", 2, *options)[0] == 0
    assert counts == {"explained": explained, "written": written}
    assert record_in(out)["pictures"] == {"explained": 8, "skipped": 0, "not picked": 0}
    assert [row["predicted"] for row in table_in(out)] == list("01234567")


@pytest.mark.parametrize(("given", "world_size", "words"), [
    ({"like": "a.png"}, 1, "--like was given, which is for embeddings; give --task embedding"),
    ({"task": "embedding"}, 1, "the task is embedding; give --like PICTURE, which others are"),
    ({"task": "embedding", "like": "a.png", "target": ("3",)}, 1,
     "--target was given; an embedding is compared with a picture: give --like PICTURE instead"),
    ({"task": "embedding", "like": "a.png", "pick": "wrong"}, 1,
     "--pick wrong was given; the task is embedding, of which no picture is right or wrong"),
    ({"task": "regression", "pick": "correct"}, 1,
     "--pick correct was given; the task is regression, of which no picture is right or wrong"),
    ({"pick": "wrong", "limit": 3}, 2, "--pick with --limit was given to several processes"),
    ({"trust": 40}, 2, "--trust was given to several processes; use one process"),
    ({"trust": 40, "method": ("counterfactual",)}, 1, "method counterfactual was given, whose "),
])  # fmt: skip
def test_what_does_not_go_together_is_told_before_anything_is_loaded(given, world_size, words):
    with pytest.raises(InputError, match=words):
        execute(Settings(model="no such network", **given), Ranks(world_size=world_size))


def test_what_goes_together():
    for given, world_size in (
        ({"task": "embedding", "like": "a.png"}, 2), ({"pick": "wrong", "limit": 3}, 1),
        ({"pick": "wrong"}, 2), ({"trust": 40}, 1), ({"task": "regression"}, 1),
        ({"task": "embedding", "list_layers": True}, 1),
    ):  # fmt: skip
        require_consistent(Settings(**given), Ranks(world_size=world_size))

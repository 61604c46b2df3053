"""Whatever a file holds: it is explained, or one line says what is wrong with it.

FUZZ=50 python -m pytest tests/test_fuzz.py -n 0      fifty times as many inputs: over 20,000
"""

import io
import json
import os
import pickle
import random
import resource
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

import SID_a4
from SID_a4 import Complaint, load_network, read_pictures

MORE = int(os.environ.get("FUZZ", "1"))
LIMIT = 10  # seconds for one input, at most


def fuzzed(examples):
    return settings(
        max_examples=examples * MORE,
        derandomize=True,
        deadline=LIMIT * 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def _within_a_gigabyte():
    """Of this process, beyond what it had before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def outcome(path, network):
    """How many of its pictures are explained; each other one has one line."""
    pictures = list(read_pictures([path], network))
    assert pictures
    for picture in pictures:
        if picture.image is None:
            assert picture.note
            assert "\n" not in picture.note
        else:
            assert picture.image.size == network.size[::-1]
    images = [picture.image for picture in pictures if picture.image]
    if images:
        assert network.tensor(images).isfinite().all()
    return len(images)


# ----------------------------------------------------------------------------------------- JSON

NUMBERS = st.one_of(
    st.integers(-2, 300), st.floats(), st.integers(), st.just(1e308), st.booleans(), st.none()
)
PIXELS = st.one_of(
    st.lists(NUMBERS, max_size=5),
    NUMBERS.map(lambda n: [[n] * 28] * 28),
    st.integers(0, 255).map(lambda n: [n] * 784),
    st.lists(st.integers(0, 30).map(lambda n: [0] * n), max_size=30),
)
JSON = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=8), PIXELS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=8), inner, max_size=4),
        st.fixed_dictionaries({"image": inner}, optional={"label": inner}),
    ),
    max_leaves=12,
)


@fuzzed(150)
@given(JSON)
def test_json_of_any_shape(folder, network, content):
    (folder / "any.json").write_text(json.dumps(content))
    outcome(folder / "any.json", network)


@fuzzed(100)
@given(st.binary(max_size=40), st.integers(0, 10**6), st.booleans())
def test_json_of_any_bytes(folder, network, noise, at, cut):
    whole = (SID_a4.HERE / "data" / "test_data.json").read_bytes()
    at %= len(whole)
    (folder / "bytes.json").write_bytes(whole[:at] + noise + (b"" if cut else whole[at:]))
    outcome(folder / "bytes.json", network)


@pytest.mark.parametrize("content", ["[" * 10**5, '{"a":' * 10**5, "[" + "1" * 10**5 + "]"])
def test_json_without_end(folder, network, content):
    (folder / "deep.json").write_text(content)
    assert outcome(folder / "deep.json", network) == 0


# --------------------------------------------------------------------------------------- images


def encoded():
    """The same small picture in every format that can be written, mode by mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    for suffix in SID_a4.SUFFIXES[1:]:
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
            image = Image.fromarray(pixels).convert(mode if mode not in ("I;16", "F") else "L")
            image = image.convert("I").convert(mode) if mode in ("I;16", "F") else image
            file = io.BytesIO()
            kind = Image.registered_extensions()[suffix]
            try:
                image.save(file, kind)
            except (OSError, KeyError, ValueError):
                continue
            yield suffix, mode, file.getvalue()


FILES = list(encoded())


def test_every_format_is_tried():
    assert {suffix for suffix, _, _ in FILES} == set(SID_a4.SUFFIXES[1:])
    assert len(FILES) >= 30
    assert features.check("webp")


@pytest.mark.parametrize(("suffix", "mode", "content"), FILES, ids=lambda v: str(v)[:9])
def test_images_cut_short(folder, network, suffix, mode, content):
    path = folder / f"cut{suffix}"
    path.write_bytes(content)
    assert outcome(path, network) == 1
    start = random.Random(0).randrange(97)
    for end in range(start, len(content), 97 if MORE == 1 else 13):
        path.write_bytes(content[:end])
        begun = time.monotonic()
        outcome(path, network)
        assert time.monotonic() - begun < LIMIT


@fuzzed(250)
@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255))))
def test_images_with_other_bytes(folder, network, file, changes):
    suffix, _, content = file
    changed = bytearray(content)
    for at, byte in changes:
        changed[at % len(content)] = byte
    path = folder / f"changed{suffix}"
    path.write_bytes(changed)
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of what it then reads or refuses
        outcome(path, network)


# -------------------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def weights():
    return (SID_a4.HERE / "mnist_model.pth").read_bytes()


def loaded(path):
    """Whether it was; else one line said why not."""
    begun, said = time.monotonic(), None
    try:
        network = load_network(weights=str(path))
    except Complaint as problem:
        said = str(problem)
    assert time.monotonic() - begun < LIMIT
    if said is None:
        assert all(w.isfinite().all() for w in network.net.state_dict().values())
    else:
        assert str(path) in said
    return said is None


def test_weights_cut_short(folder, weights):
    path = folder / "cut.pth"
    for end in range(0, len(weights), 1500 if MORE == 1 else 97):
        path.write_bytes(weights[:end])
        assert not loaded(path)


@fuzzed(60)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20))
def test_weights_with_other_bytes(folder, weights, changes):
    changed = bytearray(weights)
    for at, byte in changes:
        changed[at % len(weights)] = byte
    (folder / "changed.pth").write_bytes(changed)
    loaded(folder / "changed.pth")


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(mark):
    import subprocess

    touch = f"open({str(mark)!r}, 'w')"
    calls = [
        Call(os.system, f"touch {mark}"), Call(exec, touch), Call(eval, touch),
        Call(subprocess.run, ["touch", str(mark)]), Call(getattr, str, "join"),
        Call(open, str(mark), "w"), Call(os.mkdir, str(mark)), Call(torch.load, str(mark)),
    ]  # fmt: skip
    for call in calls:
        yield call
        yield {"conv1.weight": call}
        yield {"state_dict": {"conv1.weight": torch.zeros(10, 1, 5, 5), "more": [call]}}
        yield [{call.__reduce__()[0]: call}]


def in_a_zip(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("archive/data.pkl", content)
        packed.writestr("archive/version", "3\n")
        packed.writestr("archive/byteorder", "little")
    return file.getvalue()


def test_hostile_pickles_run_nothing(folder, tmp_path):
    mark, path = tmp_path / "mark", folder / "hostile.pth"
    for content in hostile(mark):
        for protocol in (0, 2, 4, 5):
            pickled = pickle.dumps(content, protocol)
            for packed in (pickled, in_a_zip(pickled)):
                path.write_bytes(packed)
                assert not loaded(path)
                assert not mark.exists()


SHAPES = st.lists(st.integers(0, 12), max_size=5)
TENSORS = st.one_of(
    st.tuples(SHAPES, st.sampled_from([
        torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8,
        torch.bool, torch.complex64,
    ])).map(lambda args: torch.ones(args[0], dtype=args[1])),
    st.sampled_from([torch.nan, torch.inf, -torch.inf]).map(lambda v: torch.full((10, 1, 5, 5), v)),
    st.just(torch.eye(3).to_sparse()),
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.just([torch.ones(2)])),
)  # fmt: skip
KEYS = st.sampled_from(["conv1.weight", "conv1.bias", "conv2.weight", "fc1.weight", "fc2.bias"])


@fuzzed(100)
@given(st.dictionaries(st.one_of(KEYS, st.text(max_size=5), st.integers()), TENSORS, max_size=4))
def test_state_dicts_with_wrong_entries(folder, changes):
    state = torch.load(SID_a4.HERE / "mnist_model.pth", weights_only=True)
    torch.save(state | changes, folder / "wrong.pth")
    loaded(folder / "wrong.pth")


@pytest.mark.parametrize("new", [True, False])
def test_a_million_keys(folder, new):
    value = torch.zeros(1)
    many = {f"k{i}": value for i in range(10**5 if new or MORE == 1 else 10**6)}
    torch.save(many, folder / "many.pth", _use_new_zipfile_serialization=new)
    assert not loaded(folder / "many.pth")
    (folder / "many.pth").unlink()


def test_small_files_that_claim_much(folder):
    huge = {f"{layer}.weight": torch.zeros(10**5) for layer in ("conv1", "conv2", "fc1", "fc2")}
    torch.save(huge, folder / "huge.pth")  # which do not fit together
    assert not loaded(folder / "huge.pth")
    wide = torch.zeros(1).expand(10**6, 1, 50, 50)
    torch.save({"conv1.weight": wide}, folder / "claims.pth")
    assert not loaded(folder / "claims.pth")
    with zipfile.ZipFile(folder / "zeros.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data/0", bytes(10**8))
    assert not loaded(folder / "zeros.pth")

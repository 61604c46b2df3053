"""Whatever a file holds: it is read, or one line says what is wrong with it; at both doors.

FUZZ=50 python -m pytest tests/test_fuzz.py -n 0 -m ''      fifty times as many: over 50,000 inputs
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
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from course import ROOT, WEIGHTS, course_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

import SID_a4
from seenby import InputError, read_pictures
from seenby.inputs.classes import read_class_names
from seenby.inputs.pictures import SUFFIXES

MORE = int(os.environ.get("FUZZ", "1"))
LIMIT = 10  # seconds for one input, at most
slow = pytest.mark.slow


def few_and_many(examples):
    """How many: a few whenever the tests run, the rest where there is time."""
    few = pytest.param(max(10, examples // 10), id="few")
    return pytest.mark.parametrize(
        "examples", [few, pytest.param(examples * MORE, id="many", marks=slow)]
    )


def fuzzed(examples, *strategies):
    """Calls a function so often, with what the strategies give."""
    how = settings(
        max_examples=examples,
        derandomize=True,
        deadline=LIMIT * 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda check: how(given(*strategies)(check))()


@pytest.fixture(scope="module", autouse=True)
def _within_a_gigabyte():
    """Of this process, beyond what it had before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def tool(network):
    """The package, which explains the course network here."""

    def load(path):
        return course_network(str(path)).module

    def read(path):
        return read_pictures([path], network.preprocessing, network.classes)

    return SimpleNamespace(read=read, load=load, tensor=network.tensor, InputError=InputError)


@pytest.fixture(scope="module")
def script():
    """The course's script."""

    def read(path):
        return SID_a4.read_pictures([path])

    def load(path):
        try:
            return SID_a4.load_network(path)
        except SID_a4.InputError as problem:  # its main prints it so
            raise SID_a4.InputError(" ".join(str(problem).split())) from problem

    return SimpleNamespace(
        read=read, load=load, tensor=SID_a4.normalised, InputError=SID_a4.InputError
    )


@pytest.fixture(params=["tool", "script"])
def door(request):
    return request.getfixturevalue(request.param)


def outcome(path, door):
    """How many of its pictures are explained; each other one has one line."""
    pictures = list(door.read(path))
    assert pictures
    for picture in pictures:
        if picture.image is None:
            assert picture.note
            assert "\n" not in picture.note
        else:
            assert picture.image.size == (28, 28)
    images = [picture.image for picture in pictures if picture.image]
    if images:
        assert door.tensor(images).isfinite().all()
    return len(images)


# ------------------------------------------- JSON: pictures of the script, class names of the tool

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


def names_in(path):
    """The class names in a file, none if one line says why not."""
    said = None
    try:
        names = read_class_names(str(path))
    except InputError as problem:
        said = str(problem)
    if said is None:
        assert all(name and isinstance(name, str) for name in names)
        return names
    assert said.startswith(str(path))
    assert "give a file of class names" in said
    assert "\n" not in said
    return None


@few_and_many(150)
def test_json_of_any_shape(folder, script, examples):
    path = folder / "any.json"

    @fuzzed(examples, JSON)
    def _(content):
        path.write_text(json.dumps(content))
        outcome(path, script)
        names_in(path)


@few_and_many(100)
def test_json_of_any_bytes(folder, script, examples):
    whole = (ROOT / "data" / "example_digits.json").read_bytes()
    path = folder / "bytes.json"

    @fuzzed(examples, st.binary(max_size=40), st.integers(0, 10**6), st.booleans())
    def _(noise, at, cut):
        at %= len(whole)
        path.write_bytes(whole[:at] + noise + (b"" if cut else whole[at:]))
        outcome(path, script)
        names_in(path)


@pytest.mark.parametrize("content", ["[" * 10**5, '{"a":' * 10**5, "[" + "1" * 10**5 + "]"])
def test_json_without_end(folder, script, content):
    (folder / "deep.json").write_text(content)
    assert outcome(folder / "deep.json", script) == 0
    assert names_in(folder / "deep.json") is None


def test_json_that_is_right_is_read(folder, script):
    assert outcome(ROOT / "data" / "example_digits.json", script) == 8
    (folder / "right.json").write_text('["zero", " one "]')
    assert names_in(folder / "right.json") == ("zero", "one")


# --------------------------------------------------------------------------------------- images


def encoded():
    """The same small picture in every format that can be written, mode by mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    for suffix in SUFFIXES:
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
    assert {suffix for suffix, _, _ in FILES} == set(SUFFIXES)
    assert len(FILES) >= 30
    assert features.check("webp")


@pytest.mark.parametrize(("suffix", "mode", "content"), FILES, ids=lambda v: str(v)[:9])
def test_images_cut_short(folder, tool, script, suffix, mode, content):
    path = folder / f"cut{suffix}"
    path.write_bytes(content)
    assert outcome(path, tool) == 1
    start = random.Random(0).randrange(97)
    for end in range(start, len(content), 97 if MORE == 1 else 13):
        path.write_bytes(content[:end])
        for door in (tool, script):
            begun = time.monotonic()
            outcome(path, door)
            assert time.monotonic() - begun < LIMIT


@few_and_many(250)
def test_images_with_other_bytes(folder, door, examples):
    change = st.tuples(st.integers(0, 10**6), st.integers(0, 255))

    @fuzzed(examples, st.sampled_from(FILES), st.lists(change))
    def _(file, changes):
        suffix, _, content = file
        changed = bytearray(content)
        for at, byte in changes:
            changed[at % len(content)] = byte
        path = folder / f"changed{suffix}"
        path.write_bytes(changed)
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of what it reads or refuses
            outcome(path, door)


# -------------------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def weights():
    return (ROOT / "mnist_model.pth").read_bytes()


def loaded(path, door):
    """Whether it was; else one line said why not."""
    begun, said = time.monotonic(), None
    try:
        net = door.load(path)
    except door.InputError as problem:
        said = str(problem)
    assert time.monotonic() - begun < LIMIT
    if said is None:
        assert all(w.isfinite().all() for w in net.state_dict().values())
    else:
        assert str(path) in said
        assert "\n" not in said
    return said is None


def test_weights_that_are_right_are_loaded(door):
    assert loaded(WEIGHTS, door)


def test_weights_cut_short(folder, weights, door):
    path = folder / "cut.pth"
    for end in range(0, len(weights), 1500 if MORE == 1 else 97):
        path.write_bytes(weights[:end])
        assert not loaded(path, door)


@few_and_many(60)
def test_weights_with_other_bytes(folder, weights, door, examples):
    change = st.tuples(st.integers(0, 10**6), st.integers(0, 255))

    @fuzzed(examples, st.lists(change, min_size=1, max_size=20))
    def _(changes):
        changed = bytearray(weights)
        for at, byte in changes:
            changed[at % len(weights)] = byte
        (folder / "changed.pth").write_bytes(changed)
        loaded(folder / "changed.pth", door)


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


def test_hostile_pickles_run_nothing(folder, tmp_path, door):
    mark, path = tmp_path / "mark", folder / "hostile.pth"
    for content in hostile(mark):
        for protocol in (0, 2, 4, 5):
            pickled = pickle.dumps(content, protocol)
            for packed in (pickled, in_a_zip(pickled)):
                path.write_bytes(packed)
                assert not loaded(path, door)
                assert not mark.exists()
    path.write_bytes(pickle.dumps(Call(os.mkdir, str(mark))))
    with path.open("rb") as file:
        pickle.load(file)  # what is never done with a stranger's file: these do what they claim
    assert mark.exists()


SHAPES = st.lists(st.integers(0, 12), max_size=5)
TENSORS = st.one_of(
    st.tuples(SHAPES, st.sampled_from([
        torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8,
        torch.bool, torch.complex64,
    ])).map(lambda args: torch.ones(args[0], dtype=args[1])),
    st.sampled_from([torch.nan, torch.inf, -torch.inf]).map(lambda v: torch.full((10, 1, 5, 5), v)),
    st.sampled_from([
        torch.eye(3).to_sparse(), torch.zeros(10, 1, 5, 5).to_sparse(),
        torch.zeros(10, 1, 5, 5, dtype=torch.complex64),
    ]),
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.just([torch.ones(2)])),
)  # fmt: skip
KEYS = st.sampled_from(["conv1.weight", "conv1.bias", "conv2.weight", "fc1.weight", "fc2.bias"])


@few_and_many(100)
def test_state_dicts_with_wrong_entries(folder, door, examples):
    state = torch.load(WEIGHTS, weights_only=True)
    keys = st.one_of(KEYS, st.text(max_size=5), st.integers())

    @fuzzed(examples, st.dictionaries(keys, TENSORS, max_size=4))
    def _(changes):
        torch.save(state | changes, folder / "wrong.pth")
        loaded(folder / "wrong.pth", door)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv1.weight": torch.zeros(0, 1, 5, 5)},
        {"conv1.weight": torch.zeros(10, 1, 5, 5, dtype=torch.complex64)},
        {"conv1.weight": torch.zeros(10, 1, 5, 5).to_sparse()},
        {"a\nkey": torch.ones(1)},
        {"a\nkey": torch.ones(1, dtype=torch.complex64)},
    ],
    ids=["empty", "complex", "sparse", "newline", "complex newline"],
)
def test_entries_that_once_broke_it(folder, door, changes):
    torch.save(torch.load(WEIGHTS, weights_only=True) | changes, folder / "wrong.pth")
    assert not loaded(folder / "wrong.pth", door)


@pytest.mark.parametrize("new", [True, False])
def test_a_million_keys(folder, door, new):
    value = torch.zeros(1)
    many = {f"k{i}": value for i in range(10**5 if new or MORE == 1 else 10**6)}
    torch.save(many, folder / "many.pth", _use_new_zipfile_serialization=new)
    assert not loaded(folder / "many.pth", door)
    (folder / "many.pth").unlink()


def test_small_files_that_claim_much(folder, door):
    huge = {f"{layer}.weight": torch.zeros(10**5) for layer in ("conv1", "conv2", "fc1", "fc2")}
    torch.save(huge, folder / "huge.pth")  # which do not fit together
    assert not loaded(folder / "huge.pth", door)
    wide = torch.zeros(1).expand(10**6, 1, 50, 50)
    torch.save({"conv1.weight": wide}, folder / "claims.pth")
    assert not loaded(folder / "claims.pth", door)
    with zipfile.ZipFile(folder / "zeros.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data/0", bytes(10**8))
    assert not loaded(folder / "zeros.pth", door)

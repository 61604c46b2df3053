"""The benchmarks compare like with like, and the pages quote what they found."""

import csv
import json
import statistics
import time
from dataclasses import replace

import drawn
import gpu
import layers
import peers
import pytest
import scale
import startup
import torch
import zoo
from course import example_digits
from torch import nn

from seenby import explain
from seenby.core.grids import Grid
from seenby.core.search import find_layer


@pytest.mark.filterwarnings("ignore")  # Captum warns of its own hooks
@pytest.mark.parametrize("n_classes", [1, 2])
def test_all_contestants_find_the_same_maps(n_classes):
    found = peers.cell("course", 3, n_classes, rounds=2)
    assert found["layer"] == "conv2"
    theirs = found["difference"]
    assert set(theirs) == set(peers.CONTESTANTS) - {"floor", "seenby"}
    for who, difference in theirs.items():
        assert difference["Grad-CAM"] < 1e-4, who
        assert difference.get("guided", 0) < 1e-4, who
    assert {who for who, d in theirs.items() if "guided" in d} == {"Captum", "pytorch-grad-cam"}
    for low, high in ((1, 0), (0, 2)):  # the median lies between the others
        for times in found["times ours"].values():
            assert times[low] <= times[high]


@pytest.mark.filterwarnings("ignore")
def test_of_tokens_and_in_bf16_all_who_can_find_the_same_maps(monkeypatch):
    def subject(_name, B, _device):
        torch.manual_seed(0)
        net = peers.torchvision.models.VisionTransformer(32, 8, 3, 2, 24, 48)
        nn.init.normal_(net.heads.head.weight)
        return net.eval(), torch.rand(B, 3, 32, 32)

    monkeypatch.setattr(peers, "subject", subject)
    found = peers.cell("vit_b_16", 2, 1, rounds=1)
    assert found["left out"] == {
        "Captum": "LayerGradCam reads no tokens: it averages each over its channels"}
    assert {*found["seconds"], "Captum"} == {*peers.CONTESTANTS}
    for difference in found["difference"].values():
        assert max(difference.values()) < 1e-4
    found = peers.cell("vit_b_16", 2, 1, rounds=1, precision="bf16")
    apart = found["distance from float32"]
    assert {*apart, "Captum", "floor"} == {*peers.CONTESTANTS}
    for maps in apart.values():
        assert all(1e-4 < each < 0.2 for each in maps)


@pytest.mark.filterwarnings("ignore")
def test_who_takes_long_is_measured_once_and_no_round_begins_late():
    found = peers.cell("course", 2, 1, rounds=3, patience=0)
    assert found["rounds"] == 1
    start = time.monotonic()
    assert peers.cell("course", 2, 1, rounds=10**6, until=start)["rounds"] == 1
    assert time.monotonic() - start < 10
    assert peers.spread([6.0], [1.0, 2.0, 9.0]) == [3, 3, 3]


def test_cells_of_a_gpu_have_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    one = {"network": "course", "batch": 1, "classes": 1}
    half, again = one | {"precision": "bf16"}, one | {"precision": "float32", "rounds": 9}
    for found in (half, one | {"precision": "float32"}, again):
        peers.keep(found, tmp_path / "cells.json")
    kept = json.loads((tmp_path / "cells.json").read_text())
    assert kept["cells"] == [again, half]
    assert kept["machine"]["card"] == "a card"


def test_a_difference_is_seen():
    cells, R = torch.rand(2, 4, 4), torch.rand(2, 1, 8, 8)
    other = R.clone()
    other[1, 0, 3, 3] += float(R.max()) / 10
    found = peers.difference((cells.flip(0), other), (cells, R))
    assert found["Grad-CAM"] > 0.1
    assert found["guided"] == pytest.approx(0.1, rel=1e-4)


def test_ratios_are_taken_within_a_round():
    assert peers.spread([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == [2, 2, 3]


def test_the_page_has_the_table_of_the_benchmark():
    kept = json.loads(peers.KEPT.read_text())["cells"]
    assert peers.marked(kept) in peers.PAGE.read_text()


def test_what_was_kept_has_the_contestants_of_today():
    for cell in json.loads(peers.KEPT.read_text())["cells"]:
        assert set(cell["seconds"]) == set(cell["MiB"]) == set(peers.CONTESTANTS)


def test_the_table_is_written_into_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "PAGE", tmp_path / "speed.md")
    page = "before\n<!-- from benchmarks/peers.json -->\nold\n<!-- end -->\nafter\n"
    peers.PAGE.write_text(page)
    monkeypatch.setattr("sys.argv", ["peers.py", "--table"])
    assert peers.main() == 0
    kept = json.loads(peers.KEPT.read_text())["cells"]
    assert peers.PAGE.read_text() == f"before\n{peers.marked(kept)}\nafter\n"


def test_the_slope_of_a_power_law():
    counts = [1000, 3000, 10000]
    found = scale.slope(counts, [0.002 * n**1.25 for n in counts])
    assert found == {"slope": 1.25, "R2": 1.0}


def test_scale_measures_decoding_and_merging(tmp_path):
    assert scale.decoding(tmp_path, 5) > 1
    assert scale.merging(tmp_path, 20) > 100
    with (tmp_path / "seenby.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"{i:08}" for i in range(320)]
    assert {row["status"] for row in rows} == {"explained"}


@pytest.mark.slow  # whole runs
def test_runs_of_the_benchmarks_write_what_they_are_asked_for(tmp_path):
    scale.noisy_digits(tmp_path, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{i:06}.png" for i in range(3)]
    for overlays in scale.OVERLAYS:
        seconds, MiB = scale.one_run(scale.LAUNCHERS["one process"], tmp_path, 2, overlays)
        assert seconds > 0.5
        assert 100 < MiB < 2000


def test_startup_reads_the_example_digits_as_the_others_do():
    mine = [image.tobytes() for image in startup.example_digits()]
    assert mine == [digit.image.tobytes() for digit in example_digits()]


def test_startup_holds_the_script_to_its_limit(capsys):
    script, tool = "SID_a4.py, default run", "seenby, one picture"
    rounds = [{"imports": (t, 200.0), script: (1.1 * t, 200.0), tool: (2 * t, 300.0)}
              for t in (1.0, 4.0, 2.0)]  # fmt: skip
    assert startup.report(rounds) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[1].split()) == (
        "SID_a4.py, default run 2.20 s, 1.10 times the imports "
        "200.00 MiB, 1.00 times the imports (limit 1.3)"
    )
    assert "4.00 s, 2.00 times the imports" in lines[2]
    assert startup.report([each | {script: (1.0, 261.0)} for each in rounds]) == 1
    assert startup.report([each | {script: (9.0, 200.0)} for each in rounds]) == 1


def test_drawn_shapes_lie_in_their_boxes_and_apart():
    y = drawn.pairs(40, seed=0)
    assert (y[:, 0] != y[:, 1]).all()
    x, boxes = drawn.draw(y, torch.Generator().manual_seed(0))
    bare, again = drawn.draw(torch.full_like(y, drawn.NOTHING), torch.Generator().manual_seed(0))
    assert torch.equal(boxes, again)
    assert not (boxes[:, 0] & boxes[:, 1]).any()
    changed = (x != bare).any(1)
    for box in (boxes[:, 0], boxes[:, 1]):  # apart from marks, whose colour the shapes changed
        assert ((changed & box).flatten(1).sum(1) > 30).all()
    assert drawn.there(torch.tensor([[2, 2], [4, 0], [4, 4]])).tolist() == [
        [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]  # fmt: skip


def test_what_a_map_is_worth():
    boxes = torch.zeros(3, 2, 48, 48, dtype=torch.bool)
    boxes[:, 0, :12, :12] = boxes[:, 1, 24:36, :12] = True
    right, wrong, none = torch.zeros(3, 48, 48)
    right[:12, :12], wrong[24:36, :12], wrong[0, 0] = 1, 1, 0.5
    maps = torch.stack([right, wrong, none])
    found = layers.worth(maps, boxes, maps[:, 3::6, 3::6])
    assert found["energy"].tolist() == pytest.approx([1, 0.5 / 144.5, 0])
    assert found["pointing"].tolist() == [1, 0, 0]
    assert found["own"].tolist() == pytest.approx([1, 0.5 / 144.5, 0.5])
    assert found["occlusion"].tolist() == pytest.approx([1, 1, 0])
    assert found["empty"].tolist() == [0, 0, 1]


def test_the_page_has_the_table_of_the_layers():
    kept = json.loads(layers.KEPT.read_text())
    assert layers.marked(kept) in layers.PAGE.read_text()
    assert len(layers.table(kept).splitlines()) <= 2 + 12
    for network in kept["networks"].values():
        assert all(seed["accuracy"] > 0.95 for seed in network["seeds"].values())


def test_the_page_says_what_the_study_of_layers_found():
    networks = json.loads(layers.KEPT.read_text())["networks"]
    seeds = [seed for network in networks.values() for seed in network["seeds"].values()]
    right = [seed["accuracy"] for seed in seeds]
    assert f"{min(right):.0%} to {max(right):.0%}".replace("%", "", 1).replace("%", " %") in (
        layers.PAGE.read_text().replace("\n", " "))  # fmt: skip
    for name, better in (("ViT", layers.MEASURES), ("Swin", ("pointing", "own", "occlusion"))):
        network = networks[name]
        for each in (network["all"], *(seed["layers"] for seed in network["seeds"].values())):
            for measure in layers.MEASURES:
                _, low, high = each[network["rival"]][measure + layers.AHEAD]
                assert low > 0 if measure in better else high < 0
    ViT = networks["ViT"]["all"]
    assert ViT["blocks.3"]["own" + layers.GAIN][2] < 0
    assert ViT["blocks.0.norm1"]["own"][0] > ViT["blocks.4.norm1"]["own"][0]
    assert max(ViT[layer]["own"][0] for layer in ViT) < 0.6


@pytest.mark.slow  # it trains
def test_a_quick_study_of_layers_runs(capsys):
    before, page = layers.KEPT.read_text(), layers.PAGE.read_text()
    assert layers.main(["--quick"]) == 0
    assert (layers.KEPT.read_text(), layers.PAGE.read_text()) == (before, page)
    lines = capsys.readouterr().out.splitlines()
    kept = json.loads(before)
    assert len(lines) == len(kept["networks"]) + len(layers.table(kept).splitlines())
    for line, (name, network) in zip(lines, kept["networks"].items(), strict=False):
        assert line.startswith(f"{name}, seed 0: ")
        assert line.endswith(f" {network['default']}")


def test_what_fails_or_does_not_fit_is_told_and_the_rest_follows():
    def fail():
        raise RuntimeError("CUDA error:\nno kernel")

    end = time.monotonic() + 5
    assert gpu.do(("a", 1, lambda: {"found": 1}), end) == {"found": 1}
    assert gpu.do(("b", 1, fail), end) == "failed: RuntimeError: CUDA error: no kernel"
    assert gpu.do(("c", 60, fail), end).startswith("skipped: it may need 60 s, and ")


def test_the_stages_share_the_time():
    spent = {"all batches": 10.0, "prepare": 1.0, "prepare and transfer": 1.5, "network": 6.0,
             "decode": 1.0, "transfer back": 0.5, "write": 5.0}  # fmt: skip
    assert gpu.shares(spent, 12.0) == {
        "seconds of": {"start and figure": 2, "batches": 10},
        "share of the batches' time": {"prepare": 0.1, "network": 0.6, "decode": 0.1,
                                       "transfer back": 0.05, "transfer": 0.05, "rest": 0.1,
                                       "write, of two threads": 0.5}}  # fmt: skip


@pytest.mark.slow  # whole runs
@pytest.mark.skipif(torch.cuda.is_available(), reason="it is quick on a CPU")
def test_a_quick_look_at_a_gpu_runs_on_a_cpu(capsys):
    before = {path: path.stat().st_mtime for path in gpu.ROOT.glob("benchmarks/*.json")}
    assert gpu.main(["--quick"]) == 0
    assert {path: path.stat().st_mtime for path in gpu.ROOT.glob("benchmarks/*.json")} == before
    _, *lines = capsys.readouterr().out.splitlines()
    names = [line[10:].partition(": ")[0] for line in lines]
    assert [names.count(part) for part in ("maps", "smoke", "run", "peers")] == [1, 4, 6, 2]
    assert [line for line in lines if "failed" in line or "skipped" in line] == []


# ------------------------------------------------------------------------------------------ zoo


ZOO = json.loads(zoo.KEPT.read_text())
KEPT_BY_NAME = {(each["library"], each["network"], tuple(each["size"])): each
                for each in ZOO["networks"]}  # fmt: skip
ORDINARY = ["alexnet", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2",
            "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
            "squeezenet1_1"]  # fmt: skip


def test_in_no_network_of_the_zoo_the_layer_is_wrong():
    libraries = [each["library"] for each in ZOO["networks"]]
    assert libraries.count("torchvision") >= 78
    assert libraries.count("timm") >= 150
    assert libraries.count("transformers") >= 8
    assert [each for each in ZOO["networks"] if each["verdict"] == "wrong"] == []
    assert {zoo.kind(each) for each in ZOO["networks"]} == {*zoo.KINDS}
    assert zoo.marked(ZOO["networks"]) in zoo.PAGE.read_text()


def test_finding_a_layer_takes_few_forward_passes():
    assert statistics.median(each["passes"] for each in ZOO["networks"]) <= 2.5


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_networks_layer_never_changes_unnoticed(name):
    kept = KEPT_BY_NAME["torchvision", name, (96, 96)]
    net, x = zoo.build("torchvision", name, (96, 96)), zoo.pictures((96, 96))[:1]
    found = find_layer(net, x)
    assert (found.name, found.note) == (kept["layer"], kept["note"])


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name", "size"), zoo.quick_networks())
def test_the_zoo_is_as_it_was_kept(library, name, size):
    found = zoo.examine(library, name, size)
    kept = KEPT_BY_NAME[library, name, size]
    assert found["verdict"] == kept["verdict"] != "wrong"
    for what in ("layer", "note", "layout", "prefix"):
        assert found[what] == kept[what]
    for what in ("cells", "stride"):
        assert [*(found[what] or ())] == [*(kept[what] or ())]


class Bypassed(nn.Module):
    """Half of the evidence goes past its second convolution; its maps are not square."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv1(x)
        return self.fc((x + self.conv2(x).relu()).mean((2, 3)))


def test_the_zoos_oracles_see_what_is_wrong():
    net, x = Bypassed().double().eval(), torch.randn(2, 3, 8, 12, dtype=torch.float64)
    right = explain(net, x)
    assert right.layer == "conv1"
    assert zoo.compare(net, x, right)[1] == []
    assert zoo.compare(net, x, explain(net, x, layer="conv2"))[1] == [
        "not the trunk: other ways lead around the layer"]
    turned = replace(right, grid=Grid(6, 4, "NHWC"), L_c=right.L_c.mT, R=-right.R)
    assert zoo.compare(net, x, turned)[1] == [
        "the grid: NCHW with 0 others, (4, 6)", "L_c", "R"]
    assert zoo.look_around(net, x, right) == (2, 1 / 3)
    with torch.no_grad():
        net.fc.weight.zero_()
    assert zoo.compare(net, x, replace(explain(net, x), layer_note=""))[1] == [
        "not live: the logit does not depend on its cells", "no gradient reaches the layer"]


def test_the_zoo_reads_cells_by_the_pictures_shape_alone():
    tokens = torch.arange(2 * 15 * 4.0).view(2, 15, 4)
    maps, layout, prefix = zoo.read_cells(tokens, (32, 48))
    assert (layout, prefix) == ("tokens", 9)  # 2 x 3
    maps, layout, prefix = zoo.read_cells(tokens[:, :8], (32, 48))
    assert (maps.shape, layout, prefix) == ((2, 4, 2, 3), "tokens", 2)
    assert torch.equal(maps[:, :, 1, 2], tokens[:, 7])
    last = torch.arange(2 * 2 * 3 * 4.0).view(2, 2, 3, 4)
    maps, layout, _ = zoo.read_cells(last, (32, 48))
    assert (maps.shape, layout) == ((2, 4, 2, 3), "NHWC")
    assert torch.equal(maps[:, 3, 1, 2], last[:, 1, 2, 3])
    assert zoo.read_cells(maps, (32, 48))[0] is maps


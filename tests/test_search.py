"""Which layer is explained where none is named."""

import pytest
import torch
import torch.nn.functional as F
from oracles import Block, DigitCNN, Listed, untrained
from torch import nn

from seenby import InputError, explain, explain_many
from seenby.core.grids import Grid
from seenby.core.search import FoundLayer, find_layer


class Squeeze(nn.Module):
    def __init__(self, K):
        super().__init__()
        self.fc = nn.Conv2d(K, K, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


def head():
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]


torch.manual_seed(0)  # of the networks below, which by chance may have nothing but dead ReLUs


@pytest.mark.parametrize(
    ("layer", "net"),
    [
        ("conv2", DigitCNN()),
        ("1", nn.Sequential(Block(1, 2, 2), nn.Sequential(Block(2, 4, 2), Block(4, 4)), *head())),
        ("0.2", nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3),
                                            nn.ReLU(), nn.MaxPool2d(2)), *head())),
        ("0", nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), *head())),
        ("0.0", nn.Sequential(nn.Sequential(Block(1, 4), nn.MaxPool2d(2), Squeeze(4)), *head())),
        ("0", nn.Sequential(nn.Sequential(Block(1, 4), Squeeze(4)), *head())),
        ("blocks.1", Listed()),
    ],
)  # fmt: skip
def test_the_default_layer_is_the_last_block_at_its_resolution(layer, net):
    assert find_layer(net, torch.rand(1, 1, 28, 28)) == FoundLayer(layer)


KNOWN = [
    ("alexnet", 224, "features.10", 16, 0.5),
    ("vgg16", 224, "features.28", 16, 0),
    ("resnet18", 224, "layer4", 32, 0),
    ("resnet50", 224, "layer4", 32, 0),
    ("mobilenet_v2", 224, "features", 32, 0),
    ("googlenet", 224, "inception5b", 32, 0),
    ("densenet121", 224, "features", 32, 0),
    ("squeezenet1_0", 224, "classifier.1", 16, 0.5),
    ("inception_v3", 299, "Mixed_7c", 32, 0.671875),
    ("shufflenet_v2_x1_0", 224, "conv5", 32, 0),
    ("convnext_tiny", 224, "features", None, None),
]


@pytest.mark.parametrize(("name", "S", "layer", "stride", "pad"), KNOWN)
def test_layer_stride_and_pad_of_torchvisions_networks(name, S, layer, stride, pad):
    explanation = explain(untrained(name), torch.rand(1, 3, S, S), guided=False)
    assert explanation.layer == layer
    assert explanation.stride == (stride and (stride, stride))
    assert explanation.pad == (None if pad is None else (pad, pad))


def test_layer_stride_and_pad_of_timms_xception():
    timm = pytest.importorskip("timm")
    net, x = timm.create_model("legacy_xception"), torch.rand(1, 3, 299, 299)
    explanation = explain(net, x, guided=False)
    assert (explanation.layer, explanation.stride) == ("conv4", (32, 32))
    assert explanation.pad == (-0.328125, -0.328125)


def test_without_a_grid_there_is_no_layer():
    with pytest.raises(InputError, match=r"no layer of the network gives maps .*; give a network"):
        find_layer(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(1, 1, 4, 4))


class ViT(nn.Module):
    """Two blocks of attention over patches; the head reads the class token, or all patches."""

    def __init__(self, prefix=1, pooled=False):
        super().__init__()
        self.prefix, self.pooled = prefix, pooled
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.tokens = nn.Parameter(torch.randn(1, prefix, 8))
        self.blocks = nn.Sequential(Attention(), Attention())
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)
        x = self.norm(self.blocks(x))
        return self.head(x[:, self.prefix :].mean(1) if self.pooled else x[:, 0])


class Attention(nn.Module):
    """What it gives first is a residual stream, and then its weights, as some do."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.proj((q @ k.mT / 8**0.5).softmax(-1) @ v)


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_a_class_token_reads_the_patches_through_the_last_norm(prefix):
    net, x = ViT(prefix).double().eval(), torch.rand(1, 3, 16, 24, dtype=torch.float64)
    assert find_layer(net, x) == FoundLayer("blocks.1.norm")
    explanation = explain(net, x, 1)
    assert explanation.grid == Grid(4, 6, "tokens", prefix)
    assert (explanation.stride, explanation.stride_inferred) == ((4, 4), True)
    assert explanation.pad == (0, 0)
    before = net.blocks[0](torch.cat([net.tokens, net.patches(x).flatten(2).mT], 1)).detach()
    A = net.blocks[1].norm(before).detach().requires_grad_()
    q, k, v = net.blocks[1].qkv(A).chunk(3, -1)
    behind = before + net.blocks[1].proj((q @ k.mT / 8**0.5).softmax(-1) @ v)
    (g,) = torch.autograd.grad(net.head(net.norm(behind)[:, 0])[0, 1], A)
    alpha = g[0, prefix:].mean(0)
    L_c = (A[0, prefix:].detach() @ alpha).clamp(min=0).view(1, 4, 6)
    torch.testing.assert_close(explanation.alpha[0], alpha, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(explanation.L_c, L_c, rtol=1e-12, atol=1e-15)


def test_pooled_patches_are_read_at_the_end():
    assert find_layer(ViT(pooled=True), torch.rand(1, 3, 16, 24)) == FoundLayer("blocks")


def test_a_head_of_zeros_hides_no_layer():
    net = ViT()
    nn.init.zeros_(net.head.weight)
    found = find_layer(net, torch.rand(1, 3, 16, 24))
    assert found.name == "blocks.1.norm"
    assert found.note.startswith("the logit depends on no layer, as its weights are zero")


class Streams(nn.Module):
    """Two ways from the pixels to the logits, which meet in the head alone."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(8, 3)

    def forward(self, x):
        both = [self.norm(self.left(x)), self.right(x)]
        return self.head(torch.cat([y.mean((2, 3)) for y in both], 1))


def test_of_several_streams_one_is_explained_and_that_is_said():
    found = find_layer(Streams().eval(), torch.rand(1, 1, 12, 12))
    assert found.name == "norm"
    assert "several streams; norm carries some of it" in found.note


class Pyramid(nn.Module):
    """As a detector does, the head looks at three depths, the finest last."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(1, 4, 3, padding=1)
        self.middle, self.coarse = nn.Conv2d(4, 4, 2, 2), nn.Conv2d(4, 4, 2, 2)
        self.look, self.head = nn.Conv2d(4, 4, 1), nn.Linear(12, 3)

    def forward(self, x):
        fine = self.fine(x)
        middle = self.middle(fine.relu())
        depths = [self.coarse(middle.relu()), middle, fine]
        return self.head(torch.cat([self.look(y).mean((2, 3)) for y in depths], 1))


def test_an_early_layer_behind_which_the_evidence_parts_is_said():
    found = find_layer(Pyramid().eval(), torch.rand(1, 1, 12, 12))
    assert found == FoundLayer("fine", "3 of 4 convolutions and the like come after fine, behind "
                               "which the evidence goes several ways; name one of them to see a "
                               "part of it")


class Again(nn.Module):
    """One layer runs twice; what it gives the second time is not used."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        y = self.conv2(self.conv1(x))
        self.conv2(y.detach())
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("guided", [True, False])
def test_a_last_call_without_a_gradient_is_passed_over(guided):
    net, x = Again().double(), torch.rand(2, 1, 12, 12).double()
    assert find_layer(net, x[:1]) == FoundLayer("conv2")
    found = explain(net, x, 0, guided=guided)
    plain = nn.Sequential(net.conv1, net.conv2, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.head)
    torch.testing.assert_close(found.L_c, explain(plain, x, 0, "1").L_c)
    assert found.L_c.any()


class Twice(nn.Module):
    """One layer mixes the channels of each cell, and then once more those of their mean."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.mix(self.conv(x).permute(0, 2, 3, 1))  # (B, u, v, K)
        return self.head(self.mix(y.mean((1, 2))))


def test_a_last_call_that_gives_no_cells_is_not_chosen():
    assert find_layer(Twice(), torch.rand(1, 3, 16, 24)) == FoundLayer("conv")


class Channels(nn.Module):
    """Maps whose channels come last, as in a Swin transformer."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.conv(x).permute(0, 2, 3, 1)  # (B, u, v, K)
        return self.head(F.relu(self.mix(y)).mean((1, 2)))


def test_channels_that_come_last_are_read_as_such():
    net, x = Channels().double(), torch.rand(2, 3, 16, 24, dtype=torch.float64)
    explanation = explain(net, x, 2)
    assert (explanation.layer, explanation.grid) == ("mix", Grid(4, 6, "NHWC"))
    A = net.mix(net.conv(x).permute(0, 2, 3, 1)).detach().requires_grad_()
    (g,) = torch.autograd.grad(net.head(F.relu(A).mean((1, 2)))[:, 2].sum(), A)
    L_c = (A.detach() * g.mean((1, 2))[:, None, None]).sum(-1).clamp(min=0)
    torch.testing.assert_close(explanation.L_c, L_c, rtol=1e-12, atol=1e-15)
    assert explanation.alpha.shape == (2, 8)


# Each with the layer that pytorch-grad-cam's README names for its kind, the last block's first
# norm, and how many tokens are cut off by the reshape_transform there; None: channels come last.
THEIR_LAYERS = [
    ("vit_tiny_patch16_224", 224, "blocks.11.norm1", 1),
    ("deit_tiny_patch16_224", 224, "blocks.11.norm1", 1),
    ("deit_tiny_distilled_patch16_224", 224, "blocks.11.norm1", 2),
    ("beit_base_patch16_224", 224, "blocks.11.norm1", 1),
    ("eva02_tiny_patch14_224", 224, "blocks.11.norm1", 1),
    ("cait_xxs24_224", 224, "blocks.23.norm1", 0),
    ("vit_small_patch14_reg4_dinov2", 112, "blocks.11.norm1", 5),
    ("swin_tiny_patch4_window7_224", 224, "layers.3.blocks.1.norm1", None),
    ("swinv2_tiny_window8_256", 256, "layers.3.blocks.1.norm1", None),
    ("torchvision swin_t", 224, "features.7.1.norm1", None),
    ("torchvision vit_b_32", 224, "encoder.layers.encoder_layer_11.ln_1", 1),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "S", "layer", "prefix"), THEIR_LAYERS)
def test_tokens_are_read_as_pytorch_grad_cams_readme_reads_them(name, S, layer, prefix):
    timm, theirs = pytest.importorskip("timm"), pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    library, _, rest = name.partition(" ")
    options = {"img_size": S} if "dinov2" in name else {}  # it takes 518 else, which is long
    net = untrained(rest) if library == "torchvision" else timm.create_model(name, **options)
    net, x = net.double().eval(), torch.randn(1, 3, S, S, dtype=torch.float64)
    for weight in net.parameters():  # heads and norms that begin with zeros
        if not weight.any():
            nn.init.normal_(weight, std=0.02)

    def reshape_transform(tensor):
        if prefix is None:
            return tensor.transpose(2, 3).transpose(1, 2)
        side = round((tensor.size(1) - prefix) ** 0.5)
        result = tensor[:, prefix:, :].reshape(tensor.size(0), side, side, tensor.size(2))
        return result.transpose(2, 3).transpose(1, 2)

    target_layer = net.get_submodule(layer)
    compared = 0
    for c, explanation in enumerate(explain_many(net, x, range(4), layer, guided=False)):
        if not explanation.L_c.any():  # by chance, as the weights are random
            continue
        targets = [ClassifierOutputTarget(c)]
        with theirs.GradCAM(net, [target_layer], reshape_transform=reshape_transform) as cam:
            cam(x, targets)
            seen = cam.activations_and_grads
            A, g = (kept[0].detach().numpy() for kept in (seen.activations, seen.gradients))
            raw = cam.get_cam_image(x, target_layer, targets, A, g, False)  # before its min-max
        raw, L_c = torch.as_tensor(raw).clamp(min=0)[0], explanation.L_c[0]
        assert torch.corrcoef(torch.stack([raw.flatten(), L_c.flatten()]))[0, 1] > 0.999999
        torch.testing.assert_close(raw, L_c, rtol=0, atol=1e-6 * float(L_c.max()))
        compared += 1
    assert compared


def test_what_is_no_grid_is_refused_with_the_nearest_that_are():
    net = ViT()
    net.blocks[0].weights = nn.Identity()
    with pytest.raises(InputError, match=r"layer head gives \(1, 3\) of .* such as norm, blocks, "):
        explain(net, torch.rand(1, 3, 16, 24), layer="head")


class WholeBatches(nn.Module):
    """Takes three pictures, and no other number of them."""

    def __init__(self):
        super().__init__()
        self.conv, self.last, self.fc = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        A = F.relu(self.last(F.relu(self.conv(x)))).view(3, 4, -1)
        return self.fc(A.mean(2))


def test_a_network_that_takes_whole_batches_is_searched_with_one():
    net, x = WholeBatches(), torch.rand(3, 2, 9, 9)
    found, named = explain(net, x), explain(net, x, layer="last")
    assert found.layer == "last"
    assert torch.equal(found.heatmap, named.heatmap)
    with pytest.raises(RuntimeError, match=r"shape '\[3, 4, -1\]' is invalid"):
        explain(net, x[:2])


def test_behind_a_global_max_pooling_few_cells_tell():
    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(F.relu(self.c2(F.relu(self.c1(x)))).amax((2, 3)))

    assert find_layer(Largest(), torch.randn(1, 3, 32, 32)) == FoundLayer("c2")


def test_of_a_dark_picture_the_streams_are_told_too():
    class Streams(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Conv2d(1, 4, 3, padding=1, bias=False) for _ in range(2))
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            both = F.relu(torch.cat([self.a(x), self.b(x)], 1))
            return self.fc(both.mean((2, 3)))

    net, x = Streams(), torch.zeros(1, 1, 32, 32)
    x[..., 4:8, 20:24] = 1
    assert find_layer(net, x) == find_layer(net, torch.randn(1, 1, 32, 32))
    assert "several streams" in find_layer(net, x).note


def test_weights_that_are_kept_as_buffers_are_learned():
    class Frozen(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.register_buffer("w", 0.2 * torch.randn(o, i, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.w, padding=1)

    net = nn.Sequential(Frozen(3, 8), nn.ReLU(), Frozen(8, 8), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    assert find_layer(net, torch.randn(1, 3, 8, 8)) == FoundLayer("2")


class Windows(nn.Module):
    """As TNT: convolutions see the pixels of each patch by itself, and its tokens come after."""

    def __init__(self):
        super().__init__()
        self.pixels, self.tokens = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3 * 16, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        B, C = x.shape[:2]
        patches = F.unfold(x, 4, stride=4).transpose(1, 2)  # (B, cells, C * 16)
        windows = F.relu(self.pixels(patches.reshape(-1, C, 4, 4)))
        return self.fc(F.relu(self.tokens(windows.reshape(B, -1, 3 * 16))).mean(1))


def test_windows_are_no_maps_by_which_tokens_are_told():
    found = explain(Windows(), torch.rand(2, 2, 12, 20))
    assert (found.layer, found.grid) == ("tokens", Grid(3, 5, "tokens"))


def test_a_segmentation_of_as_many_classes_as_channels_is_not_its_own_logits():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))  # fmt: skip
    assert find_layer(net, torch.randn(1, 3, 16, 16)).name == "4"

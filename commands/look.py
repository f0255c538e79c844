"""What heads see: heatmaps, masks, images that share one property, the page on an edit, and the desk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..editor.files.inputs import require_query
from ..editor.files.whole import require_apart, require_free_file
from ..editor.images.demo_name import DEMO
from .checks import require_edited, require_heads, require_image, require_images, require_scan
from .console import print_json, print_table, progress, say, say_next, say_result
from .labelled import open_labelled, read_options, require_own_columns
from .load import open_model
from .options import (
    AlignerOption,
    ClassesOption,
    ExifOption,
    GroupByOption,
    JsonOption,
    LabelOption,
    LayoutOption,
    MaybeDatasetOption,
    ModelOption,
    NoCacheOption,
    OverwriteFileOption,
    OverwriteOption,
    PretrainedOption,
    ReadingOption,
    RetentionOption,
    ScanOption,
    SplitOption,
    TemplatesOption,
    gather,
    given,
)

if TYPE_CHECKING:
    from ..editor.components import HeadId
    from ..editor.models.model import Model

HEATMAP_OUT, MASKS_OUT, INDEX = Path("heatmap.png"), Path("masks"), Path("clipedit-index.safetensors")
DESK_OUT = Path("desk.html")


def heatmap(
    image: Annotated[Path, typer.Argument(callback=require_image, help="An image.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="What to look for; repeat for several. Left out: what --head's TextSpan says, from --scan."),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            callback=require_heads, help="A head, L3H5; repeat for several. By default all of the last four layers."
        ),
    ] = None,
    each_head: Annotated[
        bool, typer.Option("--each-head", help="A picture for each head, in place of their sum.")
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Take off the mean of these texts; repeat. By default of a general pool."),
    ] = None,
    scan: Annotated[Path | None, typer.Option(callback=require_scan, help="A scan, for the texts of --head.")] = None,
    model: ModelOption = DEMO,
    pretrained: PretrainedOption = None,
    aligner: AlignerOption = None,
    exif: ExifOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = HEATMAP_OUT,
    overwrite: OverwriteFileOption = False,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Show where heads see a text in an image.

    Red speaks for the text, blue against it.
    """
    require_apart(out, image, scan, aligner)
    require_free_file(out, overwrite=overwrite)
    from ..editor.look.heatmaps import draw_heatmap_file, head_texts

    loaded = open_model(model, pretrained, aligner, scan=scan)
    # Without a text the head is shown what its own label says.
    texts = text or head_texts(loaded, head or [], scan)
    options = {"against": against, "each_head": each_head, **given(exif=exif)}
    drawn = draw_heatmap_file(loaded, image, out, texts=texts, heads=head, **options)
    if as_json:
        print_json({"out": str(out), "heatmaps": [vars(one) for one in drawn]})
        return
    rows = [[one.heads, one.text, f"{one.share:+.3f}", f"{one.on_image:+.3f}"] for one in drawn]
    print_table(["heads", "text", "share of the similarity", "on the image"], rows)
    say(f"wrote {out}")


def segment(
    images: Annotated[
        str, typer.Argument(callback=require_images, help="A folder, a CSV with a column of paths, or an image.")
    ],
    text: Annotated[
        list[str],
        typer.Option(help="What to cut out; repeat for several, which are then told from each other."),
    ],
    against: Annotated[list[str] | None, typer.Option(help="Take off the mean of these texts; repeat.")] = None,
    reading: ReadingOption = None,
    concept: Annotated[
        str | None,
        typer.Option(help="Weigh heads by their score for this concept, a name or file; needs --scan."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="With --concept: take off the score for this one, as what surrounds the objects."),
    ] = None,
    scan: Annotated[
        Path | None, typer.Option(callback=require_scan, help="For --concept: a scan of this model.")
    ] = None,
    least: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Where fewer of a general pool's texts fit the image less, the mask is empty; 0: never."
        ),
    ] = None,
    model: ModelOption = DEMO,
    pretrained: PretrainedOption = None,
    aligner: AlignerOption = None,
    exif: ExifOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write masks to.")] = MASKS_OUT,
    overwrite: OverwriteOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Write a mask for each image: white where heads see the text."""
    # With --overwrite the folder is replaced: nothing may be read from it.
    require_apart(out, images, aligner, scan)
    if (concept or keep) and (scan is None or concept is None):
        raise typer.BadParameter("weights of heads need both --concept and --scan", param_hint="--concept")
    from ..editor.look.segment import segment_folder

    loaded = open_model(model, pretrained, aligner, scan=scan)
    options = given(reading=reading, least=least, exif=exif, weights=_weigh_heads(scan, loaded, concept, keep))
    with progress() as follow:
        told = {"overwrite": overwrite, "progress": follow("segment")}
        done = segment_folder(loaded, images, out, texts=text, against=against, **told, **options)
    for name, count in done.found.items():
        say_result(f"{name}: {f'found in {count}' if count else 'not found in any'} of {done.images} images")
    folders = ", one folder per text" if len(text) > 1 and reading != "evidence" else ""
    say(f"wrote {out}: masks of {done.images} images{folders}, and scores.csv")


def _weigh_heads(
    scan: Path | None, model: Model, concept: str | None, keep: str | None
) -> Mapping[HeadId, float] | None:
    from ..editor.look.readings import weigh_heads
    from ..editor.scan.scan import load_scan

    return weigh_heads(load_scan(scan), model, concept=concept, keep=keep) if scan and concept else None


def retrieve(
    images: Annotated[
        str, typer.Argument(callback=require_images, help="Where to search: a folder, a CSV, or `demo`.")
    ],
    text: Annotated[str | None, typer.Option(help="What to search for.")] = None,
    image: Annotated[
        Path | None, typer.Option(callback=require_image, help="A reference image, in place of --text.")
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="Compare by the heads that carry this concept only: a name or file.")
    ] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="How many of them.")] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many images.")] = 10,
    index: Annotated[Path, typer.Option(help="The index: read if it exists, else made.")] = INDEX,
    model: ModelOption = DEMO,
    pretrained: PretrainedOption = None,
    aligner: AlignerOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the images as one PNG.")] = None,
    overwrite: OverwriteFileOption = False,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Find images that share one property.

    With a text, or with a reference image.
    """
    require_query(text, image)
    if out is not None:
        require_free_file(out, overwrite=overwrite)
    from ..editor.look.retrieve import run_retrieval

    loaded = open_model(model, pretrained, aligner)
    query = {"text": text, "image": image, "concept": concept, "heads": heads, "count": count, "sheet": out}
    with progress() as follow:
        found = run_retrieval(loaded, images, index, progress=follow("index"), **query)
    if as_json:
        print_json({"heads": found.heads, "because": found.because, "images": [vars(hit) for hit in found.hits]})
        return
    print_table(["image", "similarity"], [[hit.name, f"{hit.similarity:.3f}"] for hit in found.hits])
    say(f"compared by {', '.join(found.heads) or 'the whole embedding'}; the index is {index}")
    if found.because:
        say_result(f"a poor guide: {found.because}.")


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `remove-heads` wrote.")],
    images: Annotated[
        str | None,
        typer.Option(
            callback=require_images,
            help="Where to look for the images that excite heads most: a folder or a CSV.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File to write; by default report.html in the folder, replaced if it is there."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file given as -o.")] = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Write a page on an edit.

    What was removed and why, before and after, every head's card, the checks.
    """
    if out is not None:
        require_free_file(out, overwrite=overwrite)
    require_edited(folder)
    from ..export.pages.report import write_report

    with progress() as follow:
        page = write_report(folder, images=images, out=out, progress=follow("report"))
    say(f"wrote {page}: open it in a browser")


def desk(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder that `remove-heads` or `demo` wrote; or give --scan.")
    ] = None,
    scan: ScanOption = None,
    concept: Annotated[
        str | None,
        typer.Option(
            help="What is to go, a name or a file; else the folder's, or what few heads hold most selectively."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The unedited model; by default the one that was scanned.")] = None,
    pretrained: PretrainedOption = None,
    dataset: MaybeDatasetOption = None,
    layout: LayoutOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    retention: RetentionOption = None,
    classes: ClassesOption = None,
    templates: TemplatesOption = None,
    exif: ExifOption = None,
    count: Annotated[
        int | None, typer.Option(min=20, help="At most so many labelled images, each group with its share.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write, .html.")] = DESK_OUT,
    overwrite: OverwriteFileOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """See an edit before you make it.

    Switch heads, strengths and projections on a page, see at once what each does, and take the recipe home.
    """
    asked = locals()
    require_free_file(out, overwrite=overwrite)
    require_own_columns(asked)
    from ..export.pages.desk.open import Named, open_desk

    named = gather(Named, asked)
    labelled = open_labelled(asked) if dataset is not None else None
    with progress() as follow:
        options = {"labels": read_options(asked), "count": count, "progress": follow("images")}
        found = open_desk(named, dataset=labelled, **options)
    say(f"{found.describe()}: {found.size / 1e6:.1f} MB")
    found.save(out)
    say(f"wrote {out}: open it in a browser")
    say_next("with the recipe that it downloads", f"clipedit apply recipe.yaml --scan {scan or 'SCAN'} -o repaired")

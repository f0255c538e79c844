"""audit: what a model's heads hold, and what its classes lean on, concept by concept."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..editor.files.whole import require_free_file, require_free_folder
from ..editor.images.demo_name import DEMO
from .checks import concepts_folder, require_concepts
from .console import Follow, print_json, print_table, progress, say, say_next, say_result, say_skipped
from .labelled import open_labelled, read_classes, read_options, require_own_columns
from .load import open_model, open_scan
from .options import (
    AlignerOption,
    BatchOption,
    ClassesOption,
    DecodeOption,
    ExifOption,
    GroupByOption,
    ImagesOption,
    JsonOption,
    LabelOption,
    LayoutOption,
    MaxBadOption,
    MaybeDatasetOption,
    ModelOption,
    NoCacheOption,
    OverwriteFileOption,
    PretrainedOption,
    ScanOption,
    SplitOption,
    TemplatesOption,
    TopOption,
    given,
    split_columns,
)
from .tables.discovery import ToldDiscovery

if TYPE_CHECKING:
    from ..editor.models.model import Model
    from ..editor.scan.scan import Scan
    from ..editor.select.audit import Audit, AuditRow
    from ..editor.select.discovery.candidates import Discovery

ALL, PAGE = "all", "audit.html"
_LABELS = ("layout", "label", "group_by", "split", "classes", "templates", "top")


def audit(
    model: ModelOption = DEMO,
    images: ImagesOption = None,
    pretrained: PretrainedOption = None,
    scan: ScanOption = None,
    aligner: AlignerOption = None,
    concepts: Annotated[str, typer.Option(help="`all`, or names separated by commas.")] = ALL,
    concept: Annotated[list[str] | None, typer.Option(help="A file with one of your own; may be repeated.")] = None,
    classes: ClassesOption = None,
    dataset: MaybeDatasetOption = None,
    layout: LayoutOption = None,
    templates: TemplatesOption = None,
    label: LabelOption = None,
    group_by: GroupByOption = "",
    split: SplitOption = None,
    top: TopOption = None,
    batch_size: BatchOption = None,
    max_bad: MaxBadOption = None,
    exif: ExifOption = None,
    decode: DecodeOption = None,
    discover: Annotated[
        bool, typer.Option("--discover", help="Also look for concepts that a few heads hold and nobody wrote down.")
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(help="With --discover: what heads may be named by, one text per line; by default the pool."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Also write a page to this file, .html; with --discover candidates and audit.html to this folder.",
        ),
    ] = None,
    overwrite: OverwriteFileOption = False,
    as_json: JsonOption = False,
    no_cache: NoCacheOption = False,
) -> None:
    """Ask of every concept whether a few heads hold it, and whether the classes lean on it.

    From unlabelled images and words: says what `remove-heads` would do, and what to run next. Without --classes or
    --dataset only heads are looked at. With --discover it also names heads that no known concept explains.
    """
    asked = locals()
    _require_usage(asked)
    words = _read_classes(asked)
    with progress() as follow:
        scanned, loaded = _open(asked, follow)
        found, discovered = _ask(asked, scanned, loaded, words)
    say_skipped(scanned if scan is None else None)
    commands, news = _spell_commands(found, asked, scanned), _write_candidates(discovered, asked, scanned)
    print_json(_report(found, commands, news)) if as_json else _print(found, commands, news)
    if news is not None:
        # Beside the candidates: of none there is no folder.
        out, commands = out / PAGE if out is not None and news.files else None, {**commands, **news.commands}
    if out is not None:
        _write_page(found, out, loaded.name, commands, discovered)


def _require_usage(asked: dict[str, Any]) -> None:
    _require_discovery(asked)
    if asked["out"] is not None:
        # The names of candidates are not known before they are found: no scan may be lost to a file that is there.
        require_free = require_free_folder if asked["discover"] else require_free_file
        require_free(asked["out"], overwrite=asked["overwrite"])
    # A file of classes stands by itself here: no image is read for them.
    if asked["dataset"] is not None or asked["classes"] is None:
        require_own_columns(asked)
    # A misspelt name must not cost a scan; which names a scan's own model has, only its folder says.
    named = asked["concepts"] != ALL and asked["scan"] is None
    names = split_columns(asked["concepts"]) if named else ()
    require_concepts(asked["model"], *names, *(asked["concept"] or ()))


def _require_discovery(asked: dict[str, Any]) -> None:
    if asked["texts"] is not None and not asked["discover"]:
        raise typer.BadParameter("says what heads may be named by: give --discover", param_hint="--texts")
    if asked["discover"] and asked["out"] is not None and asked["out"].suffix == ".html":
        raise typer.BadParameter("is the folder of candidates with --discover, not a page", param_hint="--out")
    if asked["texts"] is not None:
        from ..editor.images.texts import load_texts

        load_texts(asked["texts"])


def _ask(
    asked: dict[str, Any], scanned: Scan, loaded: Model, words: tuple[Sequence[str], Sequence[str]]
) -> tuple[Audit, Discovery | None]:
    from ..editor.images.texts import load_texts
    from ..editor.select.audit import audit as run
    from ..editor.select.discovery.discover import discover
    from ..editor.select.whose_heads import HeldConcepts

    names = None if asked["concepts"] == ALL else split_columns(asked["concepts"])
    shared = {"classes": words[0], "templates": words[1], "own": asked["concept"] or ()}
    # The library is measured once for both.
    known = HeldConcepts(scanned, loaded)
    found = run(scanned, loaded, concepts=names, known=known, **shared)
    if not asked["discover"]:
        return found, None
    texts = None if asked["texts"] is None else load_texts(asked["texts"])
    return found, discover(scanned, loaded, texts=texts, known=known, **shared)


def _write_candidates(found: Discovery | None, asked: dict[str, Any], scanned: Scan) -> ToldDiscovery | None:
    from ..editor.select.discovery.candidates import write_candidates

    if found is None:
        return None
    out, overwrite = asked["out"], asked["overwrite"]
    files = {} if out is None else write_candidates(found, out, overwrite=overwrite)
    return ToldDiscovery(found, files, {name: _spell_command(path, asked, scanned) for name, path in files.items()})


def _write_page(
    found: Audit, out: Path, model: str, commands: dict[str, str], discovered: Discovery | None = None
) -> None:
    from ..export.pages.audit import write_audit

    write_audit(found, out, model=model, commands=commands, discovered=discovered)
    say(f"wrote {out}: open it in a browser")


def _open(asked: dict[str, Any], follow: Follow) -> tuple[Scan, Model]:
    from ..export.inputs import scan_or_load

    if asked["scan"] is not None:
        return open_scan(asked["scan"])
    loaded = open_model(asked["model"], asked["pretrained"], asked["aligner"])
    options = given(**{name: asked[name] for name in ("batch_size", "max_bad", "exif", "decode")})
    return scan_or_load(loaded, asked["images"], None, options=options, follow=follow), loaded


def _read_classes(asked: dict[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    """The words of the classes, and their prompts: from a file, or those of labelled images."""
    from ..editor.images.layouts import list_classes

    prompts = read_options({"templates": asked["templates"]}).templates
    if asked["dataset"] is None:
        return list((read_classes(asked["classes"]) or {}).values()), prompts
    return list_classes(open_labelled(asked)), prompts


def _report(found: Audit, commands: dict[str, str], news: ToldDiscovery | None) -> dict[str, Any]:
    report = found.report()
    rows = [row | {"command": commands.get(row["concept"])} for row in report.pop("concepts")]
    return {"concepts": rows, **report, **({} if news is None else {"discovered": news.report()})}


def _spell_commands(found: Audit, asked: dict[str, Any], scanned: Scan) -> dict[str, str]:
    """What removes each concept that was found, from the model that was scanned."""
    from ..editor.concepts.concepts import load_concept

    folder = concepts_folder(asked["model"]) if asked["concept"] else None
    own = {load_concept(one, folder).name: one for one in asked["concept"] or ()}
    return {row.concept: _spell_command(own.get(row.concept, row.concept), asked, scanned) for row in found.found}


def _spell_command(concept: str | Path, asked: dict[str, Any], scanned: Scan) -> str:
    """What removes a concept, by its name or file, from the model that was scanned."""
    scanned_as = {"model": scanned.model_name, "pretrained": scanned.pretrained, "aligner": scanned.aligner}
    # How labelled images are read goes with them only.
    labels = _LABELS if asked["dataset"] is not None else ()
    options = scanned_as | {name: asked[name] for name in ("images", "scan", "dataset", "exif", "decode", *labels)}
    given_ones = [part for name, value in options.items() if value for part in (_spell_option(name), str(value))]
    return shlex.join(["clipedit", "remove-heads", "--concept", str(concept), *given_ones, "-o", "repaired"])


def _spell_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _print(found: Audit, commands: dict[str, str], news: ToldDiscovery | None) -> None:
    _print_audit(found, commands)
    if news is not None:
        news.show()


def _print_audit(found: Audit, commands: dict[str, str]) -> None:
    columns = [
        "concept",
        "",
        "selectivity",
        *(["margins along it"] if found.classes else []),
        "heads",
        "removed",
        "elsewhere",
    ]
    print_table(columns, [_cells(row, bool(found.classes)) for row in found])
    for row in found.found:
        say_result(row.because)
    if not found.found:
        say_result(f"nothing found: in {found.images} images no few heads hold any of {len(found.rows)} concepts")
        return
    first = found.found[0]
    say_next(f"to remove {first.concept}", commands[first.concept])


def _cells(row: AuditRow, with_lean: bool) -> list[str]:
    from ..editor.select.audit import spell_lean, spell_selectivity

    lean = [spell_lean(row)] if with_lean else []
    shares = ["" if share is None else f"{share:.2f}" for share in (row.removed, row.elsewhere)]
    return [row.concept, row.verdict, spell_selectivity(row), *lean, ", ".join(row.heads), *shares]

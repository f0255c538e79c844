"""clipedit: find, remove and ship. Edit the attention heads of CLIP that learned the wrong thing.

Names are resolved at the first use, so that `clipedit --help` does not wait for torch.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "editor.scan.align": ("align",),
    "editor.scan.align_options": ("AlignOptions",),
    "editor.load": ("apply_aligner", "load_model"),
    "editor.models.aligner": ("Aligner", "load_aligner"),
    "editor.edits.apply": ("apply_recipe",),
    "editor.edits.bind": ("bind_recipe",),
    "editor.select.make_recipe": ("make_recipe",),
    "editor.components": ("ComponentId", "Decomposition", "HeadId"),
    "editor.concepts.concepts": ("Concept", "load_concept"),
    "editor.edits.diff": ("ModelDiff", "diff_models"),
    "editor.errors": (
        "AlignmentError",
        "ClipeditError",
        "ConceptError",
        "ExportError",
        "ImageError",
        "ModelError",
        "PluginError",
        "RecipeError",
        "StatisticsError",
        "VectorError",
        "VerificationError",
    ),
    "editor.images.labelled_options": ("LabelledOptions",),
    "editor.measure.evaluate": ("evaluate",),
    "editor.measure.table": ("FigureTable",),
    "editor.scan.features": ("load_features",),
    "editor.models.decompose": ("decompose",),
    "editor.models.model": ("Model",),
    "editor.drift.monitor": ("DriftReport", "monitor"),
    "editor.drift.stored": ("monitor_vectors",),
    "editor.scan.partials": ("merge_partials",),
    "editor.look.plot": (
        "plot_completeness",
        "plot_frontier",
        "plot_heatmap",
        "plot_layer_ablation",
        "plot_scores",
    ),
    "editor.edits.recipe": ("Recipe", "load_recipe"),
    "editor.measure.reindex": ("compute_embedding_map", "reindex_vectors"),
    "editor.scan.scan": ("Scan", "load_scan", "scan"),
    "editor.scan.by_units": ("scan_units",),
    "editor.select.audit": ("Audit", "audit"),
    "editor.select.discovery.candidates": ("Discovery",),
    "editor.select.discovery.discover": ("discover",),
    "editor.select.options": ("EditOptions", "HeadChoice"),
    "editor.select.plan": ("EditPlan", "Evidence"),
    "editor.select.selectors": ("select_recipe",),
    "editor.switch": ("switch",),
    "editor.concepts.scores": ("HeadScore", "score_heads"),
    "editor.look.spatial": ("Heatmap", "heatmap"),
    "editor.concepts.textspan": ("HeadLabel", "text_span"),
    "export.output": ("Output",),
    "export.pages.desk.desk": ("Desk", "desk"),
    "export.repair": ("Repair", "repair"),
    "export.verify.reproduce": ("reproduce",),
    "export.write": ("export_model",),
    "export.verify.verify": ("verify",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__version__ = "0.1.0"
__all__ = list(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .editor.components import ComponentId as ComponentId
    from .editor.components import Decomposition as Decomposition
    from .editor.components import HeadId as HeadId
    from .editor.concepts.concepts import Concept as Concept
    from .editor.concepts.concepts import load_concept as load_concept
    from .editor.concepts.scores import HeadScore as HeadScore
    from .editor.concepts.scores import score_heads as score_heads
    from .editor.concepts.textspan import HeadLabel as HeadLabel
    from .editor.concepts.textspan import text_span as text_span
    from .editor.drift.monitor import DriftReport as DriftReport
    from .editor.drift.monitor import monitor as monitor
    from .editor.drift.stored import monitor_vectors as monitor_vectors
    from .editor.edits.apply import apply_recipe as apply_recipe
    from .editor.edits.bind import bind_recipe as bind_recipe
    from .editor.edits.diff import ModelDiff as ModelDiff
    from .editor.edits.diff import diff_models as diff_models
    from .editor.edits.recipe import Recipe as Recipe
    from .editor.edits.recipe import load_recipe as load_recipe
    from .editor.errors import AlignmentError as AlignmentError
    from .editor.errors import ClipeditError as ClipeditError
    from .editor.errors import ConceptError as ConceptError
    from .editor.errors import ExportError as ExportError
    from .editor.errors import ImageError as ImageError
    from .editor.errors import ModelError as ModelError
    from .editor.errors import PluginError as PluginError
    from .editor.errors import RecipeError as RecipeError
    from .editor.errors import StatisticsError as StatisticsError
    from .editor.errors import VectorError as VectorError
    from .editor.errors import VerificationError as VerificationError
    from .editor.images.labelled_options import LabelledOptions as LabelledOptions
    from .editor.load import apply_aligner as apply_aligner
    from .editor.load import load_model as load_model
    from .editor.look.plot import plot_completeness as plot_completeness
    from .editor.look.plot import plot_frontier as plot_frontier
    from .editor.look.plot import plot_heatmap as plot_heatmap
    from .editor.look.plot import plot_layer_ablation as plot_layer_ablation
    from .editor.look.plot import plot_scores as plot_scores
    from .editor.look.spatial import Heatmap as Heatmap
    from .editor.look.spatial import heatmap as heatmap
    from .editor.measure.evaluate import evaluate as evaluate
    from .editor.measure.reindex import compute_embedding_map as compute_embedding_map
    from .editor.measure.reindex import reindex_vectors as reindex_vectors
    from .editor.measure.table import FigureTable as FigureTable
    from .editor.models.aligner import Aligner as Aligner
    from .editor.models.aligner import load_aligner as load_aligner
    from .editor.models.decompose import decompose as decompose
    from .editor.models.model import Model as Model
    from .editor.scan.align import align as align
    from .editor.scan.align_options import AlignOptions as AlignOptions
    from .editor.scan.by_units import scan_units as scan_units
    from .editor.scan.features import load_features as load_features
    from .editor.scan.partials import merge_partials as merge_partials
    from .editor.scan.scan import Scan as Scan
    from .editor.scan.scan import load_scan as load_scan
    from .editor.scan.scan import scan as scan
    from .editor.select.audit import Audit as Audit
    from .editor.select.audit import audit as audit
    from .editor.select.discovery.candidates import Discovery as Discovery
    from .editor.select.discovery.discover import discover as discover
    from .editor.select.make_recipe import make_recipe as make_recipe
    from .editor.select.options import EditOptions as EditOptions
    from .editor.select.options import HeadChoice as HeadChoice
    from .editor.select.plan import EditPlan as EditPlan
    from .editor.select.plan import Evidence as Evidence
    from .editor.select.selectors import select_recipe as select_recipe
    from .editor.switch import switch as switch
    from .export.output import Output as Output
    from .export.pages.desk.desk import Desk as Desk
    from .export.pages.desk.desk import desk as desk
    from .export.repair import Repair as Repair
    from .export.repair import repair as repair
    from .export.verify.reproduce import reproduce as reproduce
    from .export.verify.verify import verify as verify
    from .export.write import export_model as export_model


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        close = [known for known in _HOME_OF if name in known] or difflib.get_close_matches(name, _HOME_OF)
        hint = f". Did you mean {', '.join(close)}?" if close and not name.startswith("_") else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""Writes the heat map of workers: stages down, data-parallel ranks across, in the colours of published ones."""

from __future__ import annotations

from pathlib import Path

from instep_diagnosis.errors import EvidenceError, reason_of
from instep_diagnosis.whatif.trace import Array

COLOUR_LOW, COLOUR_HIGH = 1.0, 1.5
CELLS_WITH_NUMBERS_MAX = 256


def write_heatmap(path: Path, slowdown_PD: Array, title: str) -> None:
    """Draw the slowdown [stage, data-parallel rank] as a picture, in the form that the file's name ends with."""
    from matplotlib.figure import Figure  # slow to import, and needed for pictures only

    stages, dps = slowdown_PD.shape
    figure = Figure(figsize=(min(24.0, 2.5 + 0.6 * dps), min(16.0, 1.6 + 0.5 * stages)), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(slowdown_PD, vmin=COLOUR_LOW, vmax=COLOUR_HIGH, cmap="YlOrRd", aspect="auto")
    axes.set(title=title.replace("$", r"\$"), xlabel="DP rank", ylabel="stage")
    for setter, count in ((axes.set_xticks, dps), (axes.set_yticks, stages)):
        setter(range(0, count, max(1, count // 32)))
    if slowdown_PD.size <= CELLS_WITH_NUMBERS_MAX:
        for stage in range(stages):
            for dp in range(dps):
                value = float(slowdown_PD[stage, dp])
                colour = "black" if value < (COLOUR_LOW + COLOUR_HIGH) / 2 else "white"
                axes.text(dp, stage, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(shown, label="slowdown by this worker alone")
    try:
        figure.savefig(path, format=path.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise EvidenceError(
            f"Cannot write the heat map {path} ({reason_of(error)}): name a .png in a folder of yours."
        ) from error

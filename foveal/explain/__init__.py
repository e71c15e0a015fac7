"""Explanations: where a model looked and what each look added to the logits, as a picture, a page or a table.

    explain(model, path, out="report.html", *, locations=None, policy="greedy", device="auto", precision="32", seed=0,
            overlay_out=None, looks_out=None, heatmap_out=None) -> Classification
                                                        # classify one image and write the page and the overlay
    explain_many(model, paths, out="explained", *, labels=None, ...) -> list[Row]   # a folder of pages with an index
    report(classification, image, out="report.html", *, name="image", costs=Costs(), fill=None, antialias=True) -> Path
    overlay(classification, image, *, side=768) -> PIL.Image.Image
    show(classification, image=None)                    # print a table; in a notebook also show the overlay

Example:
    >>> Costs(macs=10, dense_macs=160).dense_macs
    160
"""

from foveal.explain.many import explain_many
from foveal.explain.page import Costs, explain, report
from foveal.explain.pictures import glimpse_pictures, heat, overlay, thumbnail
from foveal.explain.terminal import show

__all__ = ["Costs", "explain", "explain_many", "glimpse_pictures", "heat", "overlay", "report", "show", "thumbnail"]

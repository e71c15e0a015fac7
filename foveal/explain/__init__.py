"""Where a model looked, and what each look added to its answer: a picture, a page, a table.

explain(model, path, out="report.html", *, locations=None, policy="greedy", device="auto", precision="32", seed=0,
        overlay_out=None) -> Classification         # classifies one file, writes the page and, if asked, the overlay PNG
overlay(image, classification, *, side=768) -> PIL.Image.Image
report(image, classification, out, *, name=..., cost=None, ...) -> Path
show(classification, image=None)                     # a table in a terminal; in a notebook the overlay too
"""

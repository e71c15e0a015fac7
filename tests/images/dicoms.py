"""Small DICOM whole-slide images for the tests, written by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, generate_uid

WHOLE_SLIDE = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
SYNTAXES = {
    "jpeg": UID("1.2.840.10008.1.2.4.50"),
    "jpeg2000": UID("1.2.840.10008.1.2.4.90"),
    "native": UID("1.2.840.10008.1.2.1"),
}


def _item(**values: Any) -> Dataset:
    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def write_instance(
    path: Path,
    planes: np.ndarray,
    series: dict[str, str],
    *,
    tile: int = 64,
    spacing: float = 0.0005,
    kind: str = "VOLUME",
    resampled: bool = False,
    coding: str = "jpeg",
    colour: str = "YBR_FULL_422",
    missing: set[tuple[int, int]] | None = None,
    frames: slice | None = None,
    part: tuple[str, int, int] | None = None,
    **changes: Any,
) -> Dataset:
    """Write one instance.

    Args:
        path: path of the file.
        planes: (paths, h, w, bands) pixels of the optical paths.
        series: UIDs, see `new_series`.
        tile: side of the frames.
        spacing: mm per pixel.
        kind: third value of ImageType.
        resampled: whether the level was made from a finer one.
        coding: key of `SYNTAXES`.
        colour: photometric interpretation.
        missing: (row, column) of the frames that are left out, TILED_SPARSE if given.
        frames: frames that are stored, as of a part of a concatenation.
        part: UID, number and count of the parts of a concatenation.
        changes: other attributes.
    """
    paths, height, width, bands = planes.shape
    rows, columns = -(-height // tile), -(-width // tile)
    padded = np.pad(planes, ((0, 0), (0, rows * tile - height), (0, columns * tile - width), (0, 0)), mode="edge")
    places = [(k, i, j) for k in range(paths) for i in range(rows) for j in range(columns)]
    places = [place for place in places if place[1:] not in (missing or ())]
    first = frames.start if frames else 0
    places = places[frames] if frames else places
    tiles = [padded[k, i * tile : (i + 1) * tile, j * tile : (j + 1) * tile].squeeze() for k, i, j in places]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = WHOLE_SLIDE, SYNTAXES[coding]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    found = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    bits = planes.dtype.itemsize * 8
    values = {
        **series,
        "SOPClassUID": WHOLE_SLIDE,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "ImageType": ["DERIVED" if resampled else "ORIGINAL", "PRIMARY", kind, "RESAMPLED" if resampled else "NONE"],
        "Modality": "SM",
        "PatientName": "Secret^Name",
        "ContainerIdentifier": "slide",
        "NumberOfFrames": len(tiles),
        "Rows": tile,
        "Columns": tile,
        "TotalPixelMatrixRows": height,
        "TotalPixelMatrixColumns": width,
        "ImagedVolumeWidth": width * spacing,
        "ImagedVolumeHeight": height * spacing,
        "ImagedVolumeDepth": 0.001,
        "SamplesPerPixel": bands,
        "PhotometricInterpretation": colour,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "BurnedInAnnotation": "NO",
        "FocusMethod": "AUTO",
        "ExtendedDepthOfField": "NO",
        "NumberOfOpticalPaths": paths,
        "TotalPixelMatrixFocalPlanes": 1,
        "LossyImageCompression": "01" if coding == "jpeg" else "00",
        "DimensionOrganizationType": "TILED_FULL" if missing is None else "TILED_SPARSE",
        "ImageOrientationSlide": [0, -1, 0, -1, 0, 0],
    }
    if bands > 1:
        values["PlanarConfiguration"] = 0
    origin = _item(XOffsetInSlideCoordinateSystem=10.0, YOffsetInSlideCoordinateSystem=20.0)
    values["TotalPixelMatrixOriginSequence"] = Sequence([origin])
    values["OpticalPathSequence"] = Sequence([_item(OpticalPathIdentifier=str(i)) for i in range(paths)])
    measures = _item(PixelSpacing=[spacing, spacing], SliceThickness=0.001, SpacingBetweenSlices=0.001)
    frame_type = _item(FrameType=values["ImageType"])
    values["SharedFunctionalGroupsSequence"] = Sequence(
        [
            _item(
                PixelMeasuresSequence=Sequence([measures]),
                WholeSlideMicroscopyImageFrameTypeSequence=Sequence([frame_type]),
            )
        ]
    )
    if missing is not None:
        values["PerFrameFunctionalGroupsSequence"] = Sequence([_position(place, tile) for place in places])
    if part is not None:
        values |= {
            "ConcatenationUID": part[0],
            "InConcatenationNumber": part[1],
            "InConcatenationTotalNumber": part[2],
            "ConcatenationFrameOffsetNumber": first,
            "SOPInstanceUIDOfConcatenationSource": part[0],
        }
    for name, value in (values | changes).items():
        setattr(found, name, value)
    if coding == "native":
        found.PixelData = b"".join(one.tobytes() for one in tiles)
    else:
        found.PixelData = encapsulate([_encode(one, coding, colour) for one in tiles])
        found["PixelData"].is_undefined_length = True
    found.save_as(path, enforce_file_format=True)
    return found


def _position(place: tuple[int, int, int], tile: int) -> Dataset:
    path, row, column = place
    position = _item(
        ColumnPositionInTotalImagePixelMatrix=column * tile + 1,
        RowPositionInTotalImagePixelMatrix=row * tile + 1,
        XOffsetInSlideCoordinateSystem=0.0,
        YOffsetInSlideCoordinateSystem=0.0,
        ZOffsetInSlideCoordinateSystem=0.0,
    )
    return _item(
        PlanePositionSlideSequence=Sequence([position]),
        OpticalPathIdentificationSequence=Sequence([_item(OpticalPathIdentifier=str(path))]),
    )


def _encode(tile: np.ndarray, coding: str, colour: str) -> bytes:
    if coding == "jpeg2000":
        return imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k")
    if tile.ndim == 2 or colour == "RGB":
        return imagecodecs.jpeg8_encode(
            tile,
            level=90,
            colorspace="RGB" if tile.ndim == 3 else None,
            outcolorspace="RGB" if tile.ndim == 3 else None,
        )
    return imagecodecs.jpeg8_encode(tile, level=90, subsampling="422" if colour == "YBR_FULL_422" else "444")


def new_series() -> dict[str, str]:
    """UIDs of a new slide."""
    names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PyramidUID")
    return {name: generate_uid() for name in names}


def write_slide(folder: Path, levels: list[np.ndarray], *, name: str = "slide", **options: Any) -> dict[str, str]:
    """Write a slide of RGB levels, one instance each; return its UIDs."""
    series = new_series()
    for i, level in enumerate(levels):
        write_instance(
            folder / f"{name}{i}.dcm", level[None], series, spacing=0.0005 * 2**i, resampled=i > 0, **options
        )
    return series

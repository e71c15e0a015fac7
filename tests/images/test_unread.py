"""What foveal says of each format of slides and microscopes that it meets: one sentence with what to do."""

import sys

import numpy as np
import pytest
import tifffile

from foveal.errors import ImageError
from foveal.images import open_image
from foveal.images.unread import UNREAD, refuse

OLE, TIFF, JP2 = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"II*\0\x08\0\0\0", b"\0\0\0\x0cjP  \r\n\x87\n"
BIO_FORMATS = "convert it to OME-TIFF, say by bfconvert"
EXPORT = "export it as TIFF, SVS or DICOM"
SAID = {
    "a.isyntax": (
        b'<DataObject ObjectType="DPUfsImport">',
        "is Philips iSyntax, .*; convert it to TIFF, say by isyntax-",
    ),
    "a.i2syntax": (b"<DataObject", "is Philips iSyntax, .*; convert it to TIFF"),
    "a.vsi": (TIFF, f"is Olympus VSI, .*; {BIO_FORMATS}"),
    "frame_t.ets": (b"SIS\0", f"is part of an Olympus VSI, .*; {BIO_FORMATS} of Bio-Formats, giving the .vsi"),
    "a.zvi": (OLE, f"is Zeiss ZVI or Olympus OIB, .*; {BIO_FORMATS}"),
    "a.oib": (OLE, f"is Zeiss ZVI or Olympus OIB, .*; {BIO_FORMATS}"),
    "no_suffix_ole": (OLE, f"is Zeiss ZVI or Olympus OIB, .*; {BIO_FORMATS}"),
    "a.oif": (b"[Profile]", f"is Olympus OIF, .*; {BIO_FORMATS}"),
    "a.lif": (b"\x70\0\0\0", f"is Leica LIF, .*; {BIO_FORMATS}"),
    "a.nd2": (b"\xda\xce\xbe\x0a", f"is Nikon ND2, .*; {BIO_FORMATS}"),
    "old.nd2": (JP2, f"is Nikon ND2, .*; {BIO_FORMATS}"),
    "no_suffix_nd2": (b"\xda\xce\xbe\x0a", f"is Nikon ND2, .*; {BIO_FORMATS}"),
    "a.afi": (b"<ImageList>", r"is an Aperio list of fluorescence channels, .*; give the \.svs files that it names"),
    "a.dzi": (b"<Image TileSize='254'", "is a Deep Zoom image, .*; give the image that it was made from"),
    "a.kfb": (b"KFB\0", f"is KFBio KFB, .*; {EXPORT}"),
    "a.sdpc": (b"SQ", f"is SQRAY SDPC, .*; {EXPORT}"),
    "a.tmap": (b"\0", f"is Unic TMAP, .*; {EXPORT}"),
    "a.mds": (OLE, f"is Motic MDS, .*; {EXPORT}"),
    "a.ozx": (b"PK\3\4", r"is a Zarr in one file, .*; unpack it, and give the folder that ends in \.zarr"),
    "a.ome.zarr.zip": (b"PK\3\4", r"is a Zarr in one file, .*; unpack it"),
    "a.dcm": (bytes(128) + b"DICM", "is not DICOM, or its header is damaged; copy it again"),
}
BY_OPENSLIDE = {
    "a.mrxs": (b"\xff\xd8\xff\xe0", r"put the folder of the same name, with Slidedat\.ini, beside it"),
    "a.vms": (b"[Virtual Microscope Specimen]\nNoLayers=1\n", r"put the \.jpg and \.opt files that it names beside it"),
    "a.vmu": (b"[Uncompressed Virtual Microscope Specimen]\n", r"put the \.ngr files that it names beside it"),
    "a.ndpi": (TIFF, "check the file, and copy it again"),
    "a.bif": (TIFF, "check the file, and copy it again"),
    "a.scn": (TIFF, "check the file, and copy it again"),
    "a.svslide": (b"SQLite format 3\0", "check the file, and copy it again"),
    "a.czi": (b"ZISRAWFILE", "check the file, and copy it again"),
    "no_suffix_czi": (b"ZISRAWFILE", "check the file, and copy it again"),
}


@pytest.mark.parametrize("name", SAID)
def test_formats_that_are_not_read(tmp_path, name):
    head, message = SAID[name]
    if name.endswith(".dcm"):
        pytest.importorskip("wsidicom")
    (tmp_path / name).write_bytes(head + bytes(200))
    with pytest.raises(ImageError, match=rf"^{tmp_path / name}: {message}"):
        open_image(tmp_path / name)


@pytest.mark.parametrize("name", BY_OPENSLIDE)
def test_slides_that_openslide_cannot_open(tmp_path, monkeypatch, name):
    pytest.importorskip("openslide")
    head, message = BY_OPENSLIDE[name]
    (tmp_path / name).write_bytes(head + bytes(200))
    with pytest.raises(ImageError, match=rf"^{tmp_path / name}: OpenSlide cannot open it \(.*\); {message}$"):
        open_image(tmp_path / name)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(
        ImageError, match=r"needs openslide, which is not installed; run: pip install 'foveal\[openslide"
    ):
        open_image(tmp_path / name)


@pytest.mark.parametrize(
    "options",
    [
        {"extratags": [(700, 1, None, b"<EncodeInfo/><iScan Magnification='20'/>", True)]},
        {"software": "MedScan 1.0", "description": "Background Color=e6e6e6;OverlapsXY= 0 0 64 64"},
        {"extratags": [(65420, 4, 1, 1, True)]},
        {"description": '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"/>'},
    ],
    ids=["Ventana", "Trestle", "Hamamatsu", "Leica"],
)
def test_slides_with_private_layouts_go_to_openslide_whatever_their_suffix(tmp_path, monkeypatch, options):
    pixels = np.zeros((64, 64, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(16, 16), metadata=None, **options)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ImageError, match=r"a\.tif: needs openslide, which is not installed"):
        open_image(tmp_path / "a.tif")


def test_other_files_of_these_makers_are_tiffs(tmp_path):
    for software in ("MedScan 1.0", "Hamamatsu HCImage"):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint16), software=software, description="iScan")
        assert open_image(tmp_path / "a.tif").dtype == np.uint16


def test_every_entry_is_tested():
    suffixes = {suffix for one in UNREAD for suffix in one.suffixes}
    said = {suffix for suffix in suffixes for name in SAID if name.endswith(suffix)}
    untested = {".kfbf", ".dyqx", ".mdsx", ".xlef", ".lof", ".zarr"}
    assert suffixes - said == untested
    for suffix in untested:
        with pytest.raises(ImageError, match="which is not read; "):
            refuse(f"a{suffix}", b"")
    refuse("a.tif", TIFF)

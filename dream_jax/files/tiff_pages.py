"""The pages of TIFF files for tifffile: which there are, what is beside their pixels, how they are written."""

import tifffile

from dream_jax.files import metadata, tiff_tags

# Bits of the tag NewSubfileType: a smaller copy of another page, and a mask of one.
_COPY_OR_MASK = 0b101
# Of the tag ExtraSamples: colours multiplied by alpha, and plain alpha. Others are bands.
MULTIPLIED, ALPHA = 1, 2


def open_pages(file) -> tifffile.TiffFile:
    """The pages of an open file; raises ValueError for what is no sound TIFF."""
    file.seek(0)
    try:
        return tifffile.TiffFile(file)
    except Exception as error:  # on damaged files it raises almost anything
        raise ValueError(f"it is no sound TIFF ({error})") from error


def full_pages(tiff: tifffile.TiffFile, most: int = 2**16) -> tuple[list[int], bool]:
    """(numbers of the pages that are no smaller copies or masks of others, at most so many; whether there are more).

    What follows a damaged page is not seen; there is more then. Raises ValueError where there is none.
    """
    found, number = [], 0
    while True:
        try:
            page = tiff.pages[number]
        except IndexError:
            more = False
            break
        except Exception:  # as above
            more = True
            break
        if not int(page.subfiletype) & _COPY_OR_MASK:
            if len(found) == most:
                more = True
                break
            found.append(number)
        number += 1
    if not found:
        raise ValueError("it has no sound page of full resolution")
    return found, more


def alphas(page) -> int:
    """How many of a page's samples are transparency."""
    return sum(sample in (MULTIPLIED, ALPHA) for sample in page.extrasamples)


def beside(page) -> dict:
    """{orientation, icc_profile, dpi, tags, left_out} of a page, without those that it lacks.

    orientation is EXIF's, 1 is upright; tags, and the names of those left out, are of `tiff_tags.kept`.
    """
    found = {"orientation": page.tags.valueof(274, default=1), "icc_profile": page.tags.valueof(34675, default=None)}
    if not isinstance(found["icc_profile"], bytes):
        del found["icc_profile"]
    try:
        found["tags"], found["left_out"] = tiff_tags.kept(page)
        found["dpi"] = metadata.kept_dpi(page.get_resolution("inch"))
    except Exception:  # damaged tags are no reason to lose the picture
        found["dpi"] = None
    return {name: value for name, value in found.items() if value}


def write_options(channels: int, alpha: bool, extras: dict) -> dict:
    """The options of tifffile's writer for `channels` samples, the last of which may be alpha.

    extras: icc_profile, dpi and tags, as of `beside`.
    """
    colours = channels - alpha
    options = {"photometric": "rgb" if colours == 3 else "minisblack", "metadata": None, "software": False}
    options["extratags"] = tiff_tags.written(extras.get("tags", {}))
    if channels > 1:
        options["planarconfig"] = "contig"
    if extra := channels - (3 if colours == 3 else 1):
        options["extrasamples"] = ["unspecified"] * (extra - alpha) + ["unassalpha"] * alpha
    if "dpi" in extras:
        options |= {"resolution": extras["dpi"], "resolutionunit": "inch"}
    if "icc_profile" in extras:
        options["iccprofile"] = extras["icc_profile"]
    return options

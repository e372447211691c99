"""Photographs on disk: which there are, and of which classes."""

import hashlib
import json
import os
from contextlib import suppress
from typing import NamedTuple

from .._images.files import FORMATS, import_pillow
from .errors import CommandError


class Photos(NamedTuple):
    """Image files in the order in which they were found."""

    paths: list
    classes: list  # "" where a file was named itself
    others: list  # files in the folders that are no images by their names

    @property
    def class_names(self):
        """Each class once."""
        return set(self.classes) - {""}


def find_photos(places):
    """Return the `Photos` that ``places``, paths of files and folders, name, each once.

    Folders are walked, sorted by name at every level; files and folders whose names begin with
    a dot are left out. The class of a photo is the folder it lies in, relative to the one given,
    or that one's own name.
    """
    photos, known = Photos([], [], []), set()
    for place in places:
        for path, name in _named_photos(place, photos.others):
            if (here := os.path.abspath(path)) not in known:
                known.add(here)
                photos.paths.append(path)
                photos.classes.append(name)
    return photos


def _named_photos(place, others):
    if not os.path.lexists(place):  # a broken link is a bad file, not none
        raise CommandError(f"{place}: no such file or folder")
    if not os.path.isdir(place):
        return [(place, "")]
    suffixes = image_suffixes()
    found: list[str] = []
    for path in _walk(place):
        is_photo = os.path.splitext(path)[1].lower() in suffixes
        (found if is_photo else others).append(path)
    if not found:
        endings = ", ".join(sorted(suffixes))
        raise CommandError(f"{place}: no photos in this folder: no files that end in {endings}")
    return [(path, _class_name(path, place)) for path in found]


def image_suffixes():
    """Return the endings of the files that can be read, in lower case."""
    Image = import_pillow()
    return {end for end, name in Image.EXTENSION.items() if name in FORMATS and name in Image.OPEN}


def _walk(folder, above=()):
    here = os.path.realpath(folder)
    if here in above:
        return  # a link back to a folder that this one lies in
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(entry.path, (*above, here))
        else:  # broken links and pipes, too: they are bad files, not none
            yield entry.path


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _class_name(path, place):
    inner = os.path.relpath(os.path.dirname(path), place)
    if inner == os.curdir:
        return os.path.basename(os.path.abspath(place))
    return inner.replace(os.sep, "/")


def photos_digest(photos):
    """Return a digest of the photos' names, classes, sizes and times of change."""
    digest = hashlib.sha256()
    for path, name in zip(photos.paths, photos.classes, strict=True):
        stamp: tuple = ()
        with suppress(OSError):
            status = os.stat(path)
            stamp = (status.st_size, status.st_mtime_ns)
        digest.update(json.dumps([path, name, *stamp]).encode())
    return digest.hexdigest()

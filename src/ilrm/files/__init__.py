"""Writing to disk: a result is written completely or not at all, and never over somebody else's file.

``atomic`` writes one file, ``folders`` a folder of results. ``claims`` decides which paths may be written, ``manifest``
records which files are ours, ``swap`` completes a write that a dead process left half done, and ``temporary`` names and
locks unfinished files.
"""

from ilrm.files.atomic import as_json, atomic_file, check_writable, output_error, write_bytes, write_json, write_text
from ilrm.files.claims import check_apart, check_folder, claim_file, claim_names, note_written, output_file, write_owned
from ilrm.files.folders import atomic_folder, only_writer, resumable_folder
from ilrm.files.swap import settle
from ilrm.files.temporary import remove_abandoned

__all__ = [
    "as_json",
    "atomic_file",
    "atomic_folder",
    "check_apart",
    "check_folder",
    "check_writable",
    "claim_file",
    "claim_names",
    "note_written",
    "only_writer",
    "output_error",
    "output_file",
    "remove_abandoned",
    "resumable_folder",
    "settle",
    "write_bytes",
    "write_json",
    "write_owned",
    "write_text",
]

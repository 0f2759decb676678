"""Tokens on disk: made once for the same texts, tokenizer and `max_length`, and found again by every later run.

Two files under `cache_root()/tokens`, named after the key: `.arrow`, the kept rows' tokens, and `.json`, what
tokenization counted, with digests of both. The second is written last and both are renamed into place, so what can be
found is whole; what was damaged later does not fit its digest and is made anew. Labels are not in it: they come from
the rows at hand, so rows that are labelled anew keep their tokens and can never meet labels of another day.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from paretune.comparisons.cache import cache_root
from paretune.comparisons.columns import absorb, stretches
from paretune.comparisons.spool import own_folder
from paretune.comparisons.token_report import Counts
from paretune.errors import SHAPES, InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FORMAT = 3  # part of every key: raise it with every change of what the columns and counts hold
TEXTS = ("prompt", "response_a", "response_b")
_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [(name, _IDS) for name in ("prefix_ids", "a_ids", "b_ids")]
    + [(name, pa.int64()) for name in ("a_start", "b_start", "index")]
)


class Tokens(NamedTuple):
    """Tokens of the kept rows as a table of `datasets`, the counts of all rows, and what had to be said.

    `fingerprint` identifies the tokens and their order, not their labels nor where in the file they stood.
    """

    table: Any
    counts: Counts
    fingerprint: str
    notices: list[str]


def tokens_key(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> str:
    """A digest of everything that decides the tokens of these rows."""
    texts = hashlib.blake2b(digest_size=16)
    for part in stretches(rows, TEXTS):
        for name in TEXTS:
            absorb(texts, part[name])
    packages = [version(name) for name in ("tokenizers", "transformers")]  # a mended bug of theirs changes tokens
    settings = [FORMAT, packages, len(rows), texts.hexdigest(), tokenizer_key(tokenizer), max_length]
    return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that a tokenizer is: vocabulary, merges, normalisation, special tokens, chat template.

    Only the padding and truncation that earlier calls left in a fast tokenizer are not in it: they do not touch ours.
    """
    digest = hashlib.blake2b(digest_size=16)
    kind = type(tokenizer)
    template = tokenizer.chat_template
    about = [kind.__module__, kind.__qualname__, template, tokenizer.special_tokens_map]
    about += [str(getattr(tokenizer, "split_special_tokens", None))]
    if "strftime_now" in json.dumps(template):  # the template writes today's date
        about.append(_today())
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(_lasting(backend.to_str()).encode("utf-8", "surrogatepass"))
    else:
        with tempfile.TemporaryDirectory() as folder:  # what it is made of, whatever it is
            tokenizer.save_pretrained(folder)
            for path in sorted(Path(folder).iterdir()):
                digest.update(path.name.encode() + b"\0" + hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def _today() -> str:
    return datetime.date.today().isoformat()


def _lasting(serialised: str) -> str:
    """A fast tokenizer's JSON from its added tokens on: version, truncation and padding are what stands before them."""
    start = serialised.find('"added_tokens":')
    head = json.loads(serialised[:start].rstrip().rstrip(",") + "}") if start > 0 else {"": None}
    if head.keys() <= {"version", "truncation", "padding"}:
        return serialised[start:]
    return json.dumps(json.loads(serialised) | {"padding": None, "truncation": None})


def find(key: str) -> tuple[Tokens | None, list[str]]:
    """The tokens kept under a key, where there are any and they are whole; and what is wrong with them."""
    path = _path(key)
    try:
        kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None, []
    except (OSError, ValueError, RecursionError) as error:
        return None, [_damaged(path, error)]
    try:
        if kept["digest"] != digest_of(kept["content"]):
            raise ValueError("the counts do not fit their digest")
        check = _Content()
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:  # read, not mapped: pages are not held
            for batch in reader:
                batch.validate(full=True)  # its offsets may point anywhere
                check.update(batch)
        if check.hexdigests() != kept["content"]["digests"]:
            raise ValueError("the tokens do not fit their digest")
        from datasets.table import MemoryMappedTable

        table = MemoryMappedTable.from_file(str(path))
        counts = Counts.of(kept["content"]["counts"])
    except (*SHAPES, OSError, MemoryError, pa.ArrowException) as error:  # the last two: lengths that were changed
        return None, [_damaged(path, error)]
    logger.info("tokens of %s rows were made before: %s", f"{counts.rows:,}", path)
    return Tokens(table, counts, kept["content"]["digests"][0], []), []


def keep(key: str, batches: Iterable[tuple[Any, Counts]]) -> Tokens:
    """Writes tokens as they are made; they stay in memory where nothing can be written, and that is said.

    Raises:
        InputError: the disk is full.
    """
    path, counts, content = _path(key), Counts(), _Content()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = own_folder() / "tokens.arrow"
        writer = pa.ipc.new_stream(str(part), SCHEMA)
    except OSError as error:
        said = f"tokens are not kept for later runs: {cache_root()} cannot be written ({error.strerror or error})"
        held = list(_counted(batches, counts, content))
        return Tokens(_in_memory(held), counts, content.hexdigests()[0], [said])
    from datasets.table import MemoryMappedTable

    try:
        with writer:
            for batch in _counted(batches, counts, content):
                writer.write_batch(batch)
        about = {"counts": asdict(counts), "digests": content.hexdigests()}
        listed = part.with_suffix(".json")
        listed.write_text(json.dumps({"content": about, "digest": digest_of(about)}) + "\n", encoding="utf-8")
        path.with_suffix(".json").unlink(missing_ok=True)  # of damaged ones, before the tokens they do not fit
        part.replace(path)
        listed.replace(path.with_suffix(".json"))
    except OSError as error:
        fix = "Make room there, or set PARETUNE_CACHE to a folder on another disk."
        raise InputError("the tokens cannot be kept", where=str(path), found=str(error), fix=fix) from error
    finally:
        shutil.rmtree(part.parent, ignore_errors=True)
    return Tokens(MemoryMappedTable.from_file(str(path)), counts, content.hexdigests()[0], [])


def _counted(batches: Iterable[tuple[Any, Counts]], counts: Counts, content: _Content) -> Iterator[Any]:
    for batch, found in batches:
        counts.add(found)
        content.update(batch)
        yield batch


def _in_memory(batches: list[Any]) -> Any:
    from datasets.table import InMemoryTable

    return InMemoryTable(pa.Table.from_batches(batches, schema=SCHEMA))


class _Content:
    """Digests of tokens, and of their rows' numbers, that do not depend on how they are cut into batches."""

    def __init__(self) -> None:
        self.parts = {name: [hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)] for name in SCHEMA.names}

    def update(self, batch: Any) -> None:
        for name, (lengths, values) in self.parts.items():
            column = batch.column(name)
            if column.type == _IDS:
                lengths.update(np.diff(np.asarray(column.offsets)).astype("<i4").tobytes())
                column = column.flatten()
            values.update(np.asarray(column).tobytes())

    def hexdigests(self) -> list[str]:
        tokens = b"".join(one.digest() for name, two in self.parts.items() if name != "index" for one in two)
        return [hashlib.blake2b(tokens, digest_size=8).hexdigest(), self.parts["index"][1].hexdigest()]


def _path(key: str) -> Path:
    return cache_root() / "tokens" / f"{key}.arrow"


def digest_of(content: Any) -> str:
    """Of what the second file holds."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _damaged(path: Path, error: Exception) -> str:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the tokens kept in {path} are damaged and are made anew ({why})"

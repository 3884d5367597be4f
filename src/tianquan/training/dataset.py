"""A records file as training examples: every record is tried before the first step, and made again when it is used.

Trying all first costs a pass over the media, and means that a record that cannot be used stops the run in its first
minutes, by name, and not in its third hour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from tianquan.processing.processor import Processor
from tianquan.request import MediaPolicy
from tianquan.training.examples import Example, build_example
from tianquan.training.order import RecordOrder
from tianquan.training.records import Record, RecordError, parse_record, read_lines

OnBadRecord = Literal["stop", "skip"]
Medium = Literal["image", "audio"]


class RecordDataset:
    """Records that are known to make examples. Item n is the example of record n."""

    def __init__(
        self,
        processor: Processor,
        records: Sequence[Record],
        lengths: Sequence[int],
        skipped: Sequence[str],
        digest: str,
        media: frozenset[Medium],
        media_root: Path | None,
        max_tokens: int,
    ) -> None:
        self.lengths = lengths  # tokens of each
        self.skipped = skipped  # why, a line for each
        self.digest = digest  # of the file, of its media and of what was skipped
        self.media = media  # that occur
        self._processor = processor
        self._records = records
        self._media_root = media_root
        self._max_tokens = max_tokens

    @classmethod
    def open(
        cls,
        path: Path,
        processor: Processor,
        *,
        media_root: Path | None,
        max_tokens: int,
        on_bad_record: OnBadRecord,
        on_progress: Callable[[int, int], None],
    ) -> RecordDataset:
        """Read a file and try every record.

        Args:
            path: vendor or OpenAI records, one a line.
            processor: the checkpoint's.
            media_root: folder that relative media paths start from; that of the file by default.
            max_tokens: longest conversation.
            on_bad_record: stop at the first record that cannot be used, or skip those and go on.
            on_progress: called with (lines done, lines).

        Raises:
            RecordError: a bad record when they stop, or no good one.
        """
        root = media_root or path.parent
        lines = list(read_lines(path))
        records, lengths, skipped, looks = [], [], [], []
        media: set[Medium] = set()
        for n, (line, source) in enumerate(lines, 1):
            try:
                record = parse_record(line, source)
                example = build_example(processor, record, MediaPolicy(), root, max_tokens)
            except RecordError as error:
                if on_bad_record == "stop":
                    raise RecordError(f"{error}; mend it, or use --on-bad-record skip") from error
                skipped.append(str(error))
            else:
                records.append(record)
                lengths.append(len(example.prompt.token_ids))
                media |= {span.kind for span in example.prompt.spans}
                looks += [image.digest.hex() for image in example.prompt.images]
                looks += [clip.digest.hex() for clip in example.prompt.audios]
            on_progress(n, len(lines))
        if not records:
            raise RecordError(f"{path}: has no records that can be used")
        text = "\n".join([*(line for line, _ in lines), *skipped, *looks])
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(processor, records, lengths, skipped, digest, frozenset(media), root, max_tokens)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, n: int) -> Example:
        return build_example(self._processor, self._records[n], MediaPolicy(), self._media_root, self._max_tokens)


class RecordSteps:
    """The micro-batches of each step of a run over a dataset; see `order.RecordOrder`."""

    def __init__(self, dataset: RecordDataset, batch_size: int, accumulation: int, seed: int) -> None:
        self._dataset = dataset
        self._accumulation = accumulation
        self._order = RecordOrder(dataset.lengths, batch_size, seed)
        self.per_epoch = self._order.batches_per_epoch / accumulation  # steps

    def __getitem__(self, step: int) -> list[list[Example]]:
        """Return the examples of a step."""
        first = step * self._accumulation
        return [
            [self._dataset[n] for n in self._order.micro_batch(number)]
            for number in range(first, first + self._accumulation)
        ]

"""Work on many image files: read ahead, work, write behind, and say what became of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from .errors import OutputError, RefineWrapError
from .folder import Job, atomic_path

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Tally:
    """What became of the jobs of one run."""

    done: int = 0
    skipped: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """(source, message) of each file that could not be worked on."""

    @property
    def exit_code(self) -> int:
        """0: all done or skipped; 1: some failed."""
        return 1 if self.failed else 0


OnDone = Callable[[Path, Path, str, "str | None"], None]
"""Called as on_done(src, dst, outcome, message): outcome "done", "skipped" or "failed", a message when it failed."""


class _GivenUpError(Exception):
    """Has what a photo's output was begun in end as it does for a fault."""


class _Photo(Generic[Item]):
    """A job on its way: read ahead, then worked on, then written behind."""

    def __init__(self, job: Job) -> None:
        self.src, self.dst = job
        self.item: Future[Item] | None = None
        """None: skipped."""
        self.written: Future[object] | None = None
        self.message: str | None = None
        """Why it failed."""
        self._file = ExitStack()
        self._temporary: Path | None = None

    def open(self) -> None:
        """Learn now, not after an hour of work, that nothing can be written."""
        self._temporary = self._file.enter_context(atomic_path(self.dst))

    def write(self, write: Callable[[Result, Path], object], result: Result) -> None:
        assert self._temporary is not None
        with self._file:
            write(result, self._temporary)

    def fail(self, error: RefineWrapError) -> None:
        # The user knows the output by its own name, not by the temporary one.
        own = str(error)
        self.message = own if self._temporary is None else own.replace(str(self._temporary), str(self.dst))
        self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        with suppress(_GivenUpError), self._file:
            raise _GivenUpError

    def outcome(self) -> str:
        """ "skipped", "failed" or "done"; waits for what is being written."""
        if self.written is not None:
            try:
                self.written.result()
            except RefineWrapError as error:
                self.fail(error)
        return "failed" if self.message is not None else "skipped" if self.item is None else "done"


def process(
    jobs: Iterable[Job],
    read: Callable[[Path], Item],
    work: Callable[[list[Item]], Sequence[Result]],
    write: Callable[[Result, Path], object],
    *,
    batch: int = 1,
    alike: Callable[[Item], object] = lambda item: None,
    overwrite: bool = False,
    on_done: OnDone | None = None,
) -> Tally:
    """Read, work and write over the jobs, so that each output appears whole or not at all.

    The next ones are read, and the last ones written, in threads of their own while this one works. `write` is handed a
    temporary path with the output's suffix (see `atomic_path`), never the output itself. An output that exists is
    skipped, unless `overwrite`. A RefineWrapError of one file is recorded and the run goes on; any other exception,
    KeyboardInterrupt too, ends the run when what was worked out is written, and leaves no half file. A second run then
    resumes.

    Args:
        jobs: (source, output) of each.
        read: read(src) -> item.
        work: the results of a few items, as many and in their order.
        write: write(result, path).
        batch: most items that are worked on at once: they follow each other, and `alike` is the same for them.
        alike: what items of one batch have in common, such as their size.
        overwrite: replace outputs that exist.
        on_done: told of each job, in their order.

    Returns:
        the counts, and for each failed source its message.
    """
    tally, waiting = Tally(), deque[_Photo[Item]]()

    def told(photo: _Photo[Item]) -> None:
        outcome = photo.outcome()
        if outcome == "done":
            tally.done += 1
        elif outcome == "skipped":
            tally.skipped += 1
        else:
            tally.failed.append((photo.src, photo.message or ""))
        if on_done is not None:
            on_done(photo.src, photo.dst, outcome, photo.message)

    def make(photos: list[_Photo[Item]]) -> None:
        """Have the results of a few that were read written."""
        for photo in photos:
            try:
                photo.open()
            except OutputError as error:
                photo.fail(error)
        photos = [photo for photo in photos if photo.message is None]
        try:
            results = work([photo.item.result() for photo in photos if photo.item is not None]) if photos else []
        except RefineWrapError as error:
            if len(photos) == 1:
                photos[0].fail(error)
                return
            for photo in photos:
                photo.close()
            for photo in photos:
                make([photo])
            return
        except BaseException:
            for photo in photos:
                photo.close()
            raise
        for photo, result in zip(photos, results, strict=True):
            photo.written = writer.submit(photo.write, write, result)

    with ThreadPoolExecutor(1) as writer, _ended(ThreadPoolExecutor(1)) as reader:
        for photos in _batches(_read_ahead(jobs, read, reader, overwrite, batch + 1), batch, alike):
            if photos[0].item is not None and photos[0].message is None:
                make(photos)
            waiting.extend(photos)
            # What waits to be written is in memory: one batch, while the next is worked on.
            while len(waiting) > batch or (waiting and (waiting[0].written is None or waiting[0].written.done())):
                told(waiting.popleft())
        for photo in waiting:
            told(photo)
    return tally


def _read_ahead(
    jobs: Iterable[Job], read: Callable[[Path], Item], reader: ThreadPoolExecutor, overwrite: bool, count: int
) -> Iterator[_Photo[Item]]:
    """The jobs in their order, of which `count` more are being read; a message where that failed."""
    ahead = deque[_Photo[Item]]()

    def first() -> _Photo[Item]:
        photo = ahead.popleft()
        if photo.item is not None:
            try:
                photo.item.result()
            except RefineWrapError as error:
                photo.fail(error)
        return photo

    for job in jobs:
        photo = _Photo[Item](job)
        if overwrite or not photo.dst.is_file():
            photo.item = reader.submit(read, photo.src)
        ahead.append(photo)
        if len(ahead) > count:
            yield first()
    while ahead:
        yield first()


def _batches(
    photos: Iterable[_Photo[Item]], count: int, alike: Callable[[Item], object]
) -> Iterator[list[_Photo[Item]]]:
    """Up to `count` that follow each other and are alike; one that is skipped or failed by itself."""

    def key(photo: _Photo[Item]) -> object:
        return alike(photo.item.result()) if photo.item is not None and photo.message is None else photo

    batch: list[_Photo[Item]] = []
    for photo in photos:
        if batch and key(batch[0]) != key(photo):
            yield batch
            batch = []
        batch.append(photo)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _ended(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """A pool that does not begin what waits when the block ends."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)

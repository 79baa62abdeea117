"""A directory of pictures -> CSV, one row a picture.

    python -m serving.batch --input DIR [--output FILE] [--alphabet alnum] [--format csv|ascii] [--min-confidence P]

Pictures are decoded in processes and scored here in batches of one fixed size, so that an answer does not depend on
which pictures it shared a batch with. With --output a run that was stopped goes on when it is called again, and several
processes can share it (--shards). Exit codes: 0 done (bad pictures are rows), 2 wrong use, 3 no picture found, 4 done
but for sub-folders that cannot be listed, 1 other.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from common.folders import SUFFIXES
from common.program import DONE, FAILED, INCOMPLETE, NO_PICTURES, WRONG_USE, at_least_one, not_empty, path, probability
from handlers.alphabets import ALPHABET_NAMES, DEFAULT_ALPHABET, UnknownAlphabet
from handlers.recognizer import Recognizer
from serving.batch.decoding import cores, decoders
from serving.batch.manifest import UsageError
from serving.batch.run import FAULTS, SAMPLES, Settings, Stopped, reason, to_file, to_stdout
from serving.batch.scoring import Scorer
from serving.batch.tables import FORMATS
from serving.package import DEFAULT_MODEL

log = logging.getLogger(__name__)

MAX_SHARDS = 10_000  # each has its place in the manifest
MAX_NAME_BYTES = 255 - len(".20260101T000000.000000Z.meta.json")  # a kept earlier result has the longest name


def check_usage(settings: Settings) -> None:
    """Raises UsageError for what can be known to be wrong before any work."""
    output = settings.output
    if not settings.input.is_dir():
        raise UsageError(f"--input {settings.input}: there is no such folder")
    if output is None and (settings.shards > 1 or settings.run is not None):
        raise UsageError("--shards and --run need --output")
    if output is None and not sys.stdout:
        raise UsageError("standard output is closed; name a file with --output")
    if output is not None and os.path.lexists(output) and (output.is_symlink() or not output.is_file()):
        raise UsageError(f"--output {output} is no regular file, and would be replaced; name another")
    if output is not None and len(os.fsencode(output.name)) > MAX_NAME_BYTES:
        raise UsageError(f"--output {output}: the name is too long; at most {MAX_NAME_BYTES} bytes")
    if settings.shards > MAX_SHARDS:
        raise UsageError(f"--shards {settings.shards} is too many; at most {MAX_SHARDS}")
    if settings.shard not in range(settings.shards):
        raise UsageError(
            f"--shard {settings.shard} is not one of --shards {settings.shards}: 0 to {settings.shards - 1}"
        )


def run(settings: Settings) -> int:
    """Score the directory; returns the exit code. Raises UsageError, Stopped, FAULTS."""
    check_usage(settings)
    with decoders(settings.processes) as pool:
        recognizer = Recognizer(settings.model)
        try:
            recognizer.fold(settings.alphabet)
        except UnknownAlphabet as error:
            raise UsageError(f"--alphabet: {error}") from error
        scorer = Scorer(recognizer, pool, settings.processes, settings.alphabet, settings.min_confidence)
        found = to_stdout(settings, scorer) if settings.output is None else to_file(settings, settings.output, scorer)
        ignore_signals()  # the work is done: what is left must not make a failure of it
    for folder in found.unlisted:
        log.warning("batch: the pictures of a folder are left out, for it cannot be listed: %s", folder)
    if found.unlisted:
        return INCOMPLETE
    if found.pictures:
        return DONE
    log.warning("no picture found below %s (looked for %s)", settings.input, ", ".join(SUFFIXES))
    return NO_PICTURES


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """End the run, once: a second signal must not end what keeps its work."""
    ignore_signals()
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.batch", description="Score a directory of pictures, one CSV row a picture."
    )
    parser.add_argument(
        "--input", type=path, default=SAMPLES, help="the directory, searched recursively; default: the bundled samples"
    )
    parser.add_argument(
        "--output", type=path, help="the file to write, with FILE.meta.json beside it; default: standard output"
    )
    parser.add_argument(
        "--alphabet", default=DEFAULT_ALPHABET, help=f"one of {', '.join(ALPHABET_NAMES)}; default: %(default)s"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="csv", help="ascii: lines as '065, path'; default: %(default)s"
    )
    parser.add_argument(
        "--min-confidence", type=probability, default=0.0, metavar="P", help="answers below P get the status 'rejected'"
    )
    parser.add_argument(
        "--if-empty",
        choices=("fail", "samples"),
        default="fail",
        help="samples: without any picture, score the bundled samples",
    )
    parser.add_argument(
        "--keep-old", action="store_true", help="an earlier FILE keeps its content under a name with its time"
    )
    parser.add_argument(
        "--escape-formulas",
        action="store_true",
        help="a path that a spreadsheet would run gets a ' before it, and then is not the file's name",
    )
    parser.add_argument(
        "--run",
        type=not_empty,
        metavar="ID",
        help="names the run, whose pictures are listed once; default: by the pictures",
    )
    parser.add_argument(
        "--shards",
        type=at_least_one,
        default=1,
        metavar="N",
        help="in how many parts the run is scored; default: %(default)s",
    )
    parser.add_argument(
        "--shard",
        type=int,
        default=os.environ.get("JOB_COMPLETION_INDEX", "0"),
        metavar="I",
        help=(
            "the part to score, 0 to N-1; default: JOB_COMPLETION_INDEX, else 0; whoever completes the last one writes"
            " FILE"
        ),
    )
    parser.add_argument("--model", type=path, default=DEFAULT_MODEL, help="the exported model")
    parser.add_argument(
        "--processes",
        type=at_least_one,
        default=cores(),
        help="that decode, and as many threads that score; default: the cores, %(default)s",
    )
    settings = Settings(**vars(parser.parse_args(argv)))
    if not sys.stderr:  # closed; else the next file would get its number, and what libraries write there
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run(settings)
    except UsageError as error:
        log.error("batch: %s", error)
        return WRONG_USE
    except BrokenPipeError:  # the reader of standard output has gone, as `head` does
        return FAILED
    except (Stopped, *FAULTS) as error:
        log.error("batch: %s", reason(error))
        return FAILED
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    code = main()
    ignore_signals()  # while Python ends, too
    if code == FAILED:
        # Python would wait for a decoder that hangs in a read which nothing ends, and flush to who has gone.
        os._exit(code)
    sys.exit(code)

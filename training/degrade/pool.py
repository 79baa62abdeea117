"""Degraded copies of the training images, as the preprocessing hands them to the network: made once, kept on disk.

A copy is a user's picture (`pictures.scene`) or a benchmark's corruption (`severities.corrupt`) of one image, gone
through `handlers.pictures.pipeline.prepare`, so that the network learns what the preprocessing really leaves over.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from common.files import replaced
from handlers.pictures import framing, pipeline
from handlers.pictures.decoding import InvalidImage
from training.data import Images
from training.data.cache import PREPROCESSING, cache_folder, source_code
from training.degrade import corruptions, severities, strokes, styles

log = logging.getLogger(__name__)

CHUNK = 2000  # images a task
SCENES = 0.5  # share of the copies that are users' pictures; the others are a benchmark's corruptions


def degraded(data: Images, copies: int, seed: int) -> torch.Tensor:
    """`copies` degraded variants of every image: uint8 (copies, N, S, S), of the images' own size, the same for the
    same data, seed and code.
    """
    path = cache_folder() / f"degraded-{_key(data, copies, seed)}.npy"
    if not path.is_file():
        log.info("making %d x %d degraded copies in %s, once", copies, len(data), path)
        made = _make(data.resized(strokes.UNIT).images.numpy(), copies, seed, size=data.images.shape[-1])
        with replaced(path) as stream:
            np.save(stream, made)
    return torch.from_numpy(np.load(path))


def _key(data: Images, copies: int, seed: int) -> str:
    digest = hashlib.sha256(f"{data.fingerprint()} {copies} {seed} {SCENES}".encode())
    digest.update(source_code((*PREPROCESSING, strokes, styles, corruptions, severities)))
    return digest.hexdigest()[:16]


def _make(images: npt.NDArray[np.uint8], copies: int, seed: int, size: int) -> npt.NDArray[np.uint8]:
    tasks = [
        (images[start : start + CHUNK], [seed, copy, start], size)
        for copy in range(copies)
        for start in range(0, len(images), CHUNK)
    ]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        chunks = list(
            tqdm(workers.map(_degrade_chunk, *zip(*tasks, strict=True)), total=len(tasks), unit="chunk", mininterval=5)
        )
    return np.concatenate(chunks).reshape(copies, len(images), size, size)


def _degrade_chunk(images: npt.NDArray[np.uint8], seed: list[int], size: int) -> npt.NDArray[np.uint8]:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    return np.stack([degrade_one(image, rng, images[int(rng.integers(len(images)))], size) for image in images])


def degrade_one(
    image: npt.NDArray[np.uint8], rng: np.random.Generator, neighbour: npt.NDArray[np.uint8], size: int
) -> npt.NDArray[np.uint8]:
    """One degraded copy of an image uint8 (28, 28), prepared to uint8 (size, size); the image itself where no character
    is found in it.
    """
    shown = styles.scene(image, rng, neighbour) if rng.random() < SCENES else severities.corrupt(image, rng)
    try:
        return pipeline.prepare(shown, size)
    except InvalidImage:
        return framing.resize(image, size)

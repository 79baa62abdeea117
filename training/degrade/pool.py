"""Degraded copies of the training images, as the preprocessing hands them to the network: made once, kept on disk.

A copy is a user's picture (`pictures.scene`) or a benchmark's corruption (`severities.corrupt`) of one image, gone through
`handlers.preprocessing.prepare`, so that the network learns what the preprocessing really leaves over.
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

from handlers import preprocessing
from handlers.picture import InvalidImage
from training.data import Images
from training.data.cache import PREPROCESSING, cache_folder, source_code, write_whole
from training.degrade import corruptions, pictures, severities, strokes

log = logging.getLogger(__name__)

CHUNK = 2000  # images a task
SCENES = 0.5  # share of the copies that are users' pictures; the others are a benchmark's corruptions


def degraded(data: Images, copies: int, seed: int) -> torch.Tensor:
    """`copies` degraded variants of every image: uint8 (copies, N, 28, 28), the same for the same data, seed and code."""
    path = cache_folder() / f"degraded-{_key(data, copies, seed)}.npy"
    if not path.is_file():
        log.info("making %d x %d degraded copies in %s, once", copies, len(data), path)
        made = _make(data.images.numpy(), copies, seed)
        write_whole(path, lambda file: np.save(file, made))
    return torch.from_numpy(np.load(path))


def _key(data: Images, copies: int, seed: int) -> str:
    digest = hashlib.sha256(f"{data.fingerprint()} {copies} {seed} {SCENES}".encode())
    digest.update(source_code((*PREPROCESSING, strokes, pictures, corruptions, severities)))
    return digest.hexdigest()[:16]


def _make(images: npt.NDArray[np.uint8], copies: int, seed: int) -> npt.NDArray[np.uint8]:
    tasks = [(images[start : start + CHUNK], [seed, copy, start]) for copy in range(copies) for start in range(0, len(images), CHUNK)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        chunks = list(tqdm(workers.map(_degrade_chunk, *zip(*tasks, strict=True)), total=len(tasks), unit="chunk", mininterval=5))
    return np.concatenate(chunks).reshape(copies, *images.shape)


def _degrade_chunk(images: npt.NDArray[np.uint8], seed: list[int]) -> npt.NDArray[np.uint8]:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    return np.stack([degrade_one(image, rng, images[int(rng.integers(len(images)))]) for image in images])


def degrade_one(image: npt.NDArray[np.uint8], rng: np.random.Generator, neighbour: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """One degraded and prepared copy, uint8 (28, 28); the image itself where the preprocessing finds no character any more."""
    shown = pictures.scene(image, rng, neighbour) if rng.random() < SCENES else severities.corrupt(image, rng)
    try:
        return preprocessing.prepare(shown)
    except InvalidImage:
        return image

"""Rendered scenes: balls, boxes and a floor in perspective, with shadows and textures, one ray a pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidup.mini.textures import Rng, fractal, palette, surface

Array = NDArray[np.float32]


def _ball(origin: Array, rays: Array, centre: Array, radius: float) -> Array:
    """Distance along each ray to a ball, infinite where it misses."""
    offset = origin - centre
    half = (rays * offset).sum(-1)
    root = half**2 - (offset**2).sum(-1) + radius**2
    distance = -half - np.sqrt(np.maximum(root, 0))
    return np.where((root > 0) & (distance > 1e-3), distance, np.inf).astype(np.float32)


def _box(origin: Array, rays: Array, centre: Array, half: Array) -> Array:
    """Distance along each ray to an upright box (the slab method of Kay and Kajiya 1986)."""
    inverse = 1 / np.where(np.abs(rays) < 1e-6, 1e-6, rays)
    one, two = (centre - half - origin) * inverse, (centre + half - origin) * inverse
    near, far = np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
    return np.where((near < far) & (near > 1e-3), near, np.inf).astype(np.float32)


Things = list[tuple[bool, Array, Any]]
"""Whether each is a ball, its centre, and its radius or half its sides."""


def _things(rng: Rng, turn: float) -> Things:
    """Balls and boxes on the floor, about where the camera looks."""
    things: Things = []
    for _ in range(int(rng.integers(4, 12))):
        away, aside = rng.uniform(2, 9), rng.normal(0, 0.4)
        reach = rng.uniform(0.2, 1.1)
        place = np.array([away * np.sin(turn + aside), reach, away * np.cos(turn + aside)], np.float32)
        if rng.random() < 0.5:
            things.append((True, place, reach))
        else:
            half = rng.uniform(0.15, 1.2, 3).astype(np.float32)
            place[1] = half[1]
            things.append((False, place, half))
    return things


def _hit(things: Things, origin: Array, rays: Array) -> tuple[Array, NDArray[np.int64]]:
    """Distance along each ray to what it meets first, and what that is: 0 the floor, -1 nothing."""
    nearest = np.where(rays[..., 1] < -1e-4, -origin[..., 1] / np.minimum(rays[..., 1], -1e-4), np.inf)
    nearest = np.where(nearest > 1e-3, nearest, np.inf).astype(np.float32)
    which = np.where(np.isfinite(nearest), 0, -1)
    for index, (ball, place, reach) in enumerate(things, 1):
        distance = _ball(origin, rays, place, reach) if ball else _box(origin, rays, place, reach)
        closer = distance < nearest
        nearest, which = np.where(closer, distance, nearest), np.where(closer, index, which)
    return nearest, which


def solids(rng: Rng, size: int) -> Image.Image:
    """A scene lit by one lamp and the sky, (size, size) RGB."""
    colours = palette(rng) / 255
    field = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = np.meshgrid(field, -field)
    focus = rng.uniform(0.6, 1.6)
    tilt, turn = rng.uniform(-0.5, 0.05), rng.uniform(-np.pi, np.pi)
    forward = np.full_like(x, focus)
    y, forward = y * np.cos(tilt) + forward * np.sin(tilt), forward * np.cos(tilt) - y * np.sin(tilt)
    x, forward = x * np.cos(turn) + forward * np.sin(turn), forward * np.cos(turn) - x * np.sin(turn)
    rays = np.stack([x, y, forward], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    eye = np.array([0, rng.uniform(0.6, 2.5), 0], np.float32)
    lamp = rng.normal(0, 1, 3).astype(np.float32) + np.array([0, 1.5, 0], np.float32)
    lamp[1] = abs(lamp[1]) + 0.3
    lamp /= np.linalg.norm(lamp)

    things = _things(rng, turn)
    distance, which = _hit(things, np.broadcast_to(eye, rays.shape), rays)
    sky = which < 0
    points = eye + rays * np.where(sky, 0, distance)[..., None]
    texture = surface(rng, size)
    floor_scale, thing_scale = rng.uniform(20, 120), rng.uniform(60, 300)
    normal = np.zeros_like(points)
    normal[..., 1] = 1
    albedo = np.broadcast_to(colours[0], points.shape).astype(np.float32)
    scales = np.full(which.shape, floor_scale, np.float32)
    for index, (ball, place, reach) in enumerate(things, 1):
        here = which == index
        local = points[here] - place
        if ball:
            normal[here] = local / reach
        else:
            side = np.abs(local / reach)
            normal[here] = np.sign(local) * (side == side.max(-1, keepdims=True))
        albedo[here] = colours[1 + index % (len(colours) - 1)]
        scales[here] = thing_scale
    across = (points[..., 0] + 0.7 * points[..., 1]) * scales
    along = (points[..., 2] + 0.4 * points[..., 1]) * scales
    # Texture fades with distance, as a lens and mip maps make it; else it would turn into noise.
    fade = np.clip(4 / np.where(sky, np.inf, distance), 0, 1) ** 2
    depth = rng.uniform(0, 0.35) * fade
    albedo = albedo * (1 + depth * texture[along.astype(int) % size, across.astype(int) % size])[..., None]

    start = points + normal * 2e-3
    shadow = np.isfinite(_hit(things, start, np.broadcast_to(lamp, rays.shape))[0])
    sun = np.clip((normal * lamp).sum(-1), 0, 1) * ~shadow
    bounce = rays - 2 * (rays * normal).sum(-1, keepdims=True) * normal
    shine = rng.uniform(0, 0.8) * np.clip((bounce * lamp).sum(-1), 0, 1) ** rng.uniform(8, 90) * ~shadow
    light = rng.uniform(0.1, 0.4) + rng.uniform(0.6, 1.2) * sun
    picture = albedo * light[..., None] + shine[..., None]
    heaven = colours[-1] * (0.7 + 0.5 * y[..., None]) + 0.04 * fractal(rng, size, 2.0)[..., None]
    mist = (1 - np.exp(-np.where(sky, 0, distance) * rng.uniform(0, 0.12)))[..., None]
    picture = np.where(sky[..., None], heaven, picture * (1 - mist) + heaven * mist)
    return Image.fromarray((np.clip(picture, 0, 1) ** (1 / 1.6) * 255).astype(np.uint8))

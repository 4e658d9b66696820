"""A third-person running game: a robot on a causeway, with shadows, a head-up display and a tune."""

from __future__ import annotations

from types import SimpleNamespace

import game_art as art
import numpy as np
from game_art import Solid
from PIL import Image, ImageDraw
from raster import Array, Camera, mix, smoothstep, write

RATE = 30
FRAMES = 60
SPEED = 5.5
SUN = np.array([-0.46, 0.72, -0.52], np.float32) / np.float32(np.linalg.norm([-0.46, 0.72, -0.52]))
FOG = (0.72, 0.86, 0.95)


def render(index: int, size: tuple[int, int]) -> Array:
    """Frame number `index` at `size` = (width, height), one ray a pixel: float32 `(h, w, 3)` in [0, 1]."""
    scene, time = art.props(), index / RATE
    jump = max(0.0, 1 - ((time - 1.15) / 0.42) ** 2)  # a leap in the second half
    x, y, z = 0.75 * np.sin((2.2 + SPEED * time) * 0.45), 0.95 * jump, 2.2 + SPEED * time
    stride = 2 * np.pi * 2.4 * time if jump == 0 else 1.9
    eye = (0.55 * x + 0.15 * np.sin(1.3 * time), 2.15 + 0.35 * y, z - 3.9)
    camera = Camera(eye, 0.05 * np.sin(1.6 * time + 0.4), -0.13, size, field_of_view=1.15)
    rays = camera.rays()
    albedo, normal, depth, shine = ground(camera, rays, scene)
    solids = art.world(time, (x, y, z)) + art.hero(x, y, z, stride)
    for solid in solids:
        draw_solid(solid, camera, rays, scene, albedo, normal, depth, shine)
    point = np.array(eye, np.float32) + rays * np.where(np.isinf(depth), 0, depth)[..., None]
    lit = np.clip(normal @ SUN, 0, 1)
    for solid in solids:
        cast_shadow(solid, camera, point, depth, lit)
    view = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    half = SUN - view
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    gloss = np.clip(np.sum(half * normal, -1), 0, 1) ** 40 * shine * lit
    rim = (1 - np.clip(-np.sum(view * normal, -1), 0, 1)) ** 3 * shine * 0.35
    ambient = mix((0.36, 0.37, 0.34), (0.44, 0.52, 0.64), 0.5 + 0.5 * normal[..., 1])
    colour = albedo * (ambient + lit[..., None] * np.array((0.80, 0.72, 0.56), np.float32))
    colour += (gloss + rim)[..., None]
    colour = mix(colour, FOG, 1 - np.exp(-((np.minimum(depth, 300) / 120) ** 1.4)))
    empty = np.isinf(depth)
    colour[empty] = sky(view[empty], time, scene)
    return head_up(np.clip(colour, 0, 1), time, x, z)


def ground(camera: Camera, rays: Array, scene: SimpleNamespace) -> tuple[Array, Array, Array, Array]:
    """Colour, normal, depth and shine of the paved causeway and the meadow; depth is infinite in the sky."""
    depth = np.full(rays.shape[:2], np.inf, np.float32)
    albedo, normal = np.zeros_like(rays), np.zeros_like(rays)
    normal[..., 1] = 1
    below = rays[..., 1] < -4e-3
    reach = -camera.position[1] / rays[below][:, 1]
    x, z = (camera.position[a] + reach * rays[below][:, a] for a in (0, 2))
    texel = reach / camera.focal
    patch = scene.patches.at(x, z, texel)[:, 0]
    meadow = scene.grass.at(x, z, texel * 1.2) * (0.62 + 0.7 * patch)[:, None]
    path = np.abs(x) < 2.2
    stone = scene.paving.at(x[path], z[path], texel[path] * 1.8) * (0.85 + 0.3 * patch[path])[:, None]
    inlay = np.abs(np.abs(x[path]) - 1.75) < 0.07
    meadow[path] = np.where(inlay[:, None], np.array((0.30, 0.56, 0.66), np.float32), stone)
    albedo[below], depth[below] = meadow * 0.88, reach
    return albedo, normal, depth, np.zeros_like(depth)


def window(camera: Camera, corners: Array) -> tuple[slice, slice] | None:
    """The part of the picture that the points' convex hull may touch; None where it touches none."""
    column, row, depth = camera.project(corners)
    width, height = camera.size
    if depth.max() < 0.1:
        return None
    if depth.min() < 0.1:
        return slice(0, height), slice(0, width)
    left, right = np.clip((column.min() - 1, column.max() + 2), 0, width).astype(int)
    top, bottom = np.clip((row.min() - 1, row.max() + 2), 0, height).astype(int)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def draw_solid(
    solid: Solid,
    camera: Camera,
    rays: Array,
    scene: SimpleNamespace,
    albedo: Array,
    normal: Array,
    depth: Array,
    shine: Array,
) -> None:
    """Puts one solid into the picture where it is nearer than what is there."""
    part = window(camera, solid.corners())
    if part is None:
        return
    origin, ray = solid.local(np.array(camera.position, np.float32), rays[part])
    enter, leave = solid.span(np.broadcast_to(origin, ray.shape), ray)
    hit = (enter < leave) & (enter > 0.05) & (enter < depth[part])
    if not hit.any():
        return
    reach = enter[hit]
    spot = origin + ray[hit] * reach[:, None]
    if solid.kind == "box":
        face = np.argmax(np.abs(spot), -1)[:, None] == np.arange(3)
        facing = np.sign(spot) * face
    elif solid.kind == "cylinder":
        cap = (np.abs(spot[:, 1]) > 0.999)[:, None]
        facing = np.where(cap, spot * (0, 1, 0), spot * (1, 0, 1))
    else:
        facing = spot
    turned = facing @ np.linalg.inv(solid.matrix())
    normal[part][hit] = turned / np.linalg.norm(turned, axis=-1, keepdims=True)
    depth[part][hit], shine[part][hit] = reach, solid.shine
    if not solid.skin:
        albedo[part][hit] = solid.colour
        return
    metres = spot * np.array(solid.half, np.float32)
    if solid.kind == "box":
        u = np.where(face[:, 0], metres[:, 2], metres[:, 0])
        v = np.where(face[:, 1], metres[:, 2], metres[:, 1])
        if solid.skin in ("crate", "banner"):  # one picture a face, from its corner
            u, v = u + np.where(face[:, 0], solid.half[2], solid.half[0]), v + solid.half[1]
    else:
        u, v = (
            np.arctan2(spot[:, 0], spot[:, 2]) * round(solid.half[0] * 4) / 4 + solid.centre[0],
            metres[:, 1],
        )
    albedo[part][hit] = getattr(scene, solid.skin).at(u, -v, reach / camera.focal * 1.2)


def cast_shadow(solid: Solid, camera: Camera, point: Array, depth: Array, lit: Array) -> None:
    """Darkens `lit` where the solid stands between a visible point and the sun."""
    corners = solid.corners()
    fallen = corners - SUN * (np.maximum(corners[:, 1:2], 0) / SUN[1])
    part = window(camera, np.concatenate([corners, fallen]))
    if part is None or max(solid.half) > 5:  # the kerbs and the castle: too low, too far
        return
    open_sun = (lit[part] > 0) & (depth[part] < 70)
    origin, ray = solid.local(point[part][open_sun], SUN)
    enter, leave = solid.span(origin, np.broadcast_to(ray, origin.shape))
    shaded = lit[part]
    shaded[open_sun] *= np.where((enter < leave) & (leave > 0.03), 0.12, 1.0).astype(np.float32)


def sky(view: Array, time: float, scene: SimpleNamespace) -> Array:
    """A painted sky: round clouds in two tones, snowy mountains, in the directions `view`."""
    height, azimuth = view[:, 1], np.arctan2(view[:, 0], view[:, 2])
    colour = mix(FOG, (0.22, 0.50, 0.92), smoothstep(0.0, 0.45, height))
    puff = scene.clouds.at(azimuth * 130 + time * 1.5 + 20, height * 260, 0.5)[:, 0] + 0.25 * (height - 0.2)
    lower = scene.clouds.at(azimuth * 130 + time * 1.5 + 20, height * 260 - 5, 0.5)[:, 0] + 0.25 * (height - 0.2)
    white = mix((0.80, 0.87, 0.96), (1.0, 1.0, 1.0), smoothstep(-0.03, 0.04, puff - lower))
    colour = mix(colour, white, smoothstep(0.555, 0.585, puff) * smoothstep(0.02, 0.10, height) * 0.95)
    for layer, (base, gain, dark) in enumerate(((0.05, 0.22, (0.48, 0.58, 0.78)), (0.01, 0.14, (0.34, 0.56, 0.50)))):
        place = azimuth * 60 + 250 + layer * 100
        ridge = base + gain * (np.interp(place, np.arange(512), scene.ridge[layer]) - 0.25)
        east = np.interp(place + 2, np.arange(512), scene.ridge[layer]) - (ridge - base) / gain - 0.25
        side = mix(np.array(dark) * 0.9, np.array(dark) * 1.25, smoothstep(-0.06, 0.06, east))
        jag = 0.012 * np.sin(place * 2.1) + 0.008 * np.sin(place * 5.3)
        snow = smoothstep(0.0, 0.004, height - (0.115 + jag)) * (layer == 0)
        side = mix(mix(side, (0.96, 0.98, 1.0), snow), FOG, 0.30 - 0.1 * layer)
        colour = mix(colour, side, smoothstep(-0.0015, 0.0015, ridge - height))
    return colour


def head_up(picture: Array, time: float, x: float, z: float) -> Array:
    """Score, health, timer, coins and map, over the picture; all lengths are in pixels of a 640x360 one."""
    height, width = picture.shape[:2]
    k = width / 640
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    ink, gold = (16, 20, 40, 255), (255, 214, 70, 255)

    def panel(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...], radius: float = 6) -> None:
        draw.rounded_rectangle((x0 * k, y0 * k, x1 * k, y1 * k), radius * k, fill=fill)

    def text(at: tuple[float, float], words: str, cap: float, fill: tuple[int, ...], anchor: str = "lm") -> None:
        write(draw, (at[0] * k, at[1] * k), words, cap * k, fill, anchor, bold=0.035, edge=ink)

    taken = int(np.clip((z - 5.0) // 1.6 + 1, 0, 11))
    text((16, 32), f"SCORE {4200 + 50 * taken + int(time * 10) * 5:05d}", 28, (255, 255, 255, 255))
    panel(14, 56, 214, 80, ink, 9)  # health, which drops once and flashes
    health = 0.82 - 0.12 * float(smoothstep(0.7, 0.8, np.float32(time)))
    bar = (255, 240, 200, 255) if 0.7 < time < 0.85 else (74, 214, 92, 255)
    panel(18, 60, 18 + 192 * health, 76, bar, 6)
    panel(22, 62, 14 + 192 * health, 66, (255, 255, 255, 110), 2)
    text((222, 68), "HP", 18, (255, 120, 120, 255))
    text((626, 32), f"1:{27 - int(time):02d}.{int(99.99 - time * 100 % 100):02d}", 28, gold, "rm")
    text((626, 68), "LAP 2/3", 18, (255, 255, 255, 255), "rm")
    spin = abs(np.cos(3 * time)) * 13 + 2
    draw.ellipse(((34 - spin) * k, 313 * k, (34 + spin) * k, 343 * k), fill=gold, outline=ink, width=round(2 * k))
    text((60, 329), f"x{12 + taken}", 28, gold)
    centre, radius = np.array((580, 296)), 48
    draw.ellipse([c * k for c in (*(centre - radius - 4), *(centre + radius + 4))], fill=ink)
    draw.ellipse([c * k for c in (*(centre - radius), *(centre + radius))], fill=(70, 128, 74, 255))
    way = [(580 + 22 * np.sin((z + s) * 0.06), 310 - s * 1.4) for s in range(-22, 38, 2)]
    draw.line([(a * k, b * k) for a, b in way], fill=(226, 208, 164, 255), width=round(14 * k), joint="curve")
    for ahead, colour, size in (
        (max(-20.0, 17 - 1.2 * time - z), (176, 84, 240, 255), 5),
        (26 - z, (230, 60, 60, 255), 6),
    ):
        at = (580 + 22 * np.sin((z + ahead) * 0.06), 310 - ahead * 1.4)
        draw.ellipse(
            [c * k for c in (at[0] - size, at[1] - size, at[0] + size, at[1] + size)],
            fill=colour,
            outline=ink,
        )
    hx = 580 + 22 * np.sin(z * 0.06) + 3 * x
    draw.polygon(
        [(a * k, b * k) for a, b in ((hx, 299), (hx - 8, 319), (hx, 314), (hx + 8, 319))],
        fill=(255, 255, 255, 255),
        outline=ink,
    )
    if time < 0.6:
        text((320, 110), "GO!", 40, (255, 255, 255, 255), "mm")
    over = np.asarray(image, np.float32) / 255
    return mix(picture, over[..., :3], over[..., 3])


def sound(rate: int) -> Array:
    """Two square waves, a triangle bass, noise drums: float32 `(2, samples)`, as long as the picture."""
    count, rng = rate * FRAMES // RATE, np.random.default_rng(8)
    out, beat = np.zeros((2, count)), count // 16
    lead = (76, 79, 84, 83, 84, 79, 76, 72, 74, 77, 81, 79, 77, 74, 79, 84)
    chord = ((60, 64, 67), (57, 60, 64), (62, 65, 69), (55, 59, 62))
    local = np.arange(beat) / rate
    decay = np.exp(-local * 9) * np.minimum(1, local / 0.003) * np.minimum(1, local[::-1] / 0.004)

    def wave(note: float, duty: float) -> Array:
        """A square wave from its first harmonics: none is folded back by the sampling."""
        pitch = 440 * 2 ** ((note - 69) / 12)
        return sum(np.sin(np.pi * n * duty) / n * np.cos(2 * np.pi * n * pitch * local) for n in range(1, 12))

    for step in range(16):
        here = slice(step * beat, (step + 1) * beat)
        notes = chord[step // 4]
        bass = 2 * np.abs(2 * (local * 440 * 2 ** ((notes[0] - 24 - 69) / 12) % 1) - 1) - 1
        drum = rng.standard_normal(beat) * np.exp(-local * (70 if step % 4 != 2 else 25)) * (0.10 if step % 2 else 0.2)
        kick = np.sin(2 * np.pi * 60 * np.exp(-local * 18) * local * 2) * np.exp(-local * 22) * (step % 4 == 0)
        melody, harmony = wave(lead[step], 0.5) * decay, wave(notes[step % 3] + 12, 0.25) * decay
        out[0, here] += 0.30 * melody + 0.14 * harmony + 0.22 * bass * decay**0.3 + drum + 0.5 * kick
        out[1, here] += 0.22 * melody + 0.22 * harmony + 0.22 * bass * decay**0.3 + drum + 0.5 * kick
    return (np.tanh(out * 0.9) * 0.8).astype(np.float32)

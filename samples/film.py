"""A harbour filmed by a camera that walks along the quay: a cafe, the sea, a boat, a lighthouse, gulls."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import film_art as art
import numpy as np
from raster import Array, Camera, Texture, cells, fractal, mix, smoothstep

RATE = 24
FRAMES = 48
SUN = np.array([0.38, 0.20, 0.90], np.float32)
QUAY_Z, QUAY_X, SEA_Y = 9.6, 2.5, -1.0
HAZE = (0.93, 0.84, 0.74)


@lru_cache(maxsize=1)
def props() -> SimpleNamespace:
    """All textures; the same ones in every process."""
    rng = np.random.default_rng(1848)
    joint, stone = cells(1024, 14, rng)
    rough = fractal(1024, 0.9, rng)
    cobble = mix((0.42, 0.39, 0.37), (0.70, 0.63, 0.55), stone * 0.8 + rough * 0.3)
    cobble = cobble * (0.62 + 0.38 * smoothstep(0.0, 0.5, joint) + 0.3 * (rough - 0.5))[..., None]
    moss = mix((0.20, 0.19, 0.15), (0.24, 0.30, 0.13), fractal(1024, 1.5, rng))
    cobble = mix(moss, cobble, smoothstep(0.04, 0.13, joint))
    waves = fractal(512, 1.5, rng)
    slope = np.stack([np.roll(waves, -1, a) - np.roll(waves, 1, a) for a in (1, 0)], -1)
    hills = np.stack([fractal(1024, 1.4, rng)[0], fractal(1024, 1.1, rng)[0]])
    return SimpleNamespace(
        cobble=Texture.of(cobble, 1024 / 4),
        patches=Texture.of(fractal(256, 1.8, rng), 256 / 24),
        clouds=Texture.of(fractal(1024, 1.55, rng), 1.0),
        waves=Texture.of(slope / slope.std(), 1.0),
        hills=hills,
        foliage=Texture.of(fractal(256, 0.6, rng), 256.0),
        front=art.facade(rng),
        side=art.plaster(rng),
        branch=leaves_with_twig(rng),
        planter=art.planter(rng),
        lighthouse=art.lighthouse(),
        boat=art.sailing_boat(),
        railing=art.railing(),
    )


def leaves_with_twig(rng: np.random.Generator) -> Texture:
    """Boughs of the tree that hangs into the picture."""
    board = art.Board(4.4, 2.6, 200)
    board.line((70, 52, 38), 0.09, 4.4, 2.3, 3.0, 1.9, 1.6, 1.2, 0.8, 0.9)
    board.line((70, 52, 38), 0.05, 3.0, 1.9, 2.5, 1.0, 2.3, 0.5)
    for x, y, width, height, count in (
        (2.4, 1.1, 2.0, 1.5, 900),
        (0.9, 0.9, 2.0, 1.3, 700),
        (0.1, 0.3, 1.6, 1.1, 420),
        (1.7, 0.0, 1.5, 1.3, 420),
        (2.9, 0.4, 1.5, 1.4, 500),
    ):
        clump = art.leaves(width, height, count, rng).image
        board.image.alpha_composite(clump, (round(x * 200), round((2.6 - y - height) * 200)))
    return board.texture()


def sky(rays: Array, time: float, scene: SimpleNamespace) -> Array:
    """Late sun, soft clouds that drift, and hills behind the bay, in the directions `rays`."""
    unit = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    height = np.maximum(unit[..., 1], 0)
    colour = mix(HAZE, (0.36, 0.56, 0.80), smoothstep(-0.02, 0.42, height))
    x, y = unit[..., 0] / (height + 0.16), unit[..., 2] / (height + 0.16)
    big = scene.clouds.at(x * 150 + time * 2, y * 150, 1.0)[..., 0]
    fine = scene.clouds.at(x * 520 + time * 5 + 90, y * 520 + 300, 1.5)[..., 0]
    density = smoothstep(0.46, 0.68, big + 0.22 * (fine - 0.5))
    lit = mix((0.80, 0.76, 0.78), (1.0, 0.97, 0.91), smoothstep(0.85, 0.3, big + 0.5 * (fine - 0.5)))
    colour = mix(colour, lit, density * 0.9)
    glow = np.clip(unit @ (SUN / np.linalg.norm(SUN)), 0, 1)
    colour = colour + (glow**14 * 0.22)[..., None] * np.array((1.0, 0.75, 0.4), np.float32)
    azimuth = np.arctan2(unit[..., 0], unit[..., 2])
    for row, (low, gain, tone) in enumerate(((0.030, 0.055, (0.60, 0.64, 0.68)), (0.008, 0.045, (0.38, 0.47, 0.42)))):
        ridge = np.interp(azimuth * 460 + 400 + row * 130, np.arange(1024), scene.hills[row])
        top = low + gain * (ridge - 0.3)
        speck = scene.foliage.at(azimuth * 3.0, unit[..., 1] * 5.0, 0.004)[..., 0] - 0.5
        tinted = np.array(tone, np.float32) * (1 + 0.5 * row * speck + 0.1)[..., None]
        colour = mix(colour, tinted, smoothstep(-0.0012, 0.0012, top - unit[..., 1] + 0.004 * speck * row))
    return colour.astype(np.float32)


def sea(camera: Camera, rays: Array, time: float, scene: SimpleNamespace) -> Array:
    """Water that mirrors the sky, dark where one looks down into it, with the sun's glints; else zero."""
    out = np.zeros_like(rays)
    below = rays[..., 1] < -1e-3
    ray = rays[below]
    depth = (SEA_Y - camera.position[1]) / ray[:, 1]
    x, z = camera.position[0] + depth * ray[:, 0], camera.position[2] + depth * ray[:, 2]
    texel = depth / camera.focal * (1 + 0.12 * depth)
    slope = np.zeros((len(ray), 2), np.float32)
    for scale, speed, turn, gain in ((11, 1.1, 0.3, 0.7), (24, 1.9, -0.5, 0.7), (60, 2.6, 1.2, 0.5)):
        u, v = x * np.cos(turn) - z * np.sin(turn), x * np.sin(turn) + z * np.cos(turn)
        slope += gain * scene.waves.at(u * scale + time * speed * scale, v * scale * 1.4, texel * scale * 0.5)
    normal = np.stack([slope[:, 0] * 0.06, np.ones(len(ray), np.float32), slope[:, 1] * 0.085], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    view = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    facing = np.sum(view * normal, -1, keepdims=True)
    mirror = view - 2 * facing * normal
    fresnel = 0.05 + 0.95 * (1 - np.clip(-facing[:, 0], 0, 1)) ** 5
    up = np.clip(mirror[:, 1], 0, 1)
    reflected = mix((0.84, 0.78, 0.70), (0.34, 0.55, 0.78), smoothstep(0.0, 0.5, up))
    colour = mix((0.04, 0.25, 0.30), reflected, np.clip(fresnel, 0, 0.9))
    glint = np.clip(mirror @ (SUN / np.linalg.norm(SUN)), 0, 1)[:, None]
    colour = colour + (0.9 * glint**220 + 0.25 * glint**24) * np.array((1.0, 0.88, 0.62), np.float32)
    out[below] = mix(colour, HAZE, smoothstep(30, 420, depth) * 0.55)
    return out


def quay(camera: Camera, rays: Array, picture: Array, scene: SimpleNamespace) -> None:
    """Cobbles with the shade of leaves, and a kerb of pale stone where the quay ends; onto `picture`."""
    below = rays[..., 1] < -1e-3
    ray = rays[below]
    depth = -camera.position[1] / ray[:, 1]
    x, z = camera.position[0] + depth * ray[:, 0], camera.position[2] + depth * ray[:, 2]
    land = ((z < QUAY_Z) | (x < QUAY_X)) & (z < 60)
    ray, depth, x, z = ray[land], depth[land], x[land], z[land]
    texel = depth / camera.focal
    patch = scene.patches.at(x, z, texel)[:, 0]
    colour = scene.cobble.at(x, z, texel * 1.6) * (0.80 + 0.5 * patch)[:, None]
    puddle = smoothstep(0.66, 0.74, scene.patches.at(x * 1.7 + 5.5, z * 2.6 + 9, texel)[:, 0])
    colour = mix(colour, (0.74, 0.74, 0.76), puddle * 0.55)
    dapple = smoothstep(0.46, 0.60, scene.patches.at(x * 7 + 3, z * 7, texel * 7)[:, 0])
    shade = smoothstep(1.5, 4.0, x + 0.35 * z - 2.0) * (1 - dapple)
    corner = np.exp(-np.abs(z - art.WALL_Z) * 1.2) * (x < art.WALL_RIGHT + 0.3)  # where the wall stands
    colour = colour * (1.12 - 0.50 * shade - 0.45 * corner)[:, None]
    kerb = np.minimum(z - QUAY_Z + 0.5, x - QUAY_X + 0.5)  # metres from its inner edge, round the corner
    seam = np.abs((x % 1.2) - 0.6) > 0.575
    stone = mix((0.80, 0.75, 0.66), (0.60, 0.56, 0.50), patch) * np.where(seam, 0.6, 1.0)[:, None]
    colour = np.where((kerb > 0.03)[:, None], stone, colour * np.where(kerb > 0, 0.5, 1)[:, None])
    inside = np.zeros(below.shape, bool)
    inside[below] = land
    picture[inside] = colour


def place(
    camera: Camera,
    rays: Array,
    picture: Array,
    texture: Texture,
    origin: tuple[float, float, float],
    size: tuple[float, float],
    axis: int = 2,
    sway: float = 0.0,
    light: float = 1.0,
) -> None:
    """Puts an upright board onto the picture, over all that was put there before.

    Args:
        origin: The board's lower left corner as the viewer sees it.
        size: Its width and height in metres.
        axis: 2 where it faces the viewer, 0 where it leads away along z.
        sway: How far its top is blown to the right, in metres.
    """
    along = 2 - axis
    ray = rays[..., axis]
    depth = (origin[axis] - camera.position[axis]) / np.where(np.abs(ray) < 1e-6, 1e-6, ray)
    u = camera.position[along] + depth * rays[..., along] - origin[along]
    v = camera.position[1] + depth * rays[..., 1] - origin[1]
    u = u - sway * (v / size[1]) ** 2
    rim = depth / camera.focal * (texture.levels[0].shape[2] == 4)  # else its far edge bleeds in
    inside = (depth > 0.1) & (u >= rim) & (u < size[0] - rim) & (v >= rim) & (v < size[1] - rim)
    stretch = 1.0 if axis == 2 else 1.6
    colour = texture.at(u[inside], size[1] - v[inside], depth[inside] / camera.focal * stretch)
    if colour.shape[1] == 4:
        picture[inside] = picture[inside] * (1 - colour[:, 3:]) + colour[:, :3] * light
    else:
        picture[inside] = colour * light


def render(index: int, size: tuple[int, int]) -> Array:
    """Frame number `index` at `size` = (width, height), one ray a pixel: float32 `(h, w, 3)` in [0, 1]."""
    scene, time, way = props(), index / RATE, index / (FRAMES - 1)
    way = way * 0.7 + 0.3 * float(smoothstep(0, 1, np.float32(way)))  # starts and ends a little slower
    bob = 0.018 * np.sin(2 * np.pi * time * 0.9)
    camera = Camera((1.3 + 1.7 * way, 1.7 + bob, 0.2 + 0.7 * way), -0.15 + 0.035 * way, 0.055 + 0.004 * bob, size)
    rays = camera.rays()
    above = rays[..., 1] >= -1e-3
    picture = sea(camera, rays, time, scene)
    picture[above] = sky(rays[above], time, scene)
    place(camera, rays, picture, scene.lighthouse, (9.2, SEA_Y, 48), (9, 13), light=0.96)
    boat_x, heave = 6.6 - 0.55 * time, 0.06 * np.sin(2.3 * time)
    place(
        camera,
        rays,
        picture,
        scene.boat,
        (boat_x, SEA_Y - 0.25 + heave, 27),
        (6, 7),
        sway=0.25 * np.sin(1.7 * time),
    )
    quay(camera, rays, picture, scene)
    width, height = art.WALL_RIGHT - art.WALL_LEFT, art.WALL_TOP
    for x, z in ((-13.2, 17), (-10.6, 16), (-15.5, 15)):
        place(camera, rays, picture, scene.branch, (x, -0.3, z), (4.4, 2.6), light=0.75)
    place(camera, rays, picture, scene.side, (art.WALL_RIGHT, 0, art.WALL_Z), (8, height), axis=0, light=0.92)
    place(camera, rays, picture, scene.front, (art.WALL_LEFT, 0, art.WALL_Z), (width, height))
    place(camera, rays, picture, scene.railing, (QUAY_X + 0.2, 0, QUAY_Z - 0.3), (14, 1.2))
    place(camera, rays, picture, art.walker(time), (-3.6 + 1.25 * time, 0, 11.5), (1.4, 2.0))
    for x, y, z, beat, vx, vy in ((3.9, 4.5, 9.0, 0.0, -0.7, 0.25), (3.4, 4.6, 14.0, 1.9, 1.0, 0.3)):
        place(camera, rays, picture, art.gull(9.5 * time + beat), (x + vx * time, y + vy * time, z), (1.6, 1.0))
    wind = 0.07 * np.sin(1.9 * time) + 0.03 * np.sin(4.7 * time + 1)
    place(camera, rays, picture, scene.branch, (3.0, 2.75, 7.0), (4.4, 2.6), sway=wind)
    place(camera, rays, picture, scene.planter, (-2.25, -0.2, 5.2), (1.9, 1.4), sway=-wind * 0.6)
    return grade(picture)


def grade(picture: Array) -> Array:
    """A film's look: warm lights, lifted cool shadows, a soft shoulder, darker corners."""
    h, w = picture.shape[:2]
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    picture = picture * (1.04 - 0.16 * (x * x + y * y) ** 1.3 / 2)[..., None]
    picture = np.where(picture > 0.75, 0.75 + 0.25 * np.tanh((picture - 0.75) / 0.30), picture)
    luma = picture @ np.array((0.2126, 0.7152, 0.0722), np.float32)
    tint = mix((-0.006, 0.006, 0.022), (0.016, 0.004, -0.022), luma)
    return np.clip(0.025 + 0.965 * picture + tint, 0, 1).astype(np.float32)


def grain(index: int, size: tuple[int, int]) -> Array:
    """The film's grain for one finished frame, `(h, w, 1)`, to be added."""
    rng = np.random.default_rng((77, index))
    return (fractal(size[0], 0.35, rng)[: size[1], :, None] - 0.5) * 0.035


def sound(rate: int) -> Array:
    """Waves, wind, a soft chord and a gull: float32 `(2, samples)`, as long as the picture."""
    rng, count = np.random.default_rng(5), rate * FRAMES // RATE
    time = np.arange(count) / rate
    out = np.zeros((2, count))
    frequency = np.fft.rfftfreq(count, 1 / rate)
    for channel in range(2):
        spectrum = np.fft.rfft(rng.standard_normal(count))
        surf = np.fft.irfft(spectrum * np.exp(-frequency / 900) / np.sqrt(np.maximum(frequency, 60)), count)
        wind = np.fft.irfft(spectrum * np.exp(-(((frequency - 420) / 160) ** 2)), count)
        swell = 0.45 + 0.55 * np.sin(np.pi * (time / 2 + 0.12 * channel)) ** 2
        out[channel] += 0.13 * surf / surf.std() * swell + 0.03 * wind / wind.std() * (1.2 - swell)
        for note, pitch in enumerate((130.81, 196.0, 246.94, 329.63, 440.0)):
            attack = smoothstep(0.12 * note, 0.12 * note + 0.7, time)
            for partial in (1, 2, 3):
                wobble = 2 * np.pi * pitch * partial * (1 + 0.0015 * (channel - 0.5)) * time
                out[channel] += 0.055 / partial**2 * attack * np.sin(wobble + note)
        for start in (0.55, 0.85, 1.3):
            call = np.clip((time - start) / 0.22, 0, 1)
            phase = 2 * np.pi * np.cumsum(1500 + 700 * np.sin(np.pi * call)) / rate
            out[channel] += (
                (0.05 + 0.03 * channel) * np.sin(np.pi * call) ** 2 * (np.sin(phase) + 0.4 * np.sin(2 * phase))
            )
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.04)
    return (np.tanh(out * 1.1) * fade).astype(np.float32)

"""Upscale video: a file goes in, the same file comes out larger, every frame at its own time, the sound untouched.

The map of the code, from the bottom up. A wing, and in a wing a file, imports only from lines above its own; a wing's
`__init__`, where it holds something, stands last in it. `.github/ARCHITECTURE.md` says where to put what.

    errors, frame                       exceptions; frames, colours, facts of a file
    prefetch                            the only thread code
    presets, values, config             preset files; what a value may be; settings and runtime
    options                             the command line's options, made from the settings
    picture/                            tensors in, tensors out
        metrics, color, geometry            likeness to a truth; planes <-> RGB; how pictures are turned, and their size
        tiling, noise, resample             tiles and their blending; seeded noise; bicubic and the anchor
        interop, roundtrip                  pictures of NumPy, torch, Pillow; from any picture to RGB, and back
        temporal, flicker                   warping along the motion, and trust; what flickers
        flaws, footage                      what footage is like, in figures; the anchor that leaves that out
    engines/                            what makes the picture; the base of engines, the catalogue of models
        stops, unused                       checks whether to stop; settings without effect
        libraries, claims                   imports of models' libraries; checks of files
        architecture, single_file           the x4 model: its configuration, its weights in one file
        prompts                             from a prompt to embeddings
        structure, detail                   the structure of a VAE; the autoencoder of `mini`
        folding                             a VAE's weights, scaled for float16
        card, memory, compiling             facts of a device; its memory; torch.compile
        finite                              results that are not finite
        solver                              samplers (DPM++ 2M, UniPC, DDIM), and the one loop over steps
        layout, hub                         a model's files; find and load weights: a hub id, a folder, a file
        attention                           the decoder's attention: over the frame, or in windows
        tiny, vae, unet                     a distilled decoder; the decoder in bands of rows; a fast UNet
        tracing                             bytes and FLOP of UNet and decoder
        anchoring                           the anchor of results to their input
        windows, planner                    the one loop over tiles; the choice of batch and tiles
        diffusion                           what the diffusion models have in common
        interpolate, checkpoint, x2, x4     the families of models
        flow, relay                         optical flow; what is carried from frame to frame
    media/                              PyAV
        sequences, frames                   numbered pictures; PyAV's frames
        animation_input                     GIF, APNG, WebP and AVIF, read
        containers, codecs                  a record for each output container, and for each encoder
        vp9_alpha                           the transparency of VP9
        side_data, captions, boxes, hdr     what frames and files state beside the pictures
        options, trial                      the options of an encoder, and its objections
        selection, origins                  which streams are kept; clocks that restart
        quantiser                           how coarsely each frame was quantised when encoded
        opening, reading                    open a file, read its packets; decoded frames from anywhere in it
        compression                         how hard a file was compressed, as a whole
        y4m                                 pictures through pipes
        interlace, decoding                 deinterlacing; decode a video's frames
        timing, table, probing              when each frame is shown; what is in a file
        encoder, losses                     choose and open an encoder; what it does not keep
        segment                             encoded frames in a file of their own
        packets, sound, texts, conversion   the other streams: read, decode, re-encode
        streams, delivery                   what is done with each of them; what an output has to contain
        video                               a video as a sequence; frames from and to PyAV
        conversion_cache, thumbnails        streams converted ahead; small pictures
        animation_output, joining           segments as an animation; all into a container
    paths                               which files a command means, and whether they can be used
    upscaler                            pictures in, larger pictures out
    proof/                              re-read what was written, and prove it
        findings, tracks                    what is found wrong; digests of streams
        packets, facts                      the other streams; size, colour, chapters, tags
        likeness, faults, animation         how like pictures are; which are broken; animations read back
        joined, pictures                    a joined file against its segments; each picture against its source
    comparison                          quality of one video against another
    report/                             a page to look at
        films, faith                        its videos; how faithful a result is to its input
        choice, figures                     frames worth looking at; titles and units of figures
        pictures, lines                     maps of differences, WebP; one line over time
        plots, page                         figures over time as SVG; the HTML (page.html, page.css, page.js)
    job/                                upscale(): the main path
        progress                            progress events and their sinks; the outcome of each file
        ray_cluster, on_ray, crew           Ray itself; workers on it; where the work is done
        disk, store                         atomic writes; a job's folder and segments
        plan                                all that is decided before the first frame
        pace                                the share that relay computes; how long a job will take
        describe                            a job in words
        newest_picture                      the newest result, written to files for watching a job
        unfinished                          the kept frames of an unfinished segment
        worker                              decode, upscale, encode and prove a segment
        rehearse, verify                    the join before any work; any file against its source
        numbered                            numbered pictures as an output
        review                              the report of an output
        stills, queue, outlook              still images; jobs one after another; what a job would do
        piping                              Y4M through pipes
    bench/                              what this machine can do
        subjects, stopwatch                 what is measured; the stages of upscaling a frame, timed
    doctor                              whether this machine is ready
    vapoursynth                         a function for VapourSynth scripts
    terminal                            standard streams and signals
    ui/                                 a local page: choose, preview, compare, run (page/ is what the browser gets)
        safety                              access: token, host, origin, folders
        forms                               settings as form fields, and the equal command line
        films, looks                        open films and their frames; plans of files
        places                              the state folder
        making, previews                    previews of a frame or of two seconds; their queue
        runs, runner                        the queue of runs, in files; the process that works through it
        requests, server                    parsing requests; the routes
    arguments, cli                      the command line's parser; call the library, exit code

`engines` and `media` stand side by side and never meet. A frame's way is `job.worker.upscale_segment`: decode ->
upscale -> encode. The decoder runs ahead in a thread of its own, the encoder behind in another; the engine works in
the caller's, or, compiled on CUDA, in one of its own.

The public names below are loaded on first use: ``import vidup`` loads neither torch nor PyAV.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "upscale": "vidup.job",
    "upscale_files": "vidup.job",
    "verify": "vidup.job.verify",
    "Receipt": "vidup.proof",
    "Stopped": "vidup.errors",
    "Upscaler": "vidup.upscaler",
    "compare": "vidup.comparison",
    "open": "vidup.media.video",
    "Video": "vidup.media.video",
    "plan": "vidup.job.outlook",
    "Settings": "vidup.config",
    "Runtime": "vidup.config",
    "Progress": "vidup.job.progress",
    "Frame": "vidup.frame",
    "Color": "vidup.frame",
    "VidupError": "vidup.errors",
    "ConfigError": "vidup.errors",
    "MediaError": "vidup.errors",
    "EngineError": "vidup.errors",
    "ResumeError": "vidup.errors",
    "VerifyError": "vidup.errors",
}

__all__ = [
    "Color",
    "ConfigError",
    "EngineError",
    "Frame",
    "MediaError",
    "Progress",
    "Receipt",
    "ResumeError",
    "Runtime",
    "Settings",
    "Stopped",
    "Upscaler",
    "VerifyError",
    "Video",
    "VidupError",
    "compare",
    "open",
    "plan",
    "upscale",
    "upscale_files",
    "verify",
]

if TYPE_CHECKING:
    from vidup.comparison import compare
    from vidup.config import Runtime, Settings
    from vidup.errors import ConfigError, EngineError, MediaError, ResumeError, Stopped, VerifyError, VidupError
    from vidup.frame import Color, Frame
    from vidup.job import upscale, upscale_files
    from vidup.job.outlook import plan
    from vidup.job.progress import Progress
    from vidup.job.verify import verify
    from vidup.media.video import Video, open
    from vidup.proof import Receipt
    from vidup.upscaler import Upscaler


if not TYPE_CHECKING:  # to a checker, a module with this function has every name

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'vidup' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

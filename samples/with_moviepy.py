"""Upscale a clip with MoviePy, and fade it in: python with_moviepy.py IN.mp4 OUT.mp4"""

import sys

import moviepy

import vidup

source, target = sys.argv[1:]
with vidup.Upscaler("mini") as upscaler:
    large = moviepy.VideoFileClip(source).image_transform(upscaler)
    large.with_effects([moviepy.vfx.FadeIn(0.5)]).write_videofile(target)

"""Upscale a picture that OpenCV reads: python with_opencv.py IN.png OUT.png"""

import sys

import cv2

import vidup

source, target = sys.argv[1:]
with vidup.Upscaler("mini") as upscaler:
    bgr = cv2.imread(source)
    cv2.imwrite(target, upscaler(bgr[..., ::-1])[..., ::-1])
